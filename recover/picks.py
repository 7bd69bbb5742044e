"""Which real images of a class are picked by their scores, and what is cut from them.

A ranking lists the places 0..n-1 of n images of a class, the easiest first. Each kind of pick takes
(ranking, ipc, cells) and gives the places of the `cells` images that make up each of `ipc` picked ones. No
place is given twice. Another kind is another function in PICKS."""
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sre2l.data.augment import draw_resized_windows, unit_rng
from sre2l.data.real_images import show
from sre2l.data.resize import host_cropper
from sre2l.run.errors import UserError

CROP_AREA = (0.08, 1.0)  # of a crop, as a part of the image


@dataclass(frozen=True)
class Cell:
    """A part of a real image, as it stands in a picked one.

    row: of the real images; box: top, left, height, width in pixels of the stored image, None for the largest
    square in its centre; score: the lower, the easier; None where nothing was scored."""
    row: int
    box: tuple | None = None
    score: float | None = None


# -- kinds of pick

def in_columns(order, ipc, cells):
    """Image j gets the places j, j + ipc, j + 2 ipc, ... of an order: RDED's mosaics."""
    return [order[j:ipc * cells:ipc] for j in range(ipc)]


def easiest(ranking, ipc, cells):
    return in_columns(ranking, ipc, cells)


def hardest(ranking, ipc, cells):
    return in_columns(ranking[::-1], ipc, cells)


def medium(ranking, ipc, cells):
    """From the middle alternately to both ends: DELT's ranks m, m+1, m-1, m+2, ... with m = ceil(n / 2),
    counted from 0 at the hardest. Ranks that are not there are passed over."""
    from_hardest = ranking[::-1]
    middle = math.ceil(len(ranking) / 2)
    ranks = [middle + (step + 1) // 2 * (1 if step % 2 else -1) for step in range(len(ranking) + 2)]
    return in_columns([from_hardest[rank] for rank in ranks if 0 <= rank < len(ranking)], ipc, cells)


def groups_of(ranking, ipc):
    """`ipc` groups of a ranking, from the easiest to the hardest; their sizes differ by one at most."""
    return np.array_split(ranking, ipc)


def spread(ranking, ipc, cells):
    """Image g is the middle of group g."""
    groups = groups_of(ranking, ipc)
    starts = [(len(group) - cells) // 2 for group in groups]
    return [group[start:start + cells] for group, start in zip(groups, starts)]


def spread_front(ranking, ipc, cells):
    """Image g is the easiest of group g."""
    return [group[:cells] for group in groups_of(ranking, ipc)]


def spread_back(ranking, ipc, cells):
    """Image g is the hardest of group g."""
    return [group[::-1][:cells] for group in groups_of(ranking, ipc)]


PICKS = {"easiest": easiest, "medium": medium, "hardest": hardest, "spread": spread,
         "spread-front": spread_front, "spread-back": spread_back}
# More images of a class leave the first ones as they are, without mosaics; of another kind ipc is recorded.
GROWING = ("easiest", "medium", "hardest")
SPREADS = ("spread", "spread-front", "spread-back")  # image g of a class comes from group g


# -- the images of a class

def drawn_rows(images, label, seed):
    """The rows of a class in an order that depends on (seed, class) alone."""
    return unit_rng(seed, label).permutation(np.flatnonzero(images.labels == label))


def check_enough(images, classes, ipc, cells=1):
    """Raise UserError where a class, the smallest of them, has fewer real images than are picked of it."""
    there, label = min((int(np.count_nonzero(images.labels == label)), label) for label in classes)
    if there < ipc * cells:
        each = f" ({cells} for each picked one)" if cells > 1 else ""
        of_class = (item for item, of in zip(images.items, images.labels) if of == label)
        folders = (f", or add images to {Path(item).parent}" for item in of_class if isinstance(item, str))
        raise UserError(f"{images.root}: class {label} has {there} images, {ipc * cells} are wanted{each}; "
                        f"make fewer of each class: --ipc-end {there // cells}{next(folders, '')}")


def pick_random(images, classes, ipc, seed, cells=1):
    """Draw real images of each class without replacement -> {(ipc, class): [Cell, ...]}.

    With one cell an image the first images of a class do not depend on how many are drawn."""
    check_enough(images, classes, ipc, cells)
    chosen = {}
    for label in classes:
        rows = drawn_rows(images, label, seed).tolist()
        for i, own in enumerate(in_columns(rows, ipc, cells)):
            chosen[i, label] = [Cell(row) for row in own]
    return chosen


def rank(candidates):
    """The places of some Cells, the easiest first; of equal scores that which was drawn first."""
    return np.argsort([cell.score for cell in candidates], kind="stable")


def pick_scored(scored, pick, ipc, cells=1):
    """Pick by scores -> {(ipc, class): [Cell, ...]}. scored: {class: a Cell of each image, as drawn}."""
    chosen = {}
    for label, candidates in scored.items():
        for i, places in enumerate(PICKS[pick](rank(candidates), ipc, cells)):
            chosen[i, label] = [candidates[place] for place in places]
    return chosen


def group_rows(scored, ipc):
    """The rows of the images of each group, all classes in it, from the easiest group on -> `ipc` lists."""
    groups = [[] for _ in range(ipc)]
    for candidates in scored.values():
        for group, places in zip(groups, groups_of(rank(candidates), ipc)):
            group += [candidates[place].row for place in places]
    return groups


# -- what is cut from an image

def draw_boxes(shape, crops, seed, label, place):
    """RandomResizedCrop's windows of ratio 1, from (seed, class, image) alone -> (crops, 4) int64: top, left,
    height, width, pixels.

    shape: height and width; place: of the image in its class."""
    rng = unit_rng(seed, label, place + 1)  # numpy takes [seed, label, 0] for [seed, label]
    return draw_resized_windows(np.tile(shape, (crops, 1)), CROP_AREA, rng, ratio=(1, 1))


def cut(pixels, boxes, size):
    """Cut from one image (H, W, 3) uint8 -> (m, size, size, 3) uint8. boxes (m, 4); None: the largest square
    in the centre."""
    if boxes is None:
        return show(pixels, size, size)[None]
    boxes = np.asarray(boxes, np.int64)
    views = host_cropper()[0]([pixels] * len(boxes), boxes, np.zeros(len(boxes), bool), size)
    return views.permute(0, 2, 3, 1).contiguous().numpy()


def central_box(height, width):
    """The largest square in the centre of an image -> [top, left, height, width], pixels."""
    side = min(height, width)
    return [round((height - side) / 2), round((width - side) / 2), side, side]


def mosaic(cells, size):
    """Cells (f * f, s, s, 3) uint8, row by row -> (size, size, 3) uint8.

    Where `size` is odd, the first rows and columns are a pixel larger, by the nearest pixel."""
    grid = math.isqrt(len(cells))
    extents = [len(part) for part in np.array_split(np.arange(size), grid)]
    nearest = [np.arange(extent) * cells.shape[1] // extent for extent in extents]
    rows = [[cells[r * grid + c][nearest[r]][:, nearest[c]] for c in range(grid)] for r in range(grid)]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def centred(views, size):
    """Views (n, 3, s, s) in the middle of zeros (n, 3, size, size), as RDED scores the cells of a mosaic."""
    before = (size - views.shape[-1]) // 2
    after = size - views.shape[-1] - before
    return torch.nn.functional.pad(views, (before, after, before, after))
