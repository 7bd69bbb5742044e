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
from functools import partial
from pathlib import Path

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
SUBJECTS = {"image": IMAGE, "class folder": CLASS_FOLDER, "label file": LABEL, "epoch": EPOCH}

# What a stage continues from, beside images and labels.
STAGE_FILES = {
    "squeeze": ("teacher/teacher.pth", "teacher/checkpoint.pth", "teacher/settings.json"),
    "validate": (f"{worlds.STUDENT}/seed0/checkpoint.pth", f"{worlds.STUDENT}/settings.json")}

# Where a copy of each subject lands, what it is renamed to, and what it is exchanged with.
COPIES = {
    "image": (f"{CLASS_FOLDER}/class001_id002.jpg", f"{CLASS_FOLDER}/class001_id000 (1).jpg",
              f"{CLASS_FOLDER}/class002_id000.jpg", SAME_CLASS, OTHER_CLASS),
    "class folder": ("images/new003", "images/new001 (1)"),
    "label file": (f"{EPOCH}/batch_2.tar", f"{EPOCH}/batch_0.tar.1", OTHER_EPOCH, SAME_EPOCH),
    "epoch": ("labels/epoch_2", "labels/epoch_01")}
NEW_NAMES = {
    "image": (f"{CLASS_FOLDER}/class001_id007.jpg", f"{CLASS_FOLDER}/class001_id000.jpeg",
              "images/new002/class002_id002.jpg"),
    "class folder": ("images/new007", "images/c1"),
    "label file": (f"{EPOCH}/batch_9.tar", f"{EPOCH}/batch_00.tar", "labels/epoch_0/batch_2.tar"),
    "epoch": ("labels/epoch_7", "labels/epoch_1.old")}
EXCHANGES = {
    "image": (SAME_CLASS, OTHER_CLASS),
    "class folder": ("images/new002",),
    "label file": (SAME_EPOCH, OTHER_EPOCH),
    "epoch": ("labels/epoch_0",)}
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
            yield Case("cut off", kind, partial(harm.cut, name=name, place=place), (name,))
        for name in names:
            yield Case("deleted", kind, partial(harm.delete, name=name), (name,))
        foreign = records.world / "other" / names[0]
        yield Case("another run's", kind, partial(harm.replace, name=names[0], source=foreign), (names[0],))


def structure_cases():
    """Files and folders that are there twice, renamed, exchanged, gone, or have no business there."""
    for kind, name in SUBJECTS.items():
        for target in COPIES[kind]:
            yield Case("duplicated", kind, partial(harm.duplicate, name=name, target=target), (target,))
        for target in NEW_NAMES[kind]:
            yield Case("renamed", kind, partial(harm.rename, name=name, target=target), (name, target))
        for other in EXCHANGES[kind]:
            yield Case("two exchanged", kind, partial(harm.exchange, name=name, other=other), (name, other))

    for name in ("images.sha256", "labels.sha256"):
        yield Case("two exchanged", f"hashes in {name}", partial(harm.exchange_hashes, name=name), (name,))
        yield Case("duplicated", f"lines of {name}", partial(harm.repeat_lines, name=name), (name,))
    for name in STRAY_FILES:
        yield Case("stray", f"file in {name[:6]}", partial(harm.add_file, name=name), (name,))
    for name in STRAY_FOLDERS:
        yield Case("stray", f"folder in {name[:6]}", partial(harm.add_folder, name=name), (name,))

    for kind in ("class folder", "epoch"):
        yield Case("emptied", kind, partial(harm.empty, name=SUBJECTS[kind]), (SUBJECTS[kind],))
        yield Case("deleted", kind, partial(harm.delete, name=SUBJECTS[kind]), (SUBJECTS[kind],))
    for name in ("images", "labels"):
        yield Case("deleted", f"all {name}", partial(harm.delete, name=name), (name,))


def packed_cases():
    """The same of packed labels: files of epochs twice, renamed, exchanged, and what lies beside them."""
    kind = "label file"
    for target in (f"{EPOCH[:-1]}2.labels", f"{EPOCH[:-1]}01.labels", f"{PACKED}.1", OTHER_PACKED):
        yield Case("duplicated", kind, partial(harm.duplicate, name=PACKED, target=target), (target,))
    for target in ("labels/epoch_7.labels", "labels/epoch_01.labels", "labels/epoch_1"):
        yield Case("renamed", kind, partial(harm.rename, name=PACKED, target=target), (PACKED, target))
    both = (PACKED, OTHER_PACKED)
    yield Case("two exchanged", kind, partial(harm.exchange, name=PACKED, other=OTHER_PACKED), both)
    yield Case("deleted", "all labels", partial(harm.delete, name="labels"), ("labels",))
    hashes = "labels.sha256"
    yield Case("two exchanged", f"hashes in {hashes}", partial(harm.exchange_hashes, name=hashes), (hashes,))
    yield Case("duplicated", f"lines of {hashes}", partial(harm.repeat_lines, name=hashes), (hashes,))


def coded_cases(records, codec, places):
    """The cases of a world of make_coded."""
    if codec != "none":
        yield from whole_file_cases(records, places, ("label file", "labels.manifest.json", "labels.sha256"))
        yield from packed_cases()
    else:  # its hash file is empty
        yield from whole_file_cases(records, places, ("labels.manifest.json",))
        yield Case("deleted", "labels.sha256", partial(harm.delete, name="labels.sha256"), ("labels.sha256",))
    stray = "labels/notes.txt"
    yield Case("stray", "file in labels", partial(harm.add_file, name=stray), (stray,))
    yield Case("stray", "folder in labels", partial(harm.add_folder, name=EPOCH), (EPOCH,))


def kinds_of(codec):
    """What is flipped in a world of make_coded."""
    return ("labels.manifest.json",) if codec == "none" else ("label file", "labels.manifest.json",
                                                              "labels.sha256")


def record_flips(records, rng, count, kinds=KINDS):
    """Single bits, as many in each kind of file, one after the other in one copy, before check alone."""
    run = worlds.copy_run(records.world, records.folder / "flips")
    for number in tqdm(range(count), "flips", unit="bit", disable=None, leave=False):
        kind = kinds[number % len(kinds)]
        name = rng.choice(records.names(kind))
        (run / name).write_bytes(harm.flipped(records.whole[name], rng))
        message = first_fault(run)
        outcome = "check refuses" if is_named(message, [name]) else "missed"
        records.table.add("a bit flipped", kind + records.form, {outcome}, f"{name}: {message}")
        (run / name).write_bytes(records.whole[name])
    assert first_fault(run) is None


def stage_case(world, folder, table, stage, name, damage, do_harm):
    """Damage a file that squeeze or validate continues from, and give the command again."""
    run = worlds.copy_stages(world, folder / "stages")
    do_harm(run)
    message = start(world, run, stage)
    if message is None and same_values(result(run, stage), result(world / "run", stage)):
        outcome = "stage repairs"
    else:
        outcome = "stage refuses" if is_named(message, [name]) else "missed"
    table.add(damage, name, {outcome}, f"{message}")
    shutil.rmtree(run)


def state_case(world, folder, table, name, damage, do_harm):
    """Damage the state that a killed recover continues from, and give the command again."""
    run = worlds.copy_stopped(world, folder / "stopped")
    do_harm(run)
    message = start(world, run, "recover")
    whole = {path: data for path, data in files_in(world / "run").items() if path.startswith("images")}
    repaired = message is None and files_in(run) == whole
    table.add(damage, name, {"stage repairs" if repaired else "missed"}, f"{message}")
    shutil.rmtree(run)


def stage_cases(world, folder, table, places):
    """The files that squeeze, validate and recover continue from: cut off, gone, another run's."""
    for stage, names in STAGE_FILES.items():
        for name in names:
            foreign = world / "other" / name.replace("seed0", "seed1")
            add = partial(stage_case, world, folder, table, stage, name)
            for place in places:
                add("cut off", partial(harm.cut, name=name, place=place))
            add("deleted", partial(harm.delete, name=name))
            add("another run's", partial(harm.replace, name=name, source=foreign))

    name = "images.unit0.state"
    add = partial(state_case, world, folder, table, name)
    for place in places:
        add("cut off", partial(harm.cut, name=name, place=place))
    add("another run's", partial(harm.replace, name=name, source=world / "other" / "stopped" / name))


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
        table.add("a bit flipped", kind, {outcome}, note)
    path.write_bytes(data)


def released_cases(places=range(harm.PLACES)):
    """(Case, whether it can be caught) of whole files and folders that have no records."""
    for kind, name in (("image", IMAGE), ("label file", LABEL)):
        for place in places:
            yield Case("cut off", kind, partial(harm.cut, name=name, place=place), (name,)), True
        yield Case("deleted", kind, partial(harm.delete, name=name), (name,)), True
        for stray in (f"{name}.1", f"{name.rpartition('/')[0]}/more", f"{name[:6]}/notes.txt"):
            yield Case("stray", kind, partial(harm.add_file, name=stray), (stray,)), True

    for kind, name, target in (
            ("image", IMAGE, SAME_CLASS),
            ("image", IMAGE, f"{CLASS_FOLDER}/class001_id010.jpg"),
            ("image", IMAGE, f"{CLASS_FOLDER}/copy.jpg"),
            ("label file", LABEL, OTHER_EPOCH),
            ("label file", LABEL, f"{EPOCH}/batch_2.tar")):
        copy = partial(harm.duplicate, name=name, target=target)
        yield Case("duplicated", kind, copy, (name, target)), True
        yield Case("renamed", kind, partial(harm.rename, name=name, target=target), (name, target)), True

    exchange = partial(harm.exchange, name=LABEL, other=OTHER_EPOCH)
    yield Case("two exchanged", "label file", exchange, (LABEL, OTHER_EPOCH)), True
    exchange = partial(harm.exchange, name=IMAGE, other=OTHER_CLASS)
    yield Case("two exchanged", "image", exchange, (IMAGE,)), False
    yield Case("emptied", "epoch", partial(harm.empty, name=EPOCH), (EPOCH,)), True
    for kind, name, can_be_caught in (
            ("class folder", "images/new004", True),
            ("last class folder", "images/new009", True),
            ("first epoch", "labels/epoch_0", True),
            ("last epoch", "labels/epoch_1", False)):
        named = (Path(name).name, "images: 9 class folders")
        yield Case("deleted", kind, partial(harm.delete, name=name), named), can_be_caught


def run_released(world, folder, table, case, can_be_caught):
    """Damage a copy of a set without records, and count what check says."""
    run = shutil.copytree(world, folder / "released")
    case.harm(run)
    message = first_fault(run, worlds.RELEASED["num_classes"])
    if is_named(message, case.named):
        outcome = "check refuses"
    else:
        outcome = "cannot be caught" if message is None and not can_be_caught else "missed"
    table.add(case.damage, f"{case.kind}, released", {outcome}, f"{case.named}: {message}")
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
    """A packed file without records, as nested lists of tensors."""
    file = EpochFile(path)
    batches = [file.read(index) for index in range(len(file.num_rows))]
    return [[crops.boxes, crops.flips, mix.partner, mix.lam, mix.box, logits]
            for crops, mix, logits in batches]


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
            cases = [*coded_cases(records, codec, range(harm.PLACES))]
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
