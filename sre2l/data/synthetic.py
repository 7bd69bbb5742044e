"""Folders of synthetic images: which classes they hold, and the hashes that identify them."""
import hashlib
import re
from pathlib import Path

import numpy as np

from sre2l.data.image_folder import Images, check_classes, check_folder, read_folder
from sre2l.run.errors import UserError
from sre2l.run.files import sidecar
from sre2l.run.layout import check_links
from sre2l.run.output import recorded


def read_synthetic(root, num_classes, classes=None):
    """Read a folder of synthetic images, whose file names verify_images has checked -> Images.

    The number in the name of a folder new... is its class. In folders of other names the class is the sorted
    position among `classes` (default: those that recover recorded for `root`, else all)."""
    check_folder(root)
    check_links(root)
    images = read_folder(root)
    classes = list(classes or recorded_classes(root) or range(num_classes))
    numbers = [re.fullmatch(r"new(\d+)", name) for name in images.class_names]
    if all(numbers):
        found = [int(number[1]) for number in numbers]
        check_classes(root, sorted(found), classes, "the set")
        check_complete(images)
    else:
        found = classes
        num_folders = len(images.class_names)
        if num_folders != len(found):
            raise UserError(f"{root}: {num_folders} class folders, the set has {len(found)} classes")
    if max(found) >= num_classes:
        raise UserError(f"{root}: class {max(found)} is not among the network's {num_classes}")
    return Images(images.items, np.array(found)[images.labels], images.class_names, images.root)


def check_complete(images):
    """Raise UserError unless all class folders have the same number of images."""
    counts = np.bincount(images.labels)
    if counts.min() != counts.max():
        low = images.class_names[counts.argmin()]
        high = images.class_names[counts.argmax()]
        raise UserError(f"{images.root}: {low} has {counts.min()} images, {high} has {counts.max()}; "
                        f"the set is not complete")


def recorded_classes(root):
    """The classes that recover recorded for this folder, None for a folder of other origin."""
    return recorded(sidecar(root, "manifest.json"), "classes")


def hash_paths(images):
    """The sha256 of the images' relative paths, a line each, in flat order."""
    names = [Path(path).relative_to(images.root).as_posix() for path in images.items]
    return hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()


def hash_images(images):
    """-> (sha256 of the sha256 of all files in flat order, number of bytes)."""
    contents = hashlib.sha256()
    num_bytes = 0
    for path in images.items:
        data = Path(path).read_bytes()
        contents.update(hashlib.sha256(data).digest())
        num_bytes += len(data)
    return contents.hexdigest(), num_bytes
