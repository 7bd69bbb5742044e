"""Control: real images in place of the recovered ones, as many, labelled and validated as those.

Run: python -m validate.random_real --dataset digits      (or sh random_real.sh digits, after train.sh)
Time: that of relabel and train.
Result: runs/<name>/random_real/ with images, labels and the student's results.json. With --picked the images
are those of runs/<name>/picked, which recover may have started from, and the rest is in picked_real/.
"""
import os
from pathlib import Path

from recover.batches import image_names
from recover.pick import write_images
from recover.picks import pick_random
from relabel import relabel
from sre2l.check.verify import read_checked, verify_images
from sre2l.data.codecs import NONE
from sre2l.data.flags import add_run_flags, data_spec
from sre2l.data.real_images import read_real
from sre2l.nets.functions import is_function, recorded_name
from sre2l.run.device import pick_device
from sre2l.run.errors import UserError
from sre2l.run.files import read_json, sidecar
from sre2l.run.flags import Parser, check_folders, network_name, network_names, number, number_list
from sre2l.run.output import OutputFolder, recorded
from sre2l.run.paths import run_folder, student_name
from sre2l.run.processes import barrier, rank, start
from sre2l.run.start import run_script
from validate import train

DEFAULTS = {"lossless": False}  # older folders did not record it where it was off


def follow_move(values, here):
    """The values of a record with the paths that they have now, where the project has moved since, or came
    from another machine: what is gone there and is here. here: the output folder whose record it is."""
    there = Path(values.get("output_dir") or values.get("fkd_path") or here)
    while there.name and there.name == here.name:
        there, here = there.parent, here.parent

    def move(path):
        if not Path(path).is_relative_to(there) or os.path.exists(path):
            return path
        moved = here / Path(path).relative_to(there)
        return str(moved) if moved.exists() else path

    return {key: ",".join(map(move, value.split(","))) if isinstance(value, str) else value
            for key, value in values.items()}


def saved_args(stage, path, typed, **changes):
    """What the command line of an earlier run of this stage said, but for some changes.

    typed: the network as this command line names it, or None."""
    if not path.exists():
        raise UserError(f"{path}: the control repeats a run's settings; run relabel.sh and train.sh first "
                        f"(run.sh runs all; convert.sh leaves no settings to repeat)")
    args = stage.get_args([])
    recorded = {key: value for key, value in read_json(path).items() if value is not None}
    folder = path.parent if path.name == "args.json" else path.with_name(path.name.removesuffix(".args.json"))
    recorded.pop("label_arch", None)  # code runs only where the user names it
    recorded = follow_move(recorded, folder)
    vars(args).update(recorded | changes)
    key = "model" if stage is train else "arch"
    setattr(args, key, network_to_repeat(path, recorded.get(key), typed))
    return args


def network_to_repeat(path, stored, typed):
    """The network (or several, between commas) that a record has, but as the user types it. Raises UserError
    for another one, and for code that the record alone names."""
    if stored is None or typed is None:
        functions = [name for name in (stored or "").split(",") if is_function(name)]
        if functions:
            raise UserError(f"{path}: names {recorded_name(functions[0])}, code that runs only where you "
                            f"name it yourself: type --arch, as for relabel.sh")
        return stored or typed
    names, typed_names = (list(map(recorded_name, text.split(","))) for text in (stored, typed))
    if names != typed_names:
        raise UserError(f"{path}: names {','.join(names)}, --arch or --model says {','.join(typed_names)}")
    return typed


def are_lossless(paths):
    """Are most of the distilled images PNG files? Their folder may have no manifest that says so."""
    return sum(Path(path).suffix == ".png" for path in paths) > len(paths) / 2


def check_alike(picked, wanted):
    """Raise UserError where picked images are not as many of the same classes and size as the distilled ones.

    picked: Images; wanted: the settings of the random control."""
    labels = sorted(set(picked.labels.tolist()))
    there = {"ipc": len(picked) // len(labels), "classes": labels, "size": picked.pixels(0).shape[0]}
    differing = [key for key, value in there.items() if value != wanted[key]]
    if differing:
        key = differing[0]
        values = "" if key == "classes" else f" ({there[key]}, and {wanted[key]} there)"
        raise UserError(f"{picked.root}: has another {key} than the distilled images{values}; pick as many "
                        f"of the same: pick.sh --ipc-end {wanted['ipc']} --overwrite")
    if are_lossless(picked.items) != wanted["lossless"]:
        print("note: of picked and distilled images one are PNG and the other JPEG, which costs some points; "
              "pick.sh has --jpeg, recover.sh --lossless")


def free_settings(place):
    """Real images that are gone where the control's images came from may have moved: their place is free."""
    source = recorded(sidecar(place, "manifest.json"), "source")
    return () if source is None or os.path.exists(source) else ("source",)


def seeds_of(student, of_last_call):
    """The seeds of a run's students, which may have been trained by several calls, one beside the other."""
    path = student / "results.json"
    done = map(int, read_json(path)["seeds"]) if path.exists() else ()
    return sorted({*done, *of_last_call})


def main(args):
    # Plan: the settings of the run's own relabel and validate, with other folders.
    run = run_folder(args)
    root = run / ("picked_real" if args.picked else "random_real")
    place = run / "picked" if args.picked else root / "images"
    images = OutputFolder(place, "images", args.overwrite, DEFAULTS, free=free_settings(place))
    # What this command line says about the control itself goes to both stages.
    changes = {"overwrite": args.overwrite, "dry_run": args.dry_run}
    to_train = saved_args(train, run / student_name(args.model) / "args.json", args.model, **changes,
                          train_dir=str(images.root), output_dir=str(root / student_name(args.model)))
    labels = to_train.fkd_path
    to_relabel = saved_args(relabel, sidecar(labels, "args.json"), args.arch, **changes)
    to_train.fkd_path = to_relabel.fkd_path = str(root / "labels")
    if to_relabel.codec == NONE:  # the teacher runs beside the student
        to_train.label_arch = args.arch
    to_train.seeds = args.seeds or seeds_of(run / student_name(args.model), to_train.seeds)
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
    if args.picked:
        check_folders(images.root)
        check_alike(read_checked(verify_images(images.root, spec.num_classes, to_relabel.classes)), settings)
    if args.dry_run:  # the plans one after the other
        if not args.picked:
            images.dry_run(settings, images=len(distilled))
        relabel.main(to_relabel)
        return train.main(to_train)

    # Images: the first process writes them, the others wait. Picked ones are there.
    start(pick_device(to_relabel.device))
    if rank() == 0 and not args.picked:
        names = recorded(sidecar(labels, "manifest.json"), "teacher_classes")
        real = read_real(spec, args.real_data, "train", classes, names, order=to_relabel.class_order)
        chosen = pick_random(real, classes, settings["ipc"], args.seed)
        images.begin({**settings, "source": real.root})
        names = image_names(chosen, spec.num_classes, settings["lossless"])
        write_images(images, real, chosen, names, settings["size"])
        images.finish(list(names.values()))
        print(f"{len(chosen)} real images ({settings['ipc']} per class, seed {args.seed}) "
              f"from {real.root} -> {images.root}")
    barrier()

    # Labels and student, as of the recovered images; no process may validate before all labels are there.
    relabel.main(to_relabel)
    barrier()
    train.main(to_train)


def add_repeat_flags(add):
    """Add the flags that say whose run is repeated, by a parser's add_argument."""
    add("--model", type=network_name, default="resnet18", metavar="ARCH",
        help="the student whose run is repeated")
    add("-a", "--arch", "--arch-name", type=network_names, metavar="ARCH[,ARCH]",
        help="the teacher's network, where relabel had to be told PATH.py:function")
    add("--real-data", type=os.path.abspath, metavar="DIR",
        help="folder with train/ and val/ (digits: built in)")


def make_parser():
    parser = Parser(__doc__)
    add_run_flags(parser)
    add = parser.add_argument
    add("--seed", type=number(int, 0), default=0, help="of the choice of images")
    add("--seeds", type=number_list, metavar="0-2", help="of the students (default: those of the run)")
    add("--picked", action="store_true",
        help="take runs/<name>/picked, the real images of pick.sh, in place of random ones")
    add("--overwrite", action="store_true",
        help="start afresh: delete what an earlier run left in random_real/ or picked_real/")
    add_repeat_flags(add)
    return parser


def get_args(argv=None):
    return make_parser().parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
