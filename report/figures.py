"""Figures: the pictures of docs/pictures.md, rebuilt from results/.

Run: python3 -m report.figures      (half a minute; needs matplotlib)
Result: img/*.png and img/animation.gif, but for img/overview.png, which was drawn once and is kept as it is.
"""
import re
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from recover.pictures import spread
from report.plots import GREY, INK, LINE, plot_results, plot_terms, set_style, to_picture
from report.rows import ROWS
from sre2l.data.datasets import DATASETS
from sre2l.data.image_folder import decode
from sre2l.run.files import atomic
from sre2l.run.flags import Parser
from sre2l.run.paths import ROOT
from sre2l.run.start import run_script

WIDTH = 1660  # a picture's most pixels, twice a README's
GAP = 8       # pixels between its images
MARGIN = 44   # pixels below an image, for words
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def class_name(dataset, label):
    """The name of a class, or its number where the data set gives no names."""
    if dataset == "cifar10":
        return CIFAR10[label]
    if dataset == "imagenet1k":
        from torchvision.models import ResNet18_Weights
        return ResNet18_Weights.IMAGENET1K_V1.meta["categories"][label]
    return str(label)


def enlarge(pixels, side):
    """A square image at another size: by whole factors its pixels stay squares, else smoothly."""
    is_whole = side % pixels.shape[0] == 0
    kind = Image.Resampling.NEAREST if is_whole else Image.Resampling.LANCZOS
    return Image.fromarray(pixels).resize((side, side), kind)


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


def class_columns(dataset, root):
    """The images of a row, ten classes at most: a column for each class, with five images of each.

    A set with one image per class is shown in two lines."""
    folders = spread(sorted(folder for folder in root.iterdir() if folder.is_dir()), 10)
    images = [[decode(path) for path in sorted(folder.glob("class*"))[:5]] for folder in folders]
    ipc = min(map(len, images))
    size = images[0][0].shape[0]
    columns = len(images) if ipc > 1 else -(-len(images) // 2)
    side = (WIDTH + GAP) // columns - GAP
    names = [class_name(dataset, int(re.search(r"\d+", folder.name)[0])) for folder in folders]
    tiles = [row[i] for i in range(ipc) for row in images]
    return tiled(tiles, columns, max(size, side - side % size), [""] * (ipc - 1) * columns + names)


def draw_frame(strip, iteration, last):
    """The ten images of an iteration in two lines, above a bar that shows the progress.

    strip: the images side by side, (S, 10 * S, 3) uint8."""
    size = strip.shape[0]
    tiles = [strip[:, left:left + size] for left in range(0, strip.shape[1], size)]
    images = tiled(tiles, -(-len(tiles) // 2), max(size, 160 - 160 % size))
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
    return picture


def save_animation(path, folder):
    """A GIF of images emerging from noise. folder: a row's pictures of the recovery."""
    strips = {int(file.stem.split("_")[1]): decode(file) for file in sorted(folder.glob("iteration_*.jpg"))}
    last = max(strips)
    frames = [draw_frame(strip, iteration, last).quantize(96, dither=Image.Dither.NONE)
              for iteration, strip in strips.items()]
    times = [180] * (len(frames) - 1) + [2500]  # milliseconds
    with atomic(path) as tmp:
        frames[0].save(tmp, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0,
                       optimize=True)


def save_png(path, picture, colours=256):
    """With a palette, which takes a third of the bytes."""
    with atomic(path) as tmp:
        picture.quantize(colours, dither=Image.Dither.NONE).save(tmp, "PNG", optimize=True)


def make_figures(rows, output):
    """Draw all that the rows have -> the paths of the pictures."""
    set_style()  # says what is missing before anything is drawn
    made = []

    # Images and animation, of the largest row of a data set: in the tables the last that has images.
    archives = {row.dataset: row for row in rows if row.ipc and (row.path / "images.tar").exists()}
    with tempfile.TemporaryDirectory() as tmp:
        folders = {dataset: row.unpack(Path(tmp) / dataset) for dataset, row in archives.items()}
        for dataset, folder in folders.items():
            made.append(output / f"images_{dataset}.png")
            save_png(made[-1], class_columns(dataset, folder / "images"))
        emerging = [folders[dataset] / "images.snapshots" for dataset in DATASETS if dataset in folders]
        for folder in [folder for folder in emerging if folder.exists()][:1]:  # the hardest that there is
            made.append(output / "animation.gif")
            save_animation(made[-1], folder)

    # Plots.
    if any(row.ipc and row.results() for row in rows):
        made.append(output / "results.png")
        save_png(made[-1], to_picture(plot_results(rows)), 64)
    if any(row.ipc and row.metrics("images") for row in rows):
        made.append(output / "terms.png")
        save_png(made[-1], to_picture(plot_terms(rows)), 64)
    return made


def main(args):
    for path in make_figures(ROWS, ROOT / "img"):
        print(f"{path}: {path.stat().st_size:,} bytes")


def get_args(argv=None):
    return Parser(__doc__).parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
