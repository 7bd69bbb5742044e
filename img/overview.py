"""Overview: the four stages and what flows between them, drawn from the images and labels of one digits run.

Run: python -m img.make_overview --name digits      (after `sh demo.sh`; some seconds) -> img/overview.png, 2000 x 736 pixels
"""
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from recover.pictures import GAP, enlargement
from sre2l.augment import apply_mix
from sre2l.batches import BatchDataset, Batches
from sre2l.datasets import DATASETS
from sre2l.flags import Parser, add_run_flags
from sre2l.images import decode, read_synthetic
from sre2l.labels import read_sheet
from sre2l.realdata import read_digits
from sre2l.files import atomic, beside, read_json
from sre2l.runtime import ROOT, UserError, print_plan, run_folder, run_script

OUTPUT = ROOT / "img" / "overview.png"
SCALE, SHOWN, TEMPERATURE, ROWS = 2, 2, 20, 4  # drawn pixels per pixel; which image of a snapshot; of the softmax; how many crops
WIDTH, HEIGHT, PANEL, TOP, BOTTOM, ROW = 2000, 736, 446, 48, 630, 692      # panel width and edges; y of the line of commands
MIDDLES, CAPTION, BODY = (247, 749, 1251, 1753), 180, 200  # x of the panels' middles; y of their first captions and of what follows
TILE, PITCH, COLUMN = 64, 74, 92  # side of an image, twice its pixels; from image to image; from crop to crop where they stand apart
INK, GREY, BLUE, ORANGE, GREEN, PURPLE = "#1f2733", "#5b6675", "#2868c7", "#d9660a", "#14895f", "#7a49c9"
STAGES = (("Squeeze", "real images into a network", "sh squeeze.sh", "teacher.pth", BLUE),
          ("Recover", "the network into few images", "sh recover.sh", "images/", ORANGE),
          ("Relabel", "soft labels for every crop", "sh relabel.sh", "labels/", GREEN),
          ("Validate", "a student learns from both", "sh train.sh", "results.json", PURPLE))


def read_strip(folder, size, most=5):
    """Image SHOWN of `most` snapshots -> {iteration: (size, size, 3) uint8}; spaced geometrically, since changes come early."""
    files = sorted(folder.glob("iteration_*.png"))
    if len(files) < most:
        raise UserError(f"{folder}: {len(files)} snapshots of the recovery, the figure needs {most}; run `sh demo.sh` first")
    factor = enlargement(size)
    chosen, tile = [files[round(i) - 1] for i in np.geomspace(1, len(files), most)], size * factor
    left = GAP + SHOWN * (tile + GAP)
    return {int(file.stem.split("_")[1]): decode(file)[GAP:GAP + tile:factor, left:left + tile:factor] for file in chosen}


def read_crops(root, images, spec):
    """The first batch as the teacher saw it -> ROWS mixed crops (S, S, 3) uint8, their softmax (ROWS, C), their classes (ROWS, 2)."""
    settings = read_json(beside(root, "manifest.json"))["settings"]
    batch = next(iter(Batches(len(images), settings["batch_size"], settings["order_seed"], 1)))
    sheet = read_sheet(root, 0, 0, len(batch.rows), spec.num_classes)
    mixed = apply_mix(BatchDataset(images, spec.size, lambda *_: sheet)[batch][1].float(), sheet.mix).round().byte()
    own, soft = images.labels[batch.rows], (sheet.logits.float() / TEMPERATURE).softmax(1).numpy()
    classes = np.stack([own, own if sheet.mix.partner is None else own[sheet.mix.partner.numpy()]], 1)
    return mixed[:ROWS].permute(0, 2, 3, 1).numpy(), soft[:ROWS], classes[:ROWS]


def tint(colour, share):
    """A colour of which `share` is left on white."""
    return tuple(round(255 - share * (255 - value)) for value in ImageColor.getrgb(colour))


class Canvas:
    """A white picture. Lengths are in pixels of the figure, x and y the upper left corner or, of texts and networks, the middle."""

    def __init__(self):
        self.image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
        self.draw = ImageDraw.Draw(self.image)

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

    def frame(self, middle, number, title, subtitle, command, file, colour):
        """A panel with its heading, and below it the command and what that writes."""
        left, right = middle - PANEL // 2, middle + PANEL // 2
        self.box(left, TOP, PANEL, BOTTOM - TOP, tint(colour, 0.05), tint(colour, 0.4), 20)
        self.box(left + 31, TOP + 22, 46, 46, colour, radius=23)
        self.text(left + 54, TOP + 45, str(number), 28, "white", bold=True)
        self.text(left + 92, TOP + 45, title, 38, colour, "lm", bold=True)
        self.text(left + 31, TOP + 91, subtitle, 26, GREY, "lm")
        self.text(left + 8, ROW, command, 26, INK, "lm")
        self.arrow([(left + 190, ROW), (right - 188, ROW)], GREY, 3, 11)
        self.box(right - 174, ROW - 22, 174, 44, tint(colour, 0.14), colour, 12)
        self.text(right - 87, ROW, file, 26, colour, bold=True)

    def lane(self, first, edge, y, words, colour):
        """What a stage gives to the one after the next: a line from panel `first` at its edge, along y, past one panel."""
        start, end, middle = MIDDLES[first] + 169, MIDDLES[first + 2] - 169, MIDDLES[first + 1]
        self.arrow([(start, edge), (start, y), (end, y), (end, edge)], colour, 4, 14)
        self.box(middle - 56, y - 14, 112, 28, "white", radius=0)
        self.text(middle, y - 1, words, 25, colour, bold=True)


def draw_overview(train, val, recovered, strip, crops, soft, classes):
    """The whole figure -> a picture (HEIGHT, WIDTH). Images (S, S, 3) uint8; strip and the last three as their readers give them."""
    canvas, shares = Canvas(), soft / soft.max()
    for number, (x, stage) in enumerate(zip(MIDDLES, STAGES), 1):
        canvas.frame(x, number, *stage)
        if number < len(STAGES):
            canvas.arrow([(x + 229, 339), (x + 273, 339)], stage[-1], 7, 22)
    canvas.lane(0, BOTTOM, BOTTOM + 20, "teacher", BLUE)
    canvas.lane(1, TOP, TOP - 24, "images", ORANGE)
    x = MIDDLES[0]  # ---- squeeze: real digits train the teacher
    canvas.text(x, CAPTION, "real digits")
    canvas.tiles(x - 180, BODY, train)
    canvas.arrow([(x, 352), (x, 388)], BLUE)
    canvas.network(x, 462, 124, BLUE)
    canvas.text(x, 573, "teacher, with its\nBatchNorm statistics", 26, BLUE, bold=True)
    x = MIDDLES[1]  # ---- recover: one image from noise, what it is optimised for, one image of each class
    canvas.text(x, CAPTION, "from noise to an image")
    canvas.tiles(x - 180, BODY, strip.values())
    for i, iteration in enumerate(strip):
        canvas.text(x - 148 + i * PITCH, 280, str(iteration) if i else f"step {iteration}", 22, GREY)
    canvas.box(x - 192, 300, 384, 126, "white", tint(ORANGE, 0.4), 14)
    canvas.text(x, 330, "target: the class and the\nteacher's BatchNorm statistics", 24, BLUE)
    canvas.text(x, 393, "loss = cross entropy\n+ r_bn x BatchNorm distance", 24)
    canvas.text(x, 447, "recovered images")
    canvas.tiles(x - 180, 466, recovered)
    x = MIDDLES[2]  # ---- relabel: mixed crops through the teacher, its answers as stored
    for offset, words, colour in ((-160, "crops", INK), (-49, "teacher", BLUE), (114, f"softmax, T = {TEMPERATURE}", INK)):
        canvas.text(x + offset, CAPTION, words, 25, colour, bold=colour == BLUE)
    canvas.tiles(x - 192, BODY, crops, 1, COLUMN)
    for i, y in enumerate(range(BODY, BODY + ROWS * COLUMN, COLUMN)):
        canvas.arrow([(x - 124, y + 32), (x + 28, y + 32)], GREY, 3, 11)
        canvas.bars(x + 34, y, 160, shares[i], classes[i])
    canvas.box(x - 102, BODY, 106, 340, tint(BLUE, 0.1), tint(BLUE, 0.4), 14)  # on top of the arrows
    canvas.network(x - 47, BODY + 170, 46, BLUE)
    for label in range(soft.shape[1]):
        canvas.text(x + 34 + (label + 0.5) * 160 / soft.shape[1], 557, str(label), 22, GREY)
    canvas.text(x, 597, "dark: the classes in the crop", 24, GREY)
    x = MIDDLES[3]  # ---- validate: the same crops and answers train the student
    canvas.text(x - 111, CAPTION, "same crops")
    canvas.text(x + 86, CAPTION, "soft labels")
    canvas.tiles(x - 180, BODY, crops, 2)
    for i in range(ROWS):
        canvas.bars(x - 8 + i % 2 * 100, BODY + i // 2 * PITCH, 88, shares[i], classes[i])
    canvas.arrow([(x, 352), (x, 378)], PURPLE)
    canvas.network(x, 430, 90, PURPLE)
    canvas.text(x - 192, 430, "student", 27, PURPLE, "lm", bold=True)
    canvas.arrow([(x, 480), (x, 504)], PURPLE)
    canvas.text(x, 521, "top-1 on unseen real digits")
    canvas.tiles(x - 180, 540, val[::2])
    return canvas.image.reduce(SCALE)


def main(args):
    spec, run = DATASETS[args.dataset], run_folder(args)
    if (spec.name, spec.size) != ("digits", 32):
        raise UserError(f"{spec.name} at {spec.size} pixels: the figure shows the embedded digits at 32; give the --name of such a run")
    if args.dry_run:
        return print_plan(vars(args), run=str(run), output=str(OUTPUT))
    strip, images = read_strip(beside(run / "images", "snapshots"), spec.size), read_synthetic(run / "images", spec.num_classes)
    train, val, recovered = ([source.pixels(first) for first in np.unique(source.labels, return_index=True)[1]]  # one of each class
                             for source in (read_digits("train", spec.size), read_digits("val", spec.size), images))
    picture = draw_overview(train, val, recovered, strip, *read_crops(run / "labels", images, spec))
    with atomic(OUTPUT) as tmp:
        picture.save(tmp, "PNG", optimize=True)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size:,} bytes")


def get_args(argv=None):
    parser = Parser(__doc__)
    add_run_flags(parser)
    parser.set_defaults(dataset="digits")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
