"""uint8: each row in 256 steps between its smallest and its largest logit. C + 4 bytes a row.

    q = round((logit - zero) / scale)      logit is about zero + scale q, within scale / 2

scale and zero are float16. zero is rounded down and scale up, so that every logit lies within the 256 steps;
that moves a whole row by up to 2^-11 of its smallest logit, which no softmax sees."""
from dataclasses import dataclass

import numpy as np
import torch

STEPS = 255


def rounded(values, up):
    """float32 values (m,) as float16, none of them below (up) or above what it was."""
    found = values.astype(np.float16)
    wrong = found.astype(np.float32) < values if up else found.astype(np.float32) > values
    towards = np.float16(np.inf if up else -np.inf)
    return np.where(wrong, np.nextafter(found, towards), found)


@dataclass(frozen=True)
class Uint8:
    name: str = "uint8"

    def shapes(self, rows, classes):
        """The scale of each row, its zero, and q."""
        return [(np.dtype("<f2"), (rows,)), (np.dtype("<f2"), (rows,)), (np.dtype("u1"), (rows, classes))]

    def encode(self, logits):
        values = logits.float().numpy()
        zero = rounded(values.min(1), up=False)
        offsets = values - zero.astype(np.float32)[:, None]
        scale = rounded(offsets.max(1) / np.float32(STEPS), up=True)
        steps = np.where(scale > 0, scale, np.float16(1)).astype(np.float32)[:, None]  # a row may be constant
        return [scale, zero, np.rint(offsets / steps).clip(0, STEPS).astype(np.uint8)]

    def decode(self, arrays, classes):
        scale, zero, steps = (torch.from_numpy(array) for array in arrays)
        return torch.addcmul(zero.float()[:, None], scale.float()[:, None], steps.float())
