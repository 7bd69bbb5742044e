"""Crops for the tests of exactness, and what Pillow itself makes of them.

Run: TRITON_INTERPRET=1 python -m tests.crops (the GPU's kernel on the CPU, as test_resize.py does)"""
import itertools

import numpy as np
import torch
from PIL import Image

from sre2l.data.augment import Mix, apply_mix, level_table, normalise
from sre2l.data.resize import vertical_first


def draw_case(rng, size, num_images=24, sides=(32, 300), padded=False):
    """Noise, windows of 0.08 to 1 of the area or shifted up to 9 pixels -> (images, (m, 4), flips (m,))."""
    shapes = rng.integers(*sides, size=(num_images, 2)) if not padded else np.full((num_images, 2), size)
    images = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in shapes]
    if padded:
        windows = np.column_stack((rng.integers(-9, 10, (num_images, 2)), shapes))
        return images, windows, rng.random(num_images) < 0.5
    shares = np.sqrt(rng.uniform(0.08, 1, (num_images, 1)))
    shares = shares * np.exp(rng.uniform(-0.15, 0.15, (num_images, 2)))
    extents = np.clip((shapes * shares).astype(int), 1, shapes)
    corners = (rng.random((num_images, 2)) * (shapes - extents + 1)).astype(int)
    return images, np.column_stack((corners, extents)), rng.random(num_images) < 0.5


def odd_cases(rng, long=300):
    """Edges: one pixel, one row, many taps, windows half or wholly outside, odd sizes; sides up to `long`."""
    windows = [(0, 0, 1, 1), (0, 7, 1, long - 9), (3, 0, long - 9, 1), (0, 0, long, long - 7),
               (0, 0, long - 7, long), (-20, 11, 33, 40), (-33, 0, 33, 40),
               (5, 38, 33, 40), (0, 0, long, 17), (-5, -6, 70, 80)]
    shapes = [(1, 1), (1, long), (long, 1), (long, long - 7), (long - 7, long), (33, 40), (33, 40), (33, 40),
              (long, 17), (64, 64)]
    images = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in shapes]
    return images, np.array(windows), np.arange(len(images)) % 2 == 1


def by_pillow(images, windows, flips, size):
    """Crop the image, resize the crop, mirror it, in Pillow alone -> (m, 3, size, size) uint8."""
    views = [Image.fromarray(image).crop((left, top, left + width, top + height))
             for image, (top, left, height, width) in zip(images, windows.tolist())]
    views = [view.resize((size, size), Image.Resampling.BILINEAR) for view in views]
    views = [view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else view
             for view, flip in zip(views, flips)]
    return torch.stack([torch.from_numpy(np.array(view)).permute(2, 0, 1) for view in views])


def by_gpu_kernel(images, windows, flips, size, device):
    """The same by the kernel for images that lie on a GPU."""
    from sre2l.kernels.triton.resize import crop_resident
    starts = np.cumsum([0] + [image.size for image in images])[:-1]
    layout = torch.tensor([[start, *image.shape[:2]] for start, image in zip(starts, images)], device=device)
    table = np.column_stack((np.arange(len(images)), windows, flips, vertical_first(windows, size)))
    table = table.astype(np.int64)
    pixels = torch.from_numpy(np.concatenate([image.reshape(-1) for image in images])).to(device)
    return crop_resident(pixels, layout, torch.from_numpy(table).to(device), size,
                         *windows[:, 2:].max(0).tolist())


def mixed_batches(rng, size=19):
    """Batches with each kind of mix, contiguous and NHWC -> [(pixels (5, 3, size, size) uint8, Mix)]."""
    pixels = torch.from_numpy(rng.integers(0, 256, (5, 3, size, size), dtype=np.uint8))
    partner = torch.tensor([2, 0, 1, 4, 3])
    mixes = (Mix(), Mix(partner, 0.3), Mix(partner, 0.7, [3, 5, 17, 11]),
             Mix(partner, 0.7, [0, 0, size, size]), Mix(partner, 0.7, [4, 4, 4, 9]))
    return [(pixels.contiguous(memory_format=fmt), mix) for mix in mixes
            for fmt in (torch.contiguous_format, torch.channels_last)]


def check_shown(pixels, mix, dtype, device="cpu"):
    """The GPU's kernel gives what normalise and apply_mix give, bit for bit."""
    from sre2l.kernels.triton.show import show_on_gpu
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2023, 0.1994, 0.2010)
    made = show_on_gpu(pixels.to(device), mix, level_table(mean, std, torch.device(device)), dtype)
    assert made.dtype == dtype and made.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(made.cpu(), apply_mix(normalise(pixels, mean, std), mix).to(dtype)), mix


def main():
    rng = np.random.default_rng(0)
    cases = [(draw_case(rng, size, 4, (size // 2, size * 3)), size) for size in (9, 20)]
    cases.append((draw_case(rng, 33, 2, padded=True), 33))
    for (images, windows, flips), size in [*cases, (odd_cases(rng, 60), 20)]:
        made = by_gpu_kernel(images, windows, flips, size, "cpu")
        assert made.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(made, by_pillow(images, windows, flips, size)), size
    for (pixels, mix), dtype in itertools.product(mixed_batches(rng), (torch.float32, torch.float16)):
        check_shown(pixels, mix, dtype)
    print("every pixel equal")


if __name__ == "__main__":
    main()
