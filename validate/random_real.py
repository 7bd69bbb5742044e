"""Control: IPC random real images per class in place of the recovered ones, relabelled and validated exactly as the run was.

Run: python -m validate.random_real --dataset digits      (or sh random_real.sh digits, after relabel.sh and train.sh)
Time: that of relabel and train.
Result: runs/<name>/random_real/ with images, labels and the student's results.json.
"""
import os
from functools import partial

import numpy as np

from relabel import relabel
from sre2l.batches import in_order
from sre2l.claims import claim
from sre2l.distributed import barrier, rank, start
from sre2l.files import beside, hash_file, hash_json, read_json
from sre2l.flags import Parser, add_run_flags, data_spec, number
from sre2l.images import encode_jpeg, image_path, read_synthetic
from sre2l.manifest import merge_hashes, read_hashes, write_recorded
from sre2l.realdata import read_real, show
from sre2l.runtime import UserError, pick_device, print_plan, run_folder, run_script, unit_rng
from sre2l.settings import finish, keep_settings, refuse_unclaimed, start_afresh
from validate import train

NUM_WRITERS = 4  # threads: each file waits for the disk


def saved_flags(path):
    """The flags of an earlier run, from its args.json, to be parsed again."""
    if not path.exists():
        raise UserError(f"{path}: the control repeats a run's settings; run relabel.sh and train.sh first")
    flags = []
    for key, value in read_json(path).items():
        if value is None or value is False or key in ("dry_run", "overwrite"):
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


def store_image(root, real, size, num_classes, recorded, chosen):
    """Write one real image as the evaluation shows it, unless it is there as it was recorded. chosen: ((ipc, class), flat index)."""
    (index, label), row = chosen
    path = image_path(root, label, index, num_classes)
    name = path.relative_to(root).as_posix()
    if not path.exists() or recorded.get(name) != hash_file(path):
        write_recorded(root, {name: encode_jpeg(show(real.pixels(row), size, size))})


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
    root, manifest = folder / "images", beside(folder / "images", "manifest.json")
    claim(root)
    if args.overwrite:
        start_afresh(manifest, root, "images", hash_json(vars(args)))
    refuse_unclaimed(root)
    keep_settings(manifest, {"source": real.root, "seed": args.seed, "ipc": ipc, "size": size, "classes": classes})
    if rank() == 0:
        chosen, recorded = draw_real_images(real, ipc, args.seed).items(), read_hashes(root)
        for _ in in_order(partial(store_image, root, real, size, spec.num_classes, recorded), chosen, NUM_WRITERS):
            pass
        merge_hashes(root)
        finish(manifest, beside(root, "sha256"))
    barrier()
    print(f"{len(distilled)} real images ({ipc} per class, seed {args.seed}) from {real.root} -> {root}")

    paths = {"images": str(folder / "images"), "labels": str(folder / "labels"), "student": str(folder / f"student_{args.model}")}
    again = ["--overwrite"] * args.overwrite
    relabel.main(relabel.get_args([*relabel_flags, *again, "--data", paths["images"], "--fkd-path", paths["labels"]]))
    train.main(train.get_args([*train_flags, *again, "--train-dir", paths["images"], "--fkd-path", paths["labels"], "--output-dir", paths["student"]]))


def get_args(argv=None):
    parser = Parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of the choice of images")
    parser.add_argument("--real-data", type=os.path.abspath, metavar="DIR", help="folder with train/ and val/ (digits: built in)")
    parser.add_argument("--overwrite", action="store_true", help="start afresh: delete what an earlier run left in random_real/")
    parser.add_argument("--model", default="resnet18", metavar="ARCH", help="the student whose run is repeated")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
