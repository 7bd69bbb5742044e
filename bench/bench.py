"""How fast every stage is beside the plain formulation (bench/plain.py), timed in turn in one run.

Run: python -m bench.bench [recover|relabel|validate|growth ...] --quick      (or sh bench/bench.sh ...)
Result: one JSON line for each row as soon as it is measured, then the same as tables. Networks have random weights; images are noise.
"""
import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import torch

from sre2l.run.processes import start
from sre2l.run.flags import Parser, number
from sre2l.nets.precision import PRECISIONS
from sre2l.run.device import pick_device, versions
from sre2l.run.errors import UserError
from sre2l.run.start import run_script
from sre2l.nets.training import why_not_compile
from bench import labels as bench_labels, recover as bench_recover
from bench.measure import peak_tb_s, peak_tflops, table
from bench.world import NUM_FOLDERS, World, write_images, write_labels

SECTIONS = ("recover", "relabel", "validate", "growth")
FIGURES = {"ratio": "ratio", "mb": "MB", "mb_groups1": "MB, groups 1", "mb_plain": "MB, plain", "decoded_mb": "of these decoded",
           "share_of_peak": "share of peak"}
LABEL_COLUMNS = {"what": "what", "size": "size", "batch": "batch", "precision": "precision", "ours": "ours, images/s", "plain": "plain", "ratio": "ratio",
                 "decode_us": "decode once, us", "equals_pillow": "every pixel Pillow's", **FIGURES}
COLUMNS = {  # of the tables; the JSON lines have more
    "recover": {"network": "network", "dataset": "stem and size of", "batch": "batch", "groups": "groups", "precision": "precision",
                "ours": "ours, us per image-iteration", "plain": "plain", **FIGURES},
    "relabel": LABEL_COLUMNS, "validate": LABEL_COLUMNS,
    "growth": {"what": "what", "over": "over", "values": "values", "last_over_first": "last / first", "max_over_min": "max / min"}}
IMAGES = {"cpu": (500, 100), "cuda": (32_760, 1024)}  # number and batch size for relabel and validate; 32 batches divide evenly among workers
QUICK_IMAGES = {"cpu": (60, 30), "cuda": (3_200, 200)}


def section(text):
    """An argparse type: the name of a section."""
    if text not in SECTIONS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of the sections {', '.join(SECTIONS)}")
    return text


def has_bf16():
    """Does this CPU multiply bfloat16 in hardware? Unknown is no."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def pick_precisions(asked, device):
    """-> the precisions to measure."""
    if asked:
        return asked
    if device.type == "cuda":
        return ["tf32", "fp16", "bf16"]
    if not has_bf16():
        print("no bf16 row: this CPU has no bf16 instructions")
    return ["fp32", "bf16"] if has_bf16() else ["fp32"]


def device_name(device, fallback):
    """The GPU's or the processor's model."""
    if device.type == "cuda":
        return fallback
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return fallback
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {torch.get_num_threads()} threads"


def device_facts(device, pairs):
    """What every row depends on, for its JSON line."""
    known = versions(device)
    return {"device": device_name(device, known["device"]), "date": time.strftime("%Y-%m-%d"), "torch": known["torch"], "commit": known["commit"],
            "pairs": pairs, "plain_precision": "tf32 in convolutions" if device.type == "cuda" else "fp32"}


def recover_rows(args, device, peaks):
    cases = bench_recover.QUICK if args.quick else bench_recover.FULL
    if args.network or args.dataset:
        cases = [(args.network or "resnet18", args.dataset or "imagenet1k", 100)]
    for network, dataset, batch in cases:
        case = bench_recover.Case(network, dataset, args.batch or batch)
        for precision, peak in peaks.items():
            yield bench_recover.measure(case, precision, args.groups, device, args.pairs, args.seconds, peak)


def make_world(args, root, device, epochs):
    """Write images and labels for relabel, validate and growth -> World."""
    images, batch = (QUICK_IMAGES if args.quick else IMAGES)[device.type]
    images = args.images or images
    if images % NUM_FOLDERS:
        raise UserError(f"--images {images}: a multiple of {NUM_FOLDERS}, the number of folders, please")
    world = World(root, images, args.size, min(args.batch or batch, images), epochs, device, args.workers)
    write_images(world)
    write_labels(world)
    return world


def label_rows(section, args, world, peaks):
    yield from bench_labels.one_core(section, world, args.pairs, args.seconds)
    if world.device.type == "cuda":
        yield bench_labels.to_gpu(section, world, args.pairs, args.seconds)
    for precision, peak in peaks.items():
        for compiled in (False, True) if section == "validate" and not why_not_compile(world.device) else (False,):
            yield bench_labels.whole(section, world, precision, args.pairs, args.seconds, peak, compiled)


def growth_row(what, over, values):
    values = [float(f"{value:.3g}") for value in values]
    return {"section": "growth", "what": what, "over": over, "values": values, "last_over_first": round(values[-1] / values[0], 3),
            "max_over_min": round(max(values) / min(values), 3)}


def growth_rows(args, world, device, precision):
    """Cost as it grows, which it should not: flat rows."""
    case = bench_recover.Case(args.network or "resnet18", args.dataset or "cifar100", args.batch or (10 if args.quick else 100))
    iterations = args.iterations or (3 if device.type == "cpu" else 200)
    times = bench_recover.growth(case, precision, args.groups or 1, device, iterations)
    yield growth_row("recover, us per image-iteration", f"1 to {len(times)} batches in turn", times)
    for section in ("relabel", "validate"):
        times = bench_labels.epoch_seconds(section, world, precision)
        yield growth_row(f"{section}, seconds an epoch", f"{len(times)} epochs", times)
    counts = sorted({max(world.batch, world.num_images // parts) for parts in (4, 2, 1)})
    memory = bench_labels.memory_beyond_decoded("relabel", world, precision, counts)
    if None not in memory:
        yield growth_row("relabel, MB beyond the decoded images", f"{counts} images", memory)


def measure(args, device):
    """Yield the rows of all sections asked for."""
    precisions = pick_precisions(args.precision, device)
    peaks = dict.fromkeys(precisions)  # a share of the peak is for GPUs: what a CPU can do changes with what else runs
    if device.type == "cuda":
        peaks = {precision: peak_tflops(device, precision) for precision in precisions}
        yield {"section": "peak", "tflop_s": {key: round(value, 1) for key, value in peaks.items()}, "tb_s": round(peak_tb_s(device), 3)}
    if "recover" in args.sections:
        yield from recover_rows(args, device, peaks)
    if set(args.sections) - {"recover"}:
        with tempfile.TemporaryDirectory() as folder:
            world = make_world(args, Path(folder), device, epochs=6)
            for section in ("relabel", "validate"):
                if section in args.sections:
                    yield from label_rows(section, args, world, peaks)
            if "growth" in args.sections:
                yield from growth_rows(args, world, device, precisions[0])


def print_tables(rows, facts):
    for section, columns in COLUMNS.items():
        if here := [row for row in rows if row["section"] == section]:
            print(f"\n{section}\n{table(here, columns)}")
    print(f"\n{facts['device']}, torch {facts['torch']}, {facts['date']}; medians of {facts['pairs']} pairs (min-max); "
          f"plain in {facts['plain_precision']}; memory at the peak")
    for row in rows:
        if row["section"] == "peak":
            print(f"the peak: matrix products of {row['tflop_s']} TFLOP/s (a copy: {row['tb_s']} TB/s); counted are convolutions and matrix products, "
                  "forward and input gradient in recover, forward in relabel, three times the forward in validate")


def main(args):
    device = pick_device(args.device)
    start(device)
    gpu = device.type == "cuda"
    args.pairs = args.pairs or (3 if args.quick else 7)
    args.seconds = args.seconds if args.seconds is not None else 2.0 if not args.quick else 0.5 if gpu else 0.0
    args.workers = args.workers if args.workers is not None else os.cpu_count() if gpu else 0
    facts, rows = device_facts(device, args.pairs), []
    for row in measure(args, device):
        rows.append(row)
        print(json.dumps({**facts, **row}), flush=True)
    print_tables(rows, facts)


def get_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("sections", nargs="*", type=section, default=list(SECTIONS), help=f"any of {', '.join(SECTIONS)} (default: all)")
    add("--quick", action="store_true", help="small batches and three pairs; all sections take about five minutes on two CPU cores")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--precision", nargs="+", choices=PRECISIONS, help="of ours (default: fp32, bf16 where the CPU has it; on a GPU tf32, fp16, bf16)")
    add("--pairs", type=number(int, 1), help="timings of each side (default: 7; 3 with --quick)")
    add("--seconds", type=number(float, 0), help="least length of a timing (default: 2; with --quick 0.5 on a GPU, one call on a CPU)")
    add("--network", help="recover and growth: this network only (default: a table of them)")
    add("--dataset", choices=bench_recover.DATASETS, help="recover and growth: size and stem of this data set only")
    add("--batch", type=number(int, 2), help="images optimised, labelled or trained on together")
    add("--groups", type=number(int, 1), help="recover: batches of ours that are stacked (default: as recover chooses for a large set)")
    add("--iterations", type=number(int, 1), help="growth: of each batch of recover")
    add("--images", type=number(int, NUM_FOLDERS), help="relabel, validate and growth: how many images")
    add("--size", type=number(int, 32), default=224, help="of these images, pixels")
    add("-j", "--workers", type=number(int, 0), help="processes (ours: threads) that prepare batches (default: none on a CPU, one a core on a GPU's machine)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
