"""Crops, flips, mixup and cutmix: draw_* turns a generator into a small record, apply_* uses it. Relabel draws and
applies; validate only applies, so the student sees the pixels that the teacher saw.
"""
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

RATIO = (3 / 4, 4 / 3)  # aspect ratios of RandomResizedCrop, width over height
TRIES = 10              # torchvision gives up after ten windows that do not fit


@dataclass(frozen=True)
class Crops:
    """One crop and flip per image. boxes (m, 4) float32: top/H, left/W, height/H, width/W of the stored image, flips (m,) bool."""
    boxes: torch.Tensor
    flips: torch.Tensor


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed. partner (m,) int64; lam in [0, 1]; box (row1, col1, row2, col2) pixels for cutmix; None where unused."""
    partner: torch.Tensor | None = None
    lam: float | None = None
    box: list | None = None

    @property
    def kind(self):
        if self.partner is None:
            return "none"
        return "mixup" if self.box is None else "cutmix"


def central_window(height, width):
    """torchvision's fallback: the largest centred window whose aspect ratio is allowed -> (top, left, height, width)."""
    h, w = height, width
    if width / height < RATIO[0]:
        h = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(height * RATIO[1])
    return (height - h) // 2, (width - w) // 2, h, w


def draw_resized_window(height, width, scale, rng):
    """RandomResizedCrop's window: area uniform in scale, log aspect uniform in RATIO -> (top, left, height, width), pixels."""
    areas = height * width * rng.uniform(*scale, size=TRIES)
    aspects = np.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1]), size=TRIES))
    places = rng.random(2)
    for area, aspect in zip(areas, aspects):
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return int(places[0] * (height - h + 1)), int(places[1] * (width - w + 1)), h, w
    return central_window(height, width)


def draw_padded_window(height, width, padding, rng):
    """A window of the image's own size, shifted by -padding..padding pixels, black outside -> (top, left, height, width)."""
    top, left = rng.integers(-padding, padding + 1, size=2).tolist()
    return top, left, height, width


def draw_crops(sizes, crop, scale, padding, flip, rng):
    """One window and one flip for each image of a batch. sizes: (height, width) pairs, pixels; crop: 'resized' or 'padded'."""
    boxes = np.empty((len(sizes), 4), np.float64)
    for row, (height, width) in zip(boxes, sizes):
        window = (draw_resized_window(height, width, scale, rng) if crop == "resized"
                  else draw_padded_window(height, width, padding, rng))
        row[:] = np.divide(window, (height, width, height, width))
    flips = rng.random(len(sizes)) < (0.5 if flip else 0)
    return Crops(torch.from_numpy(boxes.astype(np.float32)), torch.from_numpy(flips))


def draw_cutmix_box(size, lam, rng):
    """A box of about (1 - lam) of the image around a uniform centre, clipped -> [row1, col1, row2, col2], pixels; may be empty."""
    half = int(size * math.sqrt(1 - lam)) // 2
    row, col = rng.integers(0, size, size=2).tolist()
    return [min(max(v, 0), size) for v in (row - half, col - half, row + half, col + half)]


def draw_mix(kind, alpha, num_images, size, rng):
    """Partners by one permutation, lam ~ Beta(alpha, alpha) for the batch. kind: 'none', 'mixup' or 'cutmix'; size in pixels."""
    if kind == "none":
        return Mix()
    partner = torch.from_numpy(rng.permutation(num_images))
    lam = float(rng.beta(alpha, alpha))
    return Mix(partner, lam, draw_cutmix_box(size, lam, rng) if kind == "cutmix" else None)


def pixel_window(box, height, width):
    """Fractions of the stored image -> (top, left, height, width) pixels. Rounds: truncating is off in a third of the cases."""
    return np.rint(np.asarray(box, np.float64) * (height, width, height, width)).astype(int).tolist()


def apply_crops(images, crops, size):
    """Crop, resize (Pillow's bilinear), flip. images: m arrays (H, W, 3) uint8 -> (m, 3, size, size) uint8; black outside the image."""
    out = np.empty((len(images), size, size, 3), np.uint8)
    for image, box, flip, target in zip(images, crops.boxes, crops.flips.tolist(), out):
        top, left, height, width = pixel_window(box, *image.shape[:2])
        height, width = max(height, 1), max(width, 1)
        view = Image.fromarray(image).crop((left, top, left + width, top + height))
        if (height, width) != (size, size):
            view = view.resize((size, size), Image.Resampling.BILINEAR)
        target[:] = np.asarray(view)[:, ::-1] if flip else np.asarray(view)
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()


def normalise(images, mean, std):
    """(N, 3, S, S) uint8 -> float32 (x / 255 - mean) / std on the same device, in torchvision's order of operations."""
    mean, std = (torch.as_tensor(v, device=images.device).view(3, 1, 1) for v in (mean, std))  # tensors there: nothing is copied
    return images.float().div_(255).sub_(mean).div_(std)


def apply_mix(images, mix):
    """Mix a whole batch, before any split into micro-batches. images (m, 3, S, S) -> the same shape, a new tensor if mixed."""
    if mix.partner is None:
        return images
    others = images[mix.partner.to(images.device)]
    if mix.box is None:
        return mix.lam * images + (1 - mix.lam) * others
    row1, col1, row2, col2 = mix.box
    images = images.clone()
    images[:, :, row1:row2, col1:col2] = others[:, :, row1:row2, col1:col2]
    return images


def mixed_share(mix, size):
    """The share of the first image in a mixed batch: lam, or 1 - box area / size^2 after cutmix's rounding and clipping."""
    if mix.box is None:
        return mix.lam
    row1, col1, row2, col2 = mix.box
    return 1 - max(row2 - row1, 0) * max(col2 - col1, 0) / size ** 2
