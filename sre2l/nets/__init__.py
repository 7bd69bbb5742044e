"""Networks: built, loaded from checkpoints, trained."""
