"""Control: IPC random real images per class in place of the recovered ones, relabelled and validated exactly as the run was.

Run: python -m validate.random_real --dataset digits      (or sh random_real.sh digits, after relabel.sh and train.sh)
Time: that of relabel and train.
Result: runs/<name>/random_real/ with images, labels and the student's results.json.
"""
import os
from pathlib import Path

import numpy as np

from relabel import relabel
from sre2l.data.loader import in_order
from sre2l.run.claims import claim
from sre2l.run.processes import barrier, rank, start
from sre2l.run.files import sidecar, hash_json, read_json
from sre2l.data.flags import add_run_flags, data_spec
from sre2l.run.flags import Parser, number
from sre2l.data.image_folder import encode, image_path, suffix_of
from sre2l.check.manifest import merge_hashes, missing_files, write_recorded
from sre2l.data.real_images import read_real, show
from sre2l.run.device import pick_device
from sre2l.run.errors import UserError
from sre2l.run.log import print_plan
from sre2l.run.paths import run_folder
from sre2l.run.seeds import unit_rng
from sre2l.run.start import run_script
from sre2l.run.settings import finish, keep_settings, planned_deletion, refuse_unclaimed, start_afresh
from sre2l.check.verify import read_checked, verify_images
from validate import protocol, train

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


def are_lossless(paths):
    """Are the distilled images PNG files? True or None, as recover's setting of that name; their folder may have no manifest."""
    return sum(Path(path).suffix == ".png" for path in paths) > len(paths) / 2 or None


def draw_real_images(images, ipc, seed):
    """-> {(ipc, class): flat index}: `ipc` images of each class, drawn without replacement. The first m do not depend on ipc."""
    chosen = {}
    for label in np.unique(images.labels).tolist():
        rows = unit_rng(seed, label).permutation(np.flatnonzero(images.labels == label))
        if len(rows) < ipc:
            raise UserError(f"{images.root}: class {label} has {len(rows)} images, {ipc} are wanted")
        chosen.update({(i, label): int(row) for i, row in enumerate(rows[:ipc])})
    return chosen


def store_images(root, real, chosen, size, num_classes, suffix):
    """Write the chosen real images as the evaluation shows them, those that are not there as they were recorded. chosen: of draw_real_images.

    Of several processes the first writes."""
    rows = {image_path("", label, index, num_classes, suffix).as_posix(): row for (index, label), row in chosen.items()}
    missing = missing_files(root, list(rows), NUM_WRITERS, "images")
    if rank() == 0:
        for _ in in_order(lambda name: write_recorded(root, {name: encode(show(real.pixels(rows[name]), size, size), suffix)}), missing, NUM_WRITERS):
            pass
        merge_hashes(root)


def main(args):
    run = run_folder(args)
    relabel_flags = saved_flags(sidecar(run / "labels", "args.json"))
    train_flags = saved_flags(run / f"student_{args.model}" / "args.json")
    relabelled = relabel.get_args(relabel_flags)
    spec, command = data_spec(relabelled), hash_json(vars(args) | {"dry_run": False})
    distilled = read_checked(verify_images(relabelled.data, spec.num_classes, relabelled.classes))
    classes = sorted(set(distilled.labels.tolist()))
    ipc = len(distilled) // len(classes)
    folder = run / "random_real"
    root, labels, student = folder / "images", folder / "labels", folder / f"student_{args.model}"
    again, manifest = ["--overwrite"] * args.overwrite, sidecar(root, "manifest.json")
    to_relabel = relabel.get_args([*relabel_flags, *again, "--data", str(root), "--fkd-path", str(labels)])
    to_train = train.get_args([*train_flags, *again, "--train-dir", str(root), "--fkd-path", str(labels), "--output-dir", str(student)])
    size, lossless = distilled.pixels(0).shape[0], are_lossless(distilled.items)
    if args.dry_run:
        repeated = {"relabel": relabel.make_settings(to_relabel, spec), "validate": protocol.make_settings(to_train, data_spec(to_train))}
        outputs = ((manifest, root, "images", command), (sidecar(labels, "manifest.json"), labels, "labels", hash_json(vars(to_relabel))),
                   (student / "settings.json", student, "student", hash_json(vars(to_train))))
        deletes = [planned_deletion(*output) for output in outputs] if args.overwrite else None
        return print_plan(vars(args), images=len(distilled), ipc=ipc, repeated=repeated, output=str(folder), deletes=deletes)

    start(pick_device(relabelled.device))
    real = read_real(spec, args.real_data, "train", classes)
    claim(root)
    if args.overwrite:
        start_afresh(manifest, root, "images", command)
    refuse_unclaimed(root)
    keep_settings(manifest, {"source": real.root, "seed": args.seed, "ipc": ipc, "size": size, "classes": classes, "lossless": lossless})
    store_images(root, real, draw_real_images(real, ipc, args.seed), size, spec.num_classes, suffix_of(lossless))
    finish(manifest, sidecar(root, "sha256"))
    barrier()
    print(f"{len(distilled)} real images ({ipc} per class, seed {args.seed}) from {real.root} -> {root}")

    relabel.main(to_relabel)
    train.main(to_train)


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
