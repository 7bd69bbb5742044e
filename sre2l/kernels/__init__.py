"""A frozen network rewritten (fuse.py): each BatchNorm layer is one pass with what follows it (norms.py)."""
