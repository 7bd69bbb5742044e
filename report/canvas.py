"""Drawing with Pillow: a white picture with boxes, texts, images, arrows, networks and bars, in one palette."""
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

SCALE = 2  # drawn pixels per pixel
TILE, PITCH = 64, 74  # side of an image; from image to image
INK, GREY, BLUE, ORANGE, GREEN, PURPLE = "#1f2733", "#5b6675", "#2868c7", "#d9660a", "#14895f", "#7a49c9"


def tint(colour, share):
    """A colour of which `share` is left on white."""
    return tuple(round(255 - share * (255 - value)) for value in ImageColor.getrgb(colour))


class Canvas:
    """A white picture. Lengths are in pixels of the figure, x and y the upper left corner or, of texts and networks, the middle."""

    def __init__(self, width, height):
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), "white")
        self.draw = ImageDraw.Draw(self.image)

    def picture(self):
        """What is drawn so far, at the figure's own size."""
        return self.image.reduce(SCALE)

    def box(self, x, y, width, height, fill, line=None, radius=6):
        left, top, right, bottom = (v * SCALE for v in (x, y, x + width, y + height))
        self.draw.rounded_rectangle([left, top, right - 1, bottom - 1], radius * SCALE, fill, line, 2 * SCALE)

    def text(self, x, y, words, size=25, colour=INK, anchor="mm", bold=False):
        """anchor: Pillow's two letters. The built-in font has one weight, so bold is a thin outline."""
        self.draw.text((x * SCALE, y * SCALE), words, colour, ImageFont.load_default(size * SCALE), anchor, 5 * SCALE, "center",
                       stroke_width=int(bold))

    def tiles(self, x, y, images, columns=5, pitch=PITCH):
        """Images (S, S, 3) uint8 row by row, enlarged to squares of TILE."""
        for i, pixels in enumerate(images):
            image = Image.fromarray(pixels).resize((TILE * SCALE, TILE * SCALE), Image.Resampling.NEAREST)
            self.image.paste(image, ((x + i % columns * pitch) * SCALE, (y + i // columns * pitch) * SCALE))

    def arrow(self, points, colour, width=4, head=13):
        """A line through the points (x, y), parallel to the axes, that ends in a triangle at the last one."""
        points = np.array(points, float) * SCALE
        step = np.sign(points[-1] - points[-2]) * head * SCALE
        base, side = points[-1] - step, step[::-1] * 0.62
        self.draw.line([tuple(point) for point in (*points[:-1], base)], colour, width * SCALE, joint="curve")
        self.draw.polygon([tuple(point) for point in (points[-1], base + side, base - side)], colour)

    def network(self, x, y, height, colour):
        """Blocks that shrink and thicken, each with a stripe for its BatchNorm, then output units."""
        unit, left = height / 110, x - 106 * height / 110
        self.box(left, y - 2, 200 * unit, 4, tint(colour, 0.5), radius=0)
        for tall, wide in ((110, 22), (88, 28), (66, 34), (46, 40)):
            self.box(left, y - tall * unit / 2, wide * unit, tall * unit, tint(colour, 0.35), colour, 5 * unit)
            self.box(left, y - tall * unit / 2, 9 * unit, tall * unit, colour, radius=4 * unit)
            left += (wide + 16) * unit
        for i in range(5):
            self.box(left, y + (19 * i - 45) * unit, 14 * unit, 14 * unit, colour, radius=7 * unit)

    def bars(self, x, y, width, shares, marked):
        """Bars from a base line, their heights as shares of TILE; the marked ones in full colour."""
        pitch = width / len(shares)
        for i, height in enumerate(TILE * shares):
            self.box(x + (i + 0.12) * pitch, y + TILE - height, 0.76 * pitch, height, tint(GREEN, 1 if i in marked else 0.35), radius=2)
        self.box(x, y + TILE, width, 2, GREY, radius=0)
