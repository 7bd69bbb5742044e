"""Do stored labels know their images? The top-1 of the logits against the classes of the images; it needs no teacher."""
import math
from typing import NamedTuple

import torch

from sre2l.data.label_files import read_label_batch


class Agreement(NamedTuple):
    """share: of rows whose stored top-1 is the class of the image or of its partner; chance: the share expected by chance; over num_rows."""
    share: float
    chance: float
    num_rows: int

    def is_within(self, factor):
        """Is the share below `factor` times chance, or what luck gives in so few rows? Where there are few classes, factor times chance is out of reach."""
        luck = self.chance + 3 * math.sqrt(self.chance * (1 - self.chance) / self.num_rows)
        return self.share < min(max(factor * self.chance, luck), (1 + self.chance) / 2)

    @property
    def is_chance(self):
        """Is the share so near chance that labels which nothing vouches for are not believed?"""
        return self.is_within(2)

    @property
    def text(self):
        return (f"the top-1 of {100 * self.share:.1f}% of the stored logits is the class of the image or of its partner "
                f"(chance {100 * self.chance:.1f}%, {self.num_rows:,} read)")

    @property
    def warning(self):
        """A sentence with the likely cause, None where there is nothing to warn of."""
        if self.is_within(1.25):
            return ("warning: that is chance, and a student will learn little: the teacher's classes are in another order or its normalisation is another "
                    "one, these are images of another set, or recover had far too few iterations")
        if self.share < 0.5:
            return ("warning: that is low: the mix makes the images hard, recover had too few iterations for this teacher, or these labels were made for "
                    "other images")
        return None


def top1_hits(sheet, own, frequency):
    """-> (rows whose top-1 is the class of the image or of its partner, how many that would be on images dealt out anew). own (m,): the
    classes of the images; frequency: the share of each class in the set."""
    top1 = sheet.logits.float().argmax(1)
    hit, by_luck = top1 == own, torch.where(top1 < len(frequency), frequency[top1.clamp(max=len(frequency) - 1)], 0.0)
    if sheet.mix.partner is not None:
        hit, by_luck = hit | (top1 == own[sheet.mix.partner]), 1 - (1 - by_luck) ** 2
    return int(hit.sum()), float(by_luck.sum())


def frequencies(labels):
    """The share of each class in a set with these labels (n,)."""
    return torch.bincount(torch.from_numpy(labels)) / len(labels)


def agreement(root, labels, batches, max_rows=4000):
    """-> the Agreement of a label folder and the classes of its images, labels (n,) int64 in flat order.

    Chance is that of the same logits on images dealt out anew, so it knows a set of few classes. Reads whole batches until max_rows are seen."""
    right = seen = chance = 0
    frequency = frequencies(labels)
    for batch in batches:
        sheet = read_label_batch(root, batch.epoch, batch.index, len(batch.rows))
        hits, by_luck = top1_hits(sheet, torch.from_numpy(labels[batch.rows]), frequency)
        right, seen, chance = right + hits, seen + len(batch.rows), chance + by_luck
        if seen >= max_rows:
            break
    return Agreement(right / seen, chance / seen, seen)
