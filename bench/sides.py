"""What the benchmark runs of relabel and validate: our loops without their logs, and the plain formulation's."""
import os
from functools import partial
from itertools import count

import numpy as np
import torch
from torch.utils.data import DataLoader

from relabel.half import forms_of
from relabel.relabel import NUM_WRITERS, draw_label_batch, label_batches, store_labels
from sre2l.data.augment import Mix, pixel_windows, show_batch
from sre2l.data.loader import BatchDataset, in_order, load_batches
from sre2l.nets.models import build_network
from sre2l.nets.precision import memory_format_of
from sre2l.run.seeds import unit_rng
from sre2l.data.pixel_store import keep_decoded
from sre2l.nets.training import autocast, compile_network, make_scaler, weight_decay_groups
from bench.world import SPEC
from bench.plain import PlainBatches, crop_and_flip, label_batch, open_image, train_batch
from validate import train
from validate.losses import backward_in_micro_batches, distillation_loss
from validate.shares import share_of

TEMPERATURE, STEPS = 20.0, 2  # of the published protocol; STEPS: micro-batches of a batch


def make_network(device, training):
    torch.manual_seed(0)
    network, _ = build_network("resnet18", SPEC.num_classes, "torchvision")
    return network.to(device).train(training).requires_grad_(training)


def epochs_of(world):
    """0, 1, ... and around again: the label files are of so many epochs."""
    return (number % world.epochs for number in count())


# Ours.

def decoded(world):
    return keep_decoded(world.images, world.device)[0]


def our_label_batches(section, world):
    """What a batch's LabelBatch comes from: relabel draws it, validate reads it."""
    return partial(draw_label_batch, world.settings) if section == "relabel" else partial(train.stored_label_batch, world.labels, SPEC.num_classes, None)


def our_stream(world, images, number, label_batch_of):
    return load_batches(BatchDataset(images, world.size, label_batch_of), world.epoch(number), world.workers, world.device)


def our_crops(section, world, floats=False):
    """-> run() that crops one epoch of images decoded before, and normalises the crops on request."""
    images, numbers, label_batch_of = decoded(world), epochs_of(world), our_label_batches(section, world)

    def run():
        for _, pixels, _ in our_stream(world, images, next(numbers), label_batch_of):
            pixels = pixels.to(world.device, non_blocking=True)
            if floats:
                show_batch(pixels, Mix(), SPEC.mean, SPEC.std)
    return run


def our_relabel(world, precision):
    """-> run() that labels one epoch and writes its files."""
    images, numbers, label_batch_of = decoded(world), epochs_of(world), our_label_batches("relabel", world)
    network = make_network(world.device, False).to(memory_format=memory_format_of(world.device))
    if precision in ("fp16", "bf16") or world.device.type == "cpu":
        network = next(iter(forms_of(network, world.size, precision).values()))()

    def run():
        labelled = label_batches(network, our_stream(world, images, next(numbers), label_batch_of), SPEC, precision, torch.float16)
        for _ in in_order(partial(store_labels, world.root / "ours", precision), labelled, NUM_WRITERS):
            pass
    return run


def our_validate(world, precision, compiled=False):
    """-> run() that trains one epoch from the label files, on request with --compile."""
    images, numbers, label_batch_of, args = decoded(world), epochs_of(world), our_label_batches("validate", world), train.get_args([])
    network = make_network(world.device, True).to(memory_format=memory_format_of(world.device))
    optimizer, scaler = train.make_optimizer(network, args, world.device), make_scaler(precision, world.device)
    replica = compile_network(network, one_pass=STEPS == 1) if compiled else network
    loss_of, context = partial(distillation_loss, temperature=TEMPERATURE), partial(autocast, precision, world.device)

    def run():
        for batch, pixels, sheet in our_stream(world, images, next(numbers), label_batch_of):
            share = share_of(len(batch.rows), sheet.mix, world.batch // STEPS, 0, 1)
            mixed, targets = train.mixed_and_targets(args, SPEC, images.labels[batch.rows], pixels, sheet, share, precision)
            optimizer.zero_grad()
            backward_in_micro_batches(replica, loss_of, mixed, targets, share, scaler.scale, context=context)
            scaler.step(optimizer)
            scaler.update()
    return run


def crops_equal_pillow(world):
    """Is every pixel of the first epoch's crops the one that Pillow computes from the file?"""
    images = world.images
    for batch, pixels, sheet in our_stream(world, decoded(world), 0, our_label_batches("relabel", world)):
        windows = pixel_windows(sheet.crops.boxes, images.shapes(batch.rows)).tolist()
        for row, window, flip, ours in zip(batch.rows, windows, sheet.crops.flips.tolist(), pixels.cpu()):
            wanted = np.array(crop_and_flip(open_image(images.items[row]), window, flip, world.size))
            if not torch.equal(ours, torch.from_numpy(wanted).permute(2, 0, 1)):
                return False
    return True


# The plain formulation.

def plain_dataset(section, world):
    return PlainBatches(world.images, world.size, SPEC.mean, SPEC.std, world.labels if section == "validate" else None)


def plain_crops(section, world):
    """-> run() that opens, decodes, crops and flips each image once, and nothing more."""
    dataset, numbers = plain_dataset(section, world), epochs_of(world)

    def run():
        for batch in world.epoch(next(numbers)):
            for crop in dataset.stored(batch)[0]:
                np.asarray(dataset.crop(*crop)[0])
    return run


def as_it_is(item):
    return item


class NextEpoch:
    """A sampler that yields the next epoch's batches each time: the workers of a loader stay alive between the epochs."""

    def __init__(self, world):
        self.world, self.numbers = world, epochs_of(world)

    def __iter__(self):
        yield from self.world.epoch(next(self.numbers))


def plain_workers(world):
    """As many as asked for, but no more than whose batches fit into the shared memory through which they come."""
    try:
        free = os.statvfs("/dev/shm")
    except OSError:
        return world.workers
    num_bytes = 3 * 12 * world.size ** 2 * world.batch  # of a worker: two float batches that wait and one under way
    return min(world.workers, free.f_bavail * free.f_frsize // num_bytes)


def plain_loader(section, world):
    """An epoch of prepared batches at each iteration, by worker processes where there are any."""
    workers = plain_workers(world)
    return DataLoader(plain_dataset(section, world), batch_size=None, sampler=NextEpoch(world), num_workers=workers, collate_fn=as_it_is,
                      pin_memory=world.device.type == "cuda", persistent_workers=workers > 0)


def plain_batches(section, world):
    """-> run() that prepares one epoch and moves it to the device: the whole data path."""
    loader = plain_loader(section, world)

    def run():
        for (pixels, *_), _ in loader:
            pixels.to(world.device, non_blocking=True)
    return run


def plain_relabel(world):
    """-> run() that labels one epoch and writes its files."""
    network, loader, root, rng, done = make_network(world.device, False), plain_loader("relabel", world), world.root / "plain", unit_rng(0), count()

    def run():
        folder = root / f"epoch_{next(done)}"
        folder.mkdir(parents=True, exist_ok=True)
        for index, (samples, _) in enumerate(loader):
            label_batch(network, samples, world.device, folder / f"batch_{index}.tar", rng)
    return run


def plain_validate(world):
    """-> run() that trains one epoch from the label files."""
    network, loader = make_network(world.device, True), plain_loader("validate", world)
    optimizer = torch.optim.AdamW(weight_decay_groups(network, 0.01), 1e-3)

    def run():
        for samples, fields in loader:
            train_batch(network, optimizer, samples, fields, world.device, world.batch // STEPS, TEMPERATURE)
    return run
