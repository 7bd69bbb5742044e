"""topk:K: the K largest logits of each row and their classes. 3K to 6K bytes a row.

The target is the softmax over these K alone, and 0 elsewhere, as in LPQLD."""
from dataclasses import dataclass

import numpy as np
import torch


def index_dtype(classes):
    """The smallest whole numbers that tell so many classes apart."""
    return np.dtype("u1" if classes <= 2 ** 8 else "<u2" if classes <= 2 ** 16 else "<u4")


@dataclass(frozen=True)
class TopK:
    """k: how many, of fewer classes all."""
    k: int

    @property
    def name(self):
        return f"topk:{self.k}"

    def shapes(self, rows, classes):
        """The logits, largest first, and their classes."""
        shape = rows, min(self.k, classes)
        return [(np.dtype("<f2"), shape), (index_dtype(classes), shape)]

    def encode(self, logits):
        classes = logits.shape[1]
        values, indices = logits.half().sort(dim=1, descending=True, stable=True)  # of equals the first
        kept = slice(min(self.k, classes))
        return [values[:, kept].contiguous().numpy(), indices[:, kept].numpy().astype(index_dtype(classes))]

    def decode(self, arrays, classes):
        """Raises IndexError for a class that there is not."""
        values, indices = arrays
        if indices.size and indices.max() >= classes:
            raise IndexError(f"class {indices.max()} of {classes}")
        logits = torch.full((len(values), classes), -torch.inf, dtype=torch.float16)
        return logits.scatter_(1, torch.from_numpy(indices.astype(np.int64)), torch.from_numpy(values))
