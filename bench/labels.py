"""The benchmark's sections relabel and validate: images per second, of the data path alone and of the whole stage."""
from dataclasses import replace
from functools import partial

import torch

from bench.measure import Side, forward_gflop, peak_memory, seconds_a_call, spread, time_pairs
from bench.sides import (crops_equal_pillow, our_crops, our_relabel, our_validate, plain_batches, plain_crops, plain_relabel, plain_validate,
                               plain_workers)
from bench.world import SPEC, write_labels

EPOCHS = 300  # of the published protocol


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
    return {"section": section, "precision": "uint8", "what": f"data path to the GPU, {plain_workers(world)} workers", **rates(world, times),
            "equals_pillow": crops_equal_pillow(world)}


def whole(section, world, precision, num_pairs, least_seconds, peak, compiled=False):
    """The row of a whole stage: data path, network, label files. peak: TFLOP/s of a matrix product in this precision, or None; compiled: with --compile."""
    ours, plain = our_side(section, world, precision, compiled), plain_side(section, world)
    memory = {"mb": peak_memory(ours, world.device), "mb_plain": peak_memory(plain, world.device)}
    row = rates(world, time_pairs((ours, plain), world.device, num_pairs, least_seconds))
    gflop = forward_gflop("resnet18", SPEC, world.size) * (1 if section == "relabel" else 3)
    tflop_s = gflop * row["ours"]["median"] / 1e3
    return {"section": section, "what": "whole, --compile" if compiled else "whole", "network": "resnet18", "precision": precision, **row,
            **{key: value and round(value / 1e6, 1) for key, value in memory.items()}, "decoded_mb": round(world.num_images * 3 * world.size ** 2 / 1e6, 1),
            "gflop": round(gflop, 3), "tflop_s": round(tflop_s, 3), "share_of_peak": peak and round(tflop_s / peak, 3)}


def our_side(section, world, precision, compiled=False):
    build = {"relabel": our_relabel, "validate": partial(our_validate, compiled=compiled)}[section]
    return Side(partial(build, world, precision), tf32=(precision == "tf32",) * 2, benchmark=True)


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
