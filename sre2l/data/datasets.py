"""The facts of each data set: classes, size, normalisation, crops, stem. Another data set is another row."""
from dataclasses import dataclass

# Mean and standard deviation of each channel. Those of digits are measured on the 1,000 training scans.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TINY = ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
DIGITS = ((0.305, 0.305, 0.305), (0.323, 0.323, 0.323))
STEMS = {"torchvision": None, "conv3x3": 1, "conv3x3-s2": 2}  # stride of the 3x3 that replaces conv1, maxpool


# What a data set of one's own gets, by the median short side of its images in pixels: crop, padding, stem
# and resize_ratio of the published set nearest to it.
BY_SIZE = {
    32: ("padded", 4, "conv3x3", 1.0),
    64: ("resized", 0, "conv3x3", 1.0),
    96: ("resized", 0, "conv3x3-s2", 1.0),
    128: ("resized", 0, "torchvision", 256 / 224),
    224: ("resized", 0, "torchvision", 256 / 224),
}


@dataclass(frozen=True)
class Dataset:
    """What every stage needs to know of a data set. Pixels are RGB in [0, 1] before (x - mean) / std.

    crop: 'resized' (RandomResizedCrop to size) or 'padded' (pad by `padding` black pixels, crop to size).
    stem: the change to the network's first layers, a key of STEMS.
    resize_ratio: an evaluation resizes the short side to resize_ratio x size, then crops the centre.
    Of a data set of one's own besides: source: where its images lie; class_names, in order; num_train: how
    many images there are to train on; scale: by which the launchers choose settings; val_fraction: the part
    of each class that is held out to measure on, where there are no validation images."""
    name: str
    num_classes: int
    size: int
    mean: tuple
    std: tuple
    crop: str
    padding: int
    flip: bool
    stem: str
    resize_ratio: float = 1.0
    source: str | None = None
    class_names: tuple | None = None
    num_train: int | None = None
    scale: str | None = None
    val_fraction: float | None = None

    @property
    def eval_resize(self):
        """resize_ratio as runs record it: the short side for an input of 224, None for the whole image."""
        return None if self.resize_ratio == 1 else round(224 * self.resize_ratio)


DATASETS = {row.name: row for row in (
    Dataset("imagenet1k", 1000, 224, *IMAGENET, "resized", 0, True, "torchvision", resize_ratio=256 / 224),
    Dataset("tiny-imagenet", 200, 64, *TINY, "resized", 0, True, "conv3x3"),
    Dataset("cifar100", 100, 32, *CIFAR, "padded", 4, True, "conv3x3"),
    Dataset("cifar10", 10, 32, *CIFAR, "padded", 4, True, "conv3x3"),
    Dataset("digits", 10, 32, *DIGITS, "padded", 4, False, "conv3x3-s2"),
)}
