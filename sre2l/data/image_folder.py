"""Folders of images: names of synthetic images, their classes, pixels decoded once, hashes."""
import contextlib
import hashlib
import io
import os
import re
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from sre2l.run.errors import UserError
from sre2l.run.files import sidecar
from sre2l.run.links import check_links
from sre2l.run.settings import recorded
from sre2l.data.pixel_store import fits_memory

JPEG_QUALITY = 75     # Pillow's default, which the released code uses; the student trains on that file
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # those of ImageFolder's suffixes; Pillow knows others, and starts ghostscript for one
MAX_PIXELS = 100_000_000   # of an image; decoded, they take 0.3 GB
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit warns where ours refuses, and does not tell the size


@dataclass
class Images:
    """Labelled images in the order of the flat index. items: paths, or (H, W, 3) uint8 arrays once decoded; labels (n,) int64,
    the class index in the teacher's output."""
    items: list
    labels: np.ndarray
    class_names: list
    root: str
    store: object = None  # a Store of all pixels (store.py), once they are decoded

    def __len__(self):
        return len(self.items)

    def pixels(self, index):
        """Image `index` as a (H, W, 3) uint8 array."""
        if self.store is not None:
            return self.store.pixels(index)
        item = self.items[index]
        return item if isinstance(item, np.ndarray) else decode(item)

    def shapes(self, rows):
        """Height and width of some images in pixels, of files from their headers -> (m, 2) int64."""
        if self.store is not None:
            return self.store.shapes[rows]
        items = [self.items[row] for row in rows]
        return np.array([item.shape[:2] if isinstance(item, np.ndarray) else read_shape(item) for item in items], np.int64).reshape(-1, 2)


@contextlib.contextmanager
def opened(path):
    """An image file open in Pillow, of several pictures the first, not yet decoded; raises UserError with its name for whatever is
    wrong with it, before or while it is decoded: a file that is no image, is cut short, is too large or would be clipped."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path}: its header says {image.width} x {image.height} pixels; the limit is {MAX_PIXELS:,} in all")
            if image.mode.startswith(("I", "F")):  # Pillow makes white of nearly all of it
                raise UserError(f"{path}: has more than 8 bits a channel (Pillow's mode {image.mode}); convert it to 8 bits")
            yield image
    except UserError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds, among them SyntaxError and struct.error
        raise UserError(f"{path}: not a readable image ({error})") from None


def decode(path):
    """Any image file -> (H, W, 3) uint8 RGB; raises UserError with its name if it cannot be read to the end."""
    with opened(path) as image:
        return np.asarray(image.convert("RGB"))


def read_shape(path):
    """Height and width that an image file's header tells, pixels."""
    with opened(path) as image:
        return image.height, image.width


def decode_all(images, transform):
    """The same Images with every item decoded and transformed in memory, with a progress bar; None where they do not fit."""
    first = transform(images.pixels(0))
    if not fits_memory(first.nbytes * len(images)):
        return None
    with ThreadPool(os.cpu_count()) as pool:
        decoded = pool.imap(lambda index: transform(images.pixels(index)), range(len(images)), chunksize=16)
        bar = tqdm(decoded, "decoding", total=len(images), unit="image", disable=None, leave=False)
        return Images(list(bar), images.labels, images.class_names, images.root)


def image_path(root, label, ipc, num_classes, suffix=".jpg"):
    """<root>/new{class}/class{class}_id{ipc}<suffix> with three digits, five for the class where there are more than 1000 classes."""
    name = f"{label:0{5 if num_classes > 1000 else 3}d}"
    return Path(root) / f"new{name}" / f"class{name}_id{ipc:03d}{suffix}"


def suffix_of(lossless):
    """Of the files of images that recover writes: lossless, its setting -> '.png' or '.jpg'."""
    return ".png" if lossless else ".jpg"


def encode(pixels, suffix=".jpg"):
    """pixels (H, W, 3) uint8 -> the bytes of a file: '.jpg' as the published sets have it (quality 75, chroma 4:2:0), or '.png', which loses nothing."""
    kind, options = {".jpg": ("JPEG", {"quality": JPEG_QUALITY, "subsampling": "4:2:0"}), ".png": ("PNG", {})}[suffix]
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **options)
    return data.getvalue()


def check_folder(root):
    """Raise UserError unless there is such a folder."""
    if not Path(root).is_dir():
        raise UserError(f"{root}: there is no such folder")


def read_folder(root):
    """ImageFolder's view of a folder: Images whose labels are the sorted positions of the class folders."""
    check_folder(root)
    try:
        folder = ImageFolder(root)
    except FileNotFoundError as error:  # no class folder, or an empty one
        raise UserError(f"{root}: {str(error).splitlines()[0]}") from None
    items, labels = zip(*folder.samples)
    return Images(list(items), np.array(labels), folder.classes, str(root))


def check_classes(root, found, expected, owner):
    """Raise UserError unless the two lists are equal: how many there are, and the first that differs."""
    if list(found) == list(expected):
        return
    at = next((i for i, (a, b) in enumerate(zip(found, expected)) if a != b), min(len(found), len(expected)))
    here = f"'{found[at]}'" if at < len(found) else "no folder"
    wanted = f"'{expected[at]}'" if at < len(expected) else "none"
    raise UserError(f"{root}: {len(found)} class folders, {owner} has {len(expected)}; "
                    f"the first that differs is number {at}: {here} where {wanted} is expected")


def read_synthetic(root, num_classes, classes=None):
    """A folder of images, whose file names verify_images has looked at. In folders named new... the class is the number in the name; in any
    other it is the sorted position among `classes` (default: what recover recorded for the folder `root`, else all)."""
    check_folder(root)
    check_links(root)
    images = read_folder(root)
    if classes is None:
        classes = recorded_classes(root) or range(num_classes)
    numbers = [re.fullmatch(r"new(\d+)", name) for name in images.class_names]
    if all(numbers):
        found = [int(number[1]) for number in numbers]
        check_classes(root, sorted(found), list(classes), "the set")
        counts = np.bincount(images.labels)
        if counts.min() != counts.max():
            low, high = images.class_names[counts.argmin()], images.class_names[counts.argmax()]
            raise UserError(f"{root}: {low} has {counts.min()} images, {high} has {counts.max()}; the set is not complete")
    else:
        found = list(classes)
        if len(images.class_names) != len(found):
            raise UserError(f"{root}: {len(images.class_names)} class folders, the set has {len(found)} classes")
    if max(found) >= num_classes:
        raise UserError(f"{root}: class {max(found)} is not among the network's {num_classes}")
    return Images(images.items, np.array(found)[images.labels], images.class_names, images.root)


def recorded_classes(root):
    """The classes that recover wrote into this folder, or None for a folder of other origin."""
    return recorded(sidecar(root, "manifest.json"), "classes")


def fingerprint(images):
    """What identifies real images in a protocol: their number, and a hash of classes, labels and the first and last image's pixels."""
    digest = hashlib.sha256(repr((images.class_names, images.labels.tolist())).encode())
    for index in (0, -1):
        digest.update(images.pixels(index).tobytes())
    return {"num_images": len(images), "sha256": digest.hexdigest()}


def hash_paths(images):
    """sha256 of the relative paths, a line each, in flat order."""
    return hashlib.sha256("".join(f"{Path(path).relative_to(images.root).as_posix()}\n" for path in images.items).encode()).hexdigest()


def hash_images(images):
    """-> (sha256 of all files' hashes, number of bytes), in flat order."""
    contents, num_bytes = hashlib.sha256(), 0
    for path in images.items:
        data = Path(path).read_bytes()
        contents.update(hashlib.sha256(data).digest())
        num_bytes += len(data)
    return contents.hexdigest(), num_bytes
