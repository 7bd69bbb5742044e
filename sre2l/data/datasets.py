"""The facts of each data set: classes, size, normalisation, crops, stem. Another data set is another row."""
from dataclasses import dataclass

# Mean and standard deviation of each channel, as they are published: torchvision's for ImageNet, also for
# sets taken from it and photographs; the released code's for Tiny-ImageNet and CIFAR; those of PyTorch's
# examples for MNIST, of DC (Zhao et al. 2021) for SVHN; for Fashion-MNIST, STL-10 and EuroSAT those that are
# usual for their training images. Those of digits are measured on the 1,000 training scans.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TINY = ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
MNIST = ((0.1307, 0.1307, 0.1307), (0.3081, 0.3081, 0.3081))
FASHION = ((0.2860, 0.2860, 0.2860), (0.3530, 0.3530, 0.3530))
SVHN = ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
STL10 = ((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713))
EUROSAT = ((0.3444, 0.3803, 0.4078), (0.2037, 0.1366, 0.1148))
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
    scale: by which the launchers choose settings where they have no block for the data set; val_fraction: the
    part of each class that is held out to measure on, where there are no validation images; files_sha256: of
    the names of the files that it was held out of; num_images: how many there are to train and to measure on,
    as published: what an estimate counts with.
    Of a data set of one's own besides: source: where its images lie; class_names, in order; num_train: how
    many images there are to train on."""
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
    files_sha256: str | None = None
    num_images: tuple | None = None

    @property
    def eval_resize(self):
        """resize_ratio as runs record it: the short side for an input of 224, None for the whole image."""
        return None if self.resize_ratio == 1 else round(224 * self.resize_ratio)


def photographs(name, num_classes, num_images, scale=None):
    """The row of a set of photographs that networks see as they see ImageNet."""
    return Dataset(name, num_classes, 224, *IMAGENET, "resized", 0, True, "torchvision",
                   resize_ratio=256 / 224, num_images=num_images, scale=scale)


def small(name, num_classes, numbers, num_images, flip=True):
    """The row of a set of small images of the size of CIFAR's, 28 pixels enlarged to that. numbers: mean and
    standard deviation; flip: not where a mirrored image shows something else, as digits do."""
    return Dataset(name, num_classes, 32, *numbers, "padded", 4, flip, "conv3x3", num_images=num_images)


DATASETS = {row.name: row for row in (
    photographs("imagenet1k", 1000, (1_281_167, 50_000)),
    Dataset("tiny-imagenet", 200, 64, *TINY, "resized", 0, True, "conv3x3", num_images=(100_000, 10_000)),
    small("cifar100", 100, CIFAR, (50_000, 10_000)),
    small("cifar10", 10, CIFAR, (50_000, 10_000)),
    Dataset("digits", 10, 32, *DIGITS, "padded", 4, False, "conv3x3-s2"),
    small("mnist", 10, MNIST, (60_000, 10_000), flip=False),
    small("fashion-mnist", 10, FASHION, (60_000, 10_000)),
    small("svhn", 10, SVHN, (73_257, 26_032), flip=False),
    Dataset("stl10", 10, 96, *STL10, "resized", 0, True, "conv3x3-s2", scale="medium",
            num_images=(5_000, 8_000)),
    Dataset("eurosat", 10, 64, *EUROSAT, "resized", 0, True, "conv3x3", scale="medium", val_fraction=0.1,
            num_images=(24_300, 2_700)),
    photographs("imagenette", 10, (9_469, 3_925)),
    photographs("imagewoof", 10, (9_025, 3_929)),
    photographs("flowers102", 102, (2_040, 6_149), "medium"),
    photographs("food101", 101, (75_750, 25_250), "large"),
    photographs("oxford-iiit-pet", 37, (3_680, 3_669), "medium"),
    photographs("imagenet100", 100, (126_689, 5_000), "large"),
    photographs("imagenet21k-p", 10_450, (11_060_223, 522_500)),
)}
