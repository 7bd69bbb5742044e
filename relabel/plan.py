"""What relabel is about to do, by its flags and by what is there: settings, images, bytes."""
import shutil
from pathlib import Path

from sre2l.check.manifest import LABEL_FORMAT, ORDER_RULE, check_images, is_packed_set, manifest_of
from sre2l.check.verify import read_checked, rows_of_batches, verify_images
from sre2l.data.codecs import NONE, check_classes, codec_in
from sre2l.data.label_files import file_of
from sre2l.data.loader import Batches
from sre2l.data.packed import epoch_bytes
from sre2l.nets.teacher import find_teachers, teacher_weights
from sre2l.run.errors import UserError
from sre2l.run.files import make_folder, resolved
from sre2l.run.flags import check_folders
from sre2l.run.log import in_bytes
from sre2l.run.output import check_dataset


def check_args(args, spec):
    """Raise UserError for what the flags alone can get wrong."""
    if args.min_scale_crops > args.max_scale_crops:
        raise UserError(f"--min-scale-crops {args.min_scale_crops} is above "
                        f"--max-scale-crops {args.max_scale_crops}")
    if args.batch_statistics > args.batch_size:
        raise UserError(f"--batch-statistics {args.batch_statistics} is above --batch-size "
                        f"{args.batch_size}; a part is at most the batch")
    if (args.padding or 0) > spec.size // 2:
        raise UserError(f"--padding {args.padding} is more than half of the images' {spec.size} pixels")
    check_folders(args.data)
    check_codec(args)
    check_classes(codec_of_args(args), spec.num_classes)


EXACT = ("fp16", "fp32")
OFFERED = ("uint8", "topk:10", "topk:1", NONE)  # whose bytes --dry-run tells, with fp16's and one's own


def codec_of_args(args):
    return args.codec or args.label_precision


def check_codec(args):
    """Raise UserError for flags of the stored form that contradict each other."""
    codec = codec_of_args(args)
    if args.label_precision == "fp32" and codec != "fp32":
        raise UserError(f"--codec {codec} stores what --label-precision fp32 contradicts; leave one away")
    if codec == NONE and args.packed:
        raise UserError("--codec none stores nothing: --packed would do nothing; leave it away")
    if codec == NONE and args.keep < 1:
        raise UserError("--codec none stores nothing, and any epoch can be had: leave --keep away")
    if not num_epochs(args):
        raise UserError(f"--keep {args.keep:g} of {args.epochs} epochs is none, and a pool has to fill one; "
                        f"keep {1 / args.epochs:.3g} or more")


def stored_form(codec, packed):
    """What a manifest says of how logits are stored. packed: whether the user wants a file for each epoch,
    which every codec that changes the logits has."""
    form = {"logits": "fp32" if codec == "fp32" else "fp16"}
    if codec not in EXACT:
        form["codec"] = codec
    if packed or codec not in (*EXACT, NONE):
        form["layout"] = "packed"
    return form  # the rest is left out where it has its default


def num_epochs(args):
    """How many epochs are labelled."""
    return round(args.keep * args.epochs)


def find_images(args, spec):
    """The images to label, complete and not yet decoded; None in a dry run that finds none."""
    check_dataset(args.data, spec.name)
    if not Path(args.data).exists():
        if args.dry_run:
            return None
        raise UserError(f"{args.data}: no images there yet; run recover.sh first, "
                        "or give some with --data DIR")
    images = read_checked(verify_images(args.data, spec.num_classes, args.classes))
    if args.batch_statistics and 1 in (args.batch_size, len(images) % args.batch_size):
        raise UserError(f"--batch-statistics: of {len(images)} images, --batch-size {args.batch_size} leaves "
                        "a batch of one, which would be normalised by itself alone; choose another")
    return images


def make_settings(args, spec):
    """What a label file depends on besides the images and the teacher."""
    crop = {"kind": args.crop or spec.crop,
            "padding": spec.padding if args.padding is None else args.padding,
            "scale": [args.min_scale_crops, args.max_scale_crops],
            "flip": spec.flip and not args.no_flip}
    derived = {"augment": args.augment, "patch_shuffle": args.patch_shuffle}
    derived = {key: value for key, value in derived.items() if value not in ("none", 1)}
    alphas = {"none": None, "mixup": args.mixup, "cutmix": args.cutmix}
    return {"format": LABEL_FORMAT, "dataset": spec.name, "num_classes": spec.num_classes,
            "batch_size": args.batch_size, "epochs": num_epochs(args),
            "order_seed": args.fkd_seed, "order_rule": ORDER_RULE, "seed": args.seed,
            "mix": args.mix_type, "mix_alpha": alphas[args.mix_type], "crop": crop,
            "input_size": spec.size, "mean": spec.mean, "std": spec.std,
            **stored_form(codec_of_args(args), args.packed), "batch_statistics": args.batch_statistics,
            **derived}  # left out where they have their defaults


def check_shapes(images, settings):
    """Raise UserError for decoded images that padded crops would squeeze or that patches do not divide."""
    shapes = images.shapes(range(len(images)))
    size = settings["input_size"]
    parts = settings.get("patch_shuffle", 1)

    def refuse(is_wrong, why):
        if is_wrong.any():
            row = is_wrong.argmax()
            height, width = shapes[row]
            raise UserError(f"{images.items[row]}: {width} by {height} pixels; {why}")

    if settings["crop"]["kind"] == "padded":
        refuse((shapes != size).any(1), f"padded crops are for images of the network's {size} by {size}; "
                                        f"resize them first, or use --crop resized")
    if parts > 1:
        refuse((shapes % parts).any(1) | (shapes != shapes[0]).any(1),
               f"--patch-shuffle {parts} is for images of one size that {parts} divides")


def num_label_bytes(num_images, settings):
    """Bytes of all label files. settings: of make_settings.

    As released a row has its logits and 25 bytes of crop, flip and partner; a file has 2,400 bytes of zip."""
    epochs = settings["epochs"]
    if codec_in(settings) == NONE:
        return 0
    if is_packed_set(settings):
        rows = rows_of_batches(num_images, settings["batch_size"])
        return epochs * epoch_bytes(codec_in(settings), settings["mix"], rows, settings["num_classes"])
    num_files = epochs * -(-num_images // settings["batch_size"])
    row_bytes = settings["num_classes"] * (2 if settings["logits"] == "fp16" else 4) + 25
    return num_images * epochs * row_bytes + 2400 * num_files


def bytes_by_codec(num_images, settings):
    """What the labels would take in each codec -> {name: bytes}: fp16 as released, the others packed."""
    own = codec_in(settings)
    plain = {key: value for key, value in settings.items() if key not in ("codec", "layout")}
    packed = {**plain, "layout": "packed"}
    found = {"fp16": num_label_bytes(num_images, {**plain, "logits": "fp16"}),
             "fp16, packed": num_label_bytes(num_images, {**packed, "logits": "fp16"})}
    for name in dict.fromkeys([*OFFERED, *([own] if own not in EXACT else [])]):
        found[name] = num_label_bytes(num_images, {**packed, "codec": name})
    return found


def plan_files(batches, settings):
    """The label files -> {name: the Batches that are in it}; none of labels that are derived."""
    found = {}
    for batch in batches if codec_in(settings) != NONE else ():
        found.setdefault(file_of(batch, is_packed_set(settings)), []).append(batch)
    return found


def dry_run(args, spec, images, labels):
    """--dry-run: the settings, how many label files and how many bytes."""
    teachers, spec = find_teachers(args, spec)
    described = [teacher.describe() for teacher in teachers]
    weights = teacher_weights(args.teacher_weights, len(teachers)) if teachers else None
    several = {"teachers": described, "teacher_weights": weights} if len(teachers) > 1 else {}
    settings = make_settings(args, spec)
    count = num_batches = num_bytes = by_codec = None
    if images:
        count = len(images)
        num_batches = len(Batches(count, args.batch_size, args.fkd_seed, settings["epochs"]))
        num_bytes = num_label_bytes(count, settings)
        by_codec = bytes_by_codec(count, settings)
    labels.dry_run(settings, images=count, teacher=described[0] if described else None, **several,
                   batches=num_batches, bytes=num_bytes, bytes_by_codec=by_codec)


def check_room(root, num_bytes, flag):
    """Raise UserError where the disk has no room for so many bytes of labels. flag: that names the folder."""
    folder = resolved(root).parent
    make_folder(folder)
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise UserError(f"{root}: {in_bytes(num_bytes)} of labels are still to be written, the disk has room "
                        f"for {in_bytes(free)}; make room, or give another folder with {flag}. "
                        f"What is there is kept")


def read_recorded(args, described, folder):
    """The settings of the labels that this run continues, {} where it begins. folder: of the images.

    Raises UserError for labels of other images."""
    recorded = None if args.overwrite else manifest_of(args.fkd_path)
    if recorded:
        check_images(args.fkd_path, recorded, described, folder)
    return recorded or {}
