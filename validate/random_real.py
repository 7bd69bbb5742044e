"""Control: IPC random real images per class in place of the recovered ones, relabelled and validated exactly as the run was.

Run: python -m validate.random_real --dataset digits      (or sh random_real.sh digits, after relabel.sh and train.sh)
Time: that of relabel and train.
Result: runs/<name>/random_real/ with images, labels and the student's results.json.
"""
import os

import numpy as np

from relabel import relabel
from sre2l.distributed import barrier, rank, start
from sre2l.flags import Parser, add_run_flags, data_spec, number
from sre2l.images import image_path, read_synthetic, save_jpeg
from sre2l.realdata import read_real, show
from sre2l.runtime import (UserError, atomic, beside, claim, pick_device, print_plan, read_json, refuse_unclaimed, run_folder, run_script,
                           unit_rng)
from validate import train


def saved_flags(path):
    """The flags of an earlier run, from its args.json, to be parsed again."""
    if not path.exists():
        raise UserError(f"{path}: the control repeats a run's settings; run relabel.sh and train.sh first")
    flags = []
    for key, value in read_json(path).items():
        if value is None or value is False or key == "dry_run":
            continue
        flags.append(f"--{key.replace('_', '-')}")
        if value is not True:
            flags.append(",".join(map(str, value)) if isinstance(value, list) else str(value))
    return flags


def draw_real_images(images, ipc, seed):
    """-> {(ipc, class): flat index}: `ipc` images of each class, drawn without replacement. The first m do not depend on ipc."""
    chosen = {}
    for label in np.unique(images.labels).tolist():
        rows = unit_rng(seed, label).permutation(np.flatnonzero(images.labels == label))
        if len(rows) < ipc:
            raise UserError(f"{images.root}: class {label} has {len(rows)} images, {ipc} are wanted")
        chosen.update({(i, label): int(row) for i, row in enumerate(rows[:ipc])})
    return chosen


def main(args):
    run = run_folder(args)
    relabel_flags = saved_flags(beside(run / "labels", "args.json"))
    train_flags = saved_flags(run / f"student_{args.model}" / "args.json")
    relabelled = relabel.get_args(relabel_flags)
    spec = data_spec(relabelled)
    distilled = read_synthetic(relabelled.data, spec.num_classes, relabelled.classes)
    classes = sorted(set(distilled.labels.tolist()))
    ipc = len(distilled) // len(classes)
    folder = run / "random_real"
    size = distilled.pixels(0).shape[0]
    if args.dry_run:
        return print_plan(vars(args), images=len(distilled), ipc=ipc, output=str(folder))

    start(pick_device(relabelled.device))
    real = read_real(spec, args.real_data, "train", classes)
    refuse_unclaimed(folder / "images")
    claim(beside(folder / "images", "manifest.json"), {"source": real.root, "seed": args.seed, "ipc": ipc, "size": size, "classes": classes})
    for (index, label), row in draw_real_images(real, ipc, args.seed).items() if rank() == 0 else ():
        with atomic(image_path(folder / "images", label, index, spec.num_classes), folder / "images") as tmp:
            save_jpeg(show(real.pixels(row), size, size), tmp)
    barrier()
    print(f"{len(distilled)} real images ({ipc} per class, seed {args.seed}) from {real.root} -> {folder / 'images'}")

    paths = {"images": str(folder / "images"), "labels": str(folder / "labels"), "student": str(folder / f"student_{args.model}")}
    relabel.main(relabel.get_args([*relabel_flags, "--data", paths["images"], "--fkd-path", paths["labels"]]))
    train.main(train.get_args([*train_flags, "--train-dir", paths["images"], "--fkd-path", paths["labels"], "--output-dir", paths["student"]]))


def get_args(argv=None):
    parser = Parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of the choice of images")
    parser.add_argument("--real-data", type=os.path.abspath, metavar="DIR", help="folder with train/ and val/ (digits: built in)")
    parser.add_argument("--model", default="resnet18", metavar="ARCH", help="the student whose run is repeated")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
