"""The benchmark's sections relabel and validate: images per second, of the data path and of the stage."""
from dataclasses import replace
from functools import partial

import torch

from bench import sides
from bench.measure import (
    Side,
    forward_gflop,
    free,
    megabytes,
    peak_memory,
    seconds_a_call,
    spread,
    time_pairs,
)
from bench.world import SPEC, write_labels

EPOCHS = 300  # of the published protocol


def rates(world, times, once=0.0):
    """A row's figures. times: seconds of (ours, plain) an epoch.

    once: seconds that ours spends on an image a single time, spread over the published number of epochs."""
    images = world.num_images
    pairs = [(images / (first + once * images / EPOCHS), images / second) for first, second in times]
    return {"size": world.size, "batch": world.batch, "unit": "images/s",
            "ours": spread(first for first, _ in pairs), "plain": spread(second for _, second in pairs),
            "ratio": spread((first / second for first, second in pairs), 3)}


def one_core(section, world, num_pairs, least_seconds):
    """Rows of the way from the file, in validate with the label file, to a batch: on one core of the CPU."""
    world = replace(world, num_images=min(world.num_images, 500), batch=min(world.batch, 100),
                    device=torch.device("cpu"), workers=0)
    write_labels(world)
    images = world.images
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    decode_all = partial(list, map(images.pixels, range(len(images))))
    once = seconds_a_call(decode_all, 1, world.device) / len(images)
    timed = {
        "our crops": Side(partial(sides.our_crops, section, world)),
        "our batches": Side(partial(sides.our_crops, section, world, floats=True)),
        "plain crops": Side(partial(sides.plain_crops, section, world)),
        "plain batches": Side(partial(sides.plain_batches, section, world))}
    times, _ = time_pairs(list(timed.values()), world.device, num_pairs, least_seconds)
    torch.set_num_threads(threads)

    facts = {"section": section, "precision": "uint8", "decode_us": round(1e6 * once, 1)}
    names = list(timed)
    for what, ours, plain in (
            ("one core, file to uint8 crop", "our crops", "plain crops"),
            ("one core, file to normalised batch", "our batches", "plain batches"),
            ("one core, ours to uint8, plain to normalised", "our crops", "plain batches")):
        pairs = [(each[names.index(ours)], each[names.index(plain)]) for each in times]
        yield {**facts, "what": what, **rates(world, pairs, once)}


def to_gpu(section, world, num_pairs, least_seconds):
    """The row of the data path alone to a normalised batch on the GPU, by all workers."""
    builds = (partial(sides.our_crops, section, world, floats=True),
              partial(sides.plain_batches, section, world))
    timed = [Side(build) for build in builds]
    times, _ = time_pairs(timed, world.device, num_pairs, least_seconds)
    what = f"data path to the GPU, {sides.plain_workers(world)} workers"
    return {"section": section, "precision": "uint8", "what": what, **rates(world, times)}


def whole(section, world, precision, num_pairs, least_seconds, peak, compiled=False):
    """The row of a whole stage: data path, network, label files. compiled: with --compile, of validate.

    peak: TFLOP/s of a matrix product in this precision, or None."""
    ours = {"relabel": sides.our_relabel, "validate": partial(sides.our_validate, compiled=compiled)}
    plain = {"relabel": sides.plain_relabel, "validate": sides.plain_validate}
    # The released relabel lets cuDNN search for algorithms, its validate does not.
    timed = (Side(partial(ours[section], world, precision), tf32=(precision == "tf32",) * 2, benchmark=True),
             Side(partial(plain[section], world), benchmark=section == "relabel"))
    times, peaks = time_pairs(timed, world.device, num_pairs, least_seconds)
    free(world.device)
    if world.device.type == "cpu":
        peaks = [peak_memory(side, world.device) for side in timed]

    row = rates(world, times)
    gflop = forward_gflop("resnet18", SPEC, world.size) * (1 if section == "relabel" else 3)
    tflop_s = gflop * row["ours"]["median"] / 1e3
    return {"section": section, "what": "whole, --compile" if compiled else "whole", "network": "resnet18",
            "precision": precision, **row, "mb": megabytes(peaks[0]), "mb_plain": megabytes(peaks[1]),
            "decoded_mb": megabytes(3 * world.size ** 2 * world.num_images), "gflop": round(gflop, 3),
            "tflop_s": round(tflop_s, 3), "share_of_peak": peak and round(tflop_s / peak, 3)}
