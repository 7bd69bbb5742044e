"""The teacher of a run: where it lies, and the check of its class order on real images before anything relies on it."""
import dataclasses

from sre2l.data.flags import override
from sre2l.nets.models import load_teacher
from sre2l.data.real_images import read_val
from sre2l.run.errors import UserError
from sre2l.run.paths import run_folder
from sre2l.nets.training import evaluate


def find_teacher(args, spec):
    """The teacher that --teacher names, else torchvision's for imagenet1k, else the one that squeeze left in the run folder.

    -> (Teacher, the data set's row with the teacher's own normalisation, and its size over which --input-size, --mean and --std win)."""
    path = args.teacher
    if path is None and args.dataset != "imagenet1k":
        path = run_folder(args) / "teacher" / "teacher.pth"
        if not path.exists():
            raise UserError(f"{path}: no teacher there; train one (sh squeeze/squeeze.sh {args.dataset}"
                            f"{f' --name {args.name}' if args.name else ''}) or give one with --teacher FILE")
    teacher = load_teacher(spec, path, args.arch, args.stem)
    spec = override(spec, args, mean=teacher.mean, std=teacher.std, size=teacher.size)
    return dataclasses.replace(teacher, mean=spec.mean, std=spec.std), spec


def teacher_at_hand(args, spec):
    """find_teacher for --dry-run -> (Teacher, row), or (None, row as it was) where it would first have to be downloaded or trained."""
    if args.teacher is None and (args.dataset == "imagenet1k" or not (run_folder(args) / "teacher" / "teacher.pth").exists()):
        return None, spec
    return find_teacher(args, spec)


def check_top1(teacher, spec, args, device):
    """Measure the teacher's top-1 in percent where real validation images are given or built in; None where not.

    Raises UserError below twice chance: the classes are in another order, or the images are normalised otherwise."""
    if args.val_dir is None and args.dataset != "digits":
        return None
    images = read_val(spec, args.val_dir, args.classes, teacher.class_names)
    top1, _ = evaluate(teacher.network, images, teacher.mean, teacher.std, device)
    print(f"teacher {teacher.arch} ({teacher.source}): top-1 {top1:.2f}% on {len(images)} images of {images.root}")
    chance = 100 / spec.num_classes
    if top1 < min(2 * chance, (100 + chance) / 2):
        raise UserError(f"{teacher.source}: top-1 {top1:.2f}% on {images.root} is at chance (1 in {spec.num_classes}); "
                        f"is the class order, the normalisation or --arch another one?")
    return top1
