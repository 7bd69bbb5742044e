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
from sre2l.settings import read_record
from tests.damage_world import CLASSES, RELEASED, copy_run, copy_stages, make_released, make_world, stages
from tests.helpers import run_main

PLACES = 16  # at which each file is cut off
COLUMNS = ("tried", "check refuses", "stage repairs", "stage refuses", "left to check", "validate refuses", "no effect", "cannot be caught", "missed")


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


def files_in(run):
    """{name: bytes} of images, labels, their manifests and hash files, and a name for each folder."""
    kept = ("images.manifest.json", "labels.manifest.json", "images.sha256", "labels.sha256")
    paths = [path for folder in ("images", "labels") for path in (run / folder).rglob("*") if path.is_file()] + [run / name for name in kept]
    empty = {f"{path.relative_to(run).as_posix()}/": b"" for folder in ("images", "labels") for path in (run / folder).rglob("*") if path.is_dir()}
    return empty | {path.relative_to(run).as_posix(): path.read_bytes() for path in paths if path.exists()}


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
        names = [name for name in self.whole if not name.endswith('/')]
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
        names = [name for name in records.whole if kind_of(name) == kind and not name.endswith('/')]
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


STUDENT = "student_shufflenet_v2_x0_5"
STAGE_FILES = {"squeeze": ("teacher/teacher.pth", "teacher/checkpoint.pth", "teacher/settings.json"),
               "validate": (f"{STUDENT}/seed0/checkpoint.pth", f"{STUDENT}/settings.json")}


def stage_result(run, name):
    """What a stage is run for: the teacher, or the student and its curve."""
    return read_checkpoint(run / "teacher" / "teacher.pth") if name == "squeeze" else student(run)


def stage_case(world, folder, table, damage, stage, name, harm):
    """Damage a file that squeeze or validate continues from, and give the command again."""
    run = copy_stages(world, folder / "stages")
    harm(run / name)
    message = start(world, run, stage)
    if message is not None:
        outcome = "stage refuses" if is_named(message, [name]) else "missed"
    else:
        outcome = "stage repairs" if equal(stage_result(run, stage), stage_result(world / "run", stage)) else "missed"
    table.add(damage, name, {outcome}, f"{message}")
    shutil.rmtree(run)


def stage_flips(world, folder, table, name, rng, count):
    """Single bits of a checkpoint or of settings: refused when read, or the same values are read."""
    path = folder / Path(name).name
    data = (world / "run" / name).read_bytes()
    read = read_checkpoint if name.endswith(".pth") else read_record
    path.write_bytes(data)
    whole = read(path)
    for _ in tqdm(range(count), name, unit="bit", disable=None, leave=False):
        path.write_bytes(flipped(data, rng))
        try:
            outcome, note = "no effect" if equal(read(path), whole) else "missed", "other values are read"
        except UserError as error:
            outcome, note = "stage refuses" if str(path) in str(error) else "missed", str(error)
        table.add("a flipped bit", name, {outcome}, note)


def stage_cases(world, folder, table, rng, places, flips):
    """The files of squeeze and validate: cut off, gone, another run's, single bits."""
    for stage, names in STAGE_FILES.items():
        for name in names:
            for place in places:
                stage_case(world, folder, table, "cut off", stage, name, lambda path, place=place: cut(path, place))
            stage_case(world, folder, table, "deleted", stage, name, Path.unlink)
            foreign = world / "other" / name.replace("seed0", "seed1")
            stage_case(world, folder, table, "another run's", stage, name, lambda path, foreign=foreign: shutil.copy(foreign, path))
            stage_flips(world, folder, table, name, rng, flips)


def released_flips(root, table, rng, count):
    """Single bits of files without records: a label file is refused, or reads as before; an image has no checksum."""
    for kind, pattern, read in (("image, released", "images/*/*.jpg", decode), ("label file, released", "labels/*/*.tar", read_fields)):
        paths = sorted(root.glob(pattern))
        for _ in tqdm(range(count), kind, unit="bit", disable=None, leave=False):
            path = paths[rng.integers(len(paths))]
            data = path.read_bytes()
            whole = read(path)
            path.write_bytes(flipped(data, rng))
            try:
                same = np.array_equal(read(path), whole) if read is decode else equal(read(path), whole)
                outcome, note = "no effect" if same else "cannot be caught" if read is decode else "missed", f"{path}: other values are read"
            except UserError as error:
                outcome, note = "check refuses" if str(path) in str(error) else "missed", str(error)
            path.write_bytes(data)
            table.add("a flipped bit", kind, {outcome}, note)


def released_cases(world, folder, table, places):
    """What is done to whole files and folders that have no records; a place where nothing can tell is counted apart."""
    image, image2, other, label = ("images/new001/class001_id003.jpg", "images/new001/class001_id004.jpg", "images/new002/class002_id000.jpg",
                                   "labels/epoch_1/batch_0.tar")

    def case(damage, kind, harm, *named, can_be_caught=True):
        run = shutil.copytree(world, folder / "released")
        harm(run)
        message = first_fault(run, RELEASED["num_classes"])
        outcome = "check refuses" if is_named(message, named) else "cannot be caught" if message is None and not can_be_caught else "missed"
        table.add(damage, f"{kind}, released", {outcome}, f"{named}: {message}")
        shutil.rmtree(run)

    for kind, name in (("image", image), ("label file", label)):
        for place in places:
            case("cut off", kind, lambda run, place=place: cut(run / name, place), name)
        case("deleted", kind, lambda run: (run / name).unlink(), name)
        for stray in (f"{name}.1", f"{name.rpartition('/')[0]}/more", f"{kind[:5]}s/notes.txt"):
            case("stray file", kind, lambda run, stray=stray: (run / stray).write_text("x"), stray)
    for a, b in ((image, image2), (image, "images/new001/class001_id020.jpg"), (image, "images/new001/copy.jpg"), (label, "labels/epoch_0/batch_0.tar"),
                 (label, "labels/epoch_1/batch_2.tar")):
        case("duplicated", "image" if "image" in a else "label file", lambda run, a=a, b=b: shutil.copy(run / a, run / b), b, a)
        case("renamed", "image" if "image" in a else "label file", lambda run, a=a, b=b: (run / a).replace(run / b), a, b)
    case("two exchanged", "label file", lambda run: exchange(run / label, run / "labels/epoch_0/batch_0.tar"), label, "labels/epoch_0/batch_0.tar")
    case("two exchanged", "image", lambda run: exchange(run / image, run / other), image, other, can_be_caught=False)
    case("emptied", "epoch", lambda run: [path.unlink() for path in (run / "labels/epoch_1").iterdir()], "labels/epoch_1")
    case("deleted", "class folder", lambda run: shutil.rmtree(run / "images/new004"), "new004")
    case("deleted", "last class folder", lambda run: shutil.rmtree(run / "images/new009"), "images")
    case("deleted", "first epoch", lambda run: shutil.rmtree(run / "labels/epoch_0"), "labels/epoch_0")
    case("deleted", "last epoch", lambda run: shutil.rmtree(run / "labels/epoch_1"), can_be_caught=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--flips", type=int, default=10_000, help="single bits in files with a manifest; a tenth of that in each other kind of file")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    table, rng = Table(), np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with quiet():
            world, released = make_world(folder / "world"), make_released(folder / "published")
        every_case(world, released, folder, table, rng, args.flips, range(PLACES))
    print(table.text())
    for line in table.missed:
        print(f"missed: {line}", file=sys.stderr)
    sys.exit(bool(table.missed))


def every_case(world, released, folder, table, rng, flips, places):
    records = Records(world, folder, table)
    whole_file_cases(records, places)
    structure_cases(records)
    records.flips(rng, flips)
    stage_cases(world, folder, table, rng, places, flips // 10)
    released_cases(released, folder, table, places)
    released_flips(released, table, rng, flips // 10)


if __name__ == "__main__":
    main()
