"""Squeeze: train the teacher on real images, with the published recipe of its data set.

Run: python -m squeeze.squeeze --dataset digits      (or sh squeeze.sh digits)
Time: digits about 40 s on two CPU cores. imagenet1k: nothing is trained, torchvision's weights are checked.
Result: runs/<name>/teacher/teacher.pth with class names in order, normalisation, size and top-1.
"""
import time
from dataclasses import replace
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F
from tqdm import tqdm

from squeeze.published import check_torchvision
from sre2l.data import augment, loader
from sre2l.data.datasets import IMAGENET
from sre2l.data.flags import add_stage_flags, data_spec
from sre2l.data.image_folder import fingerprint
from sre2l.data.label_files import LabelBatch
from sre2l.data.own import describe, record_facts, row_to_squeeze
from sre2l.data.pixel_store import keep_decoded
from sre2l.data.real_images import read_real, read_val, to_train_on
from sre2l.nets import checkpoints, models, parallel, training
from sre2l.nets.evaluation import describe_chance, evaluate, keep_on_device
from sre2l.nets.functions import recorded_name, source_sha256
from sre2l.nets.precision import PRECISIONS, autocast, dtype_of, memory_format_of, start_device
from sre2l.run import processes, signals
from sre2l.run.device import upload
from sre2l.run.errors import UserError
from sre2l.run.files import hash_json, save_torch
from sre2l.run.flags import Parser, existing_folder, network_name, number
from sre2l.run.log import eta
from sre2l.run.output import OutputFolder
from sre2l.run.paths import run_folder
from sre2l.run.start import run_script

SCALE = (0.08, 1.0)  # of RandomResizedCrop


def make_settings(args, spec, stem, train=None, val=None, precision=None, resized=None):
    """What the teacher depends on. train, val, precision, resized: as they turned out; None in a plan.

    NOTE: a checkpoint knows its run by a hash of these. Leave a new setting out where it has its default."""
    flags = ("dataset", "arch", "epochs", "batch_size", "lr", "momentum", "weight_decay", "warmup_epochs",
             "seed")
    newer = {"weights": args.weights, "resized": resized, "mean": args.mean, "std": args.std,
             "arch_sha256": source_sha256(args.arch)}
    return {
        **{key: getattr(args, key) for key in flags},
        "arch": recorded_name(args.arch),
        **{key: value for key, value in newer.items() if value},
        "num_classes": spec.num_classes,
        "size": spec.size,
        "stem": stem,
        "train": train and fingerprint(train),
        "val": val and fingerprint(val),
        "precision": precision or args.precision,
    }


def draw_label_batch(spec, seed, batch, sizes):
    """Draw a batch's crops, from a generator of its own. sizes (m, 2): its images' heights and widths."""
    rng = augment.unit_rng(seed, batch.epoch, batch.index)
    crops = augment.draw_crops(sizes, spec.crop, SCALE, spec.padding, spec.flip, rng)
    return LabelBatch(crops, augment.Mix())


def start_network(args, network, device, log):
    """Put the network on the device. On several GPUs BatchNorm sees the whole batch; on CPUs it cannot."""
    if processes.world_size() > 1 and device.type == "cuda":
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    elif processes.world_size() > 1:
        part = args.batch_size // processes.world_size()
        log.line(f"on CPUs BatchNorm sees what one process has of a batch, {part} images: another teacher "
                 "than one process trains")
    return network.to(device, memory_format=memory_format_of(device))


def save(path, identity, seed, values, network, optimizer, scaler):
    """Let process 0 write what training continues from after an epoch. values: the epoch's metrics."""
    if processes.rank() > 0:
        return
    parts = {"model": network, "optimizer": optimizer, "scaler": scaler}
    states = {name: part.state_dict() for name, part in parts.items()}
    facts = {"identity": identity, "seed": seed, "epoch": values["epoch"], "values": values}
    save_torch(path, {**facts, **states})


def build_teacher(args, spec):
    """-> (a network with the weights that training starts from, its stem, lines for the log about them)."""
    network, stem = models.build_for(spec, args.arch, args.stem)
    models.check_shapes(network, args.arch, spec.num_classes, spec.size)
    if not args.weights:
        return network, stem, []
    afresh = ", ".join(checkpoints.start_from_imagenet(network, args.arch))
    return network, stem, [f"torchvision's {args.weights} weights of {args.arch}; afresh: {afresh}"]


def dry_run(args, spec, folder):
    """--dry-run: print the settings, how many epochs and how many bytes. Nothing is loaded."""
    network, stem = models.build_for(spec, args.arch, args.stem)
    num_bytes = 3 * checkpoints.num_weight_bytes(network)  # the teacher, and a checkpoint with momentum
    folder.dry_run(make_settings(args, spec, stem), epochs=args.epochs,
                   evaluations=-(-args.epochs // args.eval_every), bytes=num_bytes)


def main(args):
    # Plan: what a flag can get wrong is refused before anything is loaded.
    row = row_to_squeeze(args)
    if args.weights and not models.is_torchvision(args.arch):
        raise UserError(f"--weights {args.weights}: torchvision has none of {args.arch}; leave it away")
    if args.weights:  # which know pixels in ImageNet's normalisation
        row = replace(row, mean=IMAGENET[0], std=IMAGENET[1])
    spec = data_spec(args, row)
    if spec.name == "imagenet1k":
        return check_torchvision(args, spec)
    folder = OutputFolder(run_folder(args) / "teacher", "teacher", args.overwrite, vars(get_args([])))
    training.check_warmup(args)
    if args.dry_run:
        return dry_run(args, spec, folder)

    # Prepare: build the network and read the images. Nothing is written yet.
    device, precision = start_device(args.device, args.precision, args.deterministic, compiled=args.compile)
    processes.start(device)
    # The weights come first from this seed: they depend on nothing that was read or measured.
    torch.manual_seed(args.seed)
    network, stem, origin = build_teacher(args, spec)
    order = args.class_order or "text"
    images = read_real(spec, args.real_data, "train", None, spec.class_names, "dataset.json", order)
    val = read_val(spec, args.real_data, None, images.class_names, "train")
    images, resized = to_train_on(images, spec)
    images, note = keep_decoded(images, device)
    settings = make_settings(args, spec, stem, images, val, precision, resized)
    # The settings name the whole validation set. From here on this process has the part that it measures.
    val = keep_on_device(val, device)

    # Begin: this run becomes the folder's only writer; other settings in it are refused.
    folder.begin(settings)
    if processes.rank() == 0:
        record_facts(args, row)
    log = folder.open_log(args, device)
    log.line("\n".join([*describe(spec, images.class_names, args.class_order, len(val)), note, *origin]))
    network = start_network(args, network, device, log)
    optimizer = training.make_sgd(network.parameters(), args.lr, args.momentum, args.weight_decay, device)
    scaler = training.make_scaler(precision, device)

    # Continue after the last saved epoch. The hash tells another run's checkpoint from this one's.
    path = folder.path("checkpoint.pth")
    identity = hash_json(settings)
    checkpoint = checkpoints.continue_from(path, identity, network, optimizer, scaler)
    first = checkpoint.get("epoch", 0)
    values = checkpoint.get("values")
    forward = network
    if args.compile:
        forward = training.compile_network(network, one_pass=processes.world_size() == 1)
    log.line(f"{args.arch}, stem {stem}: {args.epochs - first} of {args.epochs} epochs left on {len(images)} "
             f"images of {images.root}, {precision}")

    # Train.
    batches = loader.Batches(len(images), args.batch_size, args.seed, args.epochs, first)
    dataset = loader.BatchDataset(images, spec.size, partial(draw_label_batch, spec, args.seed))
    stream = loader.load_batches(dataset, batches, args.workers, device, parallel.own_rows)
    stream = iter(tqdm(stream, "squeeze", total=len(batches), unit="batch", disable=None, leave=False))
    begin = time.monotonic()
    saved = begin
    with signals.finishing_steps():
        for epoch in range(first, args.epochs):
            # The rate falls once an epoch, as published, so a checkpoint needs no state of a schedule.
            training.set_lr(optimizer, args.lr * training.lr_factor(epoch, args.epochs, args.warmup_epochs))
            network.train()
            # On the device: to read it in every step would make the host wait for the GPU.
            loss_sum = torch.zeros((), device=device)  # over the images of this process

            for batch, pixels, _ in islice(stream, batches.per_epoch):
                if signals.stop_requested():
                    log.line("stopped; the same command continues after the last saved epoch")
                    signals.leave()
                if len(batch.rows) == 1:  # BatchNorm cannot train on it
                    continue
                training.seed_torch(args.seed, epoch, batch.index, processes.rank())  # of dropout
                rows, weight = parallel.own_slice(len(batch.rows))
                labels = upload(torch.from_numpy(images.labels[batch.rows[rows]]), device)
                # Every process has its rows of the batch, weighted so that the sum of their gradients is the
                # gradient of the batch's mean loss.
                optimizer.zero_grad()
                with autocast(precision, device):
                    seen = augment.show_batch(pixels, augment.Mix(), spec.mean, spec.std, dtype_of(precision))
                    logits = forward(seen)
                logits = training.at_least_float32(logits)
                loss = F.cross_entropy(logits, labels) * weight  # its part of the batch's mean
                scaler.scale(loss).backward()
                parallel.sum_gradients(network)
                scaler.step(optimizer)
                scaler.update()
                loss_sum += loss.detach() * len(batch.rows)

            # Measure and save. Nothing of an epoch that is not finite is saved.
            parallel.average_running_statistics(network)
            mean_loss = processes.sum_over_processes(loss_sum).item() / len(images)
            training.check_finite(mean_loss, network, epoch + 1, "--lr", precision)
            values = {"epoch": epoch + 1, "loss": round(mean_loss, 5)}
            is_last = epoch + 1 == args.epochs
            if is_last or (epoch + 1) % args.eval_every == 0:
                top1, top5 = evaluate(network, val, spec.mean, spec.std, device, precision=precision)
                values |= {"top1": top1, "top5": top5}
            log.metrics(**values)
            numbers = "  ".join(f"{key} {value}" for key, value in values.items())
            log.line(f"{numbers}  {eta(epoch + 1 - first, args.epochs - first, begin)}")
            if is_last or signals.stop_requested() or time.monotonic() - saved >= training.CHECKPOINT_SEC:
                save(path, identity, args.seed, values, network, optimizer, scaler)
                saved = time.monotonic()

    # Finish: process 0 writes the teacher. After a finished run the bytes are the same again.
    if processes.rank() == 0:
        facts = {"format": checkpoints.TEACHER_FORMAT, "arch": recorded_name(args.arch), "stem": stem,
                 "class_names": images.class_names, "dataset": spec.name, "seed": args.seed,
                 "mean": spec.mean, "std": spec.std, "size": spec.size, "num_classes": spec.num_classes}
        save_torch(folder.path("teacher.pth"), {**facts, **values, "model": network.state_dict()})
        warning = describe_chance(values["top1"], spec.num_classes, len(val),
                                  "too few epochs, or a learning rate that is too large")
        log.line(f"done: {folder.path('teacher.pth')}, top-1 {values['top1']:.2f}% on {len(val)} images"
                 f"{warning}")


def make_parser():
    parser = Parser(__doc__)
    add_stage_flags(parser, "squeeze", tensorboard=True)
    add = parser.add_argument
    # What the teacher learns from and what it is.
    add("--seed", type=number(int, 0), default=0, help="of the first weights, the order and the crops")
    add("--real-data", "--val-dir", type=existing_folder, metavar="DIR",
        help="folder with train/ and val/, of class folders, or of torchvision's files, which are downloaded "
             "where none is given (digits: built in)")
    add("--val-fraction", type=number(float, above=0, high=0.5), metavar="F",
        help="measure on this part of each class, held out of the training images (default: 0.1 where a data "
             "set of your own has no val/)")
    add("-a", "--arch", "--arch-name", type=network_name, default="resnet18",
        help="the network: torchvision's name, a small one's, PATH.py:function (docs/networks.md)")
    add("--weights", choices=(checkpoints.V1,),
        help="start from torchvision's ImageNet weights, with a last layer of its own: for few images")

    # The recipe. squeeze.sh has that of each data set.
    add("--epochs", type=number(int, 1), default=90)
    add("-b", "--batch-size", type=number(int, 2), default=256)
    add("--lr", type=number(float, above=0), default=0.1, help="learning rate of SGD, cosine to 0")
    add("--momentum", type=number(float, 0, 1), default=0.9)
    add("--weight-decay", type=number(float, 0), default=1e-4)
    add("--warmup-epochs", type=number(int, 0), default=0,
        help="epochs of linear warm-up from 0.01 of the rate")

    # How it computes, and what it tells meanwhile.
    add("--precision", choices=PRECISIONS,
        help="of the network's layers (default: tf32 on a GPU that has it, else fp32)")
    add("--compile", action="store_true",
        help="torch.compile on a GPU: half a minute at the start, then faster (docs/speed.md)")
    add("--eval-every", type=number(int, 1), default=10, help="epochs between evaluations")
    add("-j", "--workers", type=number(int, 0), default=4, help="threads that prepare batches, 0 = none")
    return parser


def get_args(argv=None):
    return make_parser().parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
