"""Real images: folders {train,val}/<class>/ or <class>/, the flat val/ of Tiny-ImageNet and ImageNet with
their lists of classes, torchvision's own files, embedded digits."""
import hashlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sre2l.data.image_folder import Images, check_classes, read_folder, tell_once
from sre2l.data.pixel_store import decode_all, find_shapes
from sre2l.data.torchvision_sets import is_stored, read_torchvision
from sre2l.run.errors import UserError
from sre2l.run.layout import check_name
from sre2l.run.limits import memory_room
from sre2l.run.paths import ROOT

CPU = torch.device("cpu")
CLASS_LISTS = ROOT / "sre2l" / "data" / "classes"  # NAME.txt: the class folders of NAME, one a line
TRAIN_NAMES = ("train", "training")
LARGEST_RATIO = 2  # short side of a photograph that is kept, over that of the network's input
VAL_NAMES = ("val", "valid", "validation", "test", "testing")  # the first that is there counts
SPLIT = re.compile(r"(train|val|test|dev|eval)(ing|id|idation)?[\W_]*(set|data|images)?[\W_]*\d*", re.I)


@dataclass
class ShownImages(Images):
    """Images, decoded at each use, as an evaluation shows them: short side `short`, centre crop."""
    size: int = 0
    short: int = 0

    def pixels(self, index):
        """Image `index` as a (size, size, 3) uint8 array."""
        pixels = super().pixels(index)
        return pixels if self.store is not None else show(pixels, self.size, self.short)

    def shapes(self, rows):
        return np.full((len(rows), 2), self.size)


@dataclass
class ShrunkImages(Images):
    """Photographs whose short side is `short` pixels at most, so that they need not be kept as they are."""
    short: int = 0

    def pixels(self, index):
        """Image `index` as a (H, W, 3) uint8 array."""
        pixels = super().pixels(index)
        height, width = shrunk(*pixels.shape[:2], self.short)
        if self.store is not None or (height, width) == pixels.shape[:2]:
            return pixels
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))

    def shapes(self, rows):
        if self.store is not None:
            return super().shapes(rows)
        shapes = [shrunk(*shape, self.short) for shape in super().shapes(rows).tolist()]
        return np.array(shapes, np.int64).reshape(-1, 2)


def shrunk(height, width, short):
    """Height and width in proportion, so that the shorter is `short` pixels at most."""
    if min(height, width) <= short:
        return height, width
    scale = short / min(height, width)
    return max(short, round(height * scale)), max(short, round(width * scale))


def to_train_on(images, spec):
    """Images as training crops them -> (Images, what was done to them, None = nothing).

    Of photographs no more pixels than crops need are kept; padded crops need images of the network's size."""
    shapes = find_shapes(images)
    if spec.crop == "padded" and (shapes != spec.size).any():
        return shown_at(images, spec.size, round(spec.size * spec.resize_ratio)), "resized and cropped"
    short = LARGEST_RATIO * spec.size
    if shapes.min(1).max() > short:
        return ShrunkImages(**vars(images), short=short), f"short side at most {short}"
    return images, None


@dataclass(frozen=True)
class OwnImages:
    """What one process measures of a set, decoded: pixels (n, S, S, 3) uint8 and labels (n,) int64, both on
    the CPU or on a GPU.

    total: the number of images over all processes, which is also len()."""
    pixels: torch.Tensor
    labels: torch.Tensor
    total: int
    root: str

    def __len__(self):
        return self.total


def read_digits(split, size):
    """The embedded UCI digits: 8x8 scans with 0..16 grey levels, enlarged; 1,000 train, 797 val."""
    with np.load(ROOT / "sre2l" / "data" / "digits.npz") as stored:
        chosen = stored["is_val"] == (split == "val")
        scans = stored["scans"][chosen]
        labels = stored["labels"][chosen].astype(np.int64)
    grey = np.rint(scans * (255 / 16)).astype(np.uint8)
    large = [Image.fromarray(scan).resize((size, size), Image.Resampling.BILINEAR) for scan in grey]
    items = [np.asarray(image.convert("RGB")) for image in large]
    return Images(items, labels, [str(digit) for digit in range(10)], f"digits/{split}")


def listed_images(folder, file, rows):
    """The images of a flat folder whose classes a file lists; the classes are sorted.

    rows: (name of an image in `folder`, class) pairs of `file`. Raises UserError for a name that is none."""
    for name, _ in rows:
        check_name(name, file)
    names = sorted({wnid for _, wnid in rows})
    labels = np.array([names.index(wnid) for _, wnid in rows])
    return Images([str(folder / name) for name, _ in rows], labels, names, str(file.parent))


def read_tiny_val(folder):
    """Tiny-ImageNet's val/ as distributed: images/ and val_annotations.txt."""
    file = folder / "val_annotations.txt"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [line.split("\t")[:2] for line in lines if line.strip()]
    if not rows or any(len(row) != 2 for row in rows):
        raise UserError(f"{file}: expected lines of file name, tab, class")
    return listed_images(folder / "images", file, rows)


def read_kaggle_val(folder, file):
    """ImageNet's flat val/ with LOC_val_solution.csv, whose lines are 'file name, class and boxes'."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    pairs = [line.partition(",")[::2] for line in lines if line.strip()]
    if not pairs or any(not boxes.split() for _, boxes in pairs):
        raise UserError(f"{file}: expected lines of image name, comma, class and boxes, below a title")
    rows = [(f"{name}.JPEG", boxes.split()[0]) for name, boxes in pairs]
    return replace(listed_images(folder, file, rows), root=str(folder))


def folders_in(path):
    """The names of the folders in a folder, sorted; none where it is not there. Of files nothing is asked."""
    if not Path(path).is_dir():
        return []
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def split_folder(path, names):
    """The first of these folders that is in `path`, however it is capitalised; None where none is."""
    there = {name.lower(): Path(path) / name for name in folders_in(path)}
    return next((there[name] for name in names if name in there), None)


def read_layout(spec, path, split):
    """The images of a split in a folder: {train,val}/<class>/, or else the class folders in it."""
    train = split_folder(path, TRAIN_NAMES)
    val = split_folder(path, VAL_NAMES)
    if split == "train" and val and not train:
        raise UserError(f"{path}: has {val.name}/ and no train/; give the folder that holds both, or one of "
                        f"class folders alone")
    if split == "train" and not train and spec.val_fraction is None:
        raise UserError(f"{path}/train: there is no such folder; give the one that holds train/ and val/, or "
                        f"hold a part of its class folders out with --val-fraction 0.1")
    if split == "val" and train and not val:
        raise UserError(f"{path}: has train/ and no val/ to measure on; bring it back, or hold a part of the "
                        f"training images out with --val-fraction 0.1")
    folder = (train if split == "train" else val) or Path(path)
    names = folders_in(folder)
    if names and all(map(SPLIT.fullmatch, names)):
        raise UserError(f"{folder}: its folders {', '.join(names)} look like splits, not classes; "
                        f"call them train and val")
    lists = folder / "val_annotations.txt", folder.parent / "LOC_val_solution.csv"
    if split == "val" and lists[0].is_file():
        return read_tiny_val(folder)
    if split == "val" and lists[1].is_file() and not names:
        return read_kaggle_val(folder, lists[1])
    return read_folder(folder)


def choose_classes(images, name):
    """Of a folder with more classes than the data set of that name has: the images of those that its list
    names. Data sets without a list in CLASS_LISTS take every folder.

    Raises UserError where such a folder lacks one of them."""
    file = CLASS_LISTS / f"{name}.txt"
    if not file.exists():
        return images
    wanted = sorted(file.read_text(encoding="utf-8").split())
    if len(images.class_names) <= len(wanted):
        other = sorted(set(images.class_names) - set(wanted))
        if other:
            tell_once(f"warning: {images.root}: {len(other)} of its class folders, such as '{other[0]}', are "
                      f"not among those that {file} names for {name}; it is taken as it is")
        return images
    missing = sorted(set(wanted) - set(images.class_names))
    if missing:
        raise UserError(f"{images.root}: has {len(images.class_names)} class folders, and {len(missing)} of "
                        f"the {len(wanted)} that {file} names for {name} are not among them, such as "
                        f"'{missing[0]}'")
    numbers = np.array([wanted.index(folder) if folder in wanted else -1 for folder in images.class_names])
    labels = numbers[images.labels]
    rows = np.flatnonzero(labels >= 0)
    return replace(images, items=[images.items[row] for row in rows], labels=labels[rows], class_names=wanted)


def read_split(spec, path, split):
    """The images of one split as they are stored. path None: the data set's own source."""
    path = path or spec.source
    if path is None and spec.name == "digits":
        return read_digits(split, spec.size)
    if is_stored(spec.name, path):
        return read_torchvision(spec, path, split)
    if path is None:
        raise UserError(f"{spec.name} has no embedded images: say where they are with --real-data "
                        f"(a folder with train/ and val/)")
    if not Path(path).is_dir():
        raise UserError(f"{path}: there is no such folder; say with --real-data where {spec.name} lies now")
    return choose_classes(read_layout(spec, path, split), spec.name)


def hold_out(images, fraction, split):
    """The images of a split, where of each class a part, evenly spread over the order of its files, is held
    out as 'val': at least one, and 'train' is the rest."""
    held = []
    for label in np.unique(images.labels):
        rows = np.flatnonzero(images.labels == label)
        number = min(len(rows) - 1, max(1, round(len(rows) * fraction)))
        held += rows[((np.arange(number) + 0.5) * len(rows) / max(1, number)).astype(int)].tolist()
    chosen = np.isin(np.arange(len(images)), held) == (split == "val")
    rows = np.flatnonzero(chosen)
    part = "held out" if split == "val" else "without what is held out"
    return replace(images, items=[images.items[row] for row in rows], labels=images.labels[rows],
                   root=f"{images.root} ({part})")


def hash_names(images):
    """sha256 of the names of a folder's files, wherever it lies; None for images that are no files."""
    if not isinstance(images.items[0], str):
        return None
    folder = os.path.commonpath(images.items)
    names = sorted(item.removeprefix(folder) for item in images.items)
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()


def with_files(spec, path):
    """A data set's facts with what is known of the images that a part is held out of."""
    every = read_split(spec, path, "train")
    train = hold_out(every, spec.val_fraction, "train")
    return replace(spec, num_train=len(train), files_sha256=hash_names(every))


def find_split(spec, path, split):
    """The images of one split, whatever the layout. path None: the data set's own source.

    Raises UserError where images were held out and the folder is no longer the one they were held out of: a
    part of what the teacher was trained on would be measured."""
    if spec.val_fraction is None:
        return read_split(spec, path, split)
    has_other_val = path not in (None, spec.source) and split_folder(path, VAL_NAMES)
    if has_other_val and split == "val" and not split_folder(path, TRAIN_NAMES):
        return read_split(spec, path, "val")
    every = read_split(spec, path, "train")
    train = hold_out(every, spec.val_fraction, "train")
    if spec.num_train not in (None, len(train)):
        raise UserError(f"{every.root}: holds {len(every)} images, {len(train)} of them to train on; there "
                        f"were {spec.num_train} when a part was held out. Give that folder, or one with val/ "
                        f"alone to measure on")
    if spec.files_sha256 not in (None, hash_names(every)):
        raise UserError(f"{every.root}: its files have other names than when a part was held out, and "
                        f"another part would be measured. Give that folder, or one with val/ alone to "
                        f"measure on")
    return train if split == "train" else hold_out(every, spec.val_fraction, "val")


def numeric_order(names):
    """Names sorted by the numbers in them: class2 before class10."""

    def key(name):
        parts = re.split(r"([0-9]+)", name)
        parts[1::2] = map(int, parts[1::2])
        return parts

    return sorted(names, key=key)


def has_two_orders(names):
    """Is the order of these class folders by their numbers another one than that as text, which they have?"""
    is_as_text = sorted(names) == list(names)
    return is_as_text and numeric_order(names) != list(names)


def order_classes(names, root, order):
    """The names of class folders in the order of a network's outputs, which nothing else tells.

    order: 'text' or 'numeric'; None raises UserError where the two differ."""
    if order is None and has_two_orders(names):
        first = ", ".join(repr(name) for name in names[:3])
        by_number = ", ".join(repr(name) for name in numeric_order(names)[:3])
        raise UserError(f"{root}: its folders are {first} ... as text and {by_number} ... by number, and "
                        f"nothing says which order the teacher has; say --class-order text or numeric")
    return numeric_order(names) if order == "numeric" else list(names)


def read_real(spec, path, split, classes=None, class_names=None, owner="the teacher", order=None):
    """Real images of one split ('train' or 'val'), labelled with class indices of the teacher's output.

    classes: a subset of the teacher's classes (default: all); the folders are either all classes or exactly
    these. class_names: those of `owner`, where they are known: a folder's class is then that of its name.
    order: as in order_classes, where no names are known. Raises UserError if the folders are not these."""
    images = find_split(spec, path, split)
    names = images.class_names
    every = list(range(spec.num_classes))
    classes = list(classes or every)
    found = every if len(names) == len(every) else classes
    if class_names:
        ordered = [class_names[c] for c in found]
        check_classes(images.root, sorted(names), sorted(ordered), owner)
    elif len(names) != len(found):
        chosen = f" and --classes names {len(classes)}" if classes != every else ""
        raise UserError(f"{images.root}: {len(names)} class folders, {spec.name} has {len(every)} classes"
                        f"{chosen} (the first folder is '{names[0]}', the last '{names[-1]}')")
    else:
        ordered = order_classes(names, images.root, order)
    class_of = dict(zip(ordered, found))
    labels = np.array([class_of[name] for name in names])[images.labels]
    kept = np.flatnonzero(np.isin(labels, classes))
    items = [images.items[row] for row in kept]
    return replace(images, items=items, labels=labels[kept], class_names=ordered)


def show(pixels, size, short):
    """Short side to `short` pixels, centre crop, as an evaluation does -> (size, size, 3) uint8."""
    image = Image.fromarray(pixels)
    height, width = pixels.shape[:2]
    if min(height, width) != short:  # torchvision's Resize: the long side is truncated
        long = int(short * max(height, width) / min(height, width))
        image = image.resize((short, long) if width <= height else (long, short), Image.Resampling.BILINEAR)
    left = round((image.width - size) / 2)
    top = round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def shown_at(images, size, short):
    """The same images, not decoded yet, as `show` gives them."""
    return ShownImages(**vars(images), size=size, short=short)


def read_val(spec, path, classes=None, class_names=None, owner="the teacher", order=None):
    """The validation set -> ShownImages: not decoded yet, in the size and crop of an evaluation.

    `fingerprint` identifies it, `decode_own` decodes a process's part. Raises UserError as read_real."""
    images = read_real(spec, path, "val", classes, class_names, owner, order)
    return shown_at(images, spec.size, round(spec.size * spec.resize_ratio))


def decode_own(images, rank=0, world=1, device=CPU):
    """Decode every world-th image from image `rank` on, which is what process `rank` of `world` measures ->
    OwnImages: in the GPU's memory where the device is one with room, else in this machine's.

    images: of equal size, such as read_val's. Raises UserError where the part does not fit into memory."""
    own = replace(images, items=images.items[rank::world], labels=images.labels[rank::world])
    shape = images.pixels(0).shape
    pixels, starts = decode_all(own, np.tile(shape[:2], (len(own), 1)), device)
    if pixels is None:
        raise UserError(f"{images.root}: {len(own):,} of its {len(images):,} images, which process {rank} "
                        f"of {world} measures, take {starts[-1] / 1e9:.1f} GB as pixels; "
                        f"its part of the memory is {memory_room() / 1e9:.1f} GB")
    labels = torch.from_numpy(own.labels).to(pixels.device)
    return OwnImages(pixels.view(len(own), *shape), labels, len(images), images.root)
