"""Kill -9 at random instants in each stage, and run the same command again until it is done.

The result must be what a run writes that nobody interrupted.
Run: python -m stress.torture [stage ...] [--kills N] [--seed S]      (or sh stress/torture.sh ...)
Result: a table; exit code 1 where a result is wrong, a file is left over, or a run ends by itself. A wrong
world is kept, and named.
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
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from bench.measure import table
from report.page import write_report
from sre2l.data.augment import unit_rng
from sre2l.kernels.cpu.convs import host_kernels
from sre2l.kernels.cpu.host import host_passes
from sre2l.nets import training
from stress.compare import differences
from stress.torture_runs import Stage, Trap, drive
from tests.helpers import SMALL, bare_checkpoint, noise_folder, synthetic_folder
from tests.worlds import NAMES, common, teacher
from validate import results

STAGES = ("squeeze", "recover", "relabel", "validate")
MODULES = ("squeeze.squeeze", "recover.recover", "relabel.relabel", "validate.train")
KINDS = {"instant": 0.5, "line": 0.3, "bytes": 0.2}  # how a run dies, and how often: see Trap
COUNTS = (*KINDS, "reruns", "within a batch", "results", "wrong")  # of a stage, the columns of the table
DEADLY = 0.85     # of the starts, of two processes of either
LEAST_BYTES = 64  # Python's own semaphores are files of 32 bytes


@dataclass
class Reference:
    """A run that nobody interrupted: its folder, seconds, how often each line ran, the sizes of its files."""
    folder: Path
    seconds: float
    lines: dict  # {file:line: times}
    sizes: list


def make_world(base):
    """What the stages read: real images, a teacher, a set of images."""
    noise_folder(base / "real" / "train", NAMES, 3)
    noise_folder(base / "real" / "val", NAMES, 2, seed=1)
    synthetic_folder(base / "images")
    bare_checkpoint(base / "teacher.pth")


def make_page(run, student):
    """The page at the end of validate, in the child and not in a process of its own -> a line for the log."""
    return f"report: {write_report(run, student)}"


def make_stages(base):
    """The ways to run each stage in the world under `base`. Recover: two ranges of images, and two ranks."""
    student = (*common(base), "--epochs", 3, "-j", 0, "--eval-every", 1)
    relabel = (*common(base), *teacher(base), "--data", base / "images", "-b", 8, "-j", 1)
    labels = ("--train-dir", base / "images", "--fkd-path", base / "labels")
    recover = (*common(base), *teacher(base), "--iteration", 6, "--batch-size", 4, "--classes", "0-3",
               "--no-crop-flip", "--groups", 1, "--save-every-sec", 0)
    make_world(base)
    # What every child would spend its first seconds on.
    for module in MODULES:
        importlib.import_module(module)
    host_passes()
    host_kernels(torch.float32)
    results.write_page = make_page
    training.CHECKPOINT_SEC = 0  # a checkpoint after each of these short epochs
    make_labels = [(*relabel, "--epochs", 3, "--fkd-path", base / "labels")]
    course = drive(Stage("labels", "relabel.relabel", make_labels), base, Trap)
    if course.problem:
        sys.exit(course.problem)

    ranges = [(*recover, "--ipc-start", ipc, "--ipc-end", ipc + 1) for ipc in (0, 1)]
    ranks = [(*recover, "--ipc-end", 2, "--snapshot-every", 3)] * 2
    return [
        Stage("squeeze", "squeeze.squeeze",
              [(*student, "--real-data", base / "real", "--arch", SMALL, "-b", 10)]),
        # The contact sheet shows what is there when a range is done: its last writer may have looked before.
        Stage("recover", "recover.recover", ranges, may_differ=("images.png",)),
        Stage("recover", "recover.recover", ranks, together=True),
        Stage("relabel", "relabel.relabel", [(*relabel, "--epochs", 4)] * 2, together=True),
        Stage("relabel", "relabel.relabel", [(*relabel, "--epochs", 4, "--codec", "uint8")] * 2,
              together=True),
        Stage("relabel", "relabel.relabel", [(*relabel, "--epochs", 4, "--codec", "none")]),
        Stage("validate", "validate.train",
              [(*student, *labels, "--val-dir", base / "real", "--model", SMALL)])]


def read_lines(base, lines):
    """Add what children counted to `lines`: how often each line ran, at most."""
    for path in base.glob("lines.*.json"):
        for place, times in json.loads(path.read_text(encoding="utf-8")).items():
            lines[place] = max(times, lines.get(place, 0))
        path.unlink()


def make_reference(stage, base, folder):
    """Run a stage in peace -> Reference.

    Its seconds include what counting lines costs, until some run without a kill takes fewer."""
    shutil.rmtree(base / "run", ignore_errors=True)
    course = drive(stage, base, Trap)
    if course.problem:
        sys.exit(f"{stage.name}, not interrupted: {course.problem}")
    lines = {}
    read_lines(base, lines)
    (base / "run").rename(folder)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return Reference(folder, course.seconds, lines, [size for size in sizes if size])


def choose_trap(reference, deadly, rng):
    """How a run is to die: at an instant, before a line of what writes, at a file's size, or not at all."""
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
    """One output from nothing to completion under kills -> sentences on what is wrong with it.

    tally: a Counter of COUNTS, to which this adds."""
    shutil.rmtree(base / "run", ignore_errors=True)
    deadly = 1 - (1 - DEADLY) ** (1 / len(stage.commands))
    choose = partial(choose_trap, reference, deadly, rng)
    course = drive(stage, base, choose)
    read_lines(base, reference.lines)
    if course.starts == 1 and not course.problem:
        reference.seconds = min(reference.seconds, course.seconds)
    tally.update(course.deaths)
    tally["reruns"] += course.starts - 1
    log = base / "run" / "images.log.txt"
    if log.exists():
        tally["within a batch"] += log.read_text(encoding="utf-8").count("continues after iteration")
    if course.problem:
        return [course.problem]
    tally["results"] += 1
    return differences(reference.folder, base / "run", stage.may_differ)


def torture(name, stages, kills, seed, base):
    """Kill a stage with SIGKILL at least `kills` times, in each way to run it in turn -> a Counter of COUNTS.

    Kills at a byte of a file come on top."""
    ways = [stage for stage in stages if stage.name == name]
    references = [make_reference(stage, base, base / f"{name}.reference{i}") for i, stage in enumerate(ways)]
    tally = Counter()
    number = 0
    while (killed := tally["instant"] + tally["line"]) < kills or number < len(ways):
        if number and number % 10 == 0:
            print(f"{name}: {killed} of {kills} kills, {tally['results']} results, {tally['wrong']} wrong",
                  flush=True)
        way = number % len(ways)
        rng = unit_rng(seed, STAGES.index(name), number)
        wrong = torture_once(ways[way], base, references[way], rng, tally)
        if wrong:
            tally["wrong"] += 1
            kept = (base / "run").rename(base / f"{name}.wrong{number}")
            print(f"WRONG: {name}, way {way}, world {number}, kept in {kept}", *wrong[:8], sep="\n  ",
                  flush=True)
        number += 1
    return tally


def main(args):
    os.environ["GIT_DIR"] = os.devnull  # a commit beside this script would show in the manifests' versions
    torch.set_num_threads(1)  # no thread but this one may run when a child is forked
    begin = time.monotonic()
    base = Path(tempfile.mkdtemp(prefix="torture."))
    stages = make_stages(base)
    tallies = {name: torture(name, stages, args.kills, args.seed, base) for name in args.stage or STAGES}
    rows = [{"stage": name, **{column: tally[column] for column in COUNTS}}
            for name, tally in tallies.items()]
    print(table(rows, {column: column for column in ("stage", *COUNTS)}))
    kills = sum(tally[kind] for tally in tallies.values() for kind in KINDS)
    wrong = sum(tally["wrong"] for tally in tallies.values())
    print(f"{kills} kills, {wrong} wrong results, {time.monotonic() - begin:.0f} s")
    if wrong:
        sys.exit(1)
    shutil.rmtree(base)


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("stage", nargs="*", choices=[[], *STAGES], metavar="stage",
        help=f"some of {', '.join(STAGES)} (default: all)")
    add("--kills", type=int, default=100,
        help="by SIGKILL in each stage; those at a byte of a file, by SIGXFSZ, come on top")
    add("--seed", type=int, default=0, help="of the instants")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(get_args())
