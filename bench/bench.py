"""How fast every stage is beside the plain formulation (bench/plain.py), timed in turn in one run.

Run: python -m bench.bench [recover|options|relabel|validate ...] --quick      (or sh bench/bench.sh ...)
Result: one JSON line for each row as soon as it is measured, then the same rows as tables.
Networks have random weights; images are noise.
"""
import argparse
import json
import re
import tempfile
import time
from pathlib import Path

import torch

from bench import labels as bench_labels
from bench import options as bench_options
from bench import recover as bench_recover
from bench.measure import peak_tb_s, peak_tflops, table
from bench.world import NUM_FOLDERS, World, write_images, write_labels
from sre2l.nets.precision import PRECISIONS, why_not_compile
from sre2l.run.device import pick_device, versions
from sre2l.run.errors import UserError
from sre2l.run.flags import Parser, number
from sre2l.run.limits import usable_cores
from sre2l.run.processes import start
from sre2l.run.start import run_script

SECTIONS = ("recover", "options", "relabel", "validate")
FIGURES = {
    "ratio": "ratio", "mb": "MB", "mb_groups1": "MB, groups 1", "mb_plain": "MB, plain",
    "decoded_mb": "of these decoded", "share_of_peak": "share of peak"}
LABEL_COLUMNS = {
    "what": "what", "size": "size", "batch": "batch", "precision": "precision", "ours": "ours, images/s",
    "plain": "plain", "ratio": "ratio", "decode_us": "decode once, us", **FIGURES}
COLUMNS = {  # of the tables; the JSON lines have more
    "recover": {
        "network": "network", "dataset": "stem and size of", "batch": "batch", "groups": "groups",
        "precision": "precision", "ours": "ours, us per image-iteration", "plain": "plain", **FIGURES},
    "options": {
        "option": "option of recover", "network": "network", "dataset": "stem and size of", "batch": "batch",
        "groups": "groups", "precision": "precision", "ours": "with it, ms per iteration",
        "plain": "without", "ratio": "ratio"},
    "relabel": LABEL_COLUMNS,
    "validate": LABEL_COLUMNS}
# Number and batch size for relabel and validate; on a GPU the batches divide evenly among the workers.
IMAGES = {"cpu": (500, 100), "cuda": (32_760, 1024)}
QUICK_IMAGES = {"cpu": (60, 30), "cuda": (1_600, 100)}
EPOCHS = 2  # of label files, which validate reads in turn


def section(text):
    """An argparse type: the name of a section."""
    if text not in SECTIONS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of the sections {', '.join(SECTIONS)}")
    return text


def cpu_info():
    """What Linux tells about the processor, '' elsewhere."""
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8") if path.exists() else ""


def pick_precisions(requested, device, quick):
    """-> the precisions to measure."""
    if requested:
        return requested
    if device.type == "cuda":
        return ["fp16"] if quick else ["tf32", "fp16", "bf16"]
    if {"avx512_bf16", "amx_bf16", "bf16"} & {*cpu_info().split()}:  # it multiplies bfloat16 in hardware
        return ["fp32", "bf16"]
    print("no bf16 row: this CPU has no bf16 instructions")
    return ["fp32"]


def device_facts(device, pairs):
    """What every row depends on, for its JSON line."""
    known = versions(device)
    model = re.search(r"^model name\s*: (.*)", cpu_info(), re.M)
    name = known["device"]
    if device.type == "cpu" and model:
        name = f"{model[1]}, {torch.get_num_threads()} threads"
    return {"device": name, "date": time.strftime("%Y-%m-%d"),
            "torch": known["torch"], "commit": known["commit"], "pairs": pairs,
            "plain_precision": "tf32 in convolutions" if device.type == "cuda" else "fp32"}


def recover_rows(args, device, peaks):
    cases = bench_recover.QUICK[device.type] if args.quick else bench_recover.FULL
    if args.network or args.dataset:
        cases = [(args.network or "resnet18", args.dataset or "imagenet1k", 100)]
    for network, dataset, batch in cases:
        case = bench_recover.Case(network, dataset, args.batch or batch)
        for precision, peak in peaks.items():
            yield bench_recover.measure(
                case, precision, args.groups, device, args.pairs, args.seconds, peak, args.quick)


def option_rows(args, device, precisions):
    cases = bench_recover.QUICK[device.type] if args.quick else bench_recover.FULL
    network, dataset, batch = cases[-1]
    case = bench_recover.Case(args.network or network, args.dataset or dataset, args.batch or batch)
    for option in bench_options.OPTIONS:
        for precision in precisions:
            yield bench_options.measure(
                option, case, precision, args.groups, device, args.pairs, args.seconds)


def make_world(args, root, device):
    """Write images and labels for relabel and validate -> World."""
    images, batch = (QUICK_IMAGES if args.quick else IMAGES)[device.type]
    images = args.images or images
    if images % NUM_FOLDERS:
        raise UserError(f"--images {images}: a multiple of {NUM_FOLDERS}, the number of folders, please")
    world = World(root, images, args.size, min(args.batch or batch, images), EPOCHS, device, args.workers)
    write_images(world)
    write_labels(world)
    return world


def label_rows(section, args, world, peaks):
    """A quick run on a GPU leaves out what takes longest: the rows of one CPU core, and torch.compile."""
    on_gpu = world.device.type == "cuda"
    if not (on_gpu and args.quick):
        yield from bench_labels.one_core(section, world, args.pairs, args.seconds)
    if on_gpu:
        yield bench_labels.to_gpu(section, world, args.pairs, args.seconds)
    compiles = section == "validate" and not args.quick and not why_not_compile(world.device)
    for precision, peak in peaks.items():
        for compiled in (False, True) if compiles else (False,):
            yield bench_labels.whole(section, world, precision, args.pairs, args.seconds, peak, compiled)


def measure(args, device):
    """Yield the rows of all sections asked for."""
    precisions = pick_precisions(args.precision, device, args.quick)
    peaks = dict.fromkeys(precisions)  # of GPUs alone: what a CPU can do changes with what else runs
    if device.type == "cuda":
        peaks = {precision: peak_tflops(device, precision) for precision in precisions}
        yield {"section": "peak", "tflop_s": {key: round(value, 1) for key, value in peaks.items()},
               "tb_s": round(peak_tb_s(device), 3)}
    if "recover" in args.sections:
        yield from recover_rows(args, device, peaks)
    if "options" in args.sections:
        yield from option_rows(args, device, precisions)
    if {"relabel", "validate"} & set(args.sections):
        with tempfile.TemporaryDirectory() as folder:
            world = make_world(args, Path(folder), device)
            for section in ("relabel", "validate"):
                if section in args.sections:
                    yield from label_rows(section, args, world, peaks)


def print_tables(rows, facts):
    for section, columns in COLUMNS.items():
        here = [row for row in rows if row["section"] == section]
        if here:
            print(f"\n{section}\n{table(here, columns)}")
    print(f"\n{facts['device']}, torch {facts['torch']}, {facts['date']}; medians of {facts['pairs']} pairs "
          f"(min-max); plain in {facts['plain_precision']}; memory at the peak")
    for row in rows:
        if row["section"] == "peak":
            print(f"the peak: matrix products of {row['tflop_s']} TFLOP/s (a copy: {row['tb_s']} TB/s); "
                  "counted are convolutions and matrix products: forward and input gradient in recover, "
                  "forward in relabel, three times the forward in validate")


def main(args):
    device = pick_device(args.device)
    start(device)
    on_gpu = device.type == "cuda"
    args.pairs = args.pairs or (3 if args.quick else 7)
    if args.seconds is None:
        args.seconds = 2.0 if not args.quick else 0.3 if on_gpu else 0.0
    if args.workers is None:
        args.workers = usable_cores() if on_gpu else 0
    facts = device_facts(device, args.pairs)
    rows = []
    for row in measure(args, device):
        rows.append(row)
        print(json.dumps({**facts, **row}), flush=True)
    print_tables(rows, facts)


def get_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("sections", nargs="*", type=section, default=list(SECTIONS),
        help=f"any of {', '.join(SECTIONS)} (default: all)")
    add("--quick", action="store_true",
        help="small batches and three pairs: about five minutes on two CPU cores. On a GPU also one "
             "precision, two networks and no --compile: about two minutes")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--precision", nargs="+", choices=PRECISIONS,
        help="of ours (default: fp32, and bf16 where the CPU has it; on a GPU tf32, fp16 and bf16)")
    add("--pairs", type=number(int, 1), help="timings of each side (default: 7; 3 with --quick)")
    add("--seconds", type=number(float, 0),
        help="least length of a timing (default: 2; with --quick 0.3 on a GPU, one call on a CPU)")
    add("--network", help="recover: this network only (default: a table of them)")
    add("--dataset", choices=bench_recover.DATASETS, help="recover: size and stem of this data set only")
    add("--batch", type=number(int, 2), help="images optimised, labelled or trained on together")
    add("--groups", type=number(int, 1),
        help="recover: batches of ours that are stacked (default: as recover chooses for a large set)")
    add("--images", type=number(int, NUM_FOLDERS), help="relabel and validate: how many images")
    add("--size", type=number(int, 32), default=224, help="of these images, pixels")
    add("-j", "--workers", type=number(int, 0),
        help="processes (ours: threads) that prepare batches (default: none on a CPU, with a GPU one a core)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
