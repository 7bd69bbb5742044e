"""A small data set of drawn shapes, as somebody's own folder of photographs: mixed sizes, no val/.

python3 tests/shapes.py DIR      (six classes, 40 images each; then: sh run.sh shapes --real-data DIR)"""
import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CORNERS = {"triangle": 3, "square": 4, "hexagon": 6}
CLASSES = ("circle", "cross", "hexagon", "ring", "square", "triangle")
LARGE = 3  # drawn so much larger, and shrunk: smooth edges


def polygon(corners, x, y, radius, turn):
    angles = [turn + 2 * math.pi * corner / corners for corner in range(corners)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def draw_shape(name, width, height, rng):
    """One image: the shape anywhere, of any colour and turn, on another colour with noise."""
    image = Image.new("RGB", (LARGE * width, LARGE * height), tuple(rng.integers(0, 90, 3).tolist()))
    draw = ImageDraw.Draw(image)
    colour = tuple(rng.integers(140, 256, 3).tolist())
    radius = LARGE * min(width, height) * rng.uniform(0.25, 0.42)
    x, y = (rng.uniform(radius, LARGE * side - radius) for side in (width, height))
    box = (x - radius, y - radius, x + radius, y + radius)
    turn = rng.uniform(0, 2 * math.pi)
    if name == "circle":
        draw.ellipse(box, colour)
    elif name == "ring":
        draw.ellipse(box, outline=colour, width=max(1, int(radius / 3)))
    elif name == "cross":
        for arm in polygon(4, x, y, radius, turn)[:2]:
            draw.line([arm, (2 * x - arm[0], 2 * y - arm[1])], colour, max(1, int(radius / 2)))
    else:
        draw.polygon(polygon(CORNERS[name], x, y, radius, turn), colour)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).astype(float)
    return Image.fromarray((pixels + rng.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8))


def draw_shapes(root, per_class=40, sizes=(36, 72), seed=0):
    """Write <root>/<class>/<class>_<number>.jpg."""
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        folder = Path(root) / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            width, height = rng.integers(*sizes, 2).tolist()
            draw_shape(name, width, height, rng).save(folder / f"{name}_{number}.jpg", quality=92)


if __name__ == "__main__":
    draw_shapes(sys.argv[1])
