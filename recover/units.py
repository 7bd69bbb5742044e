"""The units of work of recover: which (ipc, class) pairs share a batch. An image depends on its unit, never on what else runs."""
from dataclasses import dataclass

import torch

from sre2l.images import image_path, save_jpeg
from sre2l.runtime import atomic, unit_rng


@dataclass(frozen=True)
class Unit:
    """One batch. index: its place in the list that starts at ipc 0; pairs: (ipc, class) of its images, in batch order."""
    index: int
    pairs: tuple


def make_unit(index, classes, batch_size):
    """Unit `index` of an endless set. With batch_size classes or more: one image of each of the next batch_size classes, one ipc
    index. With fewer: the next batch_size pairs of the flat list, ipc by ipc."""
    if len(classes) < batch_size:
        flat = range(index * batch_size, (index + 1) * batch_size)
        return Unit(index, tuple((k // len(classes), classes[k % len(classes)]) for k in flat))
    blocks = -(-len(classes) // batch_size)
    ipc, block = divmod(index, blocks)
    return Unit(index, tuple((ipc, label) for label in classes[block * batch_size:(block + 1) * batch_size]))


def make_units(classes, batch_size, ipc_start, ipc_end):
    """All units that hold an image with ipc_start <= ipc < ipc_end, in order."""
    if len(classes) < batch_size:
        first, last = ipc_start * len(classes) // batch_size, -(-ipc_end * len(classes) // batch_size)
    else:
        blocks = -(-len(classes) // batch_size)
        first, last = ipc_start * blocks, ipc_end * blocks
    return [make_unit(index, classes, batch_size) for index in range(first, last)]


def make_chunks(units, groups):
    """The units that are computed at the same time: `groups` after another, as long as their batches are of one size."""
    chunks = []
    for unit in units:
        fits = chunks and len(chunks[-1]) < groups and len(chunks[-1][0].pairs) == len(unit.pairs)
        if fits:
            chunks[-1].append(unit)
        else:
            chunks.append([unit])
    return chunks


def chunk_name(units):
    """'unit 3' or 'unit 3-6', for logs."""
    return f"unit {units[0].index}" + (f"-{units[-1].index}" if len(units) > 1 else "")


def draw_unit(unit, seed, size, iterations, draw):
    """Everything random about a unit: -> (noise (B, 3, size, size) float32, its views). draw: generator -> View."""
    rng = unit_rng(seed, unit.index)
    noise = rng.standard_normal((len(unit.pairs), 3, size, size), dtype="float32")
    return torch.from_numpy(noise), [draw(rng) for _ in range(iterations)]


def draw_chunk(units, **settings):
    """draw_unit of each."""
    return [draw_unit(unit, **settings) for unit in units]


def missing_pairs(root, unit, wanted, num_classes):
    """The wanted (ipc, class) pairs of a unit whose images are not there yet."""
    return {(ipc, label) for ipc, label in unit.pairs if (ipc, label) in wanted and not image_path(root, label, ipc, num_classes).exists()}


def write_images(root, unit, pixels, wanted, num_classes):
    """Write the wanted pairs of a unit, each file whole or not at all. pixels: (H, W, 3) uint8 of each pair -> how many."""
    for (ipc, label), image in zip(unit.pairs, pixels):
        if (ipc, label) in wanted:
            with atomic(image_path(root, label, ipc, num_classes), root) as tmp:
                save_jpeg(image, tmp)
    return len(wanted)
