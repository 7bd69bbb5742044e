"""Real images: folders {train,val}/<class>/, Tiny-ImageNet as it is distributed, torchvision's CIFAR, the embedded digits."""
from pathlib import Path

import numpy as np
import torchvision
from PIL import Image

from sre2l.data.image_folder import Images, check_classes, decode_all, read_folder
from sre2l.run.links import check_name
from sre2l.run.errors import UserError
from sre2l.run.paths import ROOT

CIFAR = {"cifar10": (torchvision.datasets.CIFAR10, "cifar-10-batches-py"), "cifar100": (torchvision.datasets.CIFAR100, "cifar-100-python")}


def read_digits(split, size):
    """The embedded UCI digits: 8x8 scans with 0..16 grey levels, shown as (size, size, 3) uint8; 1,000 train, 797 val."""
    with np.load(ROOT / "sre2l" / "data" / "digits.npz") as stored:
        chosen = stored["is_val"] == (split == "val")
        scans, labels = stored["scans"][chosen], stored["labels"][chosen].astype(np.int64)
    grey = np.rint(scans * (255 / 16)).astype(np.uint8)
    items = [np.asarray(Image.fromarray(scan).resize((size, size), Image.Resampling.BILINEAR).convert("RGB")) for scan in grey]
    return Images(items, labels, [str(digit) for digit in range(10)], f"digits/{split}")


def read_cifar(name, path, split):
    """torchvision's own copy of CIFAR under `path`, downloaded to data/ where none is given."""
    kind, _ = CIFAR[name]
    try:
        data = kind(path or ROOT / "data", train=split == "train", download=path is None)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{name}: torchvision could not load or download it ({error}); "
                        f"give a folder with --real-data, as {{train,val}}/<class>/ or as torchvision stores it") from None
    return Images(list(data.data), np.array(data.targets), data.classes, f"{path or ROOT / 'data'} ({split})")


def read_tiny_val(folder):
    """Tiny-ImageNet's val/ as distributed: images/ and val_annotations.txt (file, wnid, box); classes are the sorted wnids."""
    file = folder / "val_annotations.txt"
    rows = [line.split("\t")[:2] for line in file.read_text(errors="replace").splitlines() if line.strip()]
    if not rows or any(len(row) != 2 for row in rows):
        raise UserError(f"{file}: expected lines of file name, tab, class")
    for name, _ in rows:
        check_name(name, file)
    names = sorted({wnid for _, wnid in rows})
    labels = np.array([names.index(wnid) for _, wnid in rows])
    return Images([str(folder / "images" / name) for name, _ in rows], labels, names, str(folder))


def find_split(spec, path, split):
    """The images of one split, whatever the layout; no path means the embedded or downloadable source of the data set."""
    if path is None and spec.name == "digits":
        return read_digits(split, spec.size)
    if spec.name in CIFAR and (path is None or (Path(path) / CIFAR[spec.name][1]).is_dir()):
        return read_cifar(spec.name, path, split)
    if path is None:
        raise UserError(f"{spec.name} has no embedded images: say where they are with --real-data (a folder with train/ and val/)")
    folder = Path(path) / split
    if not folder.is_dir():
        if split == "train":
            raise UserError(f"{folder}: there is no such folder; give the one that holds train/ and val/")
        folder = Path(path)  # the validation images themselves
    if (folder / "val_annotations.txt").is_file():
        return read_tiny_val(folder)
    return read_folder(folder)


def read_real(spec, path, split, classes=None, class_names=None):
    """Real images of one split ('train' or 'val'), labelled with class indices of the teacher's output.

    classes: a subset of the teacher's classes (default: all); the folders, sorted, are either all classes or exactly these.
    class_names: the teacher's, where it knows them. Raises UserError if the folders are not those classes."""
    images = find_split(spec, path, split)
    every = list(range(spec.num_classes))
    classes = list(classes or every)
    found = every if len(images.class_names) == len(every) else classes
    if class_names:
        check_classes(images.root, images.class_names, [class_names[c] for c in found], "the teacher")
    elif len(images.class_names) != len(found):
        raise UserError(f"{images.root}: {len(images.class_names)} class folders, {spec.name} has {len(every)} classes"
                        + (f" and --classes names {len(classes)}" if classes != every else "")
                        + f" (the first folder is '{images.class_names[0]}', the last '{images.class_names[-1]}')")
    return select_classes(images, np.array(found)[images.labels], classes)


def select_classes(images, labels, classes):
    """The images of some classes, under the teacher's class indices (labels, one for each image)."""
    kept = np.flatnonzero(np.isin(labels, classes))
    return Images([images.items[row] for row in kept], labels[kept], images.class_names, images.root)


def show(pixels, size, short):
    """A real image as an evaluation shows it: short side to `short` pixels, centre crop (H, W, 3) -> (size, size, 3) uint8."""
    image, (height, width) = Image.fromarray(pixels), pixels.shape[:2]
    if min(height, width) != short:  # torchvision's Resize: the long side is truncated
        wanted = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        image = image.resize(wanted, Image.Resampling.BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def decode_shown(images, size, short):
    """All images as `show` gives them, in memory. Raises UserError where they do not fit."""
    decoded = decode_all(images, lambda pixels: show(pixels, size, short))
    if decoded is None:
        raise UserError(f"{images.root}: {len(images)} images of {size} pixels do not fit into half of this machine's memory")
    return decoded


def read_val(spec, path, classes=None, class_names=None):
    """The validation set as the evaluation shows it, decoded and resized once: Images of (size, size, 3) uint8 arrays."""
    images = read_real(spec, path, "val", classes, class_names)
    return decode_shown(images, spec.size, round(spec.resize * spec.size / 224) if spec.resize else spec.size)  # 256 at 224, else as they are
