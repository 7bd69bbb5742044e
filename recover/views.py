"""The view of one iteration: one crop window, one flip and one roll for the whole batch.

It exists as a record, as an operation on images, and as a table for the GPU."""
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from sre2l.data.augment import draw_resized_windows

LEAST_AREA = 0.08  # of a crop, as RandomResizedCrop's default; the largest is 1, the whole image
CURRICULA = ("none", "cosine", "linear", "step")


@dataclass(frozen=True)
class View:
    """What one iteration sees of the whole batch."""
    window: tuple | None  # top, left, height, width, pixels
    flip: bool
    roll: tuple  # rows, columns, pixels


WHOLE_IMAGE = View(None, False, (0, 0))


def least_areas(curriculum, low, milestone, iterations):
    """The lower bound of the crop's area in each iteration: CDA's curriculum (arXiv 2311.18838), which begins
    with the whole image and has come down to `low` when the share `milestone` of the iterations is over."""
    fall = {"step": lambda share: 1.0, "linear": lambda share: 1 - share,
            "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2}
    bounds = [low] * iterations
    if curriculum != "none":
        end = milestone * iterations
        for t in range(min(iterations, math.ceil(end))):
            bounds[t] = low + (1 - low) * fall[curriculum](t / end)
    return bounds


def draw_view(size, jitter, signed, crop_flip, rng, least_area=LEAST_AREA):
    """One crop window, one flip and one roll of 0..jitter pixels; signed: of -jitter..jitter."""
    window = None
    flip = False
    if crop_flip:
        windows = draw_resized_windows(np.array([[size, size]]), (least_area, 1.0), rng)
        window = tuple(windows[0].tolist())
        flip = bool(rng.random() < 0.5)
    roll = tuple(rng.integers(-jitter if signed else 0, jitter + 1, size=2).tolist())
    return View(window, flip, roll)


def apply_view(images, view):
    """roll(flip(crop(x))), of (B, 3, S, S). NOTE: one for the whole batch, as in the paper's code."""
    if view.window is not None:
        top, left, height, width = view.window
        cropped = images[:, :, top:top + height, left:left + width]
        images = F.interpolate(cropped, size=images.shape[2:], mode="bilinear", align_corners=False)
    if view.flip:
        images = images.flip(3)
    return images.roll(view.roll, (2, 3))


# A view as a table, for kernels of fixed shape: 5 lines for the rows and 5 for the columns, S numbers each.
LOWER, WEIGHT, FIRST, STOP, SHIFT = range(5)


def tabulate_axis(first, length, size, roll, flip):
    """One axis of many views -> (V, 5, S). first, length (of the window), roll, flip: arrays (V,), pixels.

    For output pixel i: LOWER, the stored pixel l, and WEIGHT w, so that out[i] = (1 - w) x[l] + w x[l + 1].
    For stored pixel r: FIRST and STOP, the range of places p before flip and roll whose l is r - 1 or r.
    SHIFT holds, in its first two numbers, roll and flip."""
    table = np.zeros((len(first), 5, size))
    places = np.arange(size)
    number = np.arange(len(first))[:, None]

    # The crop, for each place of the output before flip and roll: as F.interpolate without aligned corners.
    at = (places + 0.5) * (length[:, None] / size) - 0.5
    at = np.clip(at, 0, length[:, None] - 1.0)
    low = np.floor(at)
    lower = low + first[:, None]
    weight = at - low

    # Flip and roll say which place an output pixel shows.
    source = (places - roll[:, None]) % size
    source = np.where(flip[:, None], size - 1 - source, source)
    table[:, LOWER] = lower[number, source]
    table[:, WEIGHT] = weight[number, source]
    table[:, SHIFT, 0] = roll % size
    table[:, SHIFT, 1] = flip

    # Backwards: l grows with the place, so the places that read a stored pixel are a range.
    # counts: how many places have each l; smaller: how many have a smaller one.
    counts = np.zeros((len(first), size + 2), np.int64)
    np.add.at(counts, (number, lower.astype(np.int64) + 1), 1)
    smaller = counts.cumsum(1)
    table[:, FIRST] = np.concatenate((np.zeros_like(smaller[:, :1]), smaller[:, :size - 1]), 1)
    table[:, STOP] = smaller[:, 1:size + 1]
    return table


def tabulate(views, size):
    """V views -> (V, 10, S) float64: five lines for the rows, five for the columns, as in tabulate_axis."""
    windows = np.array([view.window or (0, 0, size, size) for view in views], np.float64)
    rolls = np.array([view.roll for view in views])
    flips = np.array([view.flip for view in views])
    rows = tabulate_axis(windows[:, 0], windows[:, 2], size, rolls[:, 0], np.zeros_like(flips))
    columns = tabulate_axis(windows[:, 1], windows[:, 3], size, rolls[:, 1], flips)
    return torch.from_numpy(np.concatenate((rows, columns), 1))
