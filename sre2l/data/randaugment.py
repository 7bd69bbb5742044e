"""RandAugment (Cubuk et al. 2020) as torchvision has it: two of 14 operations, each at magnitude 9 of 30.

Every operation gives the same bits on a CPU and a GPU, with any number of threads, in one batch or in many:
what is summed are whole numbers, and which pixel goes where is computed once, on the CPU in float64."""
import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms import functional as vision

NUM_OPERATIONS = 2
LEVEL = 9 / 30  # of the largest magnitude
SHEAR = math.degrees(math.atan(0.3 * LEVEL))
SHIFT = 150 / 331 * LEVEL  # of the side; whole pixels
ANGLE = 30 * LEVEL  # degrees
FACTOR = 0.9 * LEVEL  # by how much brightness and so on differ from 1
BITS = 8 - round(4 * LEVEL)
THRESHOLD = 255 * (1 - LEVEL)


@functools.cache
def sources(size, device, angle=0.0, across=0.0, down=0.0, shear=(0.0, 0.0), center=None):
    """Which pixel each pixel of a moved image is, counted from 1; 0 where it is black -> (S * S,) int64.

    angle in degrees, across and down as parts of the side. torchvision moves an image of numbers."""
    numbers = torch.arange(1, size * size + 1, dtype=torch.float64).view(1, size, size)
    if angle:
        moved = vision.rotate(numbers, angle)
    else:
        shift = [int(across * size), int(down * size)]
        moved = vision.affine(numbers, 0.0, shift, 1.0, list(shear), center=center)
    return moved.long().view(-1).to(device)


def move(pixels, **how):
    """Rotate, shear or shift images, by their nearest pixels. how: as in `sources`."""
    table = sources(pixels.shape[-1], pixels.device, **how)
    return F.pad(pixels.flatten(2), (1, 0))[:, :, table].view_as(pixels)


def blend(pixels, others, sign):
    """factor pixels + (1 - factor) others, cut off at 0 and 255; the factor is 1 + FACTOR or 1 - FACTOR."""
    factor = 1 + sign * FACTOR
    return (factor * pixels + (1 - factor) * others).clamp(0, 255).to(torch.uint8)


def mean_grey(pixels):
    """The mean brightness of each image, (m, 1, 1, 1) float32; a sum of whole numbers, so exact."""
    grey = vision.rgb_to_grayscale(pixels)
    return (grey.sum((1, 2, 3), keepdim=True).double() / grey[0].numel()).float()


def smooth(pixels):
    """Each pixel's mean with its neighbours, itself five times, rounded; the border as it is.

    A whole number over 13 is never nearer than 1/26 to a half: no rounding error changes the result."""
    values = pixels.float()
    total = 9 * F.avg_pool2d(values, 3, stride=1) + 4 * values[:, :, 1:-1, 1:-1]
    smoothed = pixels.clone()
    smoothed[:, :, 1:-1, 1:-1] = (total / 13).round().to(torch.uint8)
    return smoothed


def equalize(pixels, _):
    from torchvision.transforms.v2.functional import equalize_image  # torchvision's own for whole batches
    return equalize_image(pixels)


# (images (m, 3, S, S) uint8, sign) -> new images, in torchvision's order.
OPERATIONS = {
    "Identity": lambda pixels, _: pixels,
    "ShearX": lambda pixels, sign: move(pixels, shear=(sign * SHEAR, 0.0), center=(0, 0)),
    "ShearY": lambda pixels, sign: move(pixels, shear=(0.0, sign * SHEAR), center=(0, 0)),
    "TranslateX": lambda pixels, sign: move(pixels, across=sign * SHIFT),
    "TranslateY": lambda pixels, sign: move(pixels, down=sign * SHIFT),
    "Rotate": lambda pixels, sign: move(pixels, angle=sign * ANGLE),
    "Brightness": lambda pixels, sign: blend(pixels, torch.zeros_like(pixels), sign),
    "Color": lambda pixels, sign: blend(pixels, vision.rgb_to_grayscale(pixels), sign),
    "Contrast": lambda pixels, sign: blend(pixels, mean_grey(pixels), sign),
    "Sharpness": lambda pixels, sign: blend(pixels, smooth(pixels), sign),
    "Posterize": lambda pixels, _: vision.posterize(pixels, BITS),
    "Solarize": lambda pixels, _: vision.solarize(pixels, THRESHOLD),
    "AutoContrast": lambda pixels, _: vision.autocontrast(pixels),
    "Equalize": equalize,
}


def draw_operations(num_images, rng):
    """Operations for each image, any of them twice, each with a sign -> (m, NUM_OPERATIONS, 2) int64: the
    operation's number, and -1 or 1."""
    numbers = rng.integers(len(OPERATIONS), size=(num_images, NUM_OPERATIONS))
    signs = 2 * rng.integers(2, size=(num_images, NUM_OPERATIONS)) - 1
    return np.stack((numbers, signs), 2)


def apply_operations(pixels, drawn):
    """One operation after the other. pixels (m, 3, S, S) uint8, drawn: of draw_operations -> new pixels."""
    functions = list(OPERATIONS.values())
    for step in drawn.swapaxes(0, 1):
        after = torch.empty_like(pixels)
        for number, sign in np.unique(step, axis=0).tolist():  # all images with the same operation at once
            rows = torch.from_numpy(np.flatnonzero((step == (number, sign)).all(1))).to(pixels.device)
            after[rows] = functions[number](pixels[rows], sign)
        pixels = after
    return pixels
