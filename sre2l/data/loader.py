"""Which images are in which batch, and batches that are prepared beside the computation."""
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from sre2l.data.augment import Crops, shuffle_patches
from sre2l.data.derived import Derived
from sre2l.data.randaugment import apply_operations
from sre2l.data.resize import apply_crops, pixel_windows
from sre2l.run.ahead import in_order


class Batch(NamedTuple):
    """One batch of one epoch and the flat indices of its images, int64 [m]."""
    epoch: int
    index: int
    rows: np.ndarray


def epoch_orders(num_images, seed):
    """The order of the images in epoch 0, 1, ...: torch's RandomSampler with a generator of its own, which
    draws two permutations an epoch since torch 1.11 and drops the second. Endless; int64 [num_images]."""
    generator = torch.Generator("cpu").manual_seed(seed)
    while True:
        yield torch.randperm(num_images, generator=generator).numpy()
        torch.randperm(num_images, generator=generator)


@dataclass(frozen=True)
class Batches:
    """All batches of epochs first..epochs-1, in order."""
    num_images: int
    batch_size: int
    seed: int
    epochs: int
    first: int = 0

    @property
    def per_epoch(self):
        return -(-self.num_images // self.batch_size)

    def __len__(self):
        return (self.epochs - self.first) * self.per_epoch

    def __iter__(self):
        for epoch, order in zip(range(self.epochs), epoch_orders(self.num_images, self.seed)):
            if epoch < self.first:
                continue
            for index in range(self.per_epoch):
                yield Batch(epoch, index, order[index * self.batch_size:(index + 1) * self.batch_size])


def micro_batches(num_rows, micro_size):
    """A batch's rows in slices of micro_size. A single row left over joins the slice before it: BatchNorm
    cannot train on it."""
    starts = list(range(0, num_rows, micro_size))
    if len(starts) > 1 and num_rows - starts[-1] == 1:
        starts.pop()
    stops = [*starts[1:], num_rows]
    return [slice(start, stop) for start, stop in zip(starts, stops)]


class BatchDataset:
    """A dataset whose item is one whole batch: (Batch, crops (m, 3, size, size) uint8, LabelBatch).

    label_batch_of: a function of a Batch and the sizes (m, 2) of its images that gives the LabelBatch;
    derived: what changes the pixels besides."""

    def __init__(self, images, size, label_batch_of, derived=None):
        self.images = images
        self.size = size
        self.label_batch_of = label_batch_of
        self.derived = derived or Derived()

    def __getitem__(self, batch):
        return self.finish(self.prepare(batch))

    @property
    def on_gpu(self):
        """Are the images in a GPU's memory, where their crops are made?"""
        return self.images.store is not None and self.images.store.layout is not None

    def prepare(self, batch, rows_of=None, pin=False):
        """The part of an item that belongs on a thread: its LabelBatch, and its crops; of images on a GPU,
        what it needs to make them. rows_of: as in load_batches."""
        sizes = self.images.shapes(batch.rows)
        label_batch = self.label_batch_of(batch, sizes)
        wanted = rows_of(batch) if rows_of else slice(None)
        rows = batch.rows[wanted]
        crops = Crops(label_batch.crops.boxes[wanted], label_batch.crops.flips[wanted])
        drawn = self.derived.draw(batch).of_rows(wanted)

        if self.on_gpu:
            windows = pixel_windows(crops.boxes, sizes[wanted])
            request = self.images.store.request(rows, windows, crops.flips, self.size)
            return batch, (request, drawn), label_batch
        images = [self.images.pixels(row) for row in rows]
        if drawn.patches is not None:
            images = [shuffle_patches(image, patches) for image, patches in zip(images, drawn.patches)]
        pixels = apply_crops(images, crops, self.size)
        if drawn.operations is not None:
            pixels = apply_operations(pixels, drawn.operations)
        if pin:  # page-locked memory, which a GPU reads beside its computation
            pixels = pixels.pin_memory()
        return batch, pixels, label_batch

    def finish(self, prepared):
        """The part of an item that starts work on the GPU where the images are there: it makes the crops."""
        batch, work, label_batch = prepared
        if not self.on_gpu:
            return batch, work, label_batch
        request, drawn = work
        pixels = self.images.store.crops(request, self.size, drawn.patches)
        if drawn.operations is not None:
            pixels = apply_operations(pixels, drawn.operations)
        return batch, pixels, label_batch


def load_batches(dataset, batches, workers, device, rows_of=None):
    """Yield (Batch, crops (m, 3, S, S) uint8 on the device, LabelBatch) in order, prepared by `workers`
    threads (0 = this one).

    rows_of: a function of a Batch that gives the slice of it whose crops are wanted; None for all."""
    pin = device.type == "cuda"
    for prepared in in_order(lambda batch: dataset.prepare(batch, rows_of, pin), batches, workers, device):
        batch, pixels, label_batch = dataset.finish(prepared)
        yield batch, pixels.to(device, non_blocking=True), label_batch
