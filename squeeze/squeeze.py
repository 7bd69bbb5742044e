"""Squeeze: train the teacher on real images, with the published recipe of its data set.

Run: python -m squeeze.squeeze --dataset digits      (or sh squeeze.sh digits)
Time: digits about 40 s on two CPU cores. For imagenet1k nothing is trained: torchvision's IMAGENET1K_V1 weights are checked.
Result: runs/<name>/teacher/teacher.pth, which carries architecture, stem, class names in order, normalisation, size and top-1.
"""
import os
import time
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from sre2l.data.augment import Mix, draw_crops, show_batch
from sre2l.data.loader import BatchDataset, Batches, load_batches
from sre2l.run.claims import claim
from sre2l.data.datasets import STEMS
from sre2l.run.processes import check_agreement, largest, rank, sum_over_processes, world_size
from sre2l.run.files import clear_leftovers, hash_json, save_torch
from sre2l.data.flags import add_run_flags, add_stage_flags, add_tensorboard_flag, data_spec
from sre2l.run.flags import Parser, check_folders, number, refuse_useless
from sre2l.data.image_folder import fingerprint
from sre2l.run.signals import SaveTimer, finishing_steps, leave, stop_requested
from sre2l.data.label_files import LabelBatch
from sre2l.nets.models import TEACHER_FORMAT, build_network, check_input_size, load_teacher, num_weight_bytes, read_checkpoint, read_own
from sre2l.nets.parallel import RunningStatistics, replicate
from sre2l.nets.precision import PRECISIONS, dtype_of, memory_format_of
from sre2l.data.real_images import read_real, read_val
from sre2l.run.errors import UserError
from sre2l.run.log import RunLog, eta, print_plan
from sre2l.run.paths import run_folder
from sre2l.run.seeds import unit_rng
from sre2l.run.start import run_script
from sre2l.run.tensorboard import check_tensorboard
from sre2l.run.settings import check_plan, finish, keep_settings, planned_deletion, start_afresh
from sre2l.data.pixel_store import keep_decoded
from sre2l.nets.training import (at_least_float32, autocast, check_finite, compile_network, evaluate, keep_on_device, lr_factor, make_scaler, make_sgd,
                            seed_torch, set_lr, start_device, upload)

SCALE = (0.08, 1.0)  # of RandomResizedCrop


def make_settings(args, spec, stem=None, train=None, val=None, precision=None):
    """What the teacher depends on; stem, train, val and precision as they turned out, None in a plan."""
    keys = ("dataset", "arch", "epochs", "batch_size", "lr", "momentum", "weight_decay", "warmup_epochs", "seed")
    return {**{key: getattr(args, key) for key in keys}, "num_classes": spec.num_classes, "size": spec.size,
            "stem": stem or args.stem or spec.stem, "train": train and fingerprint(train), "val": val and fingerprint(val),
            "precision": precision or args.precision}


def check_torchvision(args, spec):
    """imagenet1k: the published teachers are torchvision's; see that they load, and measure them where images are given."""
    refuse_useless(args, ("compile", "tensorboard", "overwrite"), "imagenet1k: torchvision's teacher is only checked")
    device, precision = start_device(args.device, args.precision, args.deterministic, training=False)
    teacher = load_teacher(spec, None, args.arch, args.stem)
    print(f"imagenet1k: the teacher is torchvision's {args.arch} with IMAGENET1K_V1 weights; they load (sha256 {teacher.sha256[:12]})")
    if args.real_data:
        val = read_val(spec, args.real_data)
        network = teacher.network.to(device, memory_format=memory_format_of(device))
        top1, top5 = evaluate(network, val, teacher.mean, teacher.std, device, precision=precision)
        print(f"top-1 {top1:.2f}%  top-5 {top5:.2f}% on {len(val)} images of {val.root}")


def draw_label_batch(spec, seed, batch, sizes):
    """Draw the crops of one batch, from a generator of its own. sizes: (height, width) of its images, pixels."""
    return LabelBatch(draw_crops(sizes, spec.crop, SCALE, spec.padding, spec.flip, unit_rng(seed, batch.epoch, batch.index)), Mix())


def slice_of(num_rows, rank, world):
    """The rows of a batch that this process computes, and their weight in the batch's mean loss. A batch with fewer than two rows a
    process, on which BatchNorm could not train, is computed whole by all."""
    if num_rows < 2 * world:
        return slice(0, num_rows), 1 / world
    rows = slice(num_rows * rank // world, num_rows * (rank + 1) // world)
    return rows, (rows.stop - rows.start) / num_rows


def own_rows(batch, _):
    """The positions in a batch whose crops this process needs."""
    return np.arange(len(batch.rows))[slice_of(len(batch.rows), rank(), world_size())[0]]


def load_state(path, identity, network, optimizer, scaler):
    """Continue from a checkpoint if there is one -> (epochs done, batches done of the next, the sum of their losses, the values measured last)."""
    if not path.exists():
        return 0, 0, torch.zeros(()), {}
    state = read_own(path, identity)
    network.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    return state["epoch"], state["batches"], state["loss_sum"], state["values"]


def main(args):
    spec, command = data_spec(args), hash_json(vars(args) | {"dry_run": False})
    check_folders(args.real_data)
    check_tensorboard(args.tensorboard)
    folder = run_folder(args) / "teacher"
    if args.dry_run:
        if spec.name == "imagenet1k":
            return print_plan({"dataset": spec.name, "arch": args.arch}, epochs=0, bytes=0, note="nothing to train: IMAGENET1K_V1 weights are checked")
        network, stem = build_network(args.arch, spec.num_classes, args.stem or spec.stem, strict_stem=args.stem is not None)
        settings, record = make_settings(args, spec, stem), folder / "settings.json"
        deletes = planned_deletion(record, folder, "teacher", command) if args.overwrite else check_plan(record, settings)
        return print_plan(settings, epochs=args.epochs, output=str(folder), deletes=deletes,
                          bytes=3 * num_weight_bytes(network))  # the teacher, and a checkpoint with momentum
    if spec.name == "imagenet1k":
        return check_torchvision(args, spec)

    device, precision = start_device(args.device, args.precision, args.deterministic, compiled=args.compile)
    if args.warmup_epochs >= args.epochs:
        raise UserError(f"--warmup-epochs {args.warmup_epochs} is not below --epochs {args.epochs}")
    torch.manual_seed(args.seed)
    network, stem = build_network(args.arch, spec.num_classes, args.stem or spec.stem, strict_stem=args.stem is not None)
    check_input_size(network, args.arch, spec.size)
    train, val = read_real(spec, args.real_data, "train"), read_val(spec, args.real_data)
    claim(folder)
    if args.overwrite:
        start_afresh(folder / "settings.json", folder, "teacher", command)
    settings = make_settings(args, spec, stem, train, val, precision)
    keep_settings(folder / "settings.json", settings, command=command if args.overwrite else None)
    clear_leftovers(folder)
    train, note = keep_decoded(train, device)
    log = RunLog(folder.joinpath, vars(args), device)
    log.line(note)
    if world_size() > 1 and device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    elif world_size() > 1:
        log.line(f"on CPUs BatchNorm sees what one process has of a batch, {args.batch_size // world_size()} images: another teacher than one process trains")
    network.to(device, memory_format=memory_format_of(device))
    optimizer = make_sgd(network.parameters(), args.lr, args.momentum, args.weight_decay, device)
    scaler, statistics = make_scaler(precision, device), RunningStatistics(network)
    first, first_batch, loss_sum, values = load_state(folder / "checkpoint.pth", hash_json(settings), network, optimizer, scaler)
    check_agreement(first << 32 | first_batch,
                    f"{folder / 'checkpoint.pth'}: not all processes see the same checkpoint; the run folder must be one that all machines share")
    replica = replicate(network, device)
    if args.compile:
        replica = compile_network(replica, one_pass=world_size() == 1)
    log.line(f"{args.arch}, stem {stem}: {args.epochs - first} of {args.epochs} epochs left on {len(train)} images of {train.root}, {precision}"
             + (f"; continues after batch {first_batch} of epoch {first + 1}" if first_batch else ""))

    batches = Batches(len(train), args.batch_size, args.seed, args.epochs, first, first_batch)
    loader = load_batches(BatchDataset(train, spec.size, partial(draw_label_batch, spec, args.seed)), batches, args.workers, device, own_rows)
    bar = tqdm(total=len(batches), desc="squeeze", unit="batch", disable=None, leave=False)
    loss_sum = (loss_sum if rank() == 0 else torch.zeros(())).to(device)
    val, begin, timer = keep_on_device(val, device), time.monotonic(), SaveTimer(args.save_every_sec)

    def save(epoch, batches_done, loss_sum):
        """Let process 0 write what a run continues from."""
        state = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(), "epoch": epoch, "batches": batches_done, "loss_sum": loss_sum}
        if rank() == 0:
            facts = {"identity": hash_json(settings), "seed": args.seed}
            save_torch(folder / "checkpoint.pth", {**facts, "model": network.state_dict(), **state, "values": values})
        timer.saved()

    network.train()
    with finishing_steps():
        for batch, pixels, _ in loader:
            bar.update()
            seed_torch(args.seed, batch.epoch, batch.index, rank())
            if len(batch.rows) > 1:  # BatchNorm cannot train on a single image
                set_lr(optimizer, args.lr * lr_factor(batch.epoch, args.epochs, args.warmup_epochs))
                rows, weight = slice_of(len(batch.rows), rank(), world_size())
                labels = upload(torch.from_numpy(train.labels[batch.rows[rows]]), device)
                with autocast(precision, device):
                    logits = replica(show_batch(pixels, Mix(), spec.mean, spec.std, dtype_of(precision)))
                loss = F.cross_entropy(at_least_float32(logits), labels) * weight
                optimizer.zero_grad()
                scaler.scale(loss * world_size()).backward()  # averaged over the processes: the mean over the batch
                scaler.step(optimizer)
                scaler.update()
                loss_sum += loss.detach() * len(batch.rows)
            wish, ended = largest(2 * stop_requested() + timer.is_due()), batch.index == batches.per_epoch - 1
            if not (wish or ended):
                continue
            statistics.combine(divisor=world_size())
            total = sum_over_processes(loss_sum.clone())
            check_finite(total.item(), network, batch.epoch + 1, "--lr", precision)
            if not ended:
                save(batch.epoch, batch.index + 1, total)
                if wish > 1:
                    log.line(f"stopped and saved after batch {batch.index + 1} of {batches.per_epoch} of epoch {batch.epoch + 1}")
                    leave()
                continue

            epoch, last = batch.epoch + 1, batch.epoch + 1 == args.epochs
            values = {"epoch": epoch, "loss": round(total.item() / len(train), 5)}
            loss_sum.zero_()
            if last or epoch % args.eval_every == 0:
                values["top1"], values["top5"] = evaluate(network, val, spec.mean, spec.std, device, precision=precision)
            log.metrics(**values)
            log.line("  ".join(f"{key} {value}" for key, value in values.items()) + f"  {eta(epoch - first, args.epochs - first, begin)}")
            save(epoch, 0, loss_sum)
            if wish > 1 and not last:
                leave()
    bar.close()

    if rank() > 0:  # the first process writes
        return
    facts = {key: getattr(spec, key) for key in ("mean", "std", "size", "num_classes")}
    teacher = {"format": TEACHER_FORMAT, "arch": args.arch, "stem": stem, "class_names": train.class_names, "dataset": spec.name,
               "seed": args.seed, **facts, **values, "model": network.state_dict()}
    save_torch(folder / "teacher.pth", teacher)  # the same bytes, unless the file is damaged or another run's
    finish(folder / "settings.json")
    log.line(f"done: {folder / 'teacher.pth'}, top-1 {read_checkpoint(folder / 'teacher.pth')['top1']:.2f}% on {len(val)} images")


def get_args(argv=None):
    parser = Parser(__doc__)
    add_run_flags(parser)
    add_stage_flags(parser)
    add_tensorboard_flag(parser)
    add = parser.add_argument
    add("--seed", type=number(int, 0), default=0, help="of the first weights, the order and the crops")
    add("--real-data", "--val-dir", type=os.path.abspath, metavar="DIR", help="folder with train/ and val/ (digits: built in; CIFAR: downloaded if not given)")
    add("-a", "--arch", "--arch-name", default="resnet18", help="torchvision name of the network")
    add("--stem", choices=STEMS, help="first layers (default: the data set's, where the network can have them)")
    add("--epochs", type=number(int, 1), default=90)
    add("-b", "--batch-size", type=number(int, 2), default=256)
    add("--lr", type=number(float, above=0), default=0.1, help="learning rate of SGD, cosine to 0")
    add("--momentum", type=number(float, 0, 1), default=0.9)
    add("--weight-decay", type=number(float, 0), default=1e-4)
    add("--warmup-epochs", type=number(int, 0), default=0, help="epochs of linear warm-up from 0.01 of the rate")
    add("--precision", choices=PRECISIONS, help="of the network's layers (default: tf32 on a GPU that has it, else fp32)")
    add("--compile", action="store_true", help="torch.compile on a GPU: half a minute at the start, then faster (README)")
    add("--eval-every", type=number(int, 1), default=10, help="epochs between evaluations")
    add("--save-every-sec", type=number(float, 0), default=120.0, help="seconds between checkpoints within an epoch; each epoch ends with one")
    add("-j", "--workers", type=number(int, 0), default=4, help="threads that prepare batches, 0 = none")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
