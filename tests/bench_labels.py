"""The benchmark's sections relabel and validate: images per second, of the data path alone and of the whole stage."""
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np
import torch
from torch.utils.data import DataLoader

from relabel.relabel import draw_sheet, label_batch
from sre2l.augment import apply_mix, normalise, pixel_window
from sre2l.images import keep_in_memory
from sre2l.labels import BatchDataset, as_it_is, label_path, load_batches, write_sheet
from sre2l.manifest import record_hash
from sre2l.models import build_network
from sre2l.runtime import unit_rng
from sre2l.training import weight_decay_groups
from tests.bench_measure import Side, forward_gflop, peak_memory, seconds_a_call, spread, time_pairs
from tests.bench_world import SPEC, write_labels
from tests.plain import PlainBatches, crop_and_flip, open_image, train_batch
from tests.plain import label_batch as plain_label_batch
from validate.losses import backward_in_micro_batches, distillation_loss, soft_targets
from validate.train import stored_sheet

PRECISIONS = "fp32", "tf32"  # that relabel and validate have
EPOCHS, TEMPERATURE, STEPS = 300, 20.0, 2  # of the published protocol; STEPS: micro-batches of a batch


def make_network(device, training):
    torch.manual_seed(0)
    network, _ = build_network("resnet18", SPEC.num_classes, "torchvision")
    return network.to(device).train(training).requires_grad_(training)


def epochs_of(world):
    """0, 1, ... and around again: the label files are of so many epochs."""
    return (number % world.epochs for number in count())


# Ours: the loops of relabel.py and train.py without their logs.

def our_sheets(section, world):
    """What a batch's Sheet comes from: relabel draws it, validate reads it."""
    return partial(draw_sheet, world.settings) if section == "relabel" else partial(stored_sheet, world.labels, SPEC.num_classes, None)


def our_stream(world, images, number, sheet_of):
    return load_batches(BatchDataset(images, world.size, sheet_of), world.epoch(number), world.workers, world.device)


def our_crops(section, world, floats=False):
    """-> run() that crops one epoch of images decoded before, and normalises the crops on request."""
    images, numbers, sheet_of = keep_in_memory(world.images)[0], epochs_of(world), our_sheets(section, world)

    def run():
        for _, pixels, _ in our_stream(world, images, next(numbers), sheet_of):
            pixels = pixels.to(world.device, non_blocking=True)
            if floats:
                normalise(pixels, SPEC.mean, SPEC.std)
    return run


def our_relabel(world, precision):
    """-> run() that labels one epoch and writes its files."""
    images, numbers = keep_in_memory(world.images)[0], epochs_of(world)
    network, root, sheet_of = make_network(world.device, False), world.root / "ours", our_sheets("relabel", world)

    def run():
        for batch, pixels, sheet in our_stream(world, images, next(numbers), sheet_of):
            logits = label_batch(network, pixels, sheet, SPEC, world.device, torch.float16)
            assert torch.isfinite(logits).all()
            write_sheet(root, batch.epoch, batch.index, sheet._replace(logits=logits))
            record_hash(root, label_path(root, batch.epoch, batch.index))
    return run


def our_validate(world, precision):
    """-> run() that trains one epoch from the label files."""
    images, numbers = keep_in_memory(world.images)[0], epochs_of(world)
    network = make_network(world.device, True)
    optimizer = torch.optim.AdamW(weight_decay_groups(network, 0.01), 1e-3)
    sheet_of, loss_of = our_sheets("validate", world), partial(distillation_loss, temperature=TEMPERATURE)

    def run():
        for _, pixels, sheet in our_stream(world, images, next(numbers), sheet_of):
            mixed = apply_mix(normalise(pixels.to(world.device, non_blocking=True), SPEC.mean, SPEC.std), sheet.mix)
            optimizer.zero_grad()
            backward_in_micro_batches(network, loss_of, mixed, soft_targets(sheet.logits, TEMPERATURE).to(world.device), world.batch // STEPS)
            optimizer.step()
    return run


def crops_equal_pillow(world):
    """Is every pixel of the first epoch's crops the one that Pillow computes from the file?"""
    images = world.images
    for batch, pixels, sheet in our_stream(world, keep_in_memory(images)[0], 0, our_sheets("relabel", world)):
        for row, box, flip, ours in zip(batch.rows, sheet.crops.boxes, sheet.crops.flips.tolist(), pixels.cpu()):
            image = open_image(images.items[row])
            wanted = np.array(crop_and_flip(image, pixel_window(box, image.height, image.width), flip, world.size))
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


class NextEpoch:
    """A sampler that yields the next epoch's batches each time: the workers of a loader stay alive between the epochs."""

    def __init__(self, world):
        self.world, self.numbers = world, epochs_of(world)

    def __iter__(self):
        yield from self.world.epoch(next(self.numbers))


def plain_loader(section, world):
    """An epoch of prepared batches at each iteration, by worker processes where there are any."""
    return DataLoader(plain_dataset(section, world), batch_size=None, sampler=NextEpoch(world), num_workers=world.workers, collate_fn=as_it_is,
                      pin_memory=world.device.type == "cuda", persistent_workers=world.workers > 0)


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
            plain_label_batch(network, samples, world.device, folder / f"batch_{index}.tar", rng)
    return run


def plain_validate(world):
    """-> run() that trains one epoch from the label files."""
    network, loader = make_network(world.device, True), plain_loader("validate", world)
    optimizer = torch.optim.AdamW(weight_decay_groups(network, 0.01), 1e-3)

    def run():
        for samples, fields in loader:
            train_batch(network, optimizer, samples, fields, world.device, world.batch // STEPS, TEMPERATURE)
    return run


# The sections.

def rates(world, times, once=0.0):
    """A row's figures. times: seconds of (ours, plain) an epoch; once: what ours spends a single time on an image, seconds, which is
    spread over the published number of epochs."""
    pairs = [(world.num_images / (first + once * world.num_images / EPOCHS), world.num_images / second) for first, second in times]
    return {"size": world.size, "batch": world.batch, "unit": "images/s", "ours": spread(first for first, _ in pairs),
            "plain": spread(second for _, second in pairs), "ratio": spread((first / second for first, second in pairs), 3)}


def one_core(section, world, num_pairs, least_seconds):
    """Rows of the way from the file, in validate with the label file, to a batch: on one core of the CPU."""
    world = replace(world, num_images=min(world.num_images, 500), batch=min(world.batch, 100), device=torch.device("cpu"), workers=0)
    write_labels(world)
    threads, images = torch.get_num_threads(), world.images
    torch.set_num_threads(1)
    once = seconds_a_call(lambda: [images.pixels(index) for index in range(len(images))], 1, world.device) / len(images)
    builds = (our_crops, section, world), (our_crops, section, world, True), (plain_crops, section, world), (plain_batches, section, world)
    times = time_pairs([Side(partial(*build)) for build in builds], world.device, num_pairs, least_seconds)
    torch.set_num_threads(threads)
    facts = {"section": section, "precision": "uint8", "decode_us": round(1e6 * once, 1), "equals_pillow": crops_equal_pillow(world)}
    rows = {"one core, file to uint8 crop": (0, 2), "one core, file to normalised batch": (1, 3), "one core, ours to uint8, plain to normalised": (0, 3)}
    return [{**facts, "what": what, **rates(world, [[each[side] for side in sides] for each in times], once)} for what, sides in rows.items()]


def to_gpu(section, world, num_pairs, least_seconds):
    """The row of the data path alone to a normalised batch on the GPU, by all workers."""
    sides = Side(partial(our_crops, section, world, True)), Side(partial(plain_batches, section, world))
    times = time_pairs(sides, world.device, num_pairs, least_seconds)
    return {"section": section, "precision": "uint8", "what": f"data path to the GPU, {world.workers} workers", **rates(world, times),
            "equals_pillow": crops_equal_pillow(world)}


def whole(section, world, precision, num_pairs, least_seconds, peak):
    """The row of a whole stage: data path, network, label files. peak: TFLOP/s of a matrix product in this precision, or None."""
    ours, plain = our_side(section, world, precision), plain_side(section, world)
    memory = {"mb": peak_memory(ours, world.device), "mb_plain": peak_memory(plain, world.device)}
    row = rates(world, time_pairs((ours, plain), world.device, num_pairs, least_seconds))
    gflop = forward_gflop("resnet18", SPEC, world.size) * (1 if section == "relabel" else 3)
    tflop_s = gflop * row["ours"]["median"] / 1e3
    return {"section": section, "what": "whole", "network": "resnet18", "precision": precision, **row,
            **{key: value and round(value / 1e6, 1) for key, value in memory.items()}, "decoded_mb": round(world.num_images * 3 * world.size ** 2 / 1e6, 1),
            "gflop": round(gflop, 3), "tflop_s": round(tflop_s, 3), "share_of_peak": peak and round(tflop_s / peak, 3)}


def our_side(section, world, precision):
    build = {"relabel": our_relabel, "validate": our_validate}[section]
    return Side(partial(build, world, precision), tf32=(precision == "tf32",) * 2, benchmark=None)


def plain_side(section, world):
    """The released relabel lets cuDNN search for algorithms, its validate does not."""
    build = {"relabel": plain_relabel, "validate": plain_validate}[section]
    return Side(partial(build, world), benchmark=section == "relabel")


def epoch_seconds(section, world, precision):
    """Seconds of each epoch after the first, which warms up."""
    side = our_side(section, world, precision)
    with side.backends():
        run = side.build()
        return [seconds_a_call(run, 1, world.device) for _ in range(world.epochs)][1:]


def memory_beyond_decoded(section, world, precision, counts):
    """MB of memory at its peak less the decoded images, for several numbers of images."""
    worlds = [replace(world, num_images=count) for count in counts]
    peaks = [peak_memory(our_side(section, each, precision), world.device) for each in worlds]
    return [peak and (peak - 3 * each.size ** 2 * each.num_images) / 1e6 for peak, each in zip(peaks, worlds)]
