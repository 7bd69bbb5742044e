"""Do the stored labels belong to these images and to this protocol? By the manifest; without one, by what the files themselves tell."""
import math
from dataclasses import replace
from pathlib import Path

from sre2l.check.agreement import agreement
from sre2l.data.loader import Batches
from sre2l.run.processes import world_size
from sre2l.run.errors import UserError
from sre2l.run.files import as_json, hash_file
from sre2l.data.label_files import inspect_labels, label_path
from sre2l.check.manifest import check_images, describe_images, manifest_of
from sre2l.nets.models import build_network, check_input_size


def check_epochs(args, epochs, more=True):
    """Raise UserError where the labels have fewer epochs than the protocol; more: relabel can add some."""
    if epochs is not None and args.epochs > epochs:
        raise UserError(f"{args.fkd_path}: labels for {epochs} epochs, --epochs asks for {args.epochs}"
                        + (f"; the same relabel command with --epochs {args.epochs} adds the missing ones" if more else ""))


def check_numbers(args, spec, info, manifest, num_images):
    """Raise UserError where the protocol asks for what the label files do not hold."""
    root, steps = args.fkd_path, args.gradient_accumulation_steps
    check_epochs(args, min(info.epochs, manifest["epochs"]) if manifest else info.epochs, more=manifest)
    if info.num_images != num_images:
        raise UserError(f"{root}: labels for {info.num_images} images, {args.train_dir} has {num_images}; "
                        f"stored labels cannot be reused for a subset: relabel the images")
    if info.num_classes != spec.num_classes:
        raise UserError(f"{root}: logits of {info.num_classes} classes, {spec.name} has {spec.num_classes}")
    if args.batch_size and args.batch_size != info.batch_size:
        raise UserError(f"{root}: labels for batches of {info.batch_size}, --batch-size says {args.batch_size}; "
                        f"--gradient-accumulation-steps divides what the GPU holds at once")
    if steps % world_size():
        raise UserError(f"--gradient-accumulation-steps {steps} is not a multiple of the {world_size()} processes, which take its micro-batches in turn; "
                        f"type --gradient-accumulation-steps {math.lcm(steps, world_size())} (BatchNorm then sees fewer images at a time)")
    if info.batch_size % steps:
        raise UserError(f"--gradient-accumulation-steps {steps} does not divide the batch of {info.batch_size}")
    if info.batch_size // steps == 1 or info.num_images % info.batch_size == 1:
        raise UserError(f"{root}: batches of {info.batch_size} over {info.num_images} images in {steps} micro-batches leave a single image, "
                        f"on which BatchNorm cannot train; choose another batch size in relabel")
    if args.mix_type and args.mix_type != info.mix:
        raise UserError(f"{root}: labels with mix {info.mix}, --mix-type says {args.mix_type}")


def check_manifest(args, manifest, images):
    """Raise UserError unless the manifest names these images, and the order, size and normalisation that the user asks for, if any."""
    check_images(args.fkd_path, manifest, describe_images(images), images.root)
    asked = {"order_seed": args.fkd_seed, "input_size": args.input_size, "mean": args.mean, "std": args.std}
    for key, value in as_json(asked).items():
        if value is not None and manifest[key] != value:
            raise UserError(f"{args.fkd_path}: the labels were made with {key} {manifest.get(key)}, this run has {value}")


def check_labels(args, spec, images):
    """-> (LabelFolder, manifest or None, notes for the log). Raises UserError for labels of other images or another protocol."""
    root = Path(args.fkd_path)
    manifest, info = manifest_of(root), inspect_labels(root)
    if manifest:
        info = replace(info, batch_size=manifest["batch_size"])
    elif info.batch_size == info.num_images and (args.batch_size or 0) > info.batch_size:  # a single, short batch does not tell
        info = replace(info, batch_size=args.batch_size)
    check_numbers(args, spec, info, manifest, len(images))
    notes = []
    if manifest:
        check_manifest(args, manifest, images)
    else:
        notes.append(f"{root}: no manifest (labels of the released code?): {info.num_images} images, batch {info.batch_size}, {info.epochs} epochs, "
                     f"{info.num_classes} classes, {info.mix} read from the files; order seed {args.fkd_seed}, {spec.size} pixels and the "
                     f"normalisation of {spec.name} are assumed")
    found = agreement(root, images.labels, Batches(info.num_images, info.batch_size, args.fkd_seed, info.epochs))
    if not manifest and found.is_chance:
        raise UserError(f"{root}: {found.text}: these labels do not belong to {images.root}, or --fkd-seed is not {args.fkd_seed}")
    notes.append(f"{root}: {found.text}")
    if found.warning:
        notes.append(found.warning)
    return info, manifest, notes


def describe_labels(args, info, manifest, images):
    """What the protocol says of images and labels: the manifest's facts, or those that the files tell."""
    if manifest is None:
        facts = describe_images(images)
        return {"num_images": info.num_images, "batch_size": info.batch_size, "mix": info.mix, "classes": facts["classes"],
                "image_bytes": facts["image_bytes"], "teacher": None, "images_sha256": facts["images_sha256"],
                "order_seed": args.fkd_seed, "first_labels_sha256": hash_file(label_path(args.fkd_path, 0, 0))}
    keys = ("num_images", "batch_size", "mix", "mix_alpha", "classes", "image_bytes", "crop", "logits", "seed", "order_seed", "teacher",
            "measured_top1", "images_sha256", "precision", *({"batch_statistics"} & manifest.keys()))  # the last only where it is on
    return {key: manifest[key] for key in keys}


def check_there(train_dir, fkd_path):
    """Raise UserError where the images or labels have not been made yet."""
    for path, stage, flag in ((train_dir, "recover", "--train-dir"), (fkd_path, "relabel", "--fkd-path")):
        if not Path(path).exists():
            raise UserError(f"{path}: nothing there yet; run {stage}.sh first, or give a folder with {flag}")


def check_student(args, spec):
    """-> the stem the student has. Raises UserError for one that cannot be built or cannot take the images, or a warm-up that never
    ends, before images and labels are read."""
    network, stem = build_network(args.model, spec.num_classes, args.stem or spec.stem, strict_stem=args.stem is not None)
    check_input_size(network, args.model, spec.size)
    if args.warmup_epochs >= args.epochs:
        raise UserError(f"--warmup-epochs {args.warmup_epochs} is not below --epochs {args.epochs}")
    return stem
