"""Prints 'small', 'medium' or 'large' for a data set of one's own, by its number of training images.

The launchers choose their settings by it: env.sh calls it, before the stage that imports torch."""
import argparse
import json
import os
import sys
from pathlib import Path

from sre2l.data.datasets import DATASETS
from sre2l.run.paths import run_folder

SCALES = {"small": 2_000, "medium": 50_000}  # up to so many images; above: large
IMAGE_NAMES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".webp")


def scale_of(number):
    return next((scale for scale, most in SCALES.items() if number <= most), "large")


def count_files(folder):
    """The number of image files in a folder and those below it, by their names."""
    return sum(name.lower().endswith(IMAGE_NAMES) for _, _, names in os.walk(folder) for name in names)


def main():
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--launcher", "--dataset", "--name"):
        parser.add_argument(flag)
    parser.add_argument("--real-data", "--val-dir")
    args, _ = parser.parse_known_args()
    if args.dataset in DATASETS:
        sys.exit(f"error: {args.launcher} has no settings for '{args.dataset}'; add a block for it there")

    facts = run_folder(args) / "dataset.json"
    number = 0  # where nothing is known the stage says so
    if facts.exists():
        number = json.loads(facts.read_text(encoding="utf-8"))["num_train"]
    elif args.real_data:
        train = Path(args.real_data) / "train"
        number = count_files(train if train.is_dir() else args.real_data)
    print(scale_of(number))


if __name__ == "__main__":
    main()
