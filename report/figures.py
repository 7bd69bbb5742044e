"""Figures: every picture of the README, rebuilt from results/. A row that arrives there appears in them by itself.

Run: python -m report.figures      (half a minute; needs matplotlib) -> img/*.png, img/animation.gif
"""
import re

from PIL import Image, ImageDraw, ImageFont

from report.canvas import GREY, INK
from report.overview import icons, overview, read_frames
from report.curves import plot_results, plot_terms, pyplot
from recover.pictures import spread
from report.rows import ROWS, read_results
from sre2l.data.datasets import DATASETS
from sre2l.run.files import atomic
from sre2l.run.flags import Parser
from sre2l.data.image_folder import decode
from sre2l.run.errors import UserError
from sre2l.run.log import print_plan
from sre2l.run.paths import ROOT
from sre2l.run.start import run_script

OUTPUT = ROOT / "img"
WIDTH, GAP, MARGIN = 1660, 8, 44  # a picture's most pixels, twice a README's; between its images; below, for words
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def class_name(dataset, label):
    """What a class is called, as far as its number tells."""
    if dataset == "cifar10":
        return CIFAR10[label]
    if dataset == "imagenet1k":
        from torchvision.models import ResNet18_Weights
        return ResNet18_Weights.IMAGENET1K_V1.meta["categories"][label]
    return str(label) if dataset == "digits" else f"class {label}"


def enlarge(pixels, side):
    """A square image at another size: by whole factors its pixels stay squares, else smoothly."""
    size = pixels.shape[0]
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST if side % size == 0 else Image.Resampling.LANCZOS)


def tiled(tiles, columns, side, captions=None):
    """Images (S, S, 3) uint8 in lines of `columns`, each `side` pixels wide, on white; captions: what stands below each, '' for nothing."""
    captions, pitch, top, placed = captions or [""] * len(tiles), side + GAP, 0, []
    for first in range(0, len(tiles), columns):
        line = list(zip(tiles[first:first + columns], captions[first:first + columns]))
        placed += [(i * pitch, top, *pair) for i, pair in enumerate(line)]
        top += pitch + MARGIN * any(words for _, words in line)
    picture = Image.new("RGB", (columns * pitch - GAP, top - GAP), "white")
    draw = ImageDraw.Draw(picture)
    for x, y, pixels, words in placed:
        picture.paste(enlarge(pixels, side), (x, y))
        draw.text((x + side // 2, y + side + 6), words, INK, fitting_font(words, side), "ma")
    return picture


def fitting_font(words, width):
    """The largest size, 17 to 28, at which the words are not wider."""
    return next((font for font in map(ImageFont.load_default, range(28, 17, -1)) if font.getlength(words) <= width), ImageFont.load_default(17))


def class_columns(dataset, root):
    """The images of a row, ten classes at most: a column for each class, five images of each; of a set with one image per class, two lines."""
    folders = spread(sorted(folder for folder in root.iterdir() if folder.is_dir()), 10)
    images = [[decode(path) for path in sorted(folder.glob("class*"))[:5]] for folder in folders]
    ipc, size = min(map(len, images)), images[0][0].shape[0]
    columns = len(images) if ipc > 1 else -(-len(images) // 2)
    side = (WIDTH + GAP) // columns - GAP
    names = [class_name(dataset, int(re.search(r"\d+", folder.name)[0])) for folder in folders]
    return tiled([row[i] for i in range(ipc) for row in images], columns, max(size, side - side % size), [""] * (ipc - 1) * columns + names)


def animation(folder):
    """Images emerging from noise, in two lines -> [(frame, milliseconds)]. A bar below shows how far the iterations are."""
    frames, pictures = read_frames(folder), []
    for iteration, strip in frames.items():
        size = strip.shape[0]
        tiles = [strip[:, left:left + size] for left in range(0, strip.shape[1], size)]
        images = tiled(tiles, -(-len(tiles) // 2), max(size, 160 - 160 % size))
        picture = Image.new("RGB", (images.width, images.height + MARGIN), "white")
        picture.paste(images)
        draw, y, left, width = ImageDraw.Draw(picture), images.height + MARGIN // 2 + 2, 220, images.width - 221
        draw.text((0, y), f"iteration {iteration}", INK, ImageFont.load_default(28), "lm")
        draw.rounded_rectangle([left, y - 5, left + width, y + 5], 5, "#e6e9ee")
        draw.rounded_rectangle([left, y - 5, left + 10 + (width - 10) * iteration / max(frames), y + 5], 5, GREY)
        pictures.append((picture, 2500 if iteration == max(frames) else 180))
    return pictures


def save_gif(path, pictures):
    frames = [picture.quantize(96, dither=Image.Dither.NONE) for picture, _ in pictures]
    with atomic(path) as tmp:
        frames[0].save(tmp, "GIF", save_all=True, append_images=frames[1:], duration=[time for _, time in pictures], loop=0, optimize=True)


def save_png(path, picture, colours=256):
    """With a palette, which takes a third of the bytes."""
    with atomic(path) as tmp:
        picture.quantize(colours, dither=Image.Dither.NONE).save(tmp, "PNG", optimize=True)


def save_plot(path, figure):
    with atomic(path) as tmp:
        figure.savefig(tmp, format="png", metadata={"Software": None})
        with Image.open(tmp) as drawn:
            picture = drawn.convert("RGB")
    save_png(path, picture, 64)


def largest_with(rows, inside, *datasets):
    """The last row, which is the largest, of the first of these data sets, whose folder has all of `inside`; None where there is none."""
    return next((row for dataset in datasets for row in reversed(rows) if row.dataset == dataset and row.ipc
                 and all((row.path / name).exists() for name in inside)), None)


def make_figures(rows, output):
    """Draw all that the rows have -> the paths of the pictures."""
    pyplot()  # what is missing is said before anything is drawn
    made = []

    def keep(name, save, picture):
        save(output / name, picture)
        made.append(output / name)

    if row := largest_with(rows, ("images.snapshots", "labels"), "digits"):
        keep("overview.png", save_png, overview(row.path))
        for stage, icon in icons(row.path).items():
            keep(f"icon_{stage}.png", save_png, icon)
    if row := largest_with(rows, ("images.snapshots",), *DATASETS):  # the hardest that there is
        keep("animation.gif", save_gif, animation(row.path / "images.snapshots"))
    for dataset in DATASETS:
        if row := largest_with(rows, ("images",), dataset):
            keep(f"images_{dataset}.png", save_png, class_columns(dataset, row.path / "images"))
    if any(row.ipc and read_results(row.path, "soft") for row in rows):
        keep("results.png", save_plot, plot_results(rows))
    if any(row.ipc and (row.path / "images.metrics.jsonl").exists() for row in rows):
        keep("terms.png", save_plot, plot_terms(rows))
    return made


def main(args):
    if args.dry_run:
        return print_plan(vars(args), rows=[row.folder for row in ROWS if row.path.is_dir()], output=str(OUTPUT))
    made = make_figures(ROWS, OUTPUT)
    if not made:
        raise UserError(f"{ROOT / 'results'}: no rows, so nothing to draw; python -m report.collect makes one of a run")
    for path in made:
        print(f"{path}: {path.stat().st_size:,} bytes")


def get_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--dry-run", action="store_true", help="print which rows there are and where pictures go, then stop")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
