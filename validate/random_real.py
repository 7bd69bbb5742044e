"""Control: random real images in place of the recovered ones, as many, labelled and validated as those.

Run: python -m validate.random_real --dataset digits      (or sh random_real.sh digits, after train.sh)
Time: that of relabel and train.
Result: runs/<name>/random_real/ with images, labels and the student's results.json.
"""
import os
from pathlib import Path

import numpy as np

from relabel import relabel
from sre2l.check.verify import read_checked, verify_images
from sre2l.data.augment import unit_rng
from sre2l.data.flags import add_run_flags, data_spec
from sre2l.data.image_folder import encode, image_path, suffix_of
from sre2l.data.real_images import read_real, show
from sre2l.run.ahead import in_order
from sre2l.run.device import pick_device
from sre2l.run.errors import UserError
from sre2l.run.files import read_json, sidecar
from sre2l.run.flags import Parser, number
from sre2l.run.output import OutputFolder, recorded
from sre2l.run.paths import run_folder, student_name
from sre2l.run.processes import barrier, rank, start
from sre2l.run.start import run_script
from validate import train

DEFAULTS = {"lossless": False}  # older folders did not record it where it was off
NUM_WRITERS = 4  # threads: each file waits for the disk


def saved_args(stage, path, **changes):
    """What the command line of an earlier run of this stage said, but for some changes."""
    if not path.exists():
        raise UserError(f"{path}: the control repeats a run's settings; run relabel.sh and train.sh first")
    args = stage.get_args([])
    recorded = {key: value for key, value in read_json(path).items() if value is not None}
    vars(args).update(recorded | changes)
    return args


def are_lossless(paths):
    """Are most of the distilled images PNG files? Their folder may have no manifest that says so."""
    return sum(Path(path).suffix == ".png" for path in paths) > len(paths) / 2


def draw_real_images(images, ipc, seed):
    """Draw `ipc` images of each class without replacement -> {(ipc, class): flat index}.

    The first images of a class do not depend on how many are drawn."""
    chosen = {}
    for label in np.unique(images.labels).tolist():
        rows = unit_rng(seed, label).permutation(np.flatnonzero(images.labels == label))
        if len(rows) < ipc:
            raise UserError(f"{images.root}: class {label} has {len(rows)} images, {ipc} are wanted, as "
                            f"many as were recovered; recover fewer of each class: --ipc-end {len(rows)}")
        chosen.update({(i, label): int(row) for i, row in enumerate(rows[:ipc])})
    return chosen


def store_images(folder, real, chosen, size, num_classes, suffix):
    """Write the chosen images that are not there as they were recorded, as an evaluation shows them.

    chosen: of draw_real_images."""
    rows = {image_path("", label, index, num_classes, suffix).as_posix(): row
            for (index, label), row in chosen.items()}

    def write(name):
        folder.write({name: encode(show(real.pixels(rows[name]), size, size), suffix)})

    for _ in in_order(write, folder.missing(list(rows), NUM_WRITERS), NUM_WRITERS):
        pass
    folder.finish(list(rows))


def main(args):
    # Plan: the settings of the run's own relabel and validate, with other folders.
    run = run_folder(args)
    root = run / "random_real"
    images = OutputFolder(root / "images", "images", args.overwrite, DEFAULTS)
    # What this command line says about the control itself goes to both stages.
    changes = {"overwrite": args.overwrite, "dry_run": args.dry_run, "fkd_path": str(root / "labels")}
    to_relabel = saved_args(relabel, sidecar(run / "labels", "args.json"), **changes)
    to_train = saved_args(train, run / student_name(args.model) / "args.json", **changes,
                          train_dir=str(images.root), output_dir=str(root / student_name(args.model)))
    run_images = to_relabel.data
    to_relabel.data = str(images.root)

    # The control has as many images of the same classes, size and kind of file as the distilled set.
    spec = data_spec(to_relabel)
    if spec.source and args.real_data:  # the folder has moved since
        to_relabel.val_dir = to_train.val_dir = args.real_data
    distilled = read_checked(verify_images(run_images, spec.num_classes, to_relabel.classes))
    classes = sorted(set(distilled.labels.tolist()))
    settings = {"seed": args.seed, "ipc": len(distilled) // len(classes), "classes": classes,
                "size": distilled.pixels(0).shape[0], "lossless": are_lossless(distilled.items)}
    if args.dry_run:  # three plans, one after the other
        images.dry_run(settings, images=len(distilled))
        relabel.main(to_relabel)
        return train.main(to_train)

    # Images: the first process writes them, the others wait.
    start(pick_device(to_relabel.device))
    if rank() == 0:
        names = recorded(sidecar(run / "labels", "manifest.json"), "teacher_classes")
        real = read_real(spec, args.real_data, "train", classes, names, order=to_relabel.class_order)
        chosen = draw_real_images(real, settings["ipc"], args.seed)
        images.begin({**settings, "source": real.root})
        suffix = suffix_of(settings["lossless"])
        store_images(images, real, chosen, settings["size"], spec.num_classes, suffix)
        print(f"{len(chosen)} real images ({settings['ipc']} per class, seed {args.seed}) "
              f"from {real.root} -> {images.root}")
    barrier()

    # Labels and student, as of the recovered images; no process may validate before all labels are there.
    relabel.main(to_relabel)
    barrier()
    train.main(to_train)


def make_parser():
    parser = Parser(__doc__)
    add_run_flags(parser)
    add = parser.add_argument
    add("--seed", type=number(int, 0), default=0, help="of the choice of images")
    add("--real-data", type=os.path.abspath, metavar="DIR",
        help="folder with train/ and val/ (digits: built in)")
    add("--overwrite", action="store_true",
        help="start afresh: delete what an earlier run left in random_real/")
    add("--model", default="resnet18", metavar="ARCH", help="the student whose run is repeated")
    return parser


def get_args(argv=None):
    return make_parser().parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
