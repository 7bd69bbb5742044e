"""A frozen network rewritten by torch.fx (fuse.py), whose BatchNorm layers are one pass each (norms.py) with the sum, clamp and pool after them."""
