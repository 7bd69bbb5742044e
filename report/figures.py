"""Figures: the pictures of docs/pictures.md, rebuilt from results/.

Run: python3 -m report.figures      (half a minute; needs matplotlib)
Result: img/*.png and img/animation*.gif, but for img/overview.png, which was drawn once and is kept as it is.
"""
import re
import tempfile
from itertools import accumulate
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from recover.pictures import spread
from report.curves import GREY, INK, LINE, set_style
from report.plots import divide, has_terms, plot_protocols, plot_results, plot_steps, plot_terms, to_picture
from report.rows import ROWS, read_grid, read_steps
from sre2l.data.datasets import DATASETS
from sre2l.data.image_folder import decode
from sre2l.run.files import atomic
from sre2l.run.flags import Parser
from sre2l.run.paths import ROOT
from sre2l.run.start import run_script

WIDTH = 1660  # a picture's most pixels, twice a README's
GAP = 8       # pixels between its images
MARGIN = 44   # pixels below an image, for words
FRAMES = 16   # of an animation
CLASSES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "imagenette": ("tench", "springer", "cassette player", "chain saw", "church", "French horn",
                   "garbage truck", "gas pump", "golf ball", "parachute")}


def class_name(dataset, label):
    """The name of a class, or its number where the data set gives no names."""
    if dataset in CLASSES:
        return CLASSES[dataset][label]
    if dataset == "imagenet1k":
        from torchvision.models import ResNet18_Weights
        return ResNet18_Weights.IMAGENET1K_V1.meta["categories"][label]
    return str(label)


def enlarge(pixels, side):
    """A square image at another size: by whole factors its pixels stay squares, else smoothly."""
    is_whole = side % pixels.shape[0] == 0
    kind = Image.Resampling.NEAREST if is_whole else Image.Resampling.LANCZOS
    return Image.fromarray(pixels).resize((side, side), kind)


def side_within(size, room):
    """How large to show images of `size` pixels: the largest whole multiple that has room, else as large as
    that is, but at least half of `size`."""
    return room - room % size or max(room, size // 2)


def fitting_font(words, width):
    """The largest font, 28 to 17 pixels high, in which the words are at most `width` pixels wide."""
    fonts = [ImageFont.load_default(size) for size in range(28, 16, -1)]
    return next((font for font in fonts if font.getlength(words) <= width), fonts[-1])


def tiled(tiles, columns, side, captions=None):
    """Images (S, S, 3) uint8 in lines of `columns`, each `side` pixels wide, on white.

    captions: what stands below each image, '' for nothing."""
    captions = captions or [""] * len(tiles)
    pitch = side + GAP

    # Where each image goes: a line with words is taller.
    placed = []
    top = 0
    for first in range(0, len(tiles), columns):
        line = list(zip(tiles[first:first + columns], captions[first:first + columns]))
        placed += [(i * pitch, top, pixels, words) for i, (pixels, words) in enumerate(line)]
        top += pitch + (MARGIN if any(words for _, words in line) else 0)

    picture = Image.new("RGB", (columns * pitch - GAP, top - GAP), "white")
    draw = ImageDraw.Draw(picture)
    for x, y, pixels, words in placed:
        picture.paste(enlarge(pixels, side), (x, y))
        draw.text((x + side // 2, y + side + 6), words, INK, fitting_font(words, side), "ma")
    return picture


def choose_classes(root):
    """The folders of at most ten classes of an image folder, evenly spread."""
    return spread(sorted(folder for folder in root.iterdir() if folder.is_dir()), 10)


def class_names(dataset, folders):
    return [class_name(dataset, int(re.search(r"\d+", folder.name)[0])) for folder in folders]


def class_columns(dataset, root):
    """The images of a row, ten classes at most: a column for each class, with five images of each.

    A set with one image per class is shown in two lines."""
    folders = choose_classes(root)
    images = [[decode(path) for path in sorted(folder.glob("class*"))[:5]] for folder in folders]
    ipc = min(map(len, images))
    columns = len(images) if ipc > 1 else -(-len(images) // 2)
    side = side_within(images[0][0].shape[0], (WIDTH + GAP) // columns - GAP)
    tiles = [row[i] for i in range(ipc) for row in images]
    captions = [""] * (ipc - 1) * columns + class_names(dataset, folders)
    return tiled(tiles, columns, side, captions)


def recipe_lines(dataset, folders):
    """The images of several recipes below each other, the first of each of ten classes.

    folders: {name: a row's images}, with the same classes."""
    lines = [choose_classes(root) for root in folders.values()]
    tiles = [decode(min(folder.glob("class*"))) for line in lines for folder in line]
    columns = len(lines[0])
    captions = [""] * (len(tiles) - columns) + class_names(dataset, lines[0])

    # The names of the recipes stand at the left.
    font = ImageFont.load_default(28)
    left = max(int(font.getlength(name)) for name in folders) + 3 * GAP
    side = side_within(tiles[0].shape[0], (WIDTH - left + GAP) // columns - GAP)
    images = tiled(tiles, columns, side, captions)
    picture = Image.new("RGB", (left + images.width, images.height), "white")
    picture.paste(images, (left, 0))
    draw = ImageDraw.Draw(picture)
    for place, name in enumerate(folders):
        draw.text((0, place * (side + GAP) + side // 2), name, INK, font, "lm")
    return picture


def merges_of(row):
    """The iterations of a row's recover after which real images were merged in: [] without merges."""
    settings = row.settings("images", "manifest")
    steps = [int(block.partition("@")[0]) for block in (settings.get("blocks") or "0").split(",")]
    return list(accumulate(steps[:-1])) if settings.get("merge") else []


def draw_frame(strip, iteration, last, merges=()):
    """The ten images of an iteration in two lines, above a bar that shows the progress.

    strip: the images side by side, (S, 10 * S, 3) uint8; merges: iterations that the bar marks."""
    size = strip.shape[0]
    tiles = [strip[:, left:left + size] for left in range(0, strip.shape[1], size)]
    images = tiled(tiles, -(-len(tiles) // 2), max(size, side_within(size, 96)))
    picture = Image.new("RGB", (images.width, images.height + MARGIN), "white")
    picture.paste(images)

    draw = ImageDraw.Draw(picture)
    y = images.height + MARGIN // 2 + 2
    left = 220
    width = images.width - 221
    done = 10 + (width - 10) * iteration / last
    draw.text((0, y), f"iteration {iteration}", INK, ImageFont.load_default(28), "lm")
    draw.rounded_rectangle([left, y - 5, left + width, y + 5], 5, LINE)
    draw.rounded_rectangle([left, y - 5, left + done, y + 5], 5, GREY)
    for merge in merges:
        place = left + 10 + (width - 10) * merge / last
        draw.rectangle([place - 1, y - 12, place + 1, y + 12], INK)
    return picture


def save_animation(path, folder, merges=()):
    """A GIF of images as recover changes them. folder: a row's pictures of the recovery."""
    files = spread(sorted(folder.glob("iteration_*.jpg")), FRAMES)
    strips = {int(file.stem.split("_")[1]): decode(file) for file in files}
    last = max(strips)
    frames = [draw_frame(strip, iteration, last, merges).quantize(64, dither=Image.Dither.NONE)
              for iteration, strip in strips.items()]
    times = [250] * (len(frames) - 1) + [2500]  # milliseconds
    with atomic(path) as tmp:
        frames[0].save(tmp, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0,
                       optimize=True)


def save_png(path, picture, colours=256):
    """With a palette, which takes a third of the bytes."""
    with atomic(path) as tmp:
        picture.quantize(colours, dither=Image.Dither.NONE).save(tmp, "PNG", optimize=True)


def recipes_of(rows):
    """The recipes of each data set whose images are side by side: {data set: {name: row}}.

    They have one number of images per class, that of most recipes."""
    found = {}
    for row in rows:
        found.setdefault(row.dataset, {}).setdefault(row.ipc, {})[row.recipe or "SRe2L"] = row
    largest = {dataset: max(by_ipc.values(), key=len) for dataset, by_ipc in found.items()}
    return {dataset: recipes for dataset, recipes in largest.items() if len(recipes) > 1}


def draw_images(rows, output):
    """Draw the images of rows, and how they came about -> the paths of the pictures."""
    made = []
    rows = [row for row in rows if row.ipc and (row.path / "images.tar").exists()]
    with tempfile.TemporaryDirectory() as tmp:
        folders = {row: row.unpack(Path(tmp) / str(place)) for place, row in enumerate(rows)}

        # The largest row of a data set: the last in the tables, of a recipe only for want of another.
        recipes_first = sorted(rows, key=lambda row: not row.recipe)
        for dataset, row in {row.dataset: row for row in recipes_first}.items():
            made.append(output / f"images_{dataset}.png")
            save_png(made[-1], class_columns(dataset, folders[row] / "images"))
        for dataset, recipes in recipes_of(rows).items():
            made.append(output / f"recipes_{dataset}.png")
            lines = {name: folders[row] / "images" for name, row in recipes.items()}
            save_png(made[-1], recipe_lines(dataset, lines))

        # One animation from noise and one from real images, each of the hardest data set that there is.
        order = list(DATASETS)
        pictured = [row for row in rows if (folders[row] / "images.snapshots").exists()]
        for row in sorted(reversed(pictured), key=lambda row: order.index(row.dataset)):
            is_real = "init" in row.settings("images", "manifest")
            path = output / ("animation_real.gif" if is_real else "animation.gif")
            if path not in made:
                made.append(path)
                save_animation(path, folders[row] / "images.snapshots", merges_of(row))
    return made


def make_figures(rows, output, steps=(), grid=()):
    """Draw all that the rows have -> the paths of the pictures.

    steps, grid: of rows.read_steps and read_grid."""
    set_style()  # says what is missing before anything is drawn
    made = draw_images(rows, output)
    plots = {"results": (plot_results, divide(rows) and rows),
             "terms": (plot_terms, any(map(has_terms, rows)) and rows),
             "steps": (plot_steps, steps),
             "protocols": (plot_protocols, grid)}
    for name, (plot, shown) in plots.items():
        if shown:
            made.append(output / f"{name}.png")
            save_png(made[-1], to_picture(plot(shown)), 64)
    return made


def main(args):
    for path in make_figures(ROWS, ROOT / "img", read_steps(), read_grid()):
        print(f"{path}: {path.stat().st_size:,} bytes")


def get_args(argv=None):
    return Parser(__doc__).parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
