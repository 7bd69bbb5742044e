"""Overview: the four stages and what flows between them, drawn from the images and labels of a digits row. And an icon for each stage."""
import numpy as np

from report.canvas import BLUE, GREEN, GREY, INK, ORANGE, PITCH, PURPLE, Canvas, tint
from sre2l.data.augment import apply_mix
from sre2l.data.loader import BatchDataset, Batches
from sre2l.data.datasets import DATASETS
from sre2l.run.files import sidecar, read_json
from sre2l.data.image_folder import decode, read_synthetic
from sre2l.data.label_files import read_label_batch
from sre2l.data.real_images import read_digits

SHOWN, TEMPERATURE, ROWS = 8, 20, 4  # which class emerges from noise; of the softmax; how many crops
WIDTH, HEIGHT, PANEL, TOP, BOTTOM, ROW = 2000, 736, 446, 48, 630, 692      # panel width and edges; y of the line of commands
MIDDLES, CAPTION, BODY, COLUMN = (247, 749, 1251, 1753), 180, 200, 92  # x of the panels' middles; y of first captions and of what follows; from crop to crop
STAGES = (("Squeeze", "real images into a network", "sh squeeze.sh", "teacher.pth", BLUE),
          ("Recover", "the network into few images", "sh recover.sh", "images/", ORANGE),
          ("Relabel", "soft labels for every crop", "sh relabel.sh", "labels/", GREEN),
          ("Validate", "a student learns from both", "sh train.sh", "results.json", PURPLE))


def read_frames(folder):
    """The pictures of a row's recovery -> {iteration: its images side by side, (S, n * S, 3) uint8}."""
    return {int(path.stem.split("_")[1]): decode(path) for path in sorted(folder.glob("iteration_*.jpg"))}


def read_strip(folder, size):
    """Image SHOWN at five times -> {iteration: (size, size, 3) uint8}; spaced geometrically, since changes come early."""
    frames = read_frames(folder)
    chosen = [min(frames, key=lambda iteration: abs(iteration - share * max(frames))) for share in (0, 0.05, 0.125, 0.375, 1)]
    return {iteration: frames[iteration][:, SHOWN * size:(SHOWN + 1) * size] for iteration in chosen}


def read_crops(root, images, spec):
    """The first batch as the teacher saw it -> ROWS mixed crops (S, S, 3) uint8, their softmax (ROWS, C), their classes (ROWS, 2)."""
    settings = read_json(sidecar(root, "manifest.json"))["settings"]
    batch = next(iter(Batches(len(images), settings["batch_size"], settings["order_seed"], 1)))
    sheet = read_label_batch(root, 0, 0, len(batch.rows), spec.num_classes)
    mixed = apply_mix(BatchDataset(images, spec.size, lambda *_: sheet)[batch][1].float(), sheet.mix).round().byte()
    own, soft = images.labels[batch.rows], (sheet.logits.float() / TEMPERATURE).softmax(1).numpy()
    classes = np.stack([own, own if sheet.mix.partner is None else own[sheet.mix.partner.numpy()]], 1)
    return mixed[:ROWS].permute(0, 2, 3, 1).numpy(), soft[:ROWS], classes[:ROWS]


def frame(canvas, middle, number, title, subtitle, command, file, colour):
    """A panel with its heading, and below it the command and what that writes."""
    left, right = middle - PANEL // 2, middle + PANEL // 2
    canvas.box(left, TOP, PANEL, BOTTOM - TOP, tint(colour, 0.05), tint(colour, 0.4), 20)
    canvas.box(left + 31, TOP + 22, 46, 46, colour, radius=23)
    canvas.text(left + 54, TOP + 45, str(number), 28, "white", bold=True)
    canvas.text(left + 92, TOP + 45, title, 38, colour, "lm", bold=True)
    canvas.text(left + 31, TOP + 91, subtitle, 26, GREY, "lm")
    canvas.text(left + 8, ROW, command, 26, INK, "lm")
    canvas.arrow([(left + 190, ROW), (right - 188, ROW)], GREY, 3, 11)
    canvas.box(right - 174, ROW - 22, 174, 44, tint(colour, 0.14), colour, 12)
    canvas.text(right - 87, ROW, file, 26, colour, bold=True)


def lane(canvas, first, edge, y, words, colour):
    """What a stage gives to the one after the next: a line from panel `first` at its edge, along y, past one panel."""
    start, end, middle = MIDDLES[first] + 169, MIDDLES[first + 2] - 169, MIDDLES[first + 1]
    canvas.arrow([(start, edge), (start, y), (end, y), (end, edge)], colour, 4, 14)
    canvas.box(middle - 56, y - 14, 112, 28, "white", radius=0)
    canvas.text(middle, y - 1, words, 25, colour, bold=True)


def draw_overview(train, val, recovered, strip, crops, soft, classes):
    """The whole figure -> a picture (HEIGHT, WIDTH). Images (S, S, 3) uint8; strip and the last three as their readers give them."""
    canvas, shares = Canvas(WIDTH, HEIGHT), soft / soft.max()
    for number, (x, stage) in enumerate(zip(MIDDLES, STAGES), 1):
        frame(canvas, x, number, *stage)
        if number < len(STAGES):
            canvas.arrow([(x + 229, 339), (x + 273, 339)], stage[-1], 7, 22)
    lane(canvas, 0, BOTTOM, BOTTOM + 20, "teacher", BLUE)
    lane(canvas, 1, TOP, TOP - 24, "images", ORANGE)
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
    return canvas.picture()


def overview(row):
    """The figure of a folder of results/ with all images of digits, the labels of its first batch and pictures of the recovery."""
    spec = DATASETS["digits"]
    images = read_synthetic(row / "images", spec.num_classes)
    train, val, recovered = ([source.pixels(first) for first in np.unique(source.labels, return_index=True)[1]]  # one of each class
                             for source in (read_digits("train", spec.size), read_digits("val", spec.size), images))
    return draw_overview(train, val, recovered, read_strip(row / "images.snapshots", spec.size), *read_crops(row / "labels", images, spec))


def icons(row):
    """A small picture for each stage -> {'squeeze': picture, ...}."""
    size, found = DATASETS["digits"].size, {}
    strip = list(read_strip(row / "images.snapshots", size).values())
    half = np.concatenate([strip[0][:, :size // 2], strip[-1][:, size // 2:]], 1)  # noise on the left, the image on the right
    for title, _, _, _, colour in STAGES:
        canvas = found[title.lower()] = Canvas(120, 120)
        canvas.box(1, 1, 118, 118, tint(colour, 0.08), tint(colour, 0.5), 26)
        if title in ("Squeeze", "Validate"):
            canvas.network(62, 60 if title == "Squeeze" else 46, 48, colour)
        if title == "Recover":
            canvas.tiles(28, 28, [half])
        if title == "Relabel":
            canvas.bars(20, 27, 80, np.array([0.45, 0.3, 1, 0.35, 0.6, 0.25]), (2, 4))
        if title == "Validate":  # a tick
            canvas.draw.line([(92, 180), (112, 200), (148, 160)], colour, 12, joint="curve")
    return {name: canvas.picture() for name, canvas in found.items()}
