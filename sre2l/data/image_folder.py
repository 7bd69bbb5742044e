"""Image files and folders of them: their pixels, sizes, classes and names."""
import contextlib
import hashlib
import io
import sys
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from sre2l.run.errors import UserError
from sre2l.run.flags import check_folders
from sre2l.run.limits import PART_BYTES, usable_cores
from sre2l.run.processes import local_world_size

JPEG_QUALITY = 75  # Pillow's default, which the released code uses; the student trains on that file
# The formats of ImageFolder's suffixes. Pillow knows others, and starts ghostscript for one.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
TOLD = set()  # what tell_once has said
NUM_FAULTS = 20  # unusable files that a message names
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "__pycache__", "lost+found")  # that systems leave among classes
MAX_PIXELS = 100_000_000  # of an image; decoded, they take 0.3 GB


@dataclass
class Images:
    """Labelled images in the order of the flat index.

    items: paths, or (H, W, 3) uint8 arrays; labels (n,) int64: the class index in the teacher's output;
    store: a Store (pixel_store.py) of all pixels once they are decoded."""
    items: list
    labels: np.ndarray
    class_names: list
    root: str
    store: object = None

    def __len__(self):
        return len(self.items)

    def pixels(self, index):
        """Image `index` as a (H, W, 3) uint8 array."""
        if self.store is not None:
            return self.store.pixels(index)
        item = self.items[index]
        return item if isinstance(item, np.ndarray) else decode(item)

    def shapes(self, rows):
        """Height and width of some images in pixels -> (m, 2) int64. Of a file only the header is read."""
        if self.store is not None:
            return self.store.shapes[rows]
        items = [self.items[row] for row in rows]
        shapes = [item.shape[:2] if isinstance(item, np.ndarray) else read_shape(item) for item in items]
        return np.array(shapes, np.int64).reshape(-1, 2)


@contextlib.contextmanager
def opened(path):
    """Open an image file in Pillow without decoding it; of several pictures in it the first counts.

    Raises UserError with the file's name for whatever is wrong with it, before or while it is decoded: no
    image, cut short, too large, or of more bits than would be kept."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path}: its header says {image.width} x {image.height} pixels; "
                                f"the limit is {MAX_PIXELS:,} in all")
            if image.mode.startswith(("I", "F")):  # Pillow makes white of nearly all of it
                raise UserError(f"{path}: has more than 8 bits a channel (Pillow's mode {image.mode}); "
                                f"convert it to 8 bits")
            yield image
    except UserError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds, among them SyntaxError and struct.error
        raise UserError(f"{path}: not a readable image ({error})") from None


def decode(path):
    """Decode any image file -> (H, W, 3) uint8 RGB. Raises UserError if it cannot be read to the end."""
    with opened(path) as image:
        return np.asarray(image.convert("RGB"))


def read_shape(path):
    """Height and width that an image file's header tells, pixels."""
    with opened(path) as image:
        return image.height, image.width


def refuse_faults(root, faults):
    """Raise UserError where files of a set are unusable, with the first of them: whoever mends them shall not
    meet them one at a time."""
    faults = sorted(faults)
    if len(faults) == 1:
        raise UserError(faults[0])
    if faults:
        more = f"\n  and {len(faults) - NUM_FAULTS} more" if len(faults) > NUM_FAULTS else ""
        raise UserError(f"{root}: {len(faults)} of its files cannot be used; mend or remove them:\n  "
                        + "\n  ".join(faults[:NUM_FAULTS]) + more)


def on_all_cores(function, items, title, root, chunksize=1):
    """function(item) for each of the items, on this process's part of the cores -> the values, in order.

    Raises UserError with the faults of all items, files of the set `root`."""
    faults = []

    def try_one(item):
        try:
            return function(item)
        except UserError as error:
            faults.append(str(error))
            return None

    with ThreadPool(max(1, usable_cores() // local_world_size())) as pool:
        values = pool.imap(try_one, items, chunksize)
        values = list(tqdm(values, title, total=len(items), unit="image", disable=None, leave=False))
    refuse_faults(root, faults)
    return values


def fill(buffer, images, rows, starts, shapes):
    """Decode the images `rows`, a range, on all cores, one after the other into a numpy array of bytes.

    starts: where each image begins, and the end; shapes: height and width of each. Raises UserError where an
    image is not what its header says."""
    first = starts[rows.start]

    def decode_row(index):
        pixels = images.pixels(index)
        height, width = shapes[index]
        if pixels.shape[:2] != (height, width):
            raise UserError(f"{images.items[index]}: not a readable image (its header says {height} by "
                            f"{width} pixels, it has {pixels.shape[0]} by {pixels.shape[1]})")
        buffer[starts[index] - first:starts[index + 1] - first] = pixels.reshape(-1)

    on_all_cores(decode_row, rows, "decoding", images.root, chunksize=16)


def fill_gpu(images, starts, shapes, device):
    """Decode all images -> uint8 tensor on the GPU, as `fill` lays them out.

    They are copied in large parts, since a copy for each image would wait for the GPU."""
    buffer = torch.empty(int(starts[-1]), dtype=torch.uint8, device=device)
    first = 0
    while first < len(images):
        end = max(first + 1, int(np.searchsorted(starts, starts[first] + PART_BYTES, "right")) - 1)
        part = np.empty(starts[end] - starts[first], np.uint8)
        fill(part, images, range(first, end), starts, shapes)
        buffer[starts[first]:starts[end]].copy_(torch.from_numpy(part))
        first = end
    return buffer


def image_path(root, label, ipc, num_classes, suffix=".jpg"):
    """The path of a synthetic image, <root>/new{class}/class{class}_id{ipc}<suffix>. Numbers have three
    digits; a class has five where there are more than 1000."""
    name = f"{label:0{5 if num_classes > 1000 else 3}d}"
    return Path(root) / f"new{name}" / f"class{name}_id{ipc:03d}{suffix}"


def encode(pixels, suffix=".jpg"):
    """The bytes of an image file. pixels (H, W, 3) uint8; suffix: '.jpg', as the published sets have it
    (quality 75, chroma 4:2:0), or '.png', which loses nothing."""
    data = io.BytesIO()
    if suffix == ".png":
        Image.fromarray(pixels).save(data, "PNG")
    else:
        Image.fromarray(pixels).save(data, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    return data.getvalue()


class ClassFolders(ImageFolder):
    """torchvision's ImageFolder, which passes over what systems leave between images: ._x.jpg of macOS,
    .ipynb_checkpoints, __MACOSX. passed_over: their paths."""

    def __init__(self, root):
        self.passed_over = []
        super().__init__(root, is_valid_file=self.is_image)

    def is_image(self, path):
        if not path.lower().endswith(IMG_EXTENSIONS):
            return False
        if Path(path).name.startswith("."):
            self.passed_over.append(path)
            return False
        return True

    def find_classes(self, directory):
        names, _ = super().find_classes(directory)
        hidden = [name for name in names if name.startswith(".") or name in SYSTEM_FOLDERS]
        self.passed_over += [str(Path(directory) / name) for name in hidden]
        names = [name for name in names if name not in hidden]
        if not names:
            raise FileNotFoundError(f"Couldn't find any class folder in {directory}.")
        return names, {name: index for index, name in enumerate(names)}


def tell_once(text):
    """Print a line on standard error, the first time that this process has it to say."""
    if text not in TOLD:
        TOLD.add(text)
        print(text, file=sys.stderr)


def read_folder(root):
    """Read a folder as torchvision's ImageFolder does -> Images, labelled by their folder's position."""
    check_folders(root)
    try:
        folder = ClassFolders(root)
    except FileNotFoundError as error:  # no class folder, or an empty one
        why = str(error).splitlines()[0].partition(" Supported")[0].rstrip(". ")
        raise UserError(f"{root}: {why}. A class is a folder with images in it that may be read "
                        f"({', '.join(IMG_EXTENSIONS)})") from None
    if folder.passed_over:
        number = len(folder.passed_over)
        tell_once(f"{root}: passed over {number} files and folders that a system left there, such as "
                  f"{folder.passed_over[0]}")
    items, labels = zip(*folder.samples)
    return Images(list(items), np.array(labels), folder.classes, str(root))


def check_classes(root, found, expected, owner):
    """Raise UserError unless the two lists of folder names are equal: say how many there are, and which is
    the first to differ.

    owner: whose list `expected` is."""
    if list(found) == list(expected):
        return
    differing = (i for i, (name, wanted) in enumerate(zip(found, expected)) if name != wanted)
    at = next(differing, min(len(found), len(expected)))
    name = f"'{found[at]}'" if at < len(found) else "no folder"
    wanted = f"'{expected[at]}'" if at < len(expected) else "none"
    raise UserError(f"{root}: {len(found)} class folders, {owner} has {len(expected)}; "
                    f"the first that differs is number {at}: {name} where {wanted} is expected")


def fingerprint(images):
    """What identifies real images: their number, a hash of classes, labels and the first and last image."""
    digest = hashlib.sha256(repr((images.class_names, images.labels.tolist())).encode())
    for index in (0, -1):
        digest.update(images.pixels(index).tobytes())
    return {"num_images": len(images), "sha256": digest.hexdigest()}
