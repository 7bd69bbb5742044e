"""Prints 'small', 'medium' or 'large': what a row says, or of one's own by the number of training images.

The launchers choose their settings by it: env.sh calls it, before the stage that imports torch."""
import argparse
import contextlib
import os
import sys
from pathlib import Path

from sre2l.data.datasets import DATASETS
from sre2l.run.errors import UserError
from sre2l.run.files import read_json
from sre2l.run.paths import run_folder

SCALES = {"small": 2_000, "medium": 50_000}  # up to so many images; above: large
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's


def scale_of(number):
    return next((scale for scale, most in SCALES.items() if number <= most), "large")


def count_files(folder):
    """The number of image files to train on, by their names, before any is held out.

    folder: that holds train/, or the class folders themselves."""
    train = Path(folder) / "train"
    walk = os.walk(train if train.is_dir() else folder, followlinks=True)
    return sum(name.lower().endswith(SUFFIXES) and not name.startswith(".") for _, _, names in walk
               for name in names)


def main():
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--launcher", "--dataset", "--name"):
        parser.add_argument(flag, nargs="?")
    parser.add_argument("--real-data", "--val-dir", nargs="?")
    parser.add_argument("--overwrite", action="store_true")
    args, _ = parser.parse_known_args()
    if "+" in args.dataset:  # NAME+RECIPE
        args.name = args.name or args.dataset
        args.dataset = args.dataset.partition("+")[0]
    row = DATASETS.get(args.dataset)
    if row and row.scale is None:
        sys.exit(f"error: {args.launcher} has no settings for '{args.dataset}'; add a block for it there")

    # What squeeze has recorded counts, and what it finds where it begins. Where nothing is known the stage
    # says so.
    facts = run_folder(args) / "dataset.json"
    begins = args.launcher == "squeeze.sh" and (args.overwrite or not facts.exists())
    scale = row and row.scale
    if facts.exists() and not begins:
        with contextlib.suppress(UserError):
            scale = read_json(facts).get("scale")
    elif args.real_data and not row:
        scale = scale_of(count_files(args.real_data))
    print(scale or "small")


if __name__ == "__main__":
    main()
