"""Damage of every kind to files of every kind: each case is repaired by the same command, byte for byte, or refused with the file named.

Run: sh stress/damage.sh [--flips 10000] [--seed 0]
Time: 11 minutes on two busy CPU cores, about half of it the stages that are started again; prints a table and exits 1 where a case is missed."""
import argparse
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sre2l.run.errors import UserError
from sre2l.data.image_folder import decode
from sre2l.data.label_files import read_fields
from sre2l.nets.models import read_checkpoint
from sre2l.run.settings import read_record
from stress.damage_tools import (KINDS, PLACES, Case, Records, Table, copy_within, cut, empty, equal, exchange, exchange_hashes, files_in, first_fault,
                                flipped, is_named, quiet, result, start)
from stress.damage_world import RELEASED, STUDENT, copy_run, copy_stages, copy_stopped, make_released, make_world

IMAGE, SAME_CLASS, OTHER_CLASS = (f"images/new00{c}/class00{c}_id00{i}.jpg" for c, i in ((1, 0), (1, 1), (2, 0)))
LABEL, SAME_EPOCH, OTHER_EPOCH = "labels/epoch_1/batch_0.tar", "labels/epoch_1/batch_1.tar", "labels/epoch_0/batch_0.tar"
STAGE_FILES = {"squeeze": ("teacher/teacher.pth", "teacher/checkpoint.pth", "teacher/settings.json"),
               "validate": (f"{STUDENT}/seed0/checkpoint.pth", f"{STUDENT}/settings.json")}


def whole_file_cases(records, places):
    """Each kind of file cut off, gone, and another run's."""
    for kind in KINDS:
        names = records.names(kind)
        for place in places:
            name = names[place % len(names)]
            yield Case("cut off", kind, lambda run, name=name, place=place: cut(run / name, place), (name,))
        for name in names:
            yield Case("deleted", kind, lambda run, name=name: (run / name).unlink(), (name,))
        foreign = records.world / "other" / names[0]
        yield Case("another run's", kind, lambda run, name=names[0], foreign=foreign: shutil.copy(foreign, run / name), (names[0],))


def structure_cases():
    """Files and folders that are there twice, under another name, exchanged, gone, or have no business there."""
    for kind, name, *targets in (
            ("image", IMAGE, "images/new001/class001_id002.jpg", "images/new001/class001_id000 (1).jpg", "images/new001/class002_id000.jpg", SAME_CLASS,
             OTHER_CLASS),
            ("class folder", "images/new001", "images/new003", "images/new001 (1)"),
            ("label file", LABEL, "labels/epoch_1/batch_2.tar", "labels/epoch_1/batch_0.tar.1", OTHER_EPOCH, SAME_EPOCH),
            ("epoch", "labels/epoch_1", "labels/epoch_2", "labels/epoch_01")):
        for target in targets:
            yield Case("duplicated", kind, lambda run, name=name, target=target: copy_within(run, name, target), (target,))
    for kind, name, *targets in (
            ("image", IMAGE, "images/new001/class001_id007.jpg", "images/new001/class001_id000.jpeg", "images/new002/class002_id002.jpg"),
            ("class folder", "images/new001", "images/new007", "images/c1"),
            ("label file", LABEL, "labels/epoch_1/batch_9.tar", "labels/epoch_1/batch_00.tar", "labels/epoch_0/batch_2.tar"),
            ("epoch", "labels/epoch_1", "labels/epoch_7", "labels/epoch_1.old")):
        for target in targets:
            yield Case("renamed", kind, lambda run, name=name, target=target: (run / name).rename(run / target), (name, target))
    for kind, a, b in (("image", IMAGE, SAME_CLASS), ("image", IMAGE, OTHER_CLASS), ("class folder", "images/new001", "images/new002"),
                       ("label file", LABEL, SAME_EPOCH), ("label file", LABEL, OTHER_EPOCH), ("epoch", "labels/epoch_0", "labels/epoch_1")):
        yield Case("two exchanged", kind, lambda run, a=a, b=b: exchange(run / a, run / b), (a, b))
    for name in ("images.sha256", "labels.sha256"):
        yield Case("two exchanged", f"hashes in {name}", lambda run, name=name: exchange_hashes(run / name), (name,))
        yield Case("duplicated", f"lines of {name}", lambda run, name=name: (run / name).write_text(2 * (run / name).read_text()), (name,))
    for name in ("images/notes.txt", "images/new001/notes.txt", "images/new001/.hidden", "labels/notes.txt", "labels/epoch_1/notes.txt"):
        yield Case("stray", f"file in {name[:6]}", lambda run, name=name: (run / name).write_text("x"), (name,))
    for name in ("images/more", "images/new003", "images/new001/more", "labels/more", "labels/epoch_1/more", "labels/epoch_2"):
        yield Case("stray", f"folder in {name[:6]}", lambda run, name=name: (run / name).mkdir(), (name,))
    for kind, name in (("class folder", "images/new001"), ("epoch", "labels/epoch_1")):
        yield Case("emptied", kind, lambda run, name=name: empty(run / name), (name,))
    for kind, name in (("class folder", "images/new001"), ("epoch", "labels/epoch_1"), ("all images", "images"), ("all labels", "labels")):
        yield Case("deleted", kind, lambda run, name=name: shutil.rmtree(run / name), (name,))


def record_flips(records, rng, count):
    """Single bits, as many in each kind of file, one after the other in one copy, before check alone."""
    run, table = copy_run(records.world, records.folder / "flips"), records.table
    for number in tqdm(range(count), "flips", unit="bit", disable=None, leave=False):
        kind = KINDS[number % len(KINDS)]
        name = rng.choice(records.names(kind))
        (run / name).write_bytes(flipped(records.whole[name], rng))
        message = first_fault(run)
        table.add("a bit flipped", kind, {"check refuses" if is_named(message, [name]) else "missed"}, f"{name}: {message}")
        (run / name).write_bytes(records.whole[name])
    assert first_fault(run) is None


def stage_case(world, folder, table, damage, stage, name, harm):
    """Damage a file that squeeze or validate continues from, and give the command again."""
    run = copy_stages(world, folder / "stages")
    harm(run / name)
    message = start(world, run, stage)
    repaired = message is None and equal(result(run, stage), result(world / "run", stage))
    table.add(damage, name, {"stage repairs" if repaired else "stage refuses" if is_named(message, [name]) else "missed"}, f"{message}")
    shutil.rmtree(run)


def state_case(world, folder, table, damage, harm):
    """Damage the state that a killed recover continues from, and give the command again."""
    run = copy_stopped(world, folder / "stopped")
    harm(run / "images.unit0.state")
    message = start(world, run, "recover")
    whole = {name: data for name, data in files_in(world / "run").items() if name.startswith("images")}
    table.add(damage, "images.unit0.state", {"stage repairs" if message is None and files_in(run) == whole else "missed"}, f"{message}")
    shutil.rmtree(run)


def stage_cases(world, folder, table, places):
    """The files that squeeze, validate and recover continue from: cut off, gone, another run's."""
    for stage, names in STAGE_FILES.items():
        for name in names:
            foreign = world / "other" / name.replace("seed0", "seed1")
            add = partial(stage_case, world, folder, table, stage=stage, name=name)
            for place in places:
                add("cut off", harm=lambda path, place=place: cut(path, place))
            add("deleted", harm=Path.unlink)
            add("another run's", harm=lambda path, foreign=foreign: shutil.copy(foreign, path))
    for place in places:
        state_case(world, folder, table, "cut off", lambda path, place=place: cut(path, place))
    state_case(world, folder, table, "another run's", lambda path: shutil.copy(world / "other" / "stopped" / path.name, path))


def reader_flips(path, read, table, kind, rng, count, can_be_caught=True):
    """Single bits of one file: refused when it is read, or the same values are read."""
    data, whole = path.read_bytes(), read(path)
    for _ in tqdm(range(count), kind, unit="bit", disable=None, leave=False):
        path.write_bytes(flipped(data, rng))
        try:
            outcome, note = "no effect" if equal(read(path), whole) else "missed" if can_be_caught else "cannot be caught", "other values are read"
        except UserError as error:
            outcome, note = "check refuses" if "released" in kind else "stage refuses", str(error)
        table.add("a bit flipped", kind, {outcome if outcome not in ("check refuses", "stage refuses") or str(path) in note else "missed"}, note)
    path.write_bytes(data)


def released_cases(places=range(PLACES)):
    """(Case, whether it can be caught) of whole files and folders that have no records."""
    for kind, name in (("image", IMAGE), ("label file", LABEL)):
        for place in places:
            yield Case("cut off", kind, lambda run, name=name, place=place: cut(run / name, place), (name,)), True
        yield Case("deleted", kind, lambda run, name=name: (run / name).unlink(), (name,)), True
        for stray in (f"{name}.1", f"{name.rpartition('/')[0]}/more", f"{name[:6]}/notes.txt"):
            yield Case("stray", kind, lambda run, stray=stray: (run / stray).write_text("x"), (stray,)), True
    for kind, a, b in (("image", IMAGE, SAME_CLASS), ("image", IMAGE, "images/new001/class001_id010.jpg"), ("image", IMAGE, "images/new001/copy.jpg"),
                       ("label file", LABEL, OTHER_EPOCH), ("label file", LABEL, "labels/epoch_1/batch_2.tar")):
        yield Case("duplicated", kind, lambda run, a=a, b=b: copy_within(run, a, b), (a, b)), True
        yield Case("renamed", kind, lambda run, a=a, b=b: (run / a).replace(run / b), (a, b)), True
    yield Case("two exchanged", "label file", lambda run: exchange(run / LABEL, run / OTHER_EPOCH), (LABEL, OTHER_EPOCH)), True
    yield Case("two exchanged", "image", lambda run: exchange(run / IMAGE, run / OTHER_CLASS), (IMAGE,)), False
    yield Case("emptied", "epoch", lambda run: empty(run / "labels/epoch_1"), ("labels/epoch_1",)), True
    for kind, name, can_be_caught in (("class folder", "images/new004", True), ("last class folder", "images/new009", True),
                                      ("first epoch", "labels/epoch_0", True), ("last epoch", "labels/epoch_1", False)):
        yield Case("deleted", kind, lambda run, name=name: shutil.rmtree(run / name), (Path(name).name, "images: 9 class folders")), can_be_caught


def run_released(world, folder, table, case, can_be_caught):
    run = shutil.copytree(world, folder / "released")
    case.harm(run)
    message = first_fault(run, RELEASED["num_classes"])
    outcome = "check refuses" if is_named(message, case.named) else "cannot be caught" if message is None and not can_be_caught else "missed"
    table.add(case.damage, f"{case.kind}, released", {outcome}, f"{case.named}: {message}")
    shutil.rmtree(run)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--flips", type=int, default=10_000, help="single bits in files with a manifest; a tenth of that in each other kind of file")
    parser.add_argument("--seed", type=int, default=0, help="of the bits")
    args = parser.parse_args()
    table, rng = Table(), np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with quiet():
            world, released = make_world(folder / "world"), make_released(folder / "published")
        records = Records(world, folder, table)
        for case in tqdm([*whole_file_cases(records, range(PLACES)), *structure_cases()], "cases", disable=None, leave=False):
            records.run(case, again=True)
        record_flips(records, rng, args.flips)
        stage_cases(world, folder, table, range(PLACES))
        for names in STAGE_FILES.values():
            for name in names:
                reader_flips(world / "run" / name, read_checkpoint if name.endswith(".pth") else read_record, table, name, rng, args.flips // 10)
        for case, can_be_caught in released_cases():
            run_released(released, folder, table, case, can_be_caught)
        reader_flips(released / LABEL, read_fields, table, "label file, released", rng, args.flips // 10)
        reader_flips(released / IMAGE, lambda path: decode(path).tolist(), table, "image, released", rng, args.flips // 10, can_be_caught=False)
    print(table.text())
    for line in table.missed:
        print(f"missed: {line}", file=sys.stderr)
    sys.exit(bool(table.missed))


if __name__ == "__main__":
    main()
