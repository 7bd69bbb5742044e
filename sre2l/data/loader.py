"""Which images are in which batch, and batches that are prepared beside the computation."""
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from sre2l.data.augment import Crops, apply_crops, pixel_windows


class Batch(NamedTuple):
    """One batch of one epoch and the flat indices of its images, int64 [m]."""
    epoch: int
    index: int
    rows: np.ndarray


def epoch_orders(num_images, seed):
    """The order of the images in epoch 0, 1, ...: torch's RandomSampler with a generator of its own, which draws two permutations
    an epoch since torch 1.11 and drops the second. Endless; int64 [num_images] each."""
    generator = torch.Generator("cpu").manual_seed(seed)
    while True:
        yield torch.randperm(num_images, generator=generator).numpy()
        torch.randperm(num_images, generator=generator)


class Batches:
    """All batches of epochs first..epochs-1 in order, of the first of them from batch `index` on."""

    def __init__(self, num_images, batch_size, seed, epochs, first=0, index=0):
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.epochs, self.first, self.index = epochs, first, index

    @property
    def per_epoch(self):
        return -(-self.num_images // self.batch_size)

    def __len__(self):
        return (self.epochs - self.first) * self.per_epoch - self.index

    def __iter__(self):
        for epoch, order in zip(range(self.epochs), epoch_orders(self.num_images, self.seed)):
            if epoch >= self.first:
                for index in range(self.index if epoch == self.first else 0, self.per_epoch):
                    yield Batch(epoch, index, order[index * self.batch_size:(index + 1) * self.batch_size])


def in_order(function, items, threads, device=None):
    """Yield function(item) for each item, in order, computed on this many threads beside whoever takes the results (0: in this one); at most
    threads + 1 results wait. An error in a thread is raised here. device: a GPU that the function uses."""
    if not threads:
        yield from map(function, items)
        return
    on_gpu = device is not None and device.type == "cuda" and device.index is not None
    pool, waiting = ThreadPoolExecutor(threads, initializer=(lambda: torch.cuda.set_device(device)) if on_gpu else None), deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where the consumer stops, or Ctrl-C: no thread outlives this
        pool.shutdown(cancel_futures=True)


class BatchDataset:
    """A dataset whose item is one whole batch: (Batch, crops (m, 3, size, size) uint8, LabelBatch). label_batch_of: (Batch, sizes (m, 2)) -> LabelBatch."""

    def __init__(self, images, size, label_batch_of):
        self.images, self.size, self.label_batch_of = images, size, label_batch_of

    def __getitem__(self, batch):
        return self.finish(self.prepare(batch))

    def prepare(self, batch, rows_of=None, pin=False):
        """The part of an item that belongs on a thread: the sheet, and the crops, or where the images are on a GPU, what it needs to make them.

        rows_of: (Batch, LabelBatch) -> the positions in the batch whose crops are wanted, in that order, or None for all."""
        sizes = self.images.shapes(batch.rows)
        sheet = self.label_batch_of(batch, sizes)
        crops, rows = sheet.crops, batch.rows
        chosen = None if rows_of is None else rows_of(batch, sheet)
        if chosen is not None:
            chosen = torch.as_tensor(chosen)
            crops, rows, sizes = Crops(crops.boxes[chosen], crops.flips[chosen]), rows[chosen.numpy()], sizes[chosen.numpy()]
        if self.on_gpu:
            work = self.images.store.request(rows, pixel_windows(crops.boxes, sizes), crops.flips, self.size)
        else:
            work = apply_crops([self.images.pixels(row) for row in rows], crops, self.size)
        if pin:  # page-locked memory, which a GPU reads beside its computation
            work = work if self.on_gpu else work.pin_memory()
        return batch, work, sheet

    @property
    def on_gpu(self):
        return self.images.store is not None and self.images.store.layout is not None

    def finish(self, prepared):
        """The part that starts work on the GPU, where the images are there: makes the crops."""
        batch, work, sheet = prepared
        return batch, self.images.store.crops(work, self.size) if self.on_gpu else work, sheet


def load_batches(dataset, batches, workers, device, rows_of=None):
    """Yield (Batch, crops (m, 3, S, S) uint8 on the device, LabelBatch) in order, prepared by `workers` threads (0 = this one).

    rows_of: (Batch, LabelBatch) -> positions; the crops are then of those rows alone, in that order; None for all."""
    pin = device.type == "cuda"
    for prepared in in_order(lambda batch: dataset.prepare(batch, rows_of, pin), batches, workers, device):
        batch, pixels, sheet = dataset.finish(prepared)
        yield batch, pixels.to(device, non_blocking=True), sheet
