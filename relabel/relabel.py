"""Relabel: one pass of the teacher over every crop of every epoch, its logits stored as released or smaller.

Run: python -m relabel.relabel --dataset digits      (or sh relabel.sh digits)
Time: digits, 60 epochs of 100 images, about 15 s on two CPU cores.
Result: runs/<name>/labels/epoch_0/batch_0.tar ..., and beside the folder its manifest, a hash of every file,
log and metrics.
"""
import os
import time
from contextlib import closing
from functools import partial
from itertools import chain, islice

import torch
from tqdm import tqdm

from relabel import plan
from relabel.recipe import Recipe, describe_recipe
from relabel.teacher_form import (
    describe_forms,
    describe_precisions,
    describe_teachers,
    mean_logits,
    part_of,
    prepare_teachers,
    use_batch_statistics,
)
from sre2l.check import manifest
from sre2l.check.agreement import agreement
from sre2l.data import loader
from sre2l.data.codecs import NONE, codec_in, codec_name
from sre2l.data.derived import AUGMENTS, derived_of, draw_label_batch
from sre2l.data.flags import add_stage_flags, data_spec
from sre2l.data.label_files import are_numbers, encode_file, file_of, stored_batches
from sre2l.data.pixel_store import keep_decoded
from sre2l.nets.precision import PRECISIONS, dtype_of, memory_format_of, start_device
from sre2l.nets.teacher import check_teachers, find_teachers, teacher_weights
from sre2l.run import processes, signals
from sre2l.run.ahead import in_order
from sre2l.run.device import versions
from sre2l.run.errors import UserError
from sre2l.run.files import make_folder, sidecar
from sre2l.run.flags import Parser, number, numbers
from sre2l.run.log import eta, in_bytes
from sre2l.run.output import OutputFolder, recorded
from sre2l.run.paths import run_folder
from sre2l.run.start import run_script

# Settings that older label folders do not record.
DEFAULTS = {"batch_statistics": False, "augment": "none", "patch_shuffle": 1,
            "codec": "fp16", "layout": "released"}
NUM_WRITERS = 2  # threads that write label files; one keeps up with a GPU, two hide a slow disk


@torch.inference_mode()
def to_host(logits, dtype):
    """Begin to copy logits to the CPU; the GPU goes on computing.

    -> (the tensor there, an event to wait for before it is read, None on the CPU)"""
    if logits.device.type == "cpu":
        return logits.to(dtype), None
    on_host = torch.empty(logits.shape, dtype=dtype, pin_memory=True)
    on_host.copy_(logits.to(dtype), non_blocking=True)
    copied = torch.cuda.Event(blocking=True)
    copied.record()
    return on_host, copied


def label_batches(labellers, stream, spec, dtype):
    """Label one batch after the other, until a signal asks to stop.

    Yields (Batch, LabelBatch with logits on the CPU, event as in to_host)."""
    for batch, pixels, label_batch in stream:
        if signals.stop_requested():
            return
        logits = mean_logits(labellers, pixels, label_batch, spec)
        logits, copied = to_host(logits, dtype)
        yield batch, label_batch._replace(logits=logits), copied


def gather(labelled, files):
    """What label_batches yields, in lists of the batches of one file. files: the Batches of each.

    A file that a signal cuts short is not among them."""
    for batches in files:
        found = list(islice(labelled, len(batches)))
        if len(found) == len(batches):
            yield found


def store_labels(labels, settings, precision, labelled):
    """Write one label file, on a thread beside the teacher -> its last Batch.

    settings: of the labels; precision: of the teacher; labelled: of `gather`. Raises UserError for logits
    that are not finite."""
    for batch, label_batch, copied in labelled:
        if copied is not None:
            copied.synchronize()
        if not are_numbers(label_batch.logits):
            raise UserError(f"epoch {batch.epoch}, batch {batch.index}: the teacher's logits are not finite "
                            f"in {precision} and --label-precision {settings['logits']}; use --codec fp32 "
                            f"and --precision fp32, or check the teacher")
    label_batches = [label_batch for _, label_batch, _ in labelled]
    is_packed = manifest.is_packed_set(settings)
    data = encode_file(batch.epoch, label_batches, codec_in(settings), is_packed)
    labels.write({file_of(batch, is_packed): data})
    return batch


def write_all(written, num_files, log, print_sec):
    """Let the label files be written, and say how far that is. A signal ends the run after those under way.

    written: yields the last Batch of each file, as it is done."""
    done = 0
    started = logged = time.monotonic()
    with closing(written), signals.finishing_steps():
        for batch in tqdm(written, "relabel", total=num_files, unit="batch", disable=None, leave=False):
            done += 1
            is_due = time.monotonic() - logged > print_sec
            if is_due or done == num_files or signals.stop_requested():
                logged = time.monotonic()
                log.metrics(epoch=batch.epoch, batch=batch.index, files=done)
                log.line(f"epoch {batch.epoch}  batch {batch.index}  {done}/{num_files} files  "
                         f"{eta(done, num_files, started)}")
        if done < num_files:
            log.line(f"stopped after {done} of {num_files} files")
            signals.leave()


def main(args):
    # Plan: what the flags can get wrong is refused before anything is loaded. --dry-run ends here.
    spec = data_spec(args)
    plan.check_args(args, spec)
    args.data = args.data or str(run_folder(args) / "images")
    args.fkd_path = args.fkd_path or str(run_folder(args) / "labels")
    labels = OutputFolder(args.fkd_path, "labels", args.overwrite, DEFAULTS, manifest.FREE)
    images = plan.find_images(args, spec)
    if args.dry_run:
        return plan.dry_run(args, spec, images, labels)

    # Prepare: images and teachers have to be usable before anything is written or deleted.
    device, _ = start_device(args.device, args.precision, args.deterministic, training=False)
    teachers, spec = find_teachers(args, spec)
    weights = teacher_weights(args.teacher_weights, len(teachers))
    for teacher in teachers:
        teacher.network.to(device, memory_format=memory_format_of(device))
    top1 = check_teachers(teachers, spec, args, device)
    described = manifest.describe_images(images)
    earlier = plan.read_recorded(args, described, images.root)
    settings = plan.make_settings(args, spec)
    images, where_decoded = keep_decoded(images, device)
    plan.check_shapes(images, settings)

    # All that is drawn for a batch comes from (seed, epoch, batch): a run that was stopped, or shared by
    # several processes, writes the same bytes.
    batches = loader.Batches(len(images), args.batch_size, args.fkd_seed, settings["epochs"])
    shown = loader.BatchDataset(images, spec.size, partial(draw_label_batch, settings), derived_of(settings))
    # A precision, and a faster form of the network, are taken only where the logits of the first batch are
    # close to fp32's. A run that continues takes the precision that its labels have.
    first = shown[next(iter(batches))]
    notes = use_batch_statistics(teachers) if args.batch_statistics else []
    labellers = prepare_teachers(teachers, weights, first, spec, args.precision, earlier.get("precision"),
                                 device, part_of(args.batch_statistics))
    precision = describe_precisions(labellers)

    # Begin: the manifest says what the labels depend on, and ties them to these images.
    is_recipe = codec_in(settings) == NONE
    labels.begin({**settings, **described, "epochs": max(settings["epochs"], earlier.get("epochs", 0)),
                  **describe_teachers(teachers, weights, labellers, top1),
                  **(describe_recipe(teachers, first, labels.root) if is_recipe else {}),
                  "images_seed": recorded(sidecar(args.data, "manifest.json"), "seed"),
                  "versions": versions(device)})
    log = labels.open_log(args, device)
    log.line("\n".join((where_decoded, *notes, *describe_forms(teachers, labellers))))

    # Each process writes every world-th file, where it is not there as it was recorded.
    planned = plan.plan_files(batches, settings)
    own = list(planned)[processes.rank()::processes.world_size()]
    todo = [planned[name] for name in labels.missing(own, args.workers)]
    # A disk on which the run would end after hours is refused now.
    num_bytes = round(plan.num_label_bytes(len(images), settings) * len(todo) / max(1, len(planned)))
    plan.check_room(labels.root, num_bytes, "--fkd-path")
    log.line(f"{len(todo)} label files to write, about {in_bytes(num_bytes)}, teacher in {precision}, "
             f"logits in {codec_in(settings)} -> {labels.root}")

    # Loop: threads prepare the next batches and write the last files while the teacher labels.
    stream = loader.load_batches(shown, chain.from_iterable(todo), args.workers, device)
    labelled = gather(label_batches(labellers, stream, spec, dtype_of(settings["logits"])), todo)
    written = in_order(partial(store_labels, labels, settings, precision), labelled, NUM_WRITERS)
    write_all(written, len(todo), log, args.print_sec)

    # Finish: of several processes the last one finds the set complete, and sees whether it fits the images.
    if is_recipe:
        make_folder(labels.root)  # it stays empty: the manifest is the set
    if labels.finish(planned):
        known = stored_batches(labels.root, batches)
        if is_recipe:
            recipe = Recipe(labellers, spec, dtype_of(settings["logits"]), precision)
            known = recipe.completed(loader.load_batches(shown, batches, 0, device))
        found = agreement(known, images.labels)
        lines = [f"done: {labels.root}; {found.text}", *filter(None, [found.warning])]
        log.line("\n".join(lines), from_any=True)


def make_parser():
    parser = Parser(__doc__)
    add_stage_flags(parser, "relabel", teacher=True)
    add = parser.add_argument
    # Where things are.
    add("--seed", type=number(int, 0), default=0, help="of crops, flips and mix; the order has --fkd-seed")
    add("--data", type=os.path.abspath, metavar="DIR",
        help="folder of images to label (default: runs/<name>/images)")
    add("--fkd-path", type=os.path.abspath, metavar="DIR",
        help="where the labels go (default: runs/<name>/labels)")

    # The contract with the student: it must use the same epochs, batches and order.
    add("--epochs", type=number(int, 1), default=300, help="epochs of crops to label")
    add("-b", "--batch-size", type=number(int, 1), default=1024,
        help="images mixed together; the student must use the same")
    add("--fkd-seed", type=number(int, 0), default=42,
        help="seed of the order of the images; the released reader knows only 42")

    # The mix and the crops.
    add("--mix-type", choices=("cutmix", "mixup", "none"), default="cutmix",
        help="how the images of a batch are mixed")
    add("--cutmix", type=number(float, above=0), default=1.0, metavar="ALPHA",
        help="Beta(alpha, alpha) of cutmix")
    add("--mixup", type=number(float, above=0), default=0.8, metavar="ALPHA",
        help="Beta(alpha, alpha) of mixup")
    add("--crop", choices=("resized", "padded", "none"),
        help="kind of crop, none: the whole image (default: the data set's)")
    add("--min-scale-crops", type=number(float, 0, 1), default=0.08, help="least area of a resized crop")
    add("--max-scale-crops", type=number(float, 0, 1), default=1.0, help="largest area of a resized crop")
    add("--padding", type=number(int, 0),
        help="largest shift of a padded crop, pixels (default: the data set's)")
    add("--no-flip", action="store_true", help="never flip")
    add("--patch-shuffle", type=number(int, 1), default=1, metavar="F",
        help="cut each image into F x F patches and permute their rows and columns before the crop, as RDED")
    add("--augment", choices=AUGMENTS, default="none",
        help="randaugment: two random operations on each crop; the student sees the same")

    # The teachers and what is stored of them. --use-fp16 is the released spelling.
    add("--teacher-weights", type=numbers, metavar="W,W",
        help="of several teachers, in the mean of their raw logits (default: the same for each)")
    add("--batch-statistics", nargs="?", type=number(int, 2), const=True, default=False, metavar="PART",
        help="the teacher's BatchNorm as in train mode, by each batch's own: as in the released CIFAR "
             "script; with PART by so many images at a time, the student's micro-batch")
    add("--no-batch-statistics", dest="batch_statistics", action="store_const", const=False,
        help="the running statistics again, where a launcher's recipe says otherwise")
    add("--precision", choices=PRECISIONS,
        help="of the teacher (default: fp16 on a GPU if its labels are close enough, else tf32; CPU: fp32)")
    add("--label-precision", choices=("fp16", "fp32"), default="fp16", help="type of the stored logits")
    add("--codec", type=codec_name, metavar="CODEC",
        help="how logits are stored: fp16 or fp32 (as --label-precision), uint8, topk:K (the K largest), "
             "none (nothing: validate runs the teacher)")
    add("--packed", action="store_true",
        help="a file for each epoch, not for each batch as released; uint8 and topk always are")
    add("--keep", type=number(float, above=0, high=1), default=1.0, metavar="P",
        help="label this part of the epochs, the first ones: a pool for validate --label-draw")
    add("--use-fp16", dest="label_precision", action="store_const", const="fp16",
        help="the same as --label-precision fp16")

    # The run.
    add("--print-sec", type=number(float, 0), default=30.0, help="seconds between log lines")
    add("-j", "--workers", type=number(int, 0), default=4, help="threads that prepare batches, 0 = none")
    return parser


def get_args(argv=None):
    return make_parser().parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
