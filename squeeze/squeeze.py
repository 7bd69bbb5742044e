"""Squeeze: train the teacher on real images, with the published recipe of its data set.

Run: python -m squeeze.squeeze --dataset digits      (or sh squeeze.sh digits)
Time: digits about 40 s on two CPU cores. imagenet1k: nothing is trained, torchvision's weights are checked.
Result: runs/<name>/teacher/teacher.pth with class names in order, normalisation, size and top-1.
"""
import time
from argparse import Namespace
from dataclasses import replace
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F
from tqdm import tqdm

from squeeze.published import check_torchvision
from sre2l.data import augment, loader
from sre2l.data.datasets import IMAGENET
from sre2l.data.derived import draw_label_batch
from sre2l.data.flags import add_stage_flags, data_spec
from sre2l.data.image_folder import fingerprint
from sre2l.data.own import describe, record_facts, row_to_squeeze
from sre2l.data.pixel_store import keep_decoded
from sre2l.data.real_images import read_real, read_val, shown_at, to_train_on
from sre2l.kernels.norms import statistics_layers
from sre2l.nets import checkpoints, models, parallel, statistics, training
from sre2l.nets.evaluation import describe_chance, evaluate, keep_on_device
from sre2l.nets.functions import describe_arch, recorded_name
from sre2l.nets.precision import PRECISIONS, autocast, dtype_of, memory_format_of, start_device
from sre2l.nets.teacher import load_teacher
from sre2l.run import processes, signals
from sre2l.run.device import upload
from sre2l.run.errors import UserError
from sre2l.run.files import hash_json, save_torch
from sre2l.run.flags import Parser, existing_folder, network_names, number, number_list
from sre2l.run.log import eta
from sre2l.run.output import OutputFolder
from sre2l.run.paths import run_folder, teacher_names
from sre2l.run.start import run_script

SCALE = (0.08, 1.0)  # of RandomResizedCrop
SCHEDULES = {"cosine": training.cosine_factor, "constant": training.constant_factor}


def make_settings(args, spec, stem, train=None, val=None, precision=None, resized=None):
    """What the teacher depends on. train, val, precision, resized: as they turned out; None in a plan.

    NOTE: a checkpoint knows its run by a hash of these. Leave a new setting out where it has its default."""
    flags = ("dataset", "arch", "epochs", "batch_size", "lr", "momentum", "weight_decay", "warmup_epochs",
             "seed")
    newer = {"weights": args.weights, "resized": resized, "mean": args.mean, "std": args.std,
             "lr_schedule": args.lr_schedule != "cosine" and args.lr_schedule,
             "optimizer": args.optimizer != "sgd" and args.optimizer}
    return {
        **{key: getattr(args, key) for key in flags},
        **describe_arch(args.arch),
        **{key: value for key, value in newer.items() if value},
        "num_classes": spec.num_classes,
        "size": spec.size,
        "stem": stem,
        "train": train and fingerprint(train),
        "val": val and fingerprint(val),
        "precision": precision or args.precision,
    }


def draw_settings(spec, seed):
    """What draw_label_batch wants to know: a batch's crops come from a generator of its own, unmixed."""
    crop = {"kind": spec.crop, "scale": SCALE, "padding": spec.padding, "flip": spec.flip}
    return {"seed": seed, "crop": crop, "mix": "none", "mix_alpha": None, "input_size": spec.size}


def start_network(args, network, device, log):
    """Put the network on the device. On several GPUs BatchNorm sees the whole batch; on CPUs it cannot."""
    if processes.world_size() > 1 and device.type == "cuda":
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    elif processes.world_size() > 1:
        part = args.batch_size // processes.world_size()
        log.line(f"on CPUs BatchNorm sees what one process has of a batch, {part} images: another teacher "
                 "than one process trains")
    return network.to(device, memory_format=memory_format_of(device))


def save(path, facts, **parts):
    """Let process 0 write facts with the states of these parts: of a network, an optimiser, a scaler."""
    if processes.rank() == 0:
        save_torch(path, {**facts, **{name: part.state_dict() for name, part in parts.items()}})


def build_teacher(args, spec):
    """-> (a network with the weights that training starts from, its stem, lines for the log about them)."""
    network, stem = models.build_for_training(spec, args.arch, args.stem)
    if args.class_statistics and not statistics_layers(network):
        raise UserError(f"--class-statistics: {args.arch} has no BatchNorm layer with running statistics, so "
                        f"there is nothing to measure; leave it away")
    if not args.weights:
        return network, stem, []
    afresh = ", ".join(checkpoints.start_from_imagenet(network, args.arch))
    return network, stem, [f"torchvision's {args.weights} weights of {args.arch}; afresh: {afresh}"]


def make_optimizer(args, network, device):
    make = training.make_adam if args.optimizer == "adam" else training.make_sgd
    return make(network.parameters(), args.lr, args.momentum, args.weight_decay, device)


def check_recipe(args):
    """Raise UserError where --keep-epochs, --warmup-epochs or --momentum do not fit the rest."""
    training.check_warmup(args)
    outside = [epoch for epoch in args.keep_epochs if not 1 <= epoch <= args.epochs]
    if outside:
        raise UserError(f"--keep-epochs {outside[0]}: the training has the epochs 1 to {args.epochs}")
    if args.optimizer == "adam" and args.momentum == 1:
        raise UserError("--momentum 1: Adam's beta1 has to be below 1; 0.9 is usual")


def name_of_age(epoch):
    """The file of the teacher as it is after so many epochs."""
    return f"teacher.e{epoch}.pth"


def describe_start(args, settings, network, images, first, folder):
    """Lines for the log: what is trained, and what it will not give. first: how many epochs are done."""
    changed = "" if settings["stem"] == "torchvision" else f", stem {settings['stem']}"
    lines = [f"{args.arch}{changed}: {args.epochs - first} of {args.epochs} epochs left on {len(images)} "
             f"images of {images.root}, {settings['precision']}"]
    past = [epoch for epoch in args.keep_epochs if epoch <= first and epoch < args.epochs
            and not folder.path(name_of_age(epoch)).exists()]
    if past:
        lines.append(f"warning: --keep-epochs {','.join(map(str, past))}: already past, for this run "
                     f"continues after epoch {first}; another --name trains them, or --overwrite, which "
                     f"deletes this one")
    if not statistics_layers(network):
        lines.append(f"warning: {args.arch} has no BatchNorm layer with running statistics: recover cannot "
                     f"use this teacher, relabel can")
    return "\n".join(lines)


def measure_classes(args, spec, images, folder, device, log):
    """--class-statistics: write the class statistics of each teacher in the folder that has none yet.

    images: the real training images, shown as in an evaluation; each process takes its part of them."""
    processes.barrier()  # process 0 has written the teachers
    images = shown_at(images, spec.size, round(spec.size * spec.resize_ratio))
    for path in sorted({*folder.root.glob("teacher*.pth")} - {*folder.root.glob("*.class_statistics.pth")}):
        teacher = load_teacher(spec, path, args.arch, args.stem)
        target = statistics.class_statistics_path(path)
        if statistics.are_stored(target, teacher, "class"):
            continue
        network = teacher.network.to(device, memory_format=memory_format_of(device))
        found = statistics.class_statistics(network, images, spec.num_classes, spec.mean, spec.std, device)
        if processes.rank() == 0:
            statistics.save(target, found, teacher.sha256, "class")
        log.line(f"class statistics of {path.name}, of {len(images)} images: {target}")


def dry_run(plans):
    """--dry-run: print the first teacher's settings, how many epochs and how many bytes for all of them.

    plans: of `plan`, for each teacher."""
    teachers = []
    num_bytes = 0
    for args, _, spec, _ in plans:
        network, stem = models.build_for_training(spec, args.arch, args.stem)
        teachers.append([recorded_name(args.arch), stem])
        # A checkpoint holds the network and what the optimiser keeps: momenta, and Adam's squares as well.
        num_teachers = 1 + len(args.keep_epochs)
        copies = num_teachers + (3 if args.optimizer == "adam" else 2)
        num_bytes += copies * checkpoints.num_weight_bytes(network)
        if args.class_statistics:
            num_bytes += num_teachers * statistics.num_class_bytes(network, spec.num_classes)
    args, _, spec, folder = plans[0]
    folder.dry_run(make_settings(args, spec, teachers[0][1]), epochs=args.epochs, teachers=teachers,
                   evaluations=-(-args.epochs // args.eval_every), bytes=num_bytes,
                   class_statistics=args.class_statistics)


def plan(args, name):
    """What a teacher is trained from, as far as flags and rows say -> (args, the data set's row, the row with
    the flags' values, its OutputFolder). name: of its folder in the run. Raises UserError."""
    row = row_to_squeeze(args)
    if args.weights and not models.is_torchvision(args.arch):
        raise UserError(f"--weights {args.weights}: torchvision has none of {args.arch}; leave it away")
    if args.weights:  # which know pixels in ImageNet's normalisation
        row = replace(row, mean=IMAGENET[0], std=IMAGENET[1])
    spec = data_spec(args, row)
    folder = OutputFolder(run_folder(args) / name, "teacher", args.overwrite, vars(get_args([])))
    check_recipe(args)
    return args, row, spec, folder


def main(args):
    # Plan: what a flag can get wrong is refused before anything is loaded.
    archs = args.arch.split(",")
    plans = [plan(Namespace(**{**vars(args), "arch": arch}), name)
             for arch, name in zip(archs, teacher_names(archs))]
    if plans[0][2].name == "imagenet1k":
        for one, _, spec, _ in plans[:1] if args.dry_run else plans:
            check_torchvision(one, spec)
    elif args.dry_run:
        dry_run(plans)
    else:
        for one, _, spec, folder in plans[1:]:  # what is wrong with one is said before the first trains
            _, stem, _ = build_teacher(one, spec)
            folder.refuse_planned(make_settings(one, spec, stem))
        for planned in plans:
            make_teacher(*planned)


def make_teacher(args, row, spec, folder):
    """Train one network, or go on where an earlier run stopped, and write it. Parameters: of `plan`."""
    # Prepare: build the network and read the images. Nothing is written yet.
    device, precision = start_device(args.device, args.precision, args.deterministic, compiled=args.compile)
    processes.start(device)
    # The weights come first from this seed: they depend on nothing that was read or measured.
    torch.manual_seed(args.seed)
    network, stem, origin = build_teacher(args, spec)
    checkpoints.check_same_weights(network, args.arch)
    order = args.class_order or "text"
    real = read_real(spec, args.real_data, "train", None, spec.class_names, "dataset.json", order)
    val = read_val(spec, args.real_data, None, real.class_names, "train")
    images, resized = to_train_on(real, spec)
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

    # Train. Process 0 writes the teacher; after a finished run its bytes are the same again.
    facts = {"format": checkpoints.TEACHER_FORMAT, **describe_arch(args.arch), "stem": stem,
             "class_names": images.class_names, "dataset": spec.name, "seed": args.seed,
             "mean": spec.mean, "std": spec.std, "size": spec.size, "num_classes": spec.num_classes}
    with signals.finishing_steps():
        values = train_teacher(args, spec, network, images, val, folder, settings, facts, log, device)
    for name in ["teacher.pth"] + [name_of_age(epoch) for epoch in args.keep_epochs if epoch == args.epochs]:
        save(folder.path(name), {**facts, **values}, model=network)
    if args.class_statistics:
        measure_classes(args, spec, real, folder, device, log)
    warning = describe_chance(values["top1"], spec.num_classes, len(val),
                              "too few epochs, or a learning rate that is too large")
    log.line(f"done: {folder.path('teacher.pth')}, top-1 {values['top1']:.2f}% on {len(val)} images{warning}")


def train_teacher(args, spec, network, images, val, folder, settings, facts, log, device):
    """Train the network on the device -> the metrics of its last epoch.

    images: decoded; val: what keep_on_device returns; facts: what a teacher's file says besides weights and
    metrics, for --keep-epochs."""
    precision = settings["precision"]
    optimizer = make_optimizer(args, network, device)
    scaler = training.make_scaler(precision, device)

    # Continue after the last saved epoch. The hash tells another run's checkpoint from this one's.
    path = folder.path("checkpoint.pth")
    identity = hash_json(settings)
    checkpoint = checkpoints.continue_from(path, identity, network, optimizer, scaler)
    first = checkpoint.get("epoch", 0)
    values = checkpoint.get("values")
    log.line(describe_start(args, settings, network, images, first, folder))

    one_pass = processes.world_size() == 1
    forward = training.compile_network(network, one_pass) if args.compile else network
    batches = loader.Batches(len(images), args.batch_size, args.seed, args.epochs, first)
    draw = partial(draw_label_batch, draw_settings(spec, args.seed))
    dataset = loader.BatchDataset(images, spec.size, draw)
    stream = loader.load_batches(dataset, batches, args.workers, device, parallel.own_rows)
    stream = iter(tqdm(stream, "squeeze", total=len(batches), unit="batch", disable=None, leave=False))
    begin = saved = time.monotonic()

    for epoch in range(first, args.epochs):
        # The rate falls once an epoch, as published, so a checkpoint needs no state of a schedule.
        factor = training.lr_factor(epoch, args.epochs, args.warmup_epochs, SCHEDULES[args.lr_schedule])
        training.set_lr(optimizer, args.lr * factor)
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
            # Every process has its rows of the batch, weighted so that the sum of their gradients is the
            # gradient of the batch's mean loss.
            rows, weight = parallel.own_slice(len(batch.rows))
            labels = upload(torch.from_numpy(images.labels[batch.rows[rows]]), device)
            optimizer.zero_grad()
            with autocast(precision, device):
                seen = augment.show_batch(pixels, augment.Mix(), spec.mean, spec.std, dtype_of(precision))
                logits = forward(seen)
            loss = F.cross_entropy(training.at_least_float32(logits), labels) * weight
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
        is_kept = epoch + 1 in args.keep_epochs
        if is_last or is_kept or (epoch + 1) % args.eval_every == 0:
            top1, top5 = evaluate(network, val, spec.mean, spec.std, device, precision=precision)
            values |= {"top1": top1, "top5": top5}
        log.metrics(**values)
        numbers = "  ".join(f"{key} {value}" for key, value in values.items())
        log.line(f"{numbers}  {eta(epoch + 1 - first, args.epochs - first, begin)}")
        if is_kept and not is_last:  # before the checkpoint, after which the epoch is not done again
            save(folder.path(name_of_age(epoch + 1)), {**facts, **values}, model=network)
        if is_last or signals.stop_requested() or time.monotonic() - saved >= training.CHECKPOINT_SEC:
            progress = {"identity": identity, "seed": args.seed, "epoch": epoch + 1, "values": values}
            save(path, progress, model=network, optimizer=optimizer, scaler=scaler)
            saved = time.monotonic()
    return values


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
    add("-a", "--arch", "--arch-name", type=network_names, default="resnet18", metavar="ARCH[,ARCH]",
        help="the network: torchvision's name, a small one's, PATH.py:function or package.module:function "
             "(docs/networks.md); of several the first is in teacher/, each other one in teacher_<ARCH>/")
    add("--weights", choices=(checkpoints.V1,),
        help="start from torchvision's ImageNet weights, with a last layer of its own: for few images")

    # The recipe. squeeze.sh has that of each data set.
    add("--epochs", type=number(int, 1), default=90)
    add("-b", "--batch-size", type=number(int, 2), default=256)
    add("--optimizer", choices=("sgd", "adam"), default="sgd",
        help="adam: torch's, usually with --lr 1e-3 --weight-decay 1e-4")
    add("--lr", type=number(float, above=0), default=0.1, help="learning rate")
    add("--lr-schedule", choices=SCHEDULES, default="cosine",
        help="after the warm-up: a cosine to 0 over all epochs, or the same rate throughout")
    add("--momentum", type=number(float, 0, 1), default=0.9, help="of SGD; Adam's beta1")
    add("--weight-decay", type=number(float, 0), default=1e-4)
    add("--warmup-epochs", type=number(int, 0), default=0,
        help="epochs of linear warm-up from 0.01 of the rate")

    # What is written besides teacher.pth.
    add("--keep-epochs", type=number_list, default=[], metavar="1,2,5",
        help="write the teacher as it is after these epochs, too: teacher.e2.pth")
    add("--class-statistics", action="store_true",
        help="at the end, one pass over the real images for the class targets of recover; also after a "
             "finished run")

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
