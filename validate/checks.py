"""Do the stored labels belong to these images and to this protocol? A manifest tells, or the files do."""
import math
from dataclasses import replace
from pathlib import Path

from relabel.recipe import check_teacher_flags
from sre2l.check.agreement import agreement
from sre2l.check.manifest import check_images, describe_images, manifest_of
from sre2l.data.codecs import NONE, is_sparse
from sre2l.data.label_files import file_of, read_label_batch, stored_batches
from sre2l.data.loader import Batch, Batches
from sre2l.nets.checkpoints import num_weight_bytes
from sre2l.nets.models import build_for_training
from sre2l.run.errors import UserError
from sre2l.run.files import as_json, hash_file, sidecar
from sre2l.run.output import recorded
from sre2l.run.processes import world_size
from validate.deviations import find_deviations
from validate.protocol import make_settings

# What the protocol takes over from a manifest.
DESCRIBED = ("num_images", "batch_size", "mix", "mix_alpha", "classes", "image_bytes", "crop", "logits",
             "seed", "order_seed", "teacher", "measured_top1", "images_sha256", "precision")
# The same where a manifest has them: none of these is its default.
DESCRIBED_IF_THERE = ("teachers", "teacher_weights", "augment", "patch_shuffle", "codec", "decoded_from")


def check_there(train_dir, fkd_path):
    """Raise UserError where the images or labels have not been made yet."""
    for path, stage, flag in ((train_dir, "recover", "--train-dir"), (fkd_path, "relabel", "--fkd-path")):
        if not Path(path).exists():
            raise UserError(f"{path}: nothing there yet; run {stage}.sh first, or give a folder with {flag}")


def check_output(args):
    """Raise UserError where the student would be written among its images or labels."""
    for flag, folder in (("--train-dir", args.train_dir), ("--fkd-path", args.fkd_path)):
        if Path(args.output_dir).resolve().is_relative_to(Path(folder).resolve()):
            raise UserError(f"--output-dir {args.output_dir}: lies in {folder}, the {flag}, where a student "
                            f"only reads; choose another folder")


def check_epochs(args, epochs, more=True):
    """Raise UserError where the labels have fewer epochs than the protocol. more: relabel can add some."""
    if epochs is None or args.epochs <= epochs or args.label_draw != "order":
        return
    hint = f"; --epochs {epochs} trains on what is there, --label-draw pool draws from it"
    if more:
        hint += f", or relabel's same command with --epochs {args.epochs} and no --keep adds the rest"
    raise UserError(f"{args.fkd_path}: labels for {epochs} epochs, --epochs asks for {args.epochs}{hint}")


def dry_run(args, spec, folder):
    """--dry-run: print the protocol, how many epochs and how many bytes. Nothing is loaded."""
    network, stem = build_for_training(spec, args.model, args.stem)
    check_epochs(args, recorded(sidecar(args.fkd_path, "manifest.json"), "epochs"))
    evaluations = len(args.seeds) * -(-args.epochs // args.eval_every)
    plan = {}
    if args.protocol:
        plan["deviations"] = find_deviations(args, spec, manifest_of(args.fkd_path))
    folder.dry_run(make_settings(args, spec, stem), epochs=args.epochs * len(args.seeds), seeds=args.seeds,
                   evaluations=evaluations, bytes=num_weight_bytes(network) * len(args.seeds), **plan)


def check_micro_batches(steps, processes, batch_size, num_images):
    """Raise UserError where so many micro-batches a batch do not fit the processes or the labels.

    steps: --gradient-accumulation-steps; batch_size, num_images: of the labels."""
    if steps % processes:
        fitting = math.lcm(steps, processes)
        raise UserError(f"--gradient-accumulation-steps {steps} is not a multiple of the {processes} "
                        f"processes, which take its micro-batches in turn; type "
                        f"--gradient-accumulation-steps {fitting} (BatchNorm then sees fewer images at a "
                        "time)")
    if batch_size % steps:
        raise UserError(f"--gradient-accumulation-steps {steps} does not divide the batch of {batch_size}")
    if batch_size // steps == 1 or num_images % batch_size == 1:
        raise UserError(f"batches of {batch_size} over {num_images} images in {steps} micro-batches leave a "
                        f"single image, on which BatchNorm cannot train; choose another --batch-size in "
                        f"relabel")


def check_numbers(args, spec, labels, manifest, num_images):
    """Raise UserError where the protocol asks for what the label files do not hold."""
    root = args.fkd_path
    epochs = min(labels.epochs, manifest["epochs"]) if manifest else labels.epochs
    check_epochs(args, epochs, more=manifest)
    if labels.num_images != num_images:
        raise UserError(f"{root}: labels for {labels.num_images} images, {args.train_dir} has {num_images}; "
                        f"stored labels cannot be reused for a subset: relabel the images")
    if labels.num_classes != spec.num_classes:
        raise UserError(f"{root}: logits of {labels.num_classes} classes, {spec.name} has {spec.num_classes}")
    if args.batch_size and args.batch_size != labels.batch_size:
        raise UserError(f"{root}: labels for batches of {labels.batch_size}, --batch-size says "
                        f"{args.batch_size}; --gradient-accumulation-steps divides what the GPU holds at "
                        "once")
    check_micro_batches(args.gradient_accumulation_steps, world_size(), labels.batch_size, labels.num_images)
    if args.mix_type and args.mix_type != labels.mix:
        raise UserError(f"{root}: labels with mix {labels.mix}, --mix-type says {args.mix_type}")


def check_raw_logits(root, codec):
    """Raise UserError where label files hold probabilities, or a part of the logits, which --loss mse cannot
    take for all logits."""
    if is_sparse(codec):
        raise UserError(f"{root}: these labels hold the logits of {codec} alone, and --loss mse compares "
                        f"all; use --loss kl, or relabel with --codec uint8")
    if codec == NONE:
        return
    logits = read_label_batch(root, 0, 0).logits.float()
    if (logits >= 0).all() and ((logits.sum(1) - 1).abs() < 0.01).all():
        raise UserError(f"{root}: these labels hold probabilities, and --loss mse compares raw logits; "
                        f"relabel the images")


def check_manifest(args, manifest, images):
    """Raise UserError unless the manifest names these images and what the user asks for."""
    check_images(args.fkd_path, manifest, describe_images(images), images.root)
    requested = {"order_seed": args.fkd_seed, "input_size": args.input_size, "mean": args.mean,
                 "std": args.std}
    for key, value in as_json(requested).items():
        if value is not None and manifest[key] != value:
            raise UserError(f"{args.fkd_path}: the labels were made with {key} {manifest.get(key)}, this run "
                            f"has {value}")


def describe_part(args, labels, manifest):
    """A warning where the teacher's BatchNorm saw other parts of a batch than the student's; else None."""
    part = (manifest or {}).get("batch_statistics")
    micro_size = labels.batch_size // args.gradient_accumulation_steps
    part = labels.batch_size if part is True else part
    if not part or part == micro_size:
        return None
    return (f"warning: {args.fkd_path}: the teacher's BatchNorm saw {part} images at a time, the student's "
            f"sees {micro_size}; choose --gradient-accumulation-steps so that the two are the same")


def check_labels(args, spec, images, labels):
    """-> (LabelFolder, manifest or None, notes for the log). labels: what verify_labels found.

    Raises UserError for labels of other images or another protocol."""
    root = Path(args.fkd_path)
    manifest = manifest_of(root)
    if not manifest and labels.batch_size == labels.num_images:
        # A single batch may be a short one: its size is then what the user says.
        labels = replace(labels, batch_size=max(labels.batch_size, args.batch_size or 0))
    check_numbers(args, spec, labels, manifest, len(images))
    if args.label_draw == "phases" and not manifest:
        raise UserError(f"{root}: no manifest says how the crops of these labels were drawn, and "
                        f"--label-draw phases draws others like them; use pool, or relabel the images")
    if args.loss == "mse" and not args.hard_labels:
        check_raw_logits(root, labels.codec)
    check_teacher_flags(root, args, labels.codec)
    notes = []
    if manifest:
        check_manifest(args, manifest, images)
    else:
        notes.append(f"{root}: no manifest (labels of the released code?): {labels.num_images} images, "
                     f"batch {labels.batch_size}, {labels.epochs} epochs, {labels.num_classes} classes, "
                     f"{labels.mix} read from the files; order seed {args.fkd_seed}, {spec.size} pixels and "
                     f"the normalisation of {spec.name} are assumed")

    part_warning = describe_part(args, labels, manifest)
    if part_warning:
        notes.append(part_warning)
    if labels.codec == NONE:  # the manifest's hashes vouch for images and teacher
        notes.append(f"{root}: nothing is stored; the teacher labels beside the student")
        return labels, manifest, notes

    # The teacher's top-1 tells labels of these images from others, whatever the names say.
    batches = Batches(labels.num_images, labels.batch_size, args.fkd_seed, labels.epochs)
    found = agreement(stored_batches(root, batches), images.labels)
    if not manifest and found.is_chance:
        raise UserError(f"{root}: {found.text}: these labels do not belong to {images.root}, "
                        f"or --fkd-seed is not {args.fkd_seed}")
    notes.append(f"{root}: {found.text}")
    if found.warning:
        notes.append(found.warning)
    return labels, manifest, notes


def describe_labels(args, labels, manifest, images):
    """What the protocol says of images and labels: the manifest's facts, or those that the files tell."""
    if manifest:
        facts = {key: manifest[key] for key in DESCRIBED}
        facts |= {key: manifest[key] for key in DESCRIBED_IF_THERE if key in manifest}
        if "batch_statistics" in manifest:  # off is None, as students of older labels have recorded it
            facts["batch_statistics"] = manifest["batch_statistics"] or None
        return facts
    facts = describe_images(images)
    return {
        "num_images": labels.num_images,
        "batch_size": labels.batch_size,
        "mix": labels.mix,
        "classes": facts["classes"],
        "image_bytes": facts["image_bytes"],
        "teacher": None,
        "images_sha256": facts["images_sha256"],
        "order_seed": args.fkd_seed,
        "first_labels_sha256": hash_file(Path(args.fkd_path) / file_of(Batch(0, 0, None), labels.is_packed)),
    }
