"""Damage of every kind to files of every kind.

Each case is repaired by the same command, byte for byte, or refused with the file named.
Run: sh stress/damage.sh [--flips 10000] [--seed 0]
Time: 25 minutes on two busy CPU cores, about half of it for stages that are started again.
Result: a table; exit code 1 where a case is missed.
"""
import argparse
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from sre2l.data.image_folder import decode
from sre2l.data.label_files import read_fields
from sre2l.data.packed import EpochFile
from sre2l.nets.checkpoints import read_checkpoint
from sre2l.run.errors import UserError
from sre2l.run.output import read_record
from stress import damage_world as worlds
from stress import harm
from stress.compare import same_values
from stress.outcomes import KINDS, Case, Records, Table, files_in, first_fault, is_named, result, start

CLASS_FOLDER = "images/new001"
IMAGE = f"{CLASS_FOLDER}/class001_id000.jpg"
SAME_CLASS = f"{CLASS_FOLDER}/class001_id001.jpg"
OTHER_CLASS = "images/new002/class002_id000.jpg"
EPOCH = "labels/epoch_1"
LABEL = f"{EPOCH}/batch_0.tar"
SAME_EPOCH = f"{EPOCH}/batch_1.tar"
OTHER_EPOCH = "labels/epoch_0/batch_0.tar"
PACKED = "labels/epoch_1.labels"
OTHER_PACKED = "labels/epoch_0.labels"
# What a stage continues from, beside images and labels.
STAGE_FILES = {
    "squeeze": ("teacher/teacher.pth", "teacher/checkpoint.pth", "teacher/settings.json"),
    "validate": (f"{worlds.STUDENT}/seed0/checkpoint.pth", f"{worlds.STUDENT}/settings.json")}


class Subject(NamedTuple):
    """A file or a folder, where copies of it land, what it is renamed to, and what it is exchanged with."""
    kind: str
    name: str
    copies: tuple
    new_names: tuple
    exchanges: tuple


SUBJECTS = (
    Subject("image", IMAGE,
            copies=(f"{CLASS_FOLDER}/class001_id002.jpg", f"{CLASS_FOLDER}/class001_id000 (1).jpg",
                    f"{CLASS_FOLDER}/class002_id000.jpg", SAME_CLASS, OTHER_CLASS),
            new_names=(f"{CLASS_FOLDER}/class001_id007.jpg", f"{CLASS_FOLDER}/class001_id000.jpeg",
                       "images/new002/class002_id002.jpg"),
            exchanges=(SAME_CLASS, OTHER_CLASS)),
    Subject("class folder", CLASS_FOLDER,
            copies=("images/new003", "images/new001 (1)"),
            new_names=("images/new007", "images/c1"),
            exchanges=("images/new002",)),
    Subject("label file", LABEL,
            copies=(f"{EPOCH}/batch_2.tar", f"{EPOCH}/batch_0.tar.1", OTHER_EPOCH, SAME_EPOCH),
            new_names=(f"{EPOCH}/batch_9.tar", f"{EPOCH}/batch_00.tar", "labels/epoch_0/batch_2.tar"),
            exchanges=(SAME_EPOCH, OTHER_EPOCH)),
    Subject("epoch", EPOCH,
            copies=("labels/epoch_2", "labels/epoch_01"),
            new_names=("labels/epoch_7", "labels/epoch_1.old"),
            exchanges=("labels/epoch_0",)))
PACKED_SUBJECT = Subject(
    "label file", PACKED,
    copies=("labels/epoch_2.labels", "labels/epoch_01.labels", f"{PACKED}.1", OTHER_PACKED),
    new_names=("labels/epoch_7.labels", "labels/epoch_01.labels", "labels/epoch_1"),
    exchanges=(OTHER_PACKED,))
STRAY_FILES = ("images/notes.txt", f"{CLASS_FOLDER}/notes.txt", f"{CLASS_FOLDER}/.hidden", "labels/notes.txt",
               f"{EPOCH}/notes.txt")
STRAY_FOLDERS = ("images/more", "images/new003", f"{CLASS_FOLDER}/more", "labels/more", f"{EPOCH}/more",
                 "labels/epoch_2")


def whole_file_cases(records, places, kinds=KINDS):
    """Each kind of file cut off, gone, and another run's."""
    for kind in kinds:
        names = records.names(kind)
        for place in places:
            name = names[place % len(names)]
            yield Case("cut off", kind, harm.cut, (name, place), (name,))
        for name in names:
            yield Case("deleted", kind, harm.delete, (name,), (name,))
        foreign = records.world / "other" / names[0]
        yield Case("another run's", kind, harm.replace, (names[0], foreign), (names[0],))


def subject_cases(kind, name, copies, new_names, exchanges):
    """A Subject that is there twice, renamed, or exchanged."""
    for target in copies:
        yield Case("duplicated", kind, harm.duplicate, (name, target), (target,))
    for target in new_names:
        yield Case("renamed", kind, harm.rename, (name, target), (name, target))
    for other in exchanges:
        yield Case("two exchanged", kind, harm.exchange, (name, other), (name, other))


def hash_cases(name):
    """The same of the lines of a hash file."""
    yield Case("two exchanged", f"hashes in {name}", harm.exchange_hashes, (name,), (name,))
    yield Case("duplicated", f"lines of {name}", harm.repeat_lines, (name,), (name,))


def structure_cases():
    """Files and folders that are there twice, renamed, exchanged, gone, or have no business there."""
    for subject in SUBJECTS:
        yield from subject_cases(*subject)
    for name in ("images.sha256", "labels.sha256"):
        yield from hash_cases(name)
    for name in STRAY_FILES:
        yield Case("stray", f"file in {name[:6]}", harm.add_file, (name,), (name,))
    for name in STRAY_FOLDERS:
        yield Case("stray", f"folder in {name[:6]}", harm.add_folder, (name,), (name,))

    for kind, name in (("class folder", CLASS_FOLDER), ("epoch", EPOCH)):
        yield Case("emptied", kind, harm.empty, (name,), (name,))
        yield Case("deleted", kind, harm.delete, (name,), (name,))
    for name in ("images", "labels"):
        yield Case("deleted", f"all {name}", harm.delete, (name,), (name,))


def kinds_of(codec):
    """The kinds of files of the labels in a world of make_coded. `none` has an empty hash file."""
    return ("labels.manifest.json",) if codec == "none" else ("label file", "labels.manifest.json",
                                                              "labels.sha256")


def coded_cases(records, places):
    """The cases of a world of make_coded."""
    yield from whole_file_cases(records, places, kinds_of(records.codec))
    if records.codec == "none":
        yield Case("deleted", "labels.sha256", harm.delete, ("labels.sha256",), ("labels.sha256",))
    else:
        yield from subject_cases(*PACKED_SUBJECT)
        yield Case("deleted", "all labels", harm.delete, ("labels",), ("labels",))
        yield from hash_cases("labels.sha256")
    stray = "labels/notes.txt"
    yield Case("stray", "file in labels", harm.add_file, (stray,), (stray,))
    yield Case("stray", "folder in labels", harm.add_folder, (EPOCH,), (EPOCH,))


def record_flips(records, rng, count, kinds=KINDS):
    """Single bits, as many in each kind of file, one after the other in one copy, before check alone."""
    run = worlds.copy_run(records.world, records.folder / "flips", ("images", "labels"))
    for number in tqdm(range(count), "flips", unit="bit", disable=None, leave=False):
        kind = kinds[number % len(kinds)]
        name = rng.choice(records.names(kind))
        (run / name).write_bytes(harm.flipped(records.whole[name], rng))
        message = first_fault(run)
        outcome = "check refuses" if is_named(message, [name]) else "missed"
        records.table.add("a bit flipped", kind + records.form, f"{name}: {message}", outcome)
        (run / name).write_bytes(records.whole[name])
    assert first_fault(run) is None
    shutil.rmtree(run)


def stage_case(world, folder, stage, name, do_harm, *args):
    """Damage a file that squeeze or validate continues from, and give the command again.

    -> (what the stage said, outcome)."""
    run = worlds.copy_run(world, folder / "stages", ("teacher", "student"))
    do_harm(run, name, *args)
    message = start(world, run, stage)
    if message is None and same_values(result(run, stage), result(world / "run", stage)):
        outcome = "stage repairs"
    else:
        outcome = "stage refuses" if is_named(message, [name]) else "missed"
    shutil.rmtree(run)
    return message, outcome


def state_case(world, folder, name, do_harm, *args):
    """The same of the state that a killed recover continues from; no refusal is right there."""
    run = worlds.copy_stopped(world, folder / "stopped")
    do_harm(run, name, *args)
    message = start(world, run, "recover")
    whole = {path: data for path, data in files_in(world / "run").items() if path.startswith("images")}
    is_repaired = message is None and files_in(run) == whole
    shutil.rmtree(run)
    return message, "stage repairs" if is_repaired else "missed"


def stage_cases(world, folder, table, places):
    """The files that squeeze, validate and recover continue from: cut off, gone, another run's."""
    for stage, names in STAGE_FILES.items():
        for name in names:
            foreign = world / "other" / name.replace("seed0", "seed1")
            for place in places:
                table.add("cut off", name, *stage_case(world, folder, stage, name, harm.cut, place))
            table.add("deleted", name, *stage_case(world, folder, stage, name, harm.delete))
            table.add("another run's", name, *stage_case(world, folder, stage, name, harm.replace, foreign))

    name = "images.unit0.state"
    for place in places:
        table.add("cut off", name, *state_case(world, folder, name, harm.cut, place))
    foreign = world / "other" / "stopped" / name
    table.add("another run's", name, *state_case(world, folder, name, harm.replace, foreign))


def reader_flips(path, read, table, kind, rng, count, can_be_caught=True):
    """Single bits of one file: refused when it is read, or the same values are read."""
    data = path.read_bytes()
    whole = read(path)
    refuses = "check refuses" if "released" in kind else "stage refuses"
    for _ in tqdm(range(count), kind, unit="bit", disable=None, leave=False):
        path.write_bytes(harm.flipped(data, rng))
        note = "other values are read"
        try:
            if same_values(read(path), whole):
                outcome = "no effect"
            else:
                outcome = "missed" if can_be_caught else "cannot be caught"
        except UserError as error:
            note = str(error)
            outcome = refuses if str(path) in note else "missed"
        table.add("a bit flipped", kind, note, outcome)
    path.write_bytes(data)


def released_cases(places=range(harm.PLACES)):
    """(Case, whether it can be caught) of whole files and folders that have no records."""
    for kind, name in (("image", IMAGE), ("label file", LABEL)):
        for place in places:
            yield Case("cut off", kind, harm.cut, (name, place), (name,)), True
        yield Case("deleted", kind, harm.delete, (name,), (name,)), True
        for stray in (f"{name}.1", f"{name.rpartition('/')[0]}/more", f"{name[:6]}/notes.txt"):
            yield Case("stray", kind, harm.add_file, (stray,), (stray,)), True

    for kind, *both in (
            ("image", IMAGE, SAME_CLASS),
            ("image", IMAGE, f"{CLASS_FOLDER}/class001_id010.jpg"),
            ("image", IMAGE, f"{CLASS_FOLDER}/copy.jpg"),
            ("label file", LABEL, OTHER_EPOCH),
            ("label file", LABEL, f"{EPOCH}/batch_2.tar")):
        yield Case("duplicated", kind, harm.duplicate, both, both), True
        yield Case("renamed", kind, harm.rename, both, both), True

    both = (LABEL, OTHER_EPOCH)
    yield Case("two exchanged", "label file", harm.exchange, both, both), True
    yield Case("two exchanged", "image", harm.exchange, (IMAGE, OTHER_CLASS), (IMAGE,)), False
    yield Case("emptied", "epoch", harm.empty, (EPOCH,), (EPOCH,)), True
    for kind, name, can_be_caught in (
            ("class folder", "images/new004", True),
            ("last class folder", "images/new009", True),
            ("first epoch", "labels/epoch_0", True),
            ("last epoch", "labels/epoch_1", False)):
        named = (Path(name).name, "images: 9 class folders")
        yield Case("deleted", kind, harm.delete, (name,), named), can_be_caught


def run_released(world, folder, table, case, can_be_caught):
    """Damage a copy of a set without records, and count what check says."""
    run = shutil.copytree(world, folder / "released")
    case.harm(run, *case.args)
    message = first_fault(run, worlds.RELEASED["num_classes"])
    if is_named(message, case.named):
        outcome = "check refuses"
    else:
        outcome = "cannot be caught" if message is None and not can_be_caught else "missed"
    table.add(case.damage, f"{case.kind}, released", f"{case.named}: {message}", outcome)
    shutil.rmtree(run)


def stage_file_flips(world, table, rng, count):
    """Single bits of what squeeze and validate continue from, as these read it."""
    for names in STAGE_FILES.values():
        for name in names:
            read = read_checkpoint if name.endswith(".pth") else read_record
            reader_flips(world / "run" / name, read, table, name, rng, count)


def read_pixels(path):
    """An image as nested lists, which `same_values` compares."""
    return decode(path).tolist()


def read_packed(path):
    """A packed file without records, as nested values."""
    file = EpochFile(path)
    batches = [file.read(index) for index in range(len(file.num_rows))]
    return [[asdict(crops), asdict(mix), logits] for crops, mix, logits in batches]


def released_flips(released, table, rng, label_bits, image_bits):
    """Single bits of a label file and of an image without records."""
    reader_flips(released / LABEL, read_fields, table, "label file, released", rng, label_bits)
    reader_flips(released / IMAGE, read_pixels, table, "image, released", rng, image_bits,
                 can_be_caught=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--flips", type=int, default=10_000,
                        help="single bits in files with a manifest; a tenth of it in each other kind of "
                             "file, a fiftieth with labels of each further codec")
    parser.add_argument("--seed", type=int, default=0, help="of the bits")
    args = parser.parse_args()
    table = Table()
    rng = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = worlds.make_world(folder / "world")
        released = worlds.make_released(folder / "published")

        # Sets with records: whole files and folders, then single bits.
        records = Records(world, folder, table)
        cases = [*whole_file_cases(records, range(harm.PLACES)), *structure_cases()]
        for case in tqdm(cases, "cases", disable=None, leave=False):
            records.run(case, again=True)
        record_flips(records, rng, args.flips)

        # The same of labels in other codecs; of packed files also without records.
        for number, codec in enumerate(worlds.CODED):
            coded = worlds.make_coded(world, folder / f"coded{number}", codec)
            records = Records(coded, folder, table, codec)
            cases = [*coded_cases(records, range(harm.PLACES))]
            for case in tqdm(cases, codec, disable=None, leave=False):
                records.run(case, again=True)
            record_flips(records, rng, args.flips // 50, kinds_of(codec))
            if codec != "none":
                reader_flips(coded / "run" / PACKED, read_packed, table, f"packed {codec}, released", rng,
                             args.flips // 10)

        # What the stages continue from.
        stage_cases(world, folder, table, range(harm.PLACES))
        stage_file_flips(world, table, rng, args.flips // 10)

        # Sets without records.
        for case, can_be_caught in released_cases():
            run_released(released, folder, table, case, can_be_caught)
        released_flips(released, table, rng, args.flips // 10, args.flips // 10)

    print(table.text())
    for line in table.missed:
        print(f"missed: {line}", file=sys.stderr)
    sys.exit(bool(table.missed))


if __name__ == "__main__":
    main()
