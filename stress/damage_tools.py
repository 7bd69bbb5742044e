"""What stress/damage.py counts with: the table, the ways to damage a file, and what check, the stages and a reader make of it."""
import contextlib
import os
import shutil
from collections import Counter, defaultdict
from typing import Callable, NamedTuple

import torch

from relabel.check import verify
from sre2l.run.errors import UserError
from sre2l.nets.models import read_checkpoint
from stress.damage_world import CLASSES, STUDENT, copy_run, stages
from tests.helpers import run_main

PLACES = 16  # at which each kind of file is cut off
COLUMNS = ("tried", "check refuses", "stage repairs", "stage refuses", "left to check", "validate refuses", "no effect", "cannot be caught", "missed")


class Case(NamedTuple):
    """One damage to a copy of a run folder. harm: run folder -> None; named: of which the refusal has to contain one."""
    damage: str
    kind: str
    harm: Callable
    named: tuple


class Table:
    """Counts of outcomes by kind of damage and kind of file, and a line for each case that was missed."""

    def __init__(self):
        self.counts, self.missed = defaultdict(Counter), []

    def add(self, damage, kind, outcomes, note=""):
        self.counts[damage, kind].update(["tried", *outcomes])
        if "missed" in outcomes:
            self.missed.append(f"{damage}, {kind}: {note}")

    def text(self):
        rows = [("damage", "file", *COLUMNS)] + [(*key, *(str(count[column] or "") for column in COLUMNS)) for key, count in sorted(self.counts.items())]
        rows.append(("all", "", *(str(sum(count[column] for count in self.counts.values())) for column in COLUMNS)))
        widths = [max(map(len, column)) for column in zip(*rows)]
        return "\n".join(" | ".join(cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))) for row in rows)


@contextlib.contextmanager
def quiet():
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def first_fault(run, num_classes=CLASSES):
    """What relabel/check.sh says of the images and labels in a run folder; None where it finds nothing."""
    try:
        return next((finding.faults[0] for finding in verify(run / "images", run / "labels", num_classes, 32) if finding.faults), None)
    except UserError as error:
        return str(error)


def start(world, run, *names):
    """Give the commands of these stages again -> what the one that refuses says; None where all run to their end."""
    for name in names:
        try:
            with quiet():
                run_main(*stages(world, run)[name])
        except UserError as error:
            return str(error)
        except Exception as error:  # a traceback, where a sentence is wanted
            return f"crash: {type(error).__name__}: {error}"
    return None


def is_named(message, named):
    """Is this a refusal, not a crash, with one of these names in it?"""
    return message is not None and not message.startswith("crash") and any(name in message for name in named)


def equal(a, b):
    """Are two loaded values the same, bit for bit?"""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def files_in(run):
    """{name: bytes} of images, labels, their manifests and hash files, and a name for each folder."""
    inside = [path for folder in ("images", "labels") for path in (run / folder).rglob("*")]
    records = [run / name for name in ("images.manifest.json", "labels.manifest.json", "images.sha256", "labels.sha256")]
    found = {f"{path.relative_to(run).as_posix()}/": b"" for path in inside if path.is_dir()}
    return found | {path.relative_to(run).as_posix(): path.read_bytes() for path in inside + records if path.is_file()}


def result(run, stage):
    """What a stage is run for: the teacher, or the student and its curve."""
    return read_checkpoint(run / "teacher" / "teacher.pth" if stage == "squeeze" else run / STUDENT / "seed0" / "checkpoint.pth")


class Records:
    """The world whose folders have manifests and hash files, and cases of damage to copies of it."""

    def __init__(self, world, folder, table):
        self.world, self.folder, self.table = world, folder, table
        self.whole, self.student = files_in(world / "run"), result(world / "run", "validate")

    def names(self, kind):
        return [name for name in self.whole if kind_of(name) == kind and not name.endswith("/")]

    def stages_again(self, run):
        """Validate, then recover and relabel, on damaged folders -> ({outcome: what was said}, outcomes that are well without a word)."""
        said, well = {"validate refuses": start(self.world, run, "validate")}, set()
        if said["validate refuses"] is None and equal(result(run, "validate"), self.student):
            well.add("no effect")
            del said["validate refuses"]
        said["stage refuses"] = start(self.world, run, "recover", "relabel")
        if said["stage refuses"] is None:
            del said["stage refuses"]
            if files_in(run) == self.whole:
                well.add("stage repairs")
            else:  # done, but something is still there that does not belong
                said["left to check"] = first_fault(run)
        return said, well

    def run(self, case, again):
        """Damage a copy, and count what check says and, with `again`, what the stages do."""
        run = copy_run(self.world, self.folder / "case")
        case.harm(run)
        assert files_in(run) != self.whole, f"{case} damages nothing"
        said, well = {"check refuses": first_fault(run)}, set()
        if again:
            more, well = self.stages_again(run)
            said |= more
        silent = {outcome for outcome, message in said.items() if not is_named(message, case.named)}
        note = f"{case.named}: " + "; ".join(f"{outcome}: {said[outcome]}" for outcome in sorted(silent))
        self.table.add(case.damage, case.kind, (said.keys() - silent) | well | ({"missed"} if silent else set()), note)
        shutil.rmtree(run)


KINDS = ("image", "label file", "images.manifest.json", "labels.manifest.json", "images.sha256", "labels.sha256")


def kind_of(name):
    return {"images": "image", "labels": "label file"}.get(name.partition("/")[0], name)


def flipped(data, rng):
    """The same bytes with one bit changed."""
    data = bytearray(data)
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def cut(path, place):
    """Cut a file off at place/PLACES of its length; for the last place, by its last byte."""
    data = path.read_bytes()
    path.write_bytes(data[:len(data) - 1 if place == PLACES - 1 else len(data) * place // PLACES])


def exchange(a, b):
    between = a.with_name("between")
    a.rename(between)
    b.rename(a)
    between.rename(b)


def exchange_hashes(path):
    """The hashes of the first two lines of a hash file, each at the other's name."""
    first, second, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join((second[:64] + first[64:], first[:64] + second[64:], *rest)))


def copy_within(run, source, target):
    (shutil.copytree if (run / source).is_dir() else shutil.copy)(run / source, run / target)


def empty(folder):
    for path in folder.iterdir():
        path.unlink()
