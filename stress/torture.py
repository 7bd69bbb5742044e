"""Kill -9 at random instants in each stage, run the same command again until it is done, and compare with a run that nobody interrupted.

Run: python -m stress.torture [stage ...] [--kills N] [--seed S]      (or sh stress/torture.sh, which sets itself up)
Result: a table; exit code 1 where a result is wrong, a file is left over, or a run ends by itself. A wrong world is kept, and named.
"""
import argparse
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from sre2l.run.seeds import unit_rng
from stress.compare import differences
from tests.helpers import SMALL, bare_checkpoint, noise_folder, synthetic_folder
from stress.torture_runs import Stage, Trap, drive

STAGES = ("squeeze", "recover", "relabel", "validate")
MODULES = ("squeeze.squeeze", "recover.recover", "relabel.relabel", "validate.train")
NAMES = [f"c{i}" for i in range(10)]
KINDS = {"instant": 0.5, "line": 0.3, "bytes": 0.2}  # how a run dies, and how often: see Trap
DEADLY = 0.85                                        # of the starts, of two processes of either
LEAST_BYTES = 64                                     # Python's own semaphores are files of 32 bytes
GRACE_SEC = (0.0, 0.1, 0.5, 5.0)                     # between SIGTERM and SIGKILL for the rank whose peer was killed
GRACE_SHARES = (0.4, 0.3, 0.25, 0.05)


@dataclass
class Tally:
    """What happened to a stage: kills by kind, where in a run, the most in a row, runs after a kill, those that went
    on within a unit of recover, completions, wrong results."""
    kills: Counter = field(default_factory=Counter)
    progress: list = field(default_factory=list)
    in_a_row: int = 0
    reruns: int = 0
    within: int = 0
    completed: int = 0
    wrong: int = 0


@dataclass
class Reference:
    """A run that nobody interrupted: its folder, its seconds, how often each line ran ({file:line: times}), the sizes of its files."""
    folder: Path
    seconds: float
    lines: dict
    sizes: list


def make_stages(base):
    """A world of noise under `base` -> the ways to run each stage: recover as two processes with ranges of their own and as two ranks."""
    common = ("--dataset", "cifar10", "--name", base / "run", "--device", "cpu")
    teacher, student = (*common, "--teacher", base / "teacher.pth", "--arch", SMALL), ("--epochs", 3, "-j", 0, "--eval-every", 1)
    images, labels = ("--data", base / "images", "-b", 8, "-j", 1), ("--train-dir", base / "images", "--fkd-path", base / "labels")
    recover = (*teacher, "--iteration", 12, "--batch-size", 4, "--classes", "0-3", "--no-crop-flip", "--groups", 1, "--save-every-sec", 0)
    noise_folder(base / "real" / "train", NAMES, 3)
    noise_folder(base / "real" / "val", NAMES, 2, seed=1)
    synthetic_folder(base / "images")
    bare_checkpoint(base / "teacher.pth")
    for module in MODULES:  # here and not in every child
        importlib.import_module(module)
    course = drive(Stage("labels", "relabel.relabel", [(*teacher, *images, "--epochs", 3, "--fkd-path", base / "labels")]), base, Trap)
    if course.problem:
        sys.exit(course.problem)
    return [
        Stage("squeeze", "squeeze.squeeze", [(*common, *student, "--real-data", base / "real", "--arch", SMALL, "-b", 10)]),
        # the contact sheet shows what is there when a range is done: the last to draw it may have looked before the other was
        Stage("recover", "recover.recover", [(*recover, "--ipc-start", i, "--ipc-end", i + 1) for i in (0, 1)], may_differ=("images.png",)),
        Stage("recover", "recover.recover", [(*recover, "--ipc-end", 2, "--snapshot-every", 3)] * 2, together=True),
        Stage("relabel", "relabel.relabel", [(*teacher, *images, "--epochs", 4)] * 2, together=True),
        Stage("validate", "validate.train", [(*common, *student, *labels, "--val-dir", base / "real", "--model", SMALL, "--save-every-sec", 0)])]


def read_lines(base, lines):
    """Add what children counted to `lines`: how often each line ran, at most."""
    for path in base.glob("lines.*.json"):
        for place, times in json.loads(path.read_text()).items():
            lines[place] = max(times, lines.get(place, 0))
        path.unlink()


def make_reference(stage, base, folder):
    """Run a stage in peace -> Reference. Its seconds include what counting lines costs, until some run without a kill takes fewer."""
    shutil.rmtree(base / "run", ignore_errors=True)
    course, lines = drive(stage, base, Trap), {}
    if course.problem:
        sys.exit(f"{stage.name}, not interrupted: {course.problem}")
    read_lines(base, lines)
    (base / "run").rename(folder)
    return Reference(folder, course.seconds, lines, [path.stat().st_size for path in folder.rglob("*") if path.is_file()])


def choose_trap(reference, deadly, rng):
    """How a run is to die: at an instant, before a line of what writes, or when a file has grown to some size; else in peace."""
    kind = rng.choice(["none", *KINDS], p=[1 - deadly, *(deadly * share for share in KINDS.values())])
    if kind == "instant":
        return Trap("instant", reference.seconds * rng.uniform())
    if kind == "bytes":
        return Trap("bytes", LEAST_BYTES + int(rng.integers(rng.choice(reference.sizes))))
    if kind == "line":
        place = str(rng.choice(sorted(reference.lines)))
        return Trap("line", (place, int(rng.integers(reference.lines[place])) + 1))
    return Trap()


def torture_once(stage, base, reference, rng, tally):
    """One output from nothing to completion under kills -> sentences on what is wrong with it."""
    shutil.rmtree(base / "run", ignore_errors=True)
    deadly = 1 - (1 - DEADLY) ** (1 / len(stage.commands))
    course = drive(stage, base, partial(choose_trap, reference, deadly, rng), lambda: rng.choice(GRACE_SEC, p=GRACE_SHARES))
    read_lines(base, reference.lines)
    if course.starts == 1 and not course.problem:
        reference.seconds = min(reference.seconds, course.seconds)
    tally.kills.update(kind for kind, _ in course.deaths)
    tally.progress += [min(1.0, seconds / reference.seconds) for _, seconds in course.deaths]
    tally.in_a_row = max(tally.in_a_row, len(course.deaths))
    tally.reruns += course.starts - 1
    if (log := base / "run" / "images.log.txt").exists():
        tally.within += log.read_text().count("continues after iteration")
    tally.completed += not course.problem
    return [course.problem] if course.problem else differences(reference.folder, base / "run", stage.may_differ)


def torture(name, stages, kills, seed, base):
    """Kill a stage with SIGKILL at least `kills` times, and now and then at a byte of a file, one way to run it after the other -> Tally."""
    ways, tally, number = [stage for stage in stages if stage.name == name], Tally(), 0
    references = [make_reference(stage, base, base / f"{name}.reference{i}") for i, stage in enumerate(ways)]
    while tally.kills["instant"] + tally.kills["line"] < kills:
        stage, reference = ways[number % len(ways)], references[number % len(ways)]
        rng = unit_rng(seed, STAGES.index(name), number)
        if wrong := torture_once(stage, base, reference, rng, tally):
            tally.wrong += 1
            kept = (base / "run").rename(base / f"{name}.wrong{number}")
            print(f"WRONG: {name}, way {number % len(ways)}, world {number}, kept in {kept}\n  " + "\n  ".join(wrong[:8]), flush=True)
        number += 1
        if number % 10 == 0:
            print(f"{name}: {tally.kills['instant'] + tally.kills['line']} of {kills} kills, {tally.completed} results, {tally.wrong} wrong", flush=True)
    return tally


def print_table(tallies):
    columns = ("stage", "kills", *KINDS, "reruns", "within a unit", "most in a row", "results", "wrong", "mean progress at kill")
    print("  ".join(f"{name:>8}" for name in columns))
    for name, tally in tallies.items():
        values = (name, tally.kills.total(), *(tally.kills[kind] for kind in KINDS), tally.reruns, tally.within or "-", tally.in_a_row, tally.completed,
                  tally.wrong, f"{100 * np.mean(tally.progress):.0f} %")
        print("  ".join(f"{value:>{max(8, len(column))}}" for column, value in zip(columns, values)))


def main(args):
    os.environ["GIT_DIR"] = os.devnull  # a commit beside this script would show in the manifests' versions
    torch.set_num_threads(1)  # no thread but this one may run when a child is forked
    base, tallies, begin = Path(tempfile.mkdtemp(prefix="torture.")), {}, time.monotonic()
    stages = make_stages(base)
    for name in args.stage or STAGES:
        tallies[name] = torture(name, stages, args.kills, args.seed, base)
    print_table(tallies)
    wrong = sum(tally.wrong for tally in tallies.values())
    print(f"{sum(tally.kills.total() for tally in tallies.values())} kills, {wrong} wrong results, {time.monotonic() - begin:.0f} s")
    if wrong:
        sys.exit(1)
    shutil.rmtree(base)


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", nargs="*", choices=[[], *STAGES], metavar="stage", help=f"some of {', '.join(STAGES)} (default: all)")
    parser.add_argument("--kills", type=int, default=100, help="by SIGKILL in each stage; those at a byte of a file, by SIGXFSZ, come on top")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(get_args())
