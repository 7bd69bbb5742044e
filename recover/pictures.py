"""Pictures of a run: a contact sheet of a folder of images, an animation of images emerging from noise."""
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sre2l.data.image_folder import decode
from sre2l.run.files import atomic

GAP = 2        # pixels of white between images
MAX_ROWS, MAX_COLUMNS, MIN_TILE, MAX_TILE = 20, 20, 64, 112  # tiles in pixels
FEW, MANY = 4, 100  # images of a class that leave room for others in its row; tiles then
SHEET = (f"a row for each class ({MAX_ROWS} at most, evenly spread) with its first images ({MAX_COLUMNS} at most); where a class has {FEW} or fewer, "
         f"several share a row ({MANY} images at most)")


def to_pixels(images, mean, std):
    """Normalised (B, 3, S, S) -> (B, S, S, 3) uint8: de-normalise, clamp to [0, 1], times 255, truncate (not round), as published."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (mean, std))
    return (images * std + mean).clamp(0, 1).mul(255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def grid(rows):
    """Lists of (H, W, 3) uint8 images, equal sizes, row by row -> one white-spaced picture (H', W', 3) uint8."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            top, left = GAP + r * (height + GAP), GAP + c * (width + GAP)
            sheet[top:top + height, left:left + width] = image
    return sheet


def enlargement(size):
    """The whole factor by which an image of `size` pixels is shown larger."""
    return max(1, MIN_TILE // size)


def tile(pixels):
    """An image shrunk to at most MAX_TILE pixels, or enlarged by a whole factor where it is tiny."""
    image = Image.fromarray(pixels)
    if max(image.size) > MAX_TILE:
        image.thumbnail((MAX_TILE, MAX_TILE), Image.Resampling.LANCZOS)
    elif enlargement(max(image.size)) > 1:
        factor = enlargement(max(image.size))
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return np.asarray(image)


def spread(items, most):
    """At most `most` of the items, evenly spread."""
    return [items[i] for i in sorted({round(i) for i in np.linspace(0, len(items) - 1, min(most, len(items)))})]


def contact_sheet(root, path):
    """Write a PNG of an image folder, as SHEET says."""
    folders = sorted(folder for folder in Path(root).iterdir() if folder.is_dir())
    files = [sorted(folder.glob("class*"))[:MAX_COLUMNS] for folder in folders]
    longest = max(map(len, files))
    few = longest <= FEW
    rows = [[tile(decode(file)) for file in row] for row in spread(files, MANY // longest if few else MAX_ROWS)]
    if few:
        tiles, columns = sum(rows, []), longest * max(1, round(len(rows) ** 0.5 / longest ** 0.5))
        rows = [tiles[i:i + columns] for i in range(0, len(tiles), columns)]
    with atomic(path) as tmp:
        Image.fromarray(grid([row for row in rows if row])).save(tmp, "PNG")


def save_snapshot(images, folder, iteration):
    """Write the images of a batch (B, H, W, 3) uint8 at one iteration: 25 of them, evenly spread, as one PNG."""
    tiles = [tile(image) for image in spread(list(images), 25)]
    columns = -(-len(tiles) // max(1, round(len(tiles) ** 0.5)))
    with atomic(folder / f"iteration_{iteration:06d}.png", folder) as tmp:
        Image.fromarray(grid([tiles[i:i + columns] for i in range(0, len(tiles), columns)])).save(tmp, "PNG")


def animate(folder, path, seconds=5):
    """Make an animated GIF of about `seconds` from the snapshots in a folder, the last one held for two seconds."""
    files = sorted(file for file in folder.glob("iteration_*.png") if re.fullmatch(r"iteration_\d+\.png", file.name))
    frames = [Image.open(file).convert("P", palette=Image.Palette.ADAPTIVE, colors=128) for file in files]
    durations = [max(40, 1000 * seconds // len(frames))] * (len(frames) - 1) + [2000]
    with atomic(path) as tmp:
        frames[0].save(tmp, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
