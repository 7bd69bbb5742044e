"""Crops, flips, mixup and cutmix: draw_* turns a generator into a small record, apply_* uses it. Relabel
draws and applies; validate only applies, so the student sees the pixels that the teacher saw. """
import functools
import math
from dataclasses import dataclass

import numpy as np
import torch

from sre2l.kernels.compiled import why_no_triton

RATIO = (3 / 4, 4 / 3)  # aspect ratios of RandomResizedCrop, width over height
TRIES = 10              # torchvision gives up after ten windows that do not fit


@dataclass(frozen=True)
class Crops:
    """One crop and flip per image. boxes (m, 4) float32: top/H, left/W, height/H, width/W of the stored
    image, flips (m,) bool."""
    boxes: torch.Tensor
    flips: torch.Tensor


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed. partner (m,) int64; lam in [0, 1]; box (row1, col1, row2, col2) pixels for
    cutmix; None where unused."""
    partner: torch.Tensor | None = None
    lam: float | None = None
    box: list | None = None

    @property
    def kind(self):
        if self.partner is None:
            return "none"
        return "mixup" if self.box is None else "cutmix"


def unit_rng(seed, *unit):
    """A CPU generator that depends on (seed, unit of work) and on nothing that ran before."""
    return np.random.default_rng([seed, *unit])


def central_window(height, width, ratio):
    """torchvision's fallback: the largest centred window of an allowed aspect -> top, left, height, width."""
    inner_height = height
    inner_width = width
    if width / height < ratio[0]:
        inner_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        inner_width = round(height * ratio[1])
    return (height - inner_height) // 2, (width - inner_width) // 2, inner_height, inner_width


def draw_resized_windows(sizes, scale, rng, ratio=RATIO):
    """RandomResizedCrop's windows: area uniform in scale, log aspect uniform in ratio, the first of TRIES
    that fits. sizes (m, 2) height, width -> (m, 4) top, left, height, width, pixels."""
    draws = rng.random((len(sizes), 2 * TRIES + 2))  # image by image: areas, aspects, place
    areas = sizes.prod(1)[:, None] * (scale[0] + (scale[1] - scale[0]) * draws[:, :TRIES])
    low, high = map(math.log, ratio)
    aspects = np.exp(low + (high - low) * draws[:, TRIES:2 * TRIES])
    extents = np.sqrt(np.stack((areas / aspects, areas * aspects), 2))
    extents = np.rint(extents).astype(np.int64)  # (m, TRIES, 2)

    fits = ((extents > 0) & (extents <= sizes[:, None])).all(2)
    extents = extents[np.arange(len(sizes)), fits.argmax(1)]  # of each image the first that fits
    corners = (draws[:, 2 * TRIES:] * (sizes - extents + 1)).astype(np.int64)
    windows = np.concatenate((corners, extents), 1)
    for row in np.flatnonzero(~fits.any(1)):
        windows[row] = central_window(*sizes[row].tolist(), ratio)
    return windows


def draw_crops(sizes, crop, scale, padding, flip, rng):
    """A window and a flip for each image. sizes: (height, width) pairs, pixels; crop: 'resized', 'padded', or
    'none' for the whole image."""
    sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
    if crop == "resized":
        windows = draw_resized_windows(sizes, scale, rng)
    elif crop == "padded":  # as large as the images, shifted by -padding..padding
        windows = np.concatenate((rng.integers(-padding, padding + 1, size=(len(sizes), 2)), sizes), 1)
    else:
        windows = np.concatenate((np.zeros_like(sizes), sizes), 1)
    boxes = windows / np.tile(sizes, 2)
    flips = rng.random(len(sizes)) < (0.5 if flip else 0)
    return Crops(torch.from_numpy(boxes.astype(np.float32)), torch.from_numpy(flips))


def source_lines(places, inside):
    """Which line of pixels each line is, where lines move in patches -> (..., F * len(inside)).

    places (..., F): the patches' old places; inside: 0, 1, ... within a patch. Both of numpy or of torch."""
    lines = places[..., None] * len(inside) + inside
    return lines.reshape(*places.shape[:-1], -1)


def shuffle_patches(image, patches):
    """Permute the rows of F x F patches, then their columns, as RDED does. image (H, W, 3), of one batch.

    patches (2, F): of derived.Drawn, for this image. H and W are multiples of F."""
    num_parts = patches.shape[1]
    rows, cols = (source_lines(places, np.arange(side // num_parts))
                  for places, side in zip(patches, image.shape))
    return image[rows[:, None], cols]


def draw_cutmix_box(size, lam, rng):
    """A box of about (1 - lam) of the image, clipped -> [row1, col1, row2, col2], pixels; may be empty."""
    half = int(size * math.sqrt(1 - lam)) // 2
    row, col = rng.integers(0, size, size=2).tolist()
    return [min(max(place, 0), size) for place in (row - half, col - half, row + half, col + half)]


def draw_mix(kind, alpha, num_images, size, rng):
    """Partners by one permutation, lam ~ Beta(alpha, alpha) for the batch. kind: 'none', 'mixup' or 'cutmix';
    size in pixels."""
    if kind == "none":
        return Mix()
    partner = torch.from_numpy(rng.permutation(num_images))
    lam = float(rng.beta(alpha, alpha))
    return Mix(partner, lam, draw_cutmix_box(size, lam, rng) if kind == "cutmix" else None)


def normalise(images, mean, std):
    """(N, 3, S, S) uint8 -> float32 (x / 255 - mean) / std on the same device, in torchvision's order."""
    mean = torch.as_tensor(mean, device=images.device).view(3, 1, 1)  # one that is there is not copied
    std = torch.as_tensor(std, device=images.device).view(3, 1, 1)
    return images.float().div_(255).sub_(mean).div_(std)


def apply_mix(images, mix):
    """Mix a whole batch, before any split into micro-batches. (m, 3, S, S) -> the same, not in place."""
    if mix.partner is None:
        return images
    others = images[mix.partner.to(images.device)]
    if mix.box is None:
        return mix.lam * images + (1 - mix.lam) * others
    row1, col1, row2, col2 = mix.box
    images = images.clone()
    images[:, :, row1:row2, col1:col2] = others[:, :, row1:row2, col1:col2]
    return images


def show_batch(pixels, mix, mean, std, dtype=torch.float32):
    """What a network is shown: a whole batch (m, 3, S, S) uint8, normalised and mixed in float32, then in
    dtype; on a GPU in one kernel."""
    if pixels.device.type == "cuda" and not why_no_triton():
        from sre2l.kernels.triton.show import show_on_gpu
        return show_on_gpu(pixels, mix, level_table(tuple(mean), tuple(std), pixels.device), dtype)
    return apply_mix(normalise(pixels, mean, std), mix).to(dtype)


@functools.cache
def level_table(mean, std, device):
    """What `normalise` makes of each of the 256 levels in each channel: (3, 256) float32 on the device."""
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256).expand(1, 3, 1, 256)
    return normalise(levels, mean, std).view(3, 256).to(device, non_blocking=True)


def mixed_share(mix, size):
    """The first image's share of a mixed batch: lam, or 1 - box area / size^2 of the clipped box."""
    if mix.box is None:
        return mix.lam
    row1, col1, row2, col2 = mix.box
    return 1 - max(row2 - row1, 0) * max(col2 - col1, 0) / size ** 2
