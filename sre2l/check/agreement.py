"""Do stored labels know their images? Top-1 of the logits against the images' classes; needs no teacher."""
import math
from typing import NamedTuple

import torch

ENOUGH_ROWS = 4000  # to tell a share from chance


class Agreement(NamedTuple):
    """share: of rows whose stored top-1 is the class of the image or of its partner; chance: the share
    expected by chance; num_rows: the number of rows."""
    share: float
    chance: float
    num_rows: int

    def is_within(self, factor):
        """Is the share below `factor` times chance, or below what luck gives in so few rows? Of few classes,
        where factor times chance is out of reach, half of the way up to 1 counts."""
        luck = self.chance + 3 * math.sqrt(self.chance * (1 - self.chance) / self.num_rows)
        return self.share < min(max(factor * self.chance, luck), (1 + self.chance) / 2)

    @property
    def is_chance(self):
        """Is the share so near chance that labels which nothing vouches for are not believed?"""
        return self.is_within(2)

    @property
    def text(self):
        return (f"the top-1 of {100 * self.share:.1f}% of the logits is the class of the image or of its "
                f"partner (chance {100 * self.chance:.1f}%, {self.num_rows:,} read)")

    @property
    def warning(self):
        """A sentence with the likely cause, None where there is nothing to warn of."""
        if self.is_within(1.25):
            return ("warning: that is near chance, and a student may learn little: the teacher's classes are "
                    "in another order or its normalisation is another one, these are images of another set, "
                    "or, if they were recovered, recover had far too few iterations or too large an r_bn")
        if self.share < 0.5:
            return ("warning: that is low: the mix makes the images hard, these labels were made for other "
                    "images, or, if these were recovered, recover had too few iterations for this teacher")
        return None


def top1_hits(label_batch, own, frequency):
    """How many rows have as top-1 the class of the image or of its partner -> (that number, the same on
    images dealt out anew).

    own (m,): the classes of the images; frequency: the share of each class in the set."""
    top1 = label_batch.logits.float().argmax(1).cpu()
    is_known = top1 < len(frequency)
    is_hit = top1 == own
    by_luck = torch.where(is_known, frequency[top1.clamp(max=len(frequency) - 1)], 0.0)
    partner = label_batch.mix.partner
    if partner is not None:
        is_hit = is_hit | (top1 == own[partner])
        by_luck = 1 - (1 - by_luck) ** 2
    return int(is_hit.sum()), float(by_luck.sum())


def frequencies(labels):
    """The share of each class in a set with these labels (n,)."""
    return torch.bincount(torch.from_numpy(labels)) / len(labels)


def agreement(labelled, labels):
    """-> the Agreement of stored labels and the classes of their images, labels (n,) int64 in flat order.

    labelled: (Batch, ..., LabelBatch) of one batch after the other, until ENOUGH_ROWS are seen. Chance is the
    share of the same logits on images dealt out anew, so that it is right for few classes, too."""
    hits = luck = seen = 0
    frequency = frequencies(labels)
    for batch, *_, label_batch in labelled:
        batch_hits, batch_luck = top1_hits(label_batch, torch.from_numpy(labels[batch.rows]), frequency)
        hits += batch_hits
        luck += batch_luck
        seen += len(batch.rows)
        if seen >= ENOUGH_ROWS:
            break
    return Agreement(hits / seen, luck / seen, seen)
