"""Data sets of one's own: the facts that a folder of images tells, kept beside the run in dataset.json."""
import os
import re
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path

import numpy as np

from sre2l.data.datasets import BY_SIZE, DATASETS, Dataset
from sre2l.data.image_folder import check_classes, on_all_cores
from sre2l.data.pixel_store import find_shapes
from sre2l.data.real_images import (
    VAL_NAMES,
    find_split,
    has_two_orders,
    order_classes,
    show,
    split_folder,
    with_files,
)
from sre2l.data.scale import count_files, scale_of
from sre2l.data.torchvision_sets import is_stored
from sre2l.run.errors import UserError
from sre2l.run.files import read_json, write_json
from sre2l.run.paths import run_folder

FORMAT = "sre2l-dataset-1"
VAL_FRACTION = 0.1  # of each class, where a folder has no validation images
SHORT = {"imagenet": "imagenet1k", "tinyimagenet200": "tiny-imagenet"}  # how rows are called elsewhere
NUM_MEASURED = 500  # images, evenly spread, whose pixels are measured


def facts_path(run):
    """Where a run keeps the facts of its data set."""
    return Path(run) / "dataset.json"


def is_slip(name, known):
    """Is a name a known one with other separators or capitals, or with one letter wrong, left out or doubled,
    or two letters swapped?"""
    name, known = (re.sub(r"[._-]", "", text.lower()) for text in (name, known))
    if len(name) == len(known):
        differing = [pair for pair in zip(name, known) if pair[0] != pair[1]]
        is_swap = len(differing) == 2 and differing[0] == differing[1][::-1]
        are_letters = all(letter.isalpha() for pair in differing for letter in pair)
        return are_letters and (len(differing) <= 1 or is_swap)
    doubled = {known[:at] + known[at] + known[at:] for at in range(len(known)) if known[at].isalpha()}
    return name in doubled | {known[:at] + known[at + 1:] for at in range(len(known)) if known[at].isalpha()}


def check_dataset_name(name):
    """Raise UserError unless a data set may be called so: a name of a folder, and no slip of a known one."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"--dataset {name}: a name has letters, digits and . _ - alone")
    bare = re.sub(r"[._-]", "", name.lower())
    for known in DATASETS:
        is_part = bare == known.rpartition("-")[0]  # imagenet21k is another set than imagenet21k-p
        if (is_slip(name, known) and not is_part) or known == SHORT.get(bare):
            raise UserError(f"--dataset {name}: did you mean {known}? Your own needs another name")


def read_facts(run, name):
    """The Dataset that a run has recorded; None where it has none. Raises UserError for another name's."""
    path = facts_path(run)
    if not path.exists():
        return None
    record = read_json(path)
    if record.get("format") != FORMAT or record.get("name") != name:
        raise UserError(f"{path}: holds the facts of {record.get('name')}, this run is of {name}; "
                        f"choose another --name")
    facts = {key: tuple(value) if isinstance(value, list) else value
             for key, value in record.items() if key != "format"}
    known = {field.name: field for field in fields(Dataset)}
    needed = {name for name, field in known.items() if field.default is MISSING}
    names = facts.get("class_names")
    if not needed <= set(facts) <= set(known) or (names and len(names) != facts["num_classes"]):
        raise UserError(f"{path}: not as squeeze wrote it, or of another version; bring it back, or start "
                        f"afresh with --overwrite")
    return Dataset(**facts)


def write_facts(run, spec):
    facts = asdict(spec)
    for later in ("num_images", "files_sha256"):  # where they are not needed, the file stays as it was
        if facts[later] is None:
            del facts[later]
    write_json(facts_path(run), {"format": FORMAT, **facts})


def choose_size(shapes):
    """The input size for images of these heights and widths (n, 2): the largest of BY_SIZE that the median
    short side reaches."""
    short = np.median(np.min(shapes, axis=1))
    return max((size for size in BY_SIZE if size <= short), default=min(BY_SIZE))


def measure(images, size):
    """Mean and standard deviation of each channel, of pixels in [0, 1]: short side to `size`, centre crop.

    Over at most NUM_MEASURED images, to four decimals."""
    rows = np.linspace(0, len(images) - 1, min(NUM_MEASURED, len(images))).astype(int).tolist()

    def moments(row):
        pixels = show(images.pixels(row), size, size).reshape(-1, 3) / 255
        return np.stack((pixels.mean(0), (pixels ** 2).mean(0)))

    mean, square = sum(on_all_cores(moments, rows, "measuring", images.root)) / len(rows)
    std = np.sqrt(np.maximum(square - mean ** 2, 1e-8))
    return tuple(np.round(mean, 4).tolist()), tuple(np.maximum(np.round(std, 4), 1e-4).tolist())


def check_split(train, val):
    """Raise UserError for classes that nobody can train or measure: one alone, one with fewer than two
    images, one that the validation images lack."""
    if len(train.class_names) < 2:
        raise UserError(f"{train.root}: one class alone, '{train.class_names[0]}'; a data set needs two or "
                        f"more, a folder for each")
    counts = np.bincount(train.labels, minlength=len(train.class_names))
    few = int(counts.argmin())
    if counts[few] < 2:
        raise UserError(f"{train.root}: class '{train.class_names[few]}' has {counts[few]} image to train "
                        f"on; it needs two, besides one to measure on")
    check_classes(val.root, val.class_names, train.class_names, "train")


def check_tree(path):
    """Raise UserError for folders that cannot be read as they look: a link that leads nowhere, or back to a
    folder around it, and a name that is no text."""
    for folder, names, _ in os.walk(path):
        for name in names:
            link = os.path.join(folder, name)
            try:
                link.encode()
            except UnicodeEncodeError:
                text = link.encode(errors="replace").decode()
                raise UserError(f"{text}: the folder's name is not UTF-8; rename it") from None
            if os.path.islink(link) and Path(folder).resolve().is_relative_to(Path(link).resolve()):
                raise UserError(f"{link}: is a link to a folder around it, whose images would be counted "
                                f"twice and more; remove it")
    for entry in os.scandir(path):
        if entry.is_symlink() and not os.path.exists(entry.path):
            raise UserError(f"{entry.path}: is a link that leads nowhere; remove or mend it")


def find_facts(name, path, size=None, val_fraction=None, order="text"):
    """What a folder of images tells -> Dataset. size: the user's, None = by the median image; val_fraction:
    None = VAL_FRACTION where there are no validation images; order: of the classes, 'text' or 'numeric'.

    Raises UserError for a folder that cannot be trained on."""
    if val_fraction is None and split_folder(path, VAL_NAMES) is None:
        val_fraction = VAL_FRACTION
    spec = Dataset(name, 0, 0, (), (), "resized", 0, True, "torchvision", source=str(path),
                   val_fraction=val_fraction)
    check_tree(path)
    train = find_split(spec, path, "train")
    val = find_split(spec, path, "val")
    check_split(train, val)
    # The headers of both are read: what is wrong with a folder is said at once.
    every = replace(train, items=[*train.items, *val.items], root=str(path))
    shapes = find_shapes(every)
    size = size or choose_size(shapes[:len(train)])
    crop, padding, stem, resize_ratio = BY_SIZE[max(known for known in BY_SIZE if known <= max(size, 32))]
    mean, std = measure(train, size)
    if val_fraction is not None:
        spec = with_files(spec, path)
    return replace(spec, num_classes=len(train.class_names), size=size, mean=mean, std=std, crop=crop,
                   padding=padding, stem=stem, resize_ratio=resize_ratio, num_train=len(train),
                   scale=scale_of(count_files(path)),
                   class_names=tuple(order_classes(train.class_names, train.root, order)))


def describe(spec, names, order, num_val):
    """Lines for the log: the facts of a data set of one's own, and the order of the classes where their names
    have two.

    names: of the classes, in the order that was taken; order: what the user said, None = text; num_val: how
    many images are measured on."""
    lines = []
    if spec.class_names:
        some = f"{names[0]} ... {names[-1]}" if len(names) > 2 else " and ".join(names)
        held_out = f" ({spec.val_fraction:.0%} of each class is held out)" if spec.val_fraction else ""
        few = f", one of which is {100 / num_val:.2g} points" if num_val <= 100 else ""
        lines.append(f"{spec.name}: {spec.num_classes} classes ({some}), {spec.num_train} images to train on "
                     f"and {num_val} to measure on{held_out}{few}, {spec.size} pixels, mean {spec.mean}, std "
                     f"{spec.std}, {spec.crop} crops, stem {spec.stem}")
    if has_two_orders(names):
        first = ", ".join(repr(name) for name in names[:3])
        other = "text" if order == "numeric" else "numeric"
        lines.append(f"classes in {order or 'text'} order, {first} ...; --class-order {other} would be "
                     f"another")
    return lines


def row_to_squeeze(args):
    """The Dataset that squeeze trains on: a row, what the run has recorded, or what the folder tells.

    Raises UserError for a folder that cannot be trained on, and where nothing is known."""
    run = run_folder(args)
    earlier = read_facts(run, args.dataset)
    recorded = None if args.overwrite else earlier
    if recorded:
        if args.class_order and recorded.class_names:
            names = tuple(order_classes(sorted(recorded.class_names), facts_path(run), args.class_order))
            if names != recorded.class_names:
                raise UserError(f"{facts_path(run)}: the classes have the other order there; choose another "
                                f"--name, or start afresh with --overwrite")
        if args.val_fraction not in (None, recorded.val_fraction):
            raise UserError(f"{facts_path(run)}: --val-fraction was {recorded.val_fraction} there; choose "
                            f"another --name, or start afresh with --overwrite")
        # A folder that has moved is where the user says it is, for later stages as well.
        return replace(recorded, source=args.real_data or recorded.source)
    if args.dataset not in DATASETS:
        check_dataset_name(args.dataset)
        args.real_data = args.real_data or (earlier and earlier.source)
        if args.real_data is None:
            raise UserError(f"--dataset {args.dataset}: a data set of your own needs --real-data DIR; known "
                            f"are {', '.join(DATASETS)}")
        order = args.class_order or "text"
        return find_facts(args.dataset, args.real_data, args.input_size, args.val_fraction, order)
    row = DATASETS[args.dataset]
    fraction = args.val_fraction or row.val_fraction
    if fraction is None:
        return row
    path = args.real_data
    has_val = path and split_folder(path, VAL_NAMES) and not is_stored(row.name, path)
    row = replace(row, val_fraction=args.val_fraction if has_val else fraction, source=path)
    if path is None or row.val_fraction is None:
        return row
    return with_files(row, path)


def record_facts(args, row):
    """Keep beside the run what its later stages need to know, where datasets.py does not know it."""
    run = run_folder(args)
    if row.source or row.val_fraction:
        write_facts(run, row)
    else:  # of a run that --overwrite has deleted
        facts_path(run).unlink(missing_ok=True)
