"""The units of work of recover: which (ipc, class) pairs share a batch. An image depends on its unit, never on what else runs."""
from dataclasses import dataclass


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
