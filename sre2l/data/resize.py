"""Crop and resize on the CPU, every pixel as Pillow's bilinear filter makes it: by a C kernel compiled at
first use, else by Pillow."""
import ctypes
import functools
import subprocess

import numpy as np
import PIL
import torch
from PIL import Image

from sre2l.kernels.compiled import load_kernel
from sre2l.run.errors import first_line

EXACT = "-ffp-contract=off"  # no fused multiply-add: Pillow's doubles are rounded twice


def crop_with_pillow(images, windows, flips, size):
    """Crop, resize (bilinear) and flip by Pillow, six times slower than by the kernel.

    images: m arrays (H, W, 3) uint8; windows (m, 4) top, left, height, width in pixels, black outside the
    image; flips (m,) bool -> (m, 3, size, size) uint8."""
    out = np.empty((len(images), 3, size, size), np.uint8)
    for image, (top, left, height, width), flip, planes in zip(images, windows.tolist(), flips.tolist(), out):
        inside = image[max(top, 0):max(top + height, 0), max(left, 0):max(left + width, 0)]
        view = Image.fromarray(inside) if inside.size else Image.new("RGB", (0, 0))
        if inside.shape[:2] != (height, width):
            view = view.crop((min(left, 0), min(top, 0), min(left, 0) + width, min(top, 0) + height))
        if (height, width) != (size, size):
            view = view.resize((size, size), Image.Resampling.BILINEAR)
        if flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for plane, band in zip(planes, view.split()):
            plane[:] = np.asarray(band)
    return torch.from_numpy(out)


def vertical_first(windows, size):
    """Whether Pillow takes the columns before the rows: from 13.0 on, where the height shrinks, and by more
    than twice as many pixels as the width. windows (m, 4) -> (m,) bool. Enlarged crops, as of images stored
    at the size of the crops, are the same in all versions."""
    height = windows[:, 2]
    width = windows[:, 3]
    is_new = int(PIL.__version__.split(".")[0]) >= 13
    return (height > size) & (height - size > 2 * (width - size)) & is_new


def crop_with_kernel(kernel, images, windows, flips, size):
    """The same by the C function of resize.c. Other threads run meanwhile."""
    images = [np.ascontiguousarray(image) for image in images]
    addresses = np.array([image.__array_interface__["data"][0] for image in images], np.int64)
    shapes = np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2)
    tall = vertical_first(windows, size).astype(np.uint8)
    windows = np.ascontiguousarray(windows, np.int64)
    flips = flips.astype(np.uint8)
    out = torch.empty((len(images), 3, size, size), dtype=torch.uint8)
    arrays = (array.ctypes.data for array in (addresses, shapes, windows, flips, tall))
    if not kernel(len(images), *arrays, size, out.data_ptr()):
        raise MemoryError(f"no memory for the crops of {len(images)} images")
    return out


def agrees_with_pillow(kernel):
    """Does the kernel give what this Pillow gives, enlarged, reduced in either order, outside, flipped?"""
    rng = np.random.default_rng(0)
    shapes = ((40, 31), (90, 77), (32, 32), (90, 50), (90, 50))
    images = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in shapes]
    windows = np.array([[3, 5, 20, 17], [1, 0, 70, 77], [-3, 4, 32, 32], [0, 0, 70, 50], [0, 0, 90, 50]])
    flips = np.array([0, 1, 1, 0, 0], bool)
    wanted = crop_with_pillow(images, windows, flips, 32)
    return torch.equal(crop_with_kernel(kernel, images, windows, flips, 32), wanted)


@functools.cache
def host_cropper():
    """-> (crop_with_pillow or what does the same faster, the line that says which it is)."""
    try:
        kernel = load_kernel("resize.c", EXACT).crop_all
        kernel.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 5, ctypes.c_int, ctypes.c_void_p]
    except (OSError, subprocess.CalledProcessError) as error:
        return crop_with_pillow, f"crops on the CPU by Pillow ({first_line(error)})"
    if not agrees_with_pillow(kernel):
        return crop_with_pillow, "crops on the CPU by Pillow (the compiled kernel does not agree with it)"
    return functools.partial(crop_with_kernel, kernel), "crops on the CPU by the compiled kernel"


def pixel_windows(boxes, sizes):
    """Fractions of the stored images -> (m, 4) top, left, height, width in pixels, at least one high and
    wide; sizes (m, 2) height, width. Rounds: truncating is off in a third of the cases."""
    windows = np.rint(np.asarray(boxes, np.float64) * np.tile(sizes, 2)).astype(np.int64)
    windows[:, 2:] = np.maximum(windows[:, 2:], 1)
    return windows


def apply_crops(images, crops, size):
    """Crop, resize (Pillow's bilinear), flip. images: m arrays (H, W, 3) uint8 -> (m, 3, size, size) uint8;
    black outside the image."""
    sizes = np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2)
    return host_cropper()[0](images, pixel_windows(crops.boxes, sizes), crops.flips.numpy(), size)
