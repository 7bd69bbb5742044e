"""What both readers derive from (seed, epoch, batch): crops and mix, which label files hold as well, and what
changes a batch's pixels and is stored nowhere.

In this order: the stored image's patches move, crop and flip by the label file, operations of RandAugment."""
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sre2l.data.augment import draw_crops, draw_mix, unit_rng
from sre2l.data.label_files import LabelBatch
from sre2l.data.randaugment import draw_operations

# What follows (seed, epoch, batch) in the seed of each generator; that of crops and mix has nothing there.
OF_PATCHES = 1
OF_OPERATIONS = 2
AUGMENTS = ("none", "randaugment")


class Drawn(NamedTuple):
    """Of some images of a batch; None where nothing is changed.

    patches (m, 2, F) int64: the old places of the rows of patches, from the top, and of the columns;
    operations (m, 2, 2): of randaugment.draw_operations."""
    patches: np.ndarray | None = None
    operations: np.ndarray | None = None

    def of_rows(self, rows):
        return Drawn(*(None if values is None else values[rows] for values in self))


@dataclass(frozen=True)
class Derived:
    """The settings of --augment and --patch-shuffle, and the seed of the labels."""
    seed: int = 0
    augment: str = "none"
    patch_shuffle: int = 1

    def draw(self, batch):
        """-> Drawn for a Batch, whatever was drawn before."""
        patches = operations = None
        if self.patch_shuffle > 1:
            rng = unit_rng(self.seed, batch.epoch, batch.index, OF_PATCHES)
            places = np.tile(np.arange(self.patch_shuffle), (len(batch.rows), 2, 1))
            patches = rng.permuted(places, axis=2)
        if self.augment == "randaugment":
            rng = unit_rng(self.seed, batch.epoch, batch.index, OF_OPERATIONS)
            operations = draw_operations(len(batch.rows), rng)
        return Drawn(patches, operations)


def draw_label_batch(settings, batch, sizes):
    """Draw the crops and the mix of one batch, from a generator of its own. sizes (m, 2): height, width."""
    crop = settings["crop"]
    rng = unit_rng(settings["seed"], batch.epoch, batch.index)
    crops = draw_crops(sizes, crop["kind"], crop["scale"], crop["padding"], crop["flip"], rng)
    mix = draw_mix(settings["mix"], settings["mix_alpha"], len(sizes), settings["input_size"], rng)
    return LabelBatch(crops, mix)


def derived_of(settings):
    """-> the Derived of labels with these settings; None, of no manifest: it changes nothing."""
    keys = ("seed", "augment", "patch_shuffle")
    return Derived(**{key: settings[key] for key in keys if key in (settings or {})})
