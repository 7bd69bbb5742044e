"""The facts of each data set, in one table: classes, size, normalisation, crops, stem. Another data set is another row."""
from dataclasses import dataclass

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TINY_MEAN, TINY_STD = (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
DIGITS_MEAN, DIGITS_STD = (0.305, 0.305, 0.305), (0.323, 0.323, 0.323)  # measured on the 1,000 training scans
STEMS = {"torchvision": None, "conv3x3": 1, "conv3x3-s2": 2}  # stride of the 3x3 convolution that replaces conv1 and maxpool


@dataclass(frozen=True)
class Dataset:
    """What every stage needs to know of a data set. Pixels are RGB in [0, 1] before (x - mean) / std.

    crop: 'resized' (RandomResizedCrop to size) or 'padded' (pad by `padding` black pixels, crop at full size).
    stem: the change to the network's first layers, a key of STEMS.
    resize: short side, pixels, before the centre crop of an evaluation; None = image shown at size.
    """
    name: str
    num_classes: int
    size: int
    mean: tuple
    std: tuple
    crop: str
    padding: int
    flip: bool
    stem: str
    resize: int | None = None


DATASETS = {row.name: row for row in (
    Dataset("imagenet1k", 1000, 224, IMAGENET_MEAN, IMAGENET_STD, "resized", 0, True, "torchvision", resize=256),
    Dataset("tiny-imagenet", 200, 64, TINY_MEAN, TINY_STD, "resized", 0, True, "conv3x3"),
    Dataset("cifar100", 100, 32, CIFAR_MEAN, CIFAR_STD, "padded", 4, True, "conv3x3"),
    Dataset("cifar10", 10, 32, CIFAR_MEAN, CIFAR_STD, "padded", 4, True, "conv3x3"),
    Dataset("digits", 10, 32, DIGITS_MEAN, DIGITS_STD, "padded", 4, False, "conv3x3-s2"),
)}
