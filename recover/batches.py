"""Which images share a batch, and what is drawn for it.

The first is part of the method: the BatchNorm statistics of a batch are matched as a whole. An image depends
on its batch, and never on what else runs: ranges, processes and groups change nothing."""
from dataclasses import dataclass

import torch

from sre2l.data.augment import unit_rng
from sre2l.data.image_folder import image_path


@dataclass(frozen=True)
class ImageBatch:
    """Images that are optimised together. pairs: (ipc, class) of each, in batch order.

    index: the place of the batch in the endless list that starts at ipc 0, or in the run's list by class."""
    index: int
    pairs: tuple


@dataclass(frozen=True)
class BatchGroup:
    """ImageBatches of one size that are computed at the same time, each as if alone."""
    batches: tuple

    @property
    def name(self):
        """'unit 3' or 'unit 3-6', for logs."""
        first = self.batches[0].index
        last = self.batches[-1].index
        return f"unit {first}" if first == last else f"unit {first}-{last}"

    @property
    def pairs(self):
        """(ipc, class) of all its images."""
        return [pair for batch in self.batches for pair in batch.pairs]

    def targets(self, device):
        """The class of each image, (G, B) int64."""
        return torch.tensor([[label for _, label in batch.pairs] for batch in self.batches], device=device)


def in_parts(items, size):
    """A list cut into parts of `size`; the last one may be shorter."""
    return [items[at:at + size] for at in range(0, len(items), size)]


def plan_batches(classes, batch_size, ipc_start, ipc_end, order="ipc"):
    """All ImageBatches that hold an image with ipc_start <= ipc < ipc_end, in order.

    order: 'ipc': of an endless list of batches those that the range needs, whole. With batch_size classes or
    more, a batch has one image of each of the next batch_size classes, all of one ipc index. With fewer
    classes it has the next batch_size pairs of the flat list, which takes the classes ipc by ipc.
    'class': all images of the first class, then all of the next, cut into batches (EDC, LPLD). What shares a
    batch then depends on the range."""
    if order == "class":
        first = 0
        pairs = [(ipc, label) for label in classes for ipc in range(ipc_start, ipc_end)]
        parts = in_parts(pairs, batch_size)
    elif len(classes) >= batch_size:
        blocks = in_parts(classes, batch_size)
        first = ipc_start * len(blocks)
        parts = [[(ipc, label) for label in block] for ipc in range(ipc_start, ipc_end) for block in blocks]
    else:
        first = ipc_start * len(classes) // batch_size
        stop = -(-ipc_end * len(classes) // batch_size)
        flat = range(first * batch_size, stop * batch_size)
        parts = in_parts([(k // len(classes), classes[k % len(classes)]) for k in flat], batch_size)
    return [ImageBatch(index, tuple(part)) for index, part in enumerate(parts, first)]


def group_batches(batches, size):
    """ImageBatches in order -> BatchGroups of at most `size`. One of another length begins a new group."""
    groups = []
    for batch in batches:
        if groups and len(groups[-1]) < size and len(groups[-1][0].pairs) == len(batch.pairs):
            groups[-1].append(batch)
        else:
            groups.append([batch])
    return [BatchGroup(tuple(group)) for group in groups]


def draw_batch(batch, seed, size, draw_views):
    """Everything random about one batch -> (noise (B, 3, S, S) float32, one View for each iteration)."""
    rng = unit_rng(seed, batch.index)
    noise = rng.standard_normal((len(batch.pairs), 3, size, size), dtype="float32")
    return torch.from_numpy(noise), [draw_one_view(rng=rng) for draw_one_view in draw_views]


def draw(group, seed, size, draw_views):
    """Everything random about a group; each batch depends on (seed, its index) alone.

    size: S, pixels; draw_views: for each of T iterations a function, generator rng -> View.
    -> (noise (G, B, 3, S, S) float32 on the CPU, views: T lists of G View)"""
    drawn = [draw_batch(batch, seed, size, draw_views) for batch in group.batches]
    noise, views = zip(*drawn)
    return torch.stack(noise), [list(views_of_iteration) for views_of_iteration in zip(*views)]


def image_names(pairs, num_classes, lossless):
    """The path of each image within its folder -> {(ipc, class): 'new000/class000_id000.jpg'}."""
    suffix = ".png" if lossless else ".jpg"
    return {(ipc, label): image_path("", label, ipc, num_classes, suffix).as_posix() for ipc, label in pairs}


def index_ranges(pairs, num_classes):
    """The flat indices ipc * num_classes + class of these images -> ascending ranges [(first, stop), ...]."""
    ranges = []
    for index in sorted(ipc * num_classes + label for ipc, label in pairs):
        if ranges and ranges[-1][1] == index:
            ranges[-1] = ranges[-1][0], index + 1
        else:
            ranges.append((index, index + 1))
    return ranges
