"""What one of several processes computes of a batch: every world-th micro-batch, and the partners of its rows in the mix."""
from dataclasses import dataclass, replace

import torch

from sre2l.data.augment import Mix


@dataclass(frozen=True)
class Share:
    """rows (n,) int64: positions in the batch whose crops are needed: first the process's own, then the partners that are not among
    them. mix: the batch's, for these n crops. parts: a slice of the own rows for each micro-batch, numbers: which of the batch's
    num_parts micro-batches these are."""
    rows: torch.Tensor
    mix: Mix
    parts: list
    numbers: list
    num_parts: int
    num_rows: int

    @property
    def own(self):
        """The positions of the process's own rows."""
        return self.rows[:self.parts[-1].stop if self.parts else 0]

    @property
    def gaps(self):
        """How many micro-batches of other processes lie before each of its own, and after the last."""
        ends = [-1, *self.numbers, self.num_parts]
        return [after - before - 1 for before, after in zip(ends, ends[1:])]


def micro_batches(num_rows, micro_size):
    """Slices of micro_size rows. A single row left over joins the slice before it: BatchNorm cannot train on one image."""
    starts = list(range(0, num_rows, micro_size))
    if len(starts) > 1 and num_rows - starts[-1] == 1:
        starts.pop()
    return [slice(start, stop) for start, stop in zip(starts, starts[1:] + [num_rows])]


def consecutive(lengths):
    """Slices of these lengths, one after another from 0."""
    stops = torch.tensor([0, *lengths]).cumsum(0).tolist()
    return [slice(start, stop) for start, stop in zip(stops, stops[1:])]


def share_of(num_rows, mix, micro_size, rank, world):
    """Micro-batch k of the batch belongs to process k % world; one that is short may leave a process without rows -> Share.

    In one process rows are 0..num_rows-1 and the mix is the batch's."""
    slices = micro_batches(num_rows, micro_size)
    numbers = list(range(rank, len(slices), world))
    if not numbers:  # one crop, since a batch of none is trouble; it is not used
        return Share(torch.arange(1), Mix(), [], [], len(slices), num_rows)
    rows = own = torch.cat([torch.arange(num_rows)[slices[number]] for number in numbers])
    if mix.partner is not None:
        wanted = torch.zeros(num_rows, dtype=torch.bool)
        wanted[mix.partner[own]] = True
        wanted[own] = False
        rows = torch.cat((own, wanted.nonzero().flatten()))
        place = torch.zeros(num_rows, dtype=torch.int64)
        place[rows] = torch.arange(len(rows))
        partner = torch.arange(len(rows))  # a partner's own partner is not needed: it is mixed with itself
        partner[:len(own)] = place[mix.partner[own]]
        mix = replace(mix, partner=partner)
    parts = consecutive([slices[number].stop - slices[number].start for number in numbers])
    return Share(rows, mix, parts, numbers, len(slices), num_rows)
