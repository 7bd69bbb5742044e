"""What the benchmark runs of relabel and validate: our loops without logs, and the plain formulation's."""
import os
from functools import partial
from itertools import count

import numpy as np
import torch
from torch.utils.data import DataLoader

from bench.plain import PlainBatches, label_batch, train_batch
from bench.world import SPEC, draw_settings
from relabel.relabel import NUM_WRITERS, label_batches, store_labels
from relabel.teacher_form import Labeller, forms_of
from sre2l.data.augment import Mix, show_batch, unit_rng
from sre2l.data.derived import draw_label_batch
from sre2l.data.loader import BatchDataset, load_batches, micro_batches
from sre2l.data.pixel_store import keep_decoded
from sre2l.nets.models import build_network
from sre2l.nets.precision import autocast, memory_format_of
from sre2l.nets.training import at_least_float32, compile_network, make_scaler, weight_decay_groups
from sre2l.run.ahead import in_order
from sre2l.run.output import OutputFolder
from validate import losses, train
from validate.data import stored_label_batch
from validate.losses import distillation_loss
from validate.protocol import make_optimizer

TEMPERATURE = 20.0  # of the published protocol
STEPS = 2           # micro-batches of a batch


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


def our_stream(section, world, images, number):
    """-> the batches of one epoch, as our loader yields them: relabel draws labels, validate reads them."""
    label_batch_of = partial(draw_label_batch, draw_settings(world.size))
    if section == "validate":
        label_batch_of = partial(stored_label_batch, world.labels, SPEC.num_classes, None)
    dataset = BatchDataset(images, world.size, label_batch_of)
    return load_batches(dataset, world.epoch(number), world.workers, world.device)


def our_crops(section, world, floats=False):
    """-> run() that crops one epoch of images decoded before. floats: and normalises the crops."""
    images = decoded(world)
    numbers = epochs_of(world)

    def run():
        for _, pixels, _ in our_stream(section, world, images, next(numbers)):
            pixels = pixels.to(world.device, non_blocking=True)
            if floats:
                show_batch(pixels, Mix(), SPEC.mean, SPEC.std)
    return run


def our_relabel(world, precision):
    """-> run() that labels one epoch and writes its files."""
    images = decoded(world)
    numbers = epochs_of(world)
    network = make_network(world.device, False).to(memory_format=memory_format_of(world.device))
    if precision in ("fp16", "bf16") or world.device.type == "cpu":
        network = next(iter(forms_of(network, world.size, precision).values()))()

    folder = OutputFolder(world.root / f"ours.{os.getpid()}", "labels")  # one process writes to a folder
    folder.begin({})

    def run():
        stream = our_stream("relabel", world, images, next(numbers))
        labelled = label_batches([Labeller(network, precision)], stream, SPEC, torch.float16)
        store = partial(store_labels, folder, {"logits": "fp16"}, precision)
        for _ in in_order(store, ([batch] for batch in labelled), NUM_WRITERS):
            pass
    return run


def our_validate(world, precision, compiled=False):
    """-> run() that trains one epoch from the label files. compiled: with --compile."""
    args = train.get_args([])
    images = decoded(world)
    numbers = epochs_of(world)
    network = make_network(world.device, True).to(memory_format=memory_format_of(world.device))
    optimizer = make_optimizer(network, args, world.device)
    scaler = make_scaler(precision, world.device)
    forward = compile_network(network, one_pass=STEPS == 1) if compiled else network

    def run():
        for batch, pixels, labels in our_stream("validate", world, images, next(numbers)):
            classes = images.labels[batch.rows]
            mixed, targets = losses.mix_and_targets(args, SPEC, classes, pixels, labels, TEMPERATURE,
                                                    precision)
            optimizer.zero_grad()
            for rows in micro_batches(len(batch.rows), world.batch // STEPS):
                with autocast(precision, world.device):
                    outputs = forward(mixed[rows])
                loss = distillation_loss(at_least_float32(outputs), targets[rows], TEMPERATURE)
                scaler.scale(loss * ((rows.stop - rows.start) / len(batch.rows))).backward()
            scaler.step(optimizer)
            scaler.update()
    return run


# The plain formulation.

def plain_dataset(section, world):
    labels = world.labels if section == "validate" else None
    return PlainBatches(world.images, world.size, SPEC.mean, SPEC.std, labels)


def plain_crops(section, world):
    """-> run() that opens, decodes, crops and flips each image once, and nothing more."""
    dataset = plain_dataset(section, world)
    numbers = epochs_of(world)

    def run():
        for batch in world.epoch(next(numbers)):
            for crop in dataset.stored(batch)[0]:
                np.asarray(dataset.crop(*crop)[0])
    return run


def as_it_is(item):
    return item


class NextEpoch:
    """A sampler that yields the next epoch's batches each time, so that a loader's workers stay alive."""

    def __init__(self, world):
        self.world = world
        self.numbers = epochs_of(world)

    def __iter__(self):
        yield from self.world.epoch(next(self.numbers))


def plain_workers(world):
    """As many as asked for, but no more than whose batches fit into the shared memory they pass through."""
    try:
        free = os.statvfs("/dev/shm")
    except OSError:
        return world.workers
    num_bytes = 3 * 12 * world.size ** 2 * world.batch  # two float batches of a worker wait, one is under way
    return min(world.workers, free.f_bavail * free.f_frsize // num_bytes)


def plain_loader(section, world):
    """An epoch of prepared batches at each iteration, by worker processes where there are any."""
    workers = plain_workers(world)
    return DataLoader(
        plain_dataset(section, world), batch_size=None, sampler=NextEpoch(world), num_workers=workers,
        collate_fn=as_it_is, pin_memory=world.device.type == "cuda", persistent_workers=workers > 0)


def plain_batches(section, world):
    """-> run() that prepares one epoch and moves it to the device: the whole data path."""
    loader = plain_loader(section, world)

    def run():
        for (pixels, *_), _ in loader:
            pixels.to(world.device, non_blocking=True)
    return run


def plain_relabel(world):
    """-> run() that labels one epoch and writes its files."""
    network = make_network(world.device, False)
    loader = plain_loader("relabel", world)
    rng = unit_rng(0)
    done = count()

    def run():
        folder = world.root / "plain" / f"epoch_{next(done)}"
        folder.mkdir(parents=True, exist_ok=True)
        for index, (samples, _) in enumerate(loader):
            label_batch(network, samples, world.device, folder / f"batch_{index}.tar", rng)
    return run


def plain_validate(world):
    """-> run() that trains one epoch from the label files."""
    network = make_network(world.device, True)
    loader = plain_loader("validate", world)
    optimizer = torch.optim.AdamW(weight_decay_groups(network, 0.01), 1e-3)

    def run():
        for samples, fields in loader:
            train_batch(network, optimizer, samples, fields, world.device, world.batch // STEPS, TEMPERATURE)
    return run
