"""A frozen network rewritten by torch.fx (fuse.py): each
BatchNorm layer is one pass with what follows it (norms.py)."""
