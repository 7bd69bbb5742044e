"""Data sets in their original files, as torchvision stores them under a folder or downloads them."""
import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torchvision import datasets

from sre2l.data.image_folder import Images, read_folder, tell_once
from sre2l.run.errors import UserError
from sre2l.run.lock import alone_in
from sre2l.run.paths import ROOT


@dataclass(frozen=True)
class Stored:
    """How torchvision's class of a data set is asked for its images.

    kind: the class; place: what lies in the folder where the files are, as a pattern; train, val: the
    arguments of each part that makes up the split; () where there is no such split: a part is held out.
    folders: where the class folders of a split are, in a set that is nothing else."""
    kind: type
    place: str
    train: tuple
    val: tuple
    folders: str | None = None


def halves(kind, place):
    """A set with the argument `train`, True or False."""
    return Stored(kind, place, ({"train": True},), ({"train": False},))


def parts(kind, place, train, val):
    """A set with the argument `split`. train: the names of its parts, one or more; val: that of the other."""
    return Stored(kind, place, tuple({"split": name} for name in train), ({"split": val},))


# NOTE: flowers102 is trained on its parts train and val together, 20 images a class, as papers on transfer
# do. The images of stl10 without labels are not used.
TORCHVISION = {
    "cifar10": halves(datasets.CIFAR10, "cifar-10-batches-py"),
    "cifar100": halves(datasets.CIFAR100, "cifar-100-python"),
    "mnist": halves(datasets.MNIST, "MNIST/raw"),
    "fashion-mnist": halves(datasets.FashionMNIST, "FashionMNIST/raw"),
    "svhn": parts(datasets.SVHN, "*_32x32.mat", ["train"], "test"),
    "stl10": parts(datasets.STL10, "stl10_binary", ["train"], "test"),
    "imagenette": replace(parts(datasets.Imagenette, "imagenette2", ["train"], "val"),
                          folders="imagenette2/{split}"),
    "eurosat": Stored(datasets.EuroSAT, "eurosat/2750", ({},), (), folders="eurosat/2750"),
    "flowers102": parts(datasets.Flowers102, "flowers-102", ["train", "val"], "test"),
    "food101": parts(datasets.Food101, "food-101", ["train"], "test"),
    "oxford-iiit-pet": parts(datasets.OxfordIIITPet, "oxford-iiit-pet", ["trainval"], "test"),
}


def is_stored(name, path):
    """Do torchvision's files of a data set lie in a folder? path None: they are downloaded."""
    return name in TORCHVISION and (path is None or any(Path(path).glob(TORCHVISION[name].place)))


def to_rgb(pixels):
    """(n, H, W) grey, (n, 3, H, W) or (n, H, W, 3) uint8 -> (n, H, W, 3)."""
    if pixels.ndim == 3:
        return pixels[..., None].repeat(3, -1)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)) if pixels.shape[1] == 3 else pixels


def items_of(data):
    """The images of one of torchvision's data sets -> (arrays, or the paths of files, which are not read yet;
    their labels)."""
    if hasattr(data, "data"):
        labels = data.targets if hasattr(data, "targets") else data.labels
        return list(to_rgb(np.asarray(data.data))), np.asarray(labels, np.int64)
    if isinstance(data, datasets.OxfordIIITPet):  # which has no argument `loader`
        return [str(path) for path in data._images], np.array(data._labels)
    items, labels = zip(*(data[row] for row in range(len(data))))
    return list(items), np.array(labels)


def check_labels(images):
    """Raise UserError where images and labels are not as many, or a label is no class."""
    if len(images.items) != len(images.labels):
        raise UserError(f"{images.root}: {len(images.items)} images and {len(images.labels)} labels, which "
                        f"are not of one set; bring the right file back")
    outside = [label for label in images.labels.tolist() if not 0 <= label < len(images.class_names)]
    if outside:
        raise UserError(f"{images.root}: has the label {outside[0]}, and {len(images.class_names)} classes "
                        f"from 0 on; bring the right file back")


def check_number(spec, images, split):
    """A warning where a split has another number of images than was published: half of them unpacked."""
    if spec.num_images is None:
        return
    wanted = dict(zip(("train", "val"), spec.num_images))
    number = wanted[split] if TORCHVISION[spec.name].val else sum(spec.num_images)
    if len(images) != number:
        tell_once(f"warning: {images.root}: {len(images):,} images of {spec.name}, of which {number:,} are "
                  f"published; is the rest still to be unpacked?")


def read_torchvision(spec, path, split):
    """The images of a split ('train' or 'val') from torchvision's files under `path`, downloaded to data/
    where none is given. Of sets that consist of image files the paths are kept, not the pixels.

    Raises UserError where the files are not there, not whole or cannot be downloaded."""
    name = spec.name
    stored = TORCHVISION[name]
    root = Path(path or ROOT / "data")
    lazy = {"loader": str} if "loader" in stored.kind.__init__.__annotations__ else {}
    instead = "give a folder with --real-data, as {train,val}/<class>/ or as torchvision stores it"
    try:
        if path is None:
            root.mkdir(parents=True, exist_ok=True)
        with contextlib.nullcontext() if path else alone_in(root):  # who waits finds the files
            # What is there and lies in class folders needs no class of torchvision's.
            found = [stored.kind(root, download=path is None, **lazy, **arguments)
                     for arguments in getattr(stored, split) if path is None or not stored.folders]
        if stored.folders:
            images = read_folder(root / stored.folders.format(split=split))
        else:
            items, labels = zip(*map(items_of, found))
            names = getattr(found[0], "classes", None) or map(str, range(spec.num_classes))
            images = Images(sum(items, []), np.concatenate(labels), list(names), "")
    except UserError:
        raise
    except ModuleNotFoundError as error:
        package = error.name.partition(".")[0]
        raise UserError(f"{name}: torchvision reads it by the package {package}, which is not installed: "
                        f"python3 -m pip install {package}; or {instead}") from None
    except Exception as error:  # a network that is not there, and all kinds for a file that is cut short
        reason = " ".join(str(error).split())
        raise UserError(f"{name}: torchvision could not load or download it ({reason}); {instead}") from None
    images = replace(images, root=f"{root} ({split})")
    check_labels(images)
    check_number(spec, images, split)
    return images
