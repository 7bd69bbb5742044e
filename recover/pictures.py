"""Pictures of a run: a contact sheet of its images, and an animation of how they emerge from noise."""
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from recover.batches import in_parts
from sre2l.data.image_folder import decode
from sre2l.run.files import atomic

GAP = 2               # pixels of white between tiles
MIN_TILE = 64         # pixels: smaller images are enlarged
MAX_TILE = 112        # pixels: larger ones are shrunk
MAX_ROWS = 20
MAX_COLUMNS = 20
FEW = 4               # images of a class at most, where several classes share a row
MANY = 100            # tiles at most, there
NUM_SNAPSHOT_TILES = 25
GIF_MILLISECONDS = 5000


def to_pixels(images, mean, std):
    """Normalised images (B, 3, S, S) -> pixels (B, S, S, 3) uint8. Truncated, not rounded, as published."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (mean, std))
    levels = (images * std + mean).clamp(0, 1).mul(255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).cpu().numpy()


def grid(rows):
    """Rows of (H, W, 3) uint8 images of equal size -> one picture (H', W', 3) uint8, spaced in white."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    shape = (len(rows) * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3)
    picture = np.full(shape, 255, np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            top = GAP + r * (height + GAP)
            left = GAP + c * (width + GAP)
            picture[top:top + height, left:left + width] = image
    return picture


def save_grid(rows, path, root=None):
    with atomic(path, root) as tmp:
        Image.fromarray(grid(rows)).save(tmp, "PNG")


def tile(pixels):
    """An image (H, W, 3) uint8, shrunk to MAX_TILE pixels, or enlarged by a whole factor where it is tiny."""
    image = Image.fromarray(pixels)
    factor = MIN_TILE // max(image.size)
    if max(image.size) > MAX_TILE:
        image.thumbnail((MAX_TILE, MAX_TILE), Image.Resampling.LANCZOS)
    elif factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return np.asarray(image)


def spread(items, most):
    """At most `most` of the items, evenly spread."""
    places = np.linspace(0, len(items) - 1, min(most, len(items)))
    return [items[i] for i in sorted({round(place) for place in places})]


def contact_sheet(root, path):
    """Write a PNG of an image folder: a row of first images for each class; small classes share one."""
    folders = sorted(folder for folder in Path(root).iterdir() if folder.is_dir())
    files = [sorted(folder.glob("class*"))[:MAX_COLUMNS] for folder in folders]
    longest = max(map(len, files))
    if longest > FEW:
        chosen = spread(files, MAX_ROWS)
        return save_grid([[tile(decode(file)) for file in row] for row in chosen if row], path)

    # Few images of a class: whole classes one after the other, in rows that make the sheet about square.
    chosen = spread(files, MANY // longest)
    tiles = [tile(decode(file)) for row in chosen for file in row]
    classes_a_row = max(1, round(len(chosen) ** 0.5 / longest ** 0.5))
    save_grid(in_parts(tiles, longest * classes_a_row), path)


def save_snapshot(images, folder, iteration):
    """Write some images of a batch (B, H, W, 3) uint8 at one iteration, evenly spread, as one PNG."""
    tiles = [tile(image) for image in spread(list(images), NUM_SNAPSHOT_TILES)]
    columns = -(-len(tiles) // max(1, round(len(tiles) ** 0.5)))
    save_grid(in_parts(tiles, columns), folder / f"iteration_{iteration:06d}.png", folder)


def animate(folder, path):
    """Make an animated GIF from a folder's snapshots, as large as the last, which stays for two seconds."""
    files = sorted(file for file in folder.iterdir() if re.fullmatch(r"iteration_\d+\.png", file.name))
    pictures = [Image.open(file) for file in files]
    pictures = [picture.resize(pictures[-1].size, Image.Resampling.NEAREST) for picture in pictures]
    frames = [picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=128) for picture in pictures]
    durations = [max(40, GIF_MILLISECONDS // len(frames))] * (len(frames) - 1) + [2000]
    with atomic(path) as tmp:
        frames[0].save(tmp, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


class Snapshots:
    """Pictures of a run's first batch while it is computed: every so many iterations, from the noise to the
    end. Where the run begins later than at unit 0, their names say which it is."""

    def __init__(self, args, folder, batch, spec):
        first = f"unit{batch.index}." if batch.index else ""
        self.batch = batch
        self.folder = folder.path(f"{first}snapshots")
        self.animation = folder.path(f"{first}gif")
        self.every = args.snapshot_every
        self.last = args.iteration
        self.spec = spec

    def take(self, group, iteration, images):
        """Picture images (G, B, 3, S, S) of a group after so many iterations, if it is time to.

        The first picture begins with an empty folder, and of the last one the animation is made."""
        if not self.every or group.batches[0] is not self.batch:
            return
        if iteration % self.every and iteration != self.last:
            return
        for path in self.folder.glob("iteration_*.png") if iteration == 0 else ():
            path.unlink()
        save_snapshot(to_pixels(images[0], self.spec.mean, self.spec.std), self.folder, iteration)
        if iteration == self.last:
            animate(self.folder, self.animation)
