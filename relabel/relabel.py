"""Relabel: one pass of the teacher over every crop of every epoch, its logits stored in the released file format.

Run: python -m relabel.relabel --dataset digits      (or sh relabel.sh digits)
Time: digits, 60 epochs of 100 images, about 15 s on two CPU cores.
Result: runs/<name>/labels/epoch_0/batch_0.tar ..., and beside the folder its manifest, a hash of every file, log and metrics.
"""
import os
import time
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from sre2l.check.agreement import agreement
from relabel.half import prepare_teacher, teacher_logits, use_batch_statistics
from relabel.room import check_room, in_bytes, num_label_bytes
from sre2l.data.augment import draw_crops, draw_mix
from sre2l.data.loader import BatchDataset, Batches, in_order, load_batches
from sre2l.run.claims import claim
from sre2l.run.processes import rank, world_size
from sre2l.run.files import sidecar, hash_json
from sre2l.data.flags import add_run_flags, add_stage_flags, add_teacher_flags, data_spec
from sre2l.run.flags import Parser, add_dead_flags, check_folders, number
from sre2l.run.signals import finishing_steps, leave, stop_requested
from sre2l.data.label_files import LabelBatch, encode_label_batch, label_name
from sre2l.check.manifest import (FREE, LABEL_FORMAT, ORDER_RULE, check_images, complete, describe_images, earlier_epochs, manifest_of, missing_files,
                            write_recorded)
from sre2l.nets.precision import PRECISIONS, memory_format_of
from sre2l.run.device import versions
from sre2l.run.errors import UserError
from sre2l.run.log import RunLog, eta, print_plan
from sre2l.run.paths import run_folder
from sre2l.run.seeds import unit_rng
from sre2l.run.start import run_script
from sre2l.run.settings import check_dataset, check_plan, is_under_way, keep_settings, planned_deletion, recorded, start_afresh
from sre2l.data.pixel_store import keep_decoded
from sre2l.nets.teacher import check_top1, find_teacher, teacher_at_hand
from sre2l.nets.training import start_device
from sre2l.check.verify import read_checked, refuse_strays, verify_images

SWITCHES = ("batch_statistics",)  # settings that are True or not there
NUM_WRITERS = 2  # threads that write label files; one keeps up with a GPU, two hide a slow disk


def make_settings(args, spec):
    """What a label file depends on besides the images and the teacher."""
    alpha = {"none": None, "mixup": args.mixup, "cutmix": args.cutmix}[args.mix_type]
    crop = {"kind": args.crop or spec.crop, "padding": args.padding if args.padding is not None else spec.padding,
            "scale": [args.min_scale_crops, args.max_scale_crops], "flip": spec.flip and not args.no_flip}
    return {"format": LABEL_FORMAT, "dataset": spec.name, "num_classes": spec.num_classes, "batch_size": args.batch_size,
            "epochs": args.epochs, "order_seed": args.fkd_seed, "order_rule": ORDER_RULE, "seed": args.seed,
            "mix": args.mix_type, "mix_alpha": alpha, "crop": crop, "input_size": spec.size, "mean": spec.mean, "std": spec.std,
            "logits": args.label_precision, "batch_statistics": args.batch_statistics or None}


def draw_label_batch(settings, batch, sizes):
    """Draw the crops and the mix of one batch, from a generator of its own. sizes: (height, width) of its images, pixels."""
    crop, rng = settings["crop"], unit_rng(settings["seed"], batch.epoch, batch.index)
    crops = draw_crops(sizes, crop["kind"], crop["scale"], crop["padding"], crop["flip"], rng)
    return LabelBatch(crops, draw_mix(settings["mix"], settings["mix_alpha"], len(sizes), settings["input_size"], rng))


@torch.inference_mode()
def to_host(logits, dtype):
    """Start a copy to the CPU, the computation not waiting -> (the tensor there, an event to wait for before it is read, None on the CPU)."""
    if logits.device.type == "cpu":
        return logits.to(dtype), None
    copy = torch.empty(logits.shape, dtype=dtype, pin_memory=True).copy_(logits.to(dtype), non_blocking=True)
    copied = torch.cuda.Event(blocking=True)
    copied.record()
    return copy, copied


def label_batches(network, loader, spec, precision, dtype):
    """Yield (Batch, LabelBatch with the logits on the CPU, event) as the teacher works through the batches."""
    for batch, pixels, sheet in loader:
        logits, copied = to_host(teacher_logits(network, pixels, sheet, spec, precision), dtype)
        yield batch, sheet._replace(logits=logits), copied


def store_labels(root, where, labelled):
    """Write one label file and record its hash, on a thread beside the teacher -> Batch. where: the precisions, for the message of the
    UserError about logits that are not finite."""
    batch, sheet, copied = labelled
    if copied is not None:
        copied.synchronize()
    if not torch.isfinite(sheet.logits).all():
        raise UserError(f"epoch {batch.epoch}, batch {batch.index}: the teacher's logits are not finite in {where}; "
                        f"use --label-precision fp32 and --precision fp32, or check the teacher")
    write_recorded(root, {label_name(batch.epoch, batch.index): encode_label_batch(sheet)})
    return batch


def main(args):
    spec, command = data_spec(args), hash_json(vars(args) | {"dry_run": False})
    if args.min_scale_crops > args.max_scale_crops:
        raise UserError(f"--min-scale-crops {args.min_scale_crops} is above --max-scale-crops {args.max_scale_crops}")
    if (args.padding or 0) > spec.size // 2:
        raise UserError(f"--padding {args.padding} is more than half of the images' {spec.size} pixels")
    check_folders(args.data, args.val_dir)
    args.data, args.fkd_path = args.data or str(run_folder(args) / "images"), args.fkd_path or str(run_folder(args) / "labels")
    root = Path(args.fkd_path)
    there = Path(args.data).exists()
    if not there and not args.dry_run:
        raise UserError(f"{args.data}: no images there yet; run recover.sh first, or give some with --data DIR")
    check_dataset(args.data, spec.name)
    images = read_checked(verify_images(args.data, spec.num_classes, args.classes)) if there else None
    if images and args.batch_statistics and 1 in (args.batch_size, len(images) % args.batch_size):
        raise UserError(f"--batch-statistics: of {len(images)} images, --batch-size {args.batch_size} leaves a batch of one, which would be "
                        f"normalised by itself alone; choose another")
    if args.dry_run:
        teacher, spec = teacher_at_hand(args, spec)
        count = len(images) if images else None
        plan = {"batches": count and len(Batches(count, args.batch_size, 0, args.epochs)), "output": str(root),
                "bytes": count and num_label_bytes(count, args.batch_size, args.epochs, spec.num_classes, args.label_precision)}
        settings, record = make_settings(args, spec), sidecar(root, "manifest.json")
        deletes = planned_deletion(record, root, "labels", command) if args.overwrite else check_plan(record, settings, FREE, SWITCHES)
        return print_plan(settings, images=count, teacher=teacher and teacher.describe(), deletes=deletes, **plan)

    device, _ = start_device(args.device, args.precision, args.deterministic, training=False)
    teacher, spec = find_teacher(args, spec)
    teacher.network.to(device, memory_format=memory_format_of(device))
    claim(root)
    measured = check_top1(teacher, spec, args, device)  # each process a part
    manifest_path, batches = sidecar(root, "manifest.json"), Batches(len(images), args.batch_size, args.fkd_seed, args.epochs)
    goes_on = manifest_path.exists() and (not args.overwrite or is_under_way(manifest_path, command))
    manifest = manifest_of(root) if goes_on else None
    described = describe_images(images)
    if manifest:
        check_images(root, manifest, described, images.root)
    first = BatchDataset(images, spec.size, partial(draw_label_batch, make_settings(args, spec)))[next(iter(batches))]
    images, note = keep_decoded(images, device, run_folder(args), described["images_sha256"])  # one that cannot be read leaves nothing behind
    if args.batch_statistics:
        use_batch_statistics(teacher)
    network, precision, form = prepare_teacher(teacher.network, first, spec, args.precision, (manifest or {}).get("precision"), device)
    if args.overwrite:  # a precision that is refused has deleted nothing
        start_afresh(manifest_path, root, "labels", command)
    settings = make_settings(args, spec) | {"epochs": max(args.epochs, earlier_epochs(root))}
    settings = {**settings, **described, "teacher": teacher.describe(), "teacher_classes": teacher.class_names,
                "measured_top1": measured, "versions": versions(device),
                "images_seed": recorded(sidecar(args.data, "manifest.json"), "seed")}
    settings |= {"precision": precision, "half_against_fp32": form if precision in ("fp16", "bf16") else None}
    keep_settings(manifest_path, settings, FREE, command if args.overwrite else None)
    log = RunLog(partial(sidecar, root), vars(args), device, sliced=True)
    log.line(note)
    if form:
        log.line(f"{precision}, {form['form']}, against fp32 on the first batch: logits differ by up to {form['largest_difference']:.2g}, "
                 f"KL {form['kl_t20']:.1e} at T = 20" + (f"; not {form['failed']}" if form["failed"] else ""))
    planned = {label_name(batch.epoch, batch.index): batch for batch in batches}
    todo = [planned[name] for name in missing_files(root, list(planned), args.workers, "labels")]
    num_bytes = round(num_label_bytes(len(images), args.batch_size, args.epochs, spec.num_classes, args.label_precision) * len(todo) / len(batches))
    check_room(root, num_bytes)
    log.line(f"{len(todo)} label files to write, about {in_bytes(num_bytes)}, teacher in {precision}, logits in {args.label_precision} -> {root}")
    todo = todo[rank()::world_size()]

    loader = load_batches(BatchDataset(images, spec.size, partial(draw_label_batch, settings)), todo, args.workers, device)
    labelled = label_batches(network, loader, spec, precision, torch.float16 if args.label_precision == "fp16" else torch.float32)
    written = []

    def store(item):
        batch = store_labels(root, f"{precision} and --label-precision {args.label_precision}", item)
        written.append(batch)  # also those that `stored` no longer yields once it is closed
        return batch
    stored = in_order(store, labelled, NUM_WRITERS)
    started = logged = time.monotonic()
    with finishing_steps():
        for done, batch in enumerate(tqdm(stored, "relabel", total=len(todo), unit="batch", disable=None, leave=False), 1):
            if done == len(todo) or time.monotonic() - logged > args.print_sec:
                logged = time.monotonic()
                log.metrics(epoch=batch.epoch, batch=batch.index, files=done)
                log.line(f"epoch {batch.epoch}  batch {batch.index}  {done}/{len(todo)} files  {eta(done, len(todo), started)}")
            if stop_requested():
                stored.close()  # what is with the writers is still written
                log.metrics(epoch=batch.epoch, batch=batch.index, files=len(written))
                log.line(f"stopped after {len(written)} of {len(todo)} files")
                leave()

    if not complete(root, planned, log, "label files"):
        return
    found = agreement(root, images.labels, batches)
    log.line(f"done: {root}; {found.text}")
    if found.warning:
        log.line(found.warning)
    refuse_strays(root, "labels")


def get_args(argv=None):
    parser = Parser(__doc__)
    add_run_flags(parser)
    add_stage_flags(parser)
    add_teacher_flags(parser)
    add = parser.add_argument
    add("--seed", type=number(int, 0), default=0, help="of crops, flips and mix; the order has --fkd-seed")
    add("--data", type=os.path.abspath, metavar="DIR", help="folder of images to label (default: runs/<name>/images)")
    add("--fkd-path", type=os.path.abspath, metavar="DIR", help="where the labels go (default: runs/<name>/labels)")
    add("--epochs", type=number(int, 1), default=300, help="epochs of crops to label")
    add("-b", "--batch-size", type=number(int, 1), default=1024, help="images mixed together; the student must use the same")
    add("--fkd-seed", type=number(int, 0), default=42, help="seed of the order of the images; the released reader knows only 42")
    add("--mix-type", choices=("cutmix", "mixup", "none"), default="cutmix", help="how the images of a batch are mixed")
    add("--cutmix", type=number(float, above=0), default=1.0, metavar="ALPHA", help="Beta(alpha, alpha) of cutmix")
    add("--mixup", type=number(float, above=0), default=0.8, metavar="ALPHA", help="Beta(alpha, alpha) of mixup")
    add("--crop", choices=("resized", "padded"), help="kind of crop (default: the data set's)")
    add("--min-scale-crops", type=number(float, 0, 1), default=0.08, help="least area of a resized crop")
    add("--max-scale-crops", type=number(float, 0, 1), default=1.0, help="largest area of a resized crop")
    add("--padding", type=number(int, 0), help="largest shift of a padded crop, pixels (default: the data set's)")
    add("--no-flip", action="store_true", help="never flip")
    add("--batch-statistics", action="store_true", help="the teacher's BatchNorm as in train mode, on each batch's own: the released CIFAR script has it so")
    add("--precision", choices=PRECISIONS, help="of the teacher (default: fp16 on a GPU where its labels are close enough, else tf32; fp32 on a CPU)")
    add("--label-precision", choices=("fp16", "fp32"), default="fp16", help="type of the stored logits")
    add("--use-fp16", dest="label_precision", action="store_const", const="fp16", help="the same as --label-precision fp16")
    add("--print-sec", type=number(float, 0), default=30.0, help="seconds between log lines")
    add("-j", "--workers", type=number(int, 0), default=4, help="threads that prepare batches, 0 = none")
    add_dead_flags(parser, "relabel")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
