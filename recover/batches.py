"""The units of work of recover: which (ipc, class) pairs share a batch. An image depends on its unit, never on what else runs."""
from dataclasses import dataclass
from pathlib import Path

import torch

from sre2l.run.errors import UserError
from sre2l.run.files import sidecar
from sre2l.data.image_folder import encode, image_path
from sre2l.check.manifest import missing_files, read_hashes, write_recorded
from sre2l.run.seeds import unit_rng


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


def image_names(pairs, num_classes, suffix):
    """The path of the image of each (ipc, class) pair in its folder, as the hash file has it -> {pair: name}."""
    return {(ipc, label): image_path("", label, ipc, num_classes, suffix).as_posix() for ipc, label in pairs}


def missing_pairs(root, names):
    """Which (ipc, class) pairs do not have the image that was recorded, in a file of its own -> a set. names: of image_names.

    Raises UserError where there are images and no hashes at all: to compute them anew is not what anybody wants."""
    names = {name: pair for pair, name in names.items()}
    if Path(root).is_dir() and not read_hashes(root) and any((Path(root) / name).exists() for name in names):
        raise UserError(f"{sidecar(root, 'sha256')}: the hashes of the images in {root} are gone; bring the file back, or start afresh with --overwrite")
    return {names[name] for name in missing_files(root, list(names), 4, "images", lambda path: path.exists() and not path.is_symlink())}


def write_units(root, units, pixels, names, then):
    """Write the images of some units that have a name, each file whole or not at all. pixels: (B, H, W, 3) uint8 of each unit; names:
    {(ipc, class): path in the folder, its suffix telling the format}; then(units) is called once all is on the disk."""
    for unit, batch in zip(units, pixels):
        chosen = [(names[pair], image) for pair, image in zip(unit.pairs, batch) if pair in names]
        write_recorded(root, {name: encode(image, Path(name).suffix) for name, image in chosen})
    then(units)
