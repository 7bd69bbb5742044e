"""Damage of every kind to files of every kind: each case is repaired by the same command, byte for byte, or refused with the file named.

Run: sh tests/damage.sh [--flips 10000] [--seed 0]
Time: about 8 minutes on two CPU cores, most of it the stages that are started again; prints a table and exits 1 where a case is missed."""
import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from relabel.check import verify
from sre2l.errors import UserError
from sre2l.images import decode
from sre2l.labels import read_fields
from sre2l.models import read_checkpoint
from tests.damage_world import BATCH, CLASSES, EPOCHS, RELEASED, copy_run, copy_stage, make_released, make_world, stages
from tests.helpers import run_main

PLACES = 16  # at which each file is cut off
COLUMNS = ("tried", "check refuses", "stage repairs", "stage refuses", "validate refuses", "no effect", "cannot be caught", "missed")


class Table:
    """Counts by kind of damage and of file, and a line for each case that was missed."""

    def __init__(self):
        self.counts, self.missed = defaultdict(Counter), []

    def add(self, damage, kind, outcomes, note=""):
        self.counts[damage, kind].update(["tried", *outcomes])
        if "missed" in outcomes:
            self.missed.append(f"{damage}, {kind}: {note}")

    def text(self):
        rows = [("damage", "file", *COLUMNS)] + [(*key, *(str(count[column] or "") for column in COLUMNS)) for key, count in self.counts.items()]
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
        with quiet():
            return next((finding.faults[0] for finding in verify(run / "images", run / "labels", num_classes, 32) if finding.faults), None)
    except UserError as error:
        return str(error)


def start(world, run, *names):
    """Give the commands of these stages again -> what the one that refuses says; None where all run."""
    for name in names:
        try:
            with quiet():
                run_main(*stages(world, run)[name])
        except UserError as error:
            return str(error)
        except Exception as error:  # a traceback, where a sentence is wanted
            return f"crash: {type(error).__name__}: {error}"
    return None


def files_in(run, *skipped):
    """{name: bytes} of images, labels, their manifests and hash files."""
    kept = ("images.manifest.json", "labels.manifest.json", "images.sha256", "labels.sha256")
    paths = [path for folder in ("images", "labels") for path in (run / folder).rglob("*") if path.is_file()] + [run / name for name in kept]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in paths if path.exists()}


def equal(a, b):
    """Are two loaded values the same, bit for bit?"""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def student(run):
    return read_checkpoint(next((run / "student_shufflenet_v2_x0_5").glob("seed*/checkpoint.pth")))


class Records:
    """The world whose folders have manifests and hash files, and cases of damage to copies of it."""

    def __init__(self, world, folder, table):
        self.world, self.folder, self.table = world, folder, table
        self.whole, self.student, self.number = files_in(world / "run"), student(world / "run"), 0

    def case(self, damage, kind, harm, *named, again=True):
        """One case: harm(run folder) damages a copy. named: of which a refusal must contain one. again: start the stages too."""
        self.number += 1
        run = copy_run(self.world, self.folder / f"case{self.number}")
        harm(run)
        found = {"check refuses": first_fault(run)}
        if again:
            found["validate refuses"] = start(self.world, run, "validate")
            same = found["validate refuses"] is None and equal(student(run), self.student)
            found["stage refuses"] = start(self.world, run, "recover", "relabel")
            repaired = found["stage refuses"] is None and files_in(run) == self.whole
            if found["stage refuses"] is None and not repaired:  # finished, and something is still there that does not belong
                found["left to check"] = first_fault(run)
                del found["stage refuses"]
        silent = [outcome for outcome, message in found.items() if not is_named(message, named)]
        outcomes = set(found) - set(silent)
        for outcome, right in (("validate refuses", "no effect"), ("stage refuses", "stage repairs")) if again else ():
            if outcome in silent and (same if right == "no effect" else repaired):
                silent.remove(outcome)
                outcomes.add(right)
        self.table.add(damage, kind, outcomes | ({"missed"} if silent else set()), f"{named}: " + "; ".join(f"{key}: {found[key]}" for key in silent))
        shutil.rmtree(run)

    def flips(self, rng, count):
        """Single bits, as many in each kind of file, one after the other in one copy, before the check alone."""
        run = copy_run(self.world, self.folder / "flips")
        names = list(self.whole)
        for number in tqdm(range(count), "flips", unit="bit", disable=None, leave=False):
            kind = KINDS[number % len(KINDS)]
            name = rng.choice([name for name in names if kind_of(name) == kind])
            (run / name).write_bytes(flipped(self.whole[name], rng))
            message = first_fault(run)
            self.table.add("a flipped bit", kind, {"check refuses" if is_named(message, [name]) else "missed"}, f"{name}: {message}")
            (run / name).write_bytes(self.whole[name])
        assert first_fault(run) is None


def is_named(message, named):
    """Is this a refusal, not a crash, with one of these names in it?"""
    return message is not None and not message.startswith("crash") and any(name in message for name in named)


KINDS = ("image", "label file", "images.manifest.json", "labels.manifest.json", "images.sha256", "labels.sha256")


def kind_of(name):
    return {"images": "image", "labels": "label file"}.get(name.partition("/")[0], name)


def flipped(data, rng):
    """The same bytes with one bit changed."""
    data = bytearray(data)
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def cut(path, place):
    """Cut a file off at place/PLACES of its length, at the last but one byte for the last place."""
    data = path.read_bytes()
    path.write_bytes(data[:len(data) - 1 if place == PLACES - 1 else len(data) * place // PLACES])


def exchange(a, b):
    a.rename(a.with_name("between"))
    b.rename(a)
    a.with_name("between").rename(b)


def exchange_hashes(path):
    """The hashes of the first two lines of a hash file, each at the other's name."""
    first, second, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join((second[:64] + first[64:], first[:64] + second[64:], *rest)))


def whole_file_cases(records, places):
    """Each kind of file cut off, gone, and another run's."""
    world = records.world
    for kind in KINDS:
        names = [name for name in records.whole if kind_of(name) == kind]
        for place in places:
            name = names[place % len(names)]
            records.case("cut off", kind, lambda run, name=name, place=place: cut(run / name, place), name)
        for name in names:
            records.case("deleted", kind, lambda run, name=name: (run / name).unlink(), name)
        records.case("another run's", kind, lambda run, name=names[0]: shutil.copy(world / "other" / name, run / name), names[0], name_of_folder(names[0]))


def name_of_folder(name):
    return name.rpartition("/")[0] or name.partition(".")[0]


def structure_cases(records):
    """Files and folders that are there twice, under another name, exchanged, or have no business there."""
    image, image2, other, label = ("images/new001/class001_id000.jpg", "images/new001/class001_id001.jpg", "images/new002/class002_id000.jpg",
                                   "labels/epoch_1/batch_0.tar")

    def copies(kind, name, *targets):
        for target in targets:
            tree = (records.world / "run" / name).is_dir()
            records.case("duplicated", kind, lambda run, target=target: (shutil.copytree if tree else shutil.copy)(run / name, run / target), target)
    copies("image", image, "images/new001/class001_id002.jpg", "images/new001/class001_id000 (1).jpg", image2, other, "images/new001/class002_id000.jpg")
    copies("class folder", "images/new001", "images/new003", "images/new001 (1)")
    copies("label file", label, "labels/epoch_1/batch_2.tar", "labels/epoch_1/batch_0.tar.1", "labels/epoch_0/batch_0.tar", "labels/epoch_1/batch_1.tar")
    copies("epoch", "labels/epoch_1", "labels/epoch_2", "labels/epoch_01")
    for kind, name in (("image", "images.sha256"), ("label file", "labels.sha256")):
        records.case("a line twice", name, lambda run, name=name: (run / name).write_text((run / name).read_text() + (run / name).read_text()), name)

    def renamed(kind, name, *targets):
        for target in targets:
            records.case("renamed", kind, lambda run, target=target: (run / name).rename(run / target), name, target)
    renamed("image", image, "images/new001/class001_id007.jpg", "images/new001/class001_id000.jpeg", "images/new002/class002_id002.jpg")
    renamed("class folder", "images/new001", "images/new007", "images/c1")
    renamed("label file", label, "labels/epoch_1/batch_9.tar", "labels/epoch_1/batch_00.tar", "labels/epoch_0/batch_2.tar")
    renamed("epoch", "labels/epoch_1", "labels/epoch_7", "labels/epoch_1.old")

    def exchanged(kind, *pairs):
        for a, b in pairs:
            records.case("two exchanged", kind, lambda run, a=a, b=b: exchange(run / a, run / b), a, b)
    exchanged("image", (image, image2), (image, other))
    exchanged("class folder", ("images/new001", "images/new002"))
    exchanged("label file", ("labels/epoch_0/batch_0.tar", label), ("labels/epoch_0/batch_0.tar", "labels/epoch_0/batch_1.tar"))
    exchanged("epoch", ("labels/epoch_0", "labels/epoch_1"))
    for name in ("images.sha256", "labels.sha256"):
        records.case("two exchanged", f"line of {name}", lambda run, name=name: exchange_hashes(run / name), name)

    for name in ("images/notes.txt", "images/new001/notes.txt", "images/new001/.hidden", "labels/notes.txt", "labels/epoch_1/notes.txt"):
        records.case("stray file", f"folder of {name[:6]}", lambda run, name=name: (run / name).write_text("x"), name)
    for name in ("images/more", "images/new003", "images/new001/more", "labels/more", "labels/epoch_1/more"):
        records.case("stray folder", f"folder of {name[:6]}", lambda run, name=name: (run / name).mkdir(), name)
    records.case("emptied", "class folder", lambda run: [path.unlink() for path in (run / "images/new001").iterdir()], "images/new001")
    records.case("emptied", "epoch", lambda run: [path.unlink() for path in (run / "labels/epoch_1").iterdir()], "labels/epoch_1")
    records.case("empty, one more", "epoch", lambda run: (run / "labels/epoch_2").mkdir(), "labels/epoch_2")
    for name in ("images/new001", "labels/epoch_1", "images", "labels"):
        records.case("deleted", {"images": "all images", "labels": "all labels"}.get(name, "class folder" if "new" in name else "epoch"),
                     lambda run, name=name: shutil.rmtree(run / name), name)
