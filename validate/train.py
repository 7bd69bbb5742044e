"""Validate: train a student from images and stored labels alone, and measure it on real images.

Run: python -m validate.train --dataset digits      (or sh train.sh digits)
Time: digits, 60 epochs of 100 images, about 45 s on two CPU cores. GPUS=4 sh train.sh trains one student on four GPUs.
Result: runs/<name>/student_<model>/results.json, which names the whole protocol, and a checkpoint for each seed.
"""
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from sre2l.data.augment import show_batch
from sre2l.data.loader import BatchDataset, Batches, load_batches
from sre2l.run.claims import claim
from sre2l.data.datasets import STEMS
from sre2l.run.processes import check_agreement, largest, rank, sum_over_processes, world_size
from sre2l.run.files import sidecar, clear_leftovers, hash_json, save_torch
from sre2l.data.flags import add_run_flags, add_stage_flags, add_tensorboard_flag, add_val_flag, data_spec, override
from sre2l.run.flags import Parser, add_dead_flags, check_folders, number, number_list
from sre2l.run.signals import SaveTimer, finishing_steps, leave, stop_requested
from sre2l.data.label_files import read_label_batch
from sre2l.check.manifest import manifest_of, read_hashes
from sre2l.nets.models import TEACHER_FORMAT, build_network, num_weight_bytes
from sre2l.nets.parallel import RunningStatistics, replicate
from sre2l.nets.precision import PRECISIONS, dtype_of, memory_format_of
from sre2l.data.real_images import read_val
from sre2l.run.device import versions
from sre2l.run.log import RunLog, eta, print_plan
from sre2l.run.paths import run_folder
from sre2l.run.start import run_script
from sre2l.run.tensorboard import check_tensorboard
from sre2l.run.settings import check_dataset, check_plan, finish, keep_settings, planned_deletion, recorded, start_afresh
from sre2l.data.pixel_store import keep_decoded
from sre2l.nets.training import (autocast, check_finite, compile_network, evaluate, keep_on_device, lr_factor, make_scaler, seed_torch, set_lr,
                            start_device, upload)
from sre2l.check.verify import read_checked, verify_images, verify_labels
from validate.checks import check_epochs, check_labels, check_student, check_there, describe_labels
from validate.evaluate import evaluate_checkpoint
from validate.losses import backward_in_micro_batches, distillation_loss, hard_targets, soft_targets
from validate.protocol import make_optimizer, make_settings, restore
from report.page import report_in_words
from validate.results import summarise, write_results
from validate.shares import share_of


def stored_label_batch(root, num_classes, hashes, batch, sizes):
    """What relabel stored for a batch."""
    return read_label_batch(root, batch.epoch, batch.index, len(sizes), num_classes, hashes)


def mixed_and_targets(args, spec, classes, pixels, sheet, share, precision):
    """What a process trains on: its own rows of a batch, mixed over the whole batch, and their targets. pixels (n, 3, S, S) uint8: those of
    share.rows; classes (m,): of the whole batch."""
    device = pixels.device
    mix = share.mix if share.mix.partner is None else replace(share.mix, partner=upload(share.mix.partner, device))
    mixed = show_batch(pixels, mix, spec.mean, spec.std, dtype_of(precision))[:len(share.own)]
    if not args.hard_labels:
        return mixed, soft_targets(upload(sheet.logits[share.own], device), args.temperature)
    return mixed, upload(hard_targets(torch.from_numpy(classes), sheet.mix, spec.num_classes, spec.size)[share.own], device)


def start_micro_batch(statistics, seed, batch, number, gap):
    """Before a micro-batch: the others that lie between count for the running statistics; dropout depends on its number alone."""
    statistics.skip(gap)
    seed_torch(seed, batch.epoch, batch.index, number)


def train_student(args, spec, settings, images, val, info, seed, log, device, precision):
    """One student with one seed -> its history: {epoch, loss, lr} of every epoch, with top1 and top5 where they were measured."""
    torch.manual_seed(seed)
    network, stem = build_network(args.model, spec.num_classes, args.stem or spec.stem, strict_stem=args.stem is not None)
    network.to(device, memory_format=memory_format_of(device))
    optimizer, scaler, statistics = make_optimizer(network, args, device), make_scaler(precision, device), RunningStatistics(network)
    checkpoint, identity = Path(args.output_dir) / f"seed{seed}" / "checkpoint.pth", hash_json([settings, seed])
    first, first_batch, loss_before, history = restore(checkpoint, identity, network, optimizer, scaler)
    scaler.scale(torch.zeros((), device=device))  # a process without a row in the first batch has to know the scale as well
    check_agreement(first << 32 | first_batch, f"{checkpoint}: not all processes see the same checkpoint; the run folder must be one that all machines share")
    replica = replicate(network, device)
    if args.compile:
        replica = compile_network(replica, one_pass=args.gradient_accumulation_steps == world_size() == 1)
    facts = {"format": TEACHER_FORMAT, "arch": args.model, "stem": stem, "num_classes": spec.num_classes, "mean": spec.mean,
             "std": spec.std, "size": spec.size, "dataset": spec.name, "seed": seed, "identity": identity}
    base_lr, lr_flag = (args.learning_rate, "-lr") if args.sgd else (args.adamw_lr, "--adamw-lr")
    loss_of = F.cross_entropy if args.hard_labels else partial(distillation_loss, temperature=args.temperature, times_t2=args.kl_t2)
    share_in = partial(share_of, micro_size=info.batch_size // args.gradient_accumulation_steps, rank=rank(), world=world_size())
    rows_of = (lambda batch, sheet: share_in(len(batch.rows), sheet.mix).rows) if world_size() > 1 else None

    hashes = read_hashes(args.fkd_path) if manifest_of(args.fkd_path) else None
    label_batch_of = partial(stored_label_batch, args.fkd_path, spec.num_classes, hashes)
    batches = Batches(info.num_images, info.batch_size, args.fkd_seed, args.epochs, first, first_batch)
    stream = load_batches(BatchDataset(images, spec.size, label_batch_of), batches, args.workers, device, rows_of)
    begin, timer = time.monotonic(), SaveTimer(args.save_every_sec)
    if first or first_batch:
        done = f"batch {first_batch} of {batches.per_epoch} of epoch {first + 1}" if first_batch else f"epoch {first}"
        log.line(f"seed {seed}: {'is done' if first == args.epochs else 'continues'} after {done}")

    def save(values, ended):
        """Let process 0 write what a run continues from; a finished run keeps no optimiser."""
        state = {} if ended else {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
        if rank() == 0:
            save_torch(checkpoint, {**facts, **values, "history": history, "model": network.state_dict(), **state})
        timer.saved()

    with finishing_steps():
        for epoch in range(first, args.epochs):
            lr = base_lr * lr_factor(epoch, args.epochs, args.warmup_epochs)
            set_lr(optimizer, lr)
            network.train()
            statistics.split()
            loss_sum = (loss_before if epoch == first and rank() == 0 else torch.zeros(())).to(device)
            for index in range(first_batch if epoch == first else 0, batches.per_epoch):
                batch, pixels, sheet = next(stream)
                share = share_in(len(batch.rows), sheet.mix)
                mixed, targets = mixed_and_targets(args, spec, images.labels[batch.rows], pixels, sheet, share, precision)
                optimizer.zero_grad()
                before = partial(start_micro_batch, statistics, seed, batch)
                loss = backward_in_micro_batches(replica, loss_of, mixed, targets, share, scaler.scale, before, partial(autocast, precision, device))
                loss_sum = loss_sum + loss * len(batch.rows)
                statistics.skip(share.gaps[-1])
                scaler.step(optimizer)
                scaler.update()
                if wish := largest(2 * stop_requested() + timer.is_due()):
                    statistics.combine()
                    total = sum_over_processes(loss_sum.clone())
                    check_finite(total.item(), network, epoch + 1, lr_flag, precision)
                    save({"epoch": epoch, "batches": index + 1, "loss_sum": total}, ended=False)
                    statistics.split()
                    if wish > 1:
                        log.line(f"seed {seed}: stopped and saved after batch {index + 1} of {batches.per_epoch} of epoch {epoch + 1}")
                        leave()

            statistics.combine()
            mean_loss = sum_over_processes(loss_sum).item() / info.num_images
            check_finite(mean_loss, network, epoch + 1, lr_flag, precision)
            values = {"epoch": epoch + 1, "loss": round(mean_loss, 6), "lr": lr}
            last = epoch + 1 == args.epochs
            if last or (epoch + 1) % args.eval_every == 0:
                values["top1"], values["top5"] = evaluate(network, val, spec.mean, spec.std, device, precision=precision)
                log.line(f"seed {seed}  epoch {epoch + 1}/{args.epochs}  loss {values['loss']:.4f}  top1 {values['top1']:.2f}%  "
                         f"top5 {values['top5']:.2f}%  {eta(epoch + 1 - first, args.epochs - first, begin)}")
            history.append(values)
            log.metrics(seed=seed, **values)
            if last or timer.is_due():
                save(values, ended=last)
    return history


def main(args):
    spec, run, command = data_spec(args), run_folder(args), hash_json(vars(args) | {"dry_run": False})
    if args.evaluate and not args.dry_run:
        return evaluate_checkpoint(args, spec)
    check_folders(args.train_dir, args.fkd_path, args.val_dir)
    check_tensorboard(args.tensorboard)
    args.model = args.model or "resnet18"
    args.train_dir, args.fkd_path = args.train_dir or str(run / "images"), args.fkd_path or str(run / "labels")
    args.output_dir = args.output_dir or str(run / f"student_{args.model}{'_hard' if args.hard_labels else ''}")
    for root in (args.train_dir, args.fkd_path):
        check_dataset(root, spec.name)
    if args.dry_run:
        network, stem = build_network(args.model, spec.num_classes, args.stem or spec.stem, strict_stem=args.stem is not None)
        check_epochs(args, recorded(sidecar(args.fkd_path, "manifest.json"), "epochs"))
        settings, record = make_settings(args, spec, stem), Path(args.output_dir) / "settings.json"
        deletes = planned_deletion(record, args.output_dir, "student", command) if args.overwrite else check_plan(record, settings)
        return print_plan(settings, epochs=args.epochs * len(args.seeds), seeds=args.seeds, output=args.output_dir, deletes=deletes,
                          bytes=num_weight_bytes(network) * len(args.seeds))

    device, precision = start_device(args.device, args.precision, args.deterministic, compiled=args.compile)
    check_there(args.train_dir, args.fkd_path)
    stem = check_student(args, spec)
    images = read_checked(verify_images(args.train_dir, spec.num_classes, args.classes))
    read_checked(verify_labels(args.fkd_path, args.epochs))
    info, manifest, notes = check_labels(args, spec, images)
    described = describe_labels(args, info, manifest, images)
    if manifest:
        spec = override(spec, args, mean=tuple(manifest["mean"]), std=tuple(manifest["std"]), size=manifest["input_size"])
    val = read_val(spec, args.val_dir, described["classes"], manifest and manifest["teacher_classes"])
    folder = Path(args.output_dir)
    claim(folder)
    images, note = keep_decoded(images, device, run, described["images_sha256"])  # one that cannot be read leaves nothing behind
    if args.overwrite:
        start_afresh(folder / "settings.json", folder, "student", command)
    settings = make_settings(args, spec, stem, described, val, precision)
    keep_settings(folder / "settings.json", settings, command=command if args.overwrite else None)
    clear_leftovers(folder, *(folder / f"seed{seed}" for seed in args.seeds))
    log = RunLog(folder.joinpath, vars(args), device)
    start = f"{args.model}: {args.epochs} epochs of {info.num_images} images, batch {info.batch_size}, {precision}, measured on {len(val)} images of {val.root}"
    log.line("\n".join((*notes, note, start)))

    val, rows = keep_on_device(val, device), {}
    for seed in args.seeds:
        row = rows[seed] = summarise(train_student(args, spec, settings, images, val, info, seed, log, device, precision))
        if rank() > 0:  # the first process reports
            continue
        results = write_results(args, settings, rows, described["image_bytes"], info.num_bytes, versions(device))
        log.line(f"seed {seed}: last top1 {row['top1']:.2f}%  top5 {row['top5']:.2f}%   (best top1 {row['best_top1']:.2f}% at epoch {row['best_epoch']})")
    if rank() > 0:
        return
    log.line(report_in_words(run, folder))
    finish(folder / "settings.json")
    mean, std = results["top1"]["mean"], results["top1"]["std"]
    log.line(f"done: top1 {mean:.2f}%" + (f" +- {std:.2f} over {len(results['seeds'])} seeds" if std is not None else "") + f", {folder / 'results.json'}")


def get_args(argv=None):
    parser = Parser(__doc__)
    add_run_flags(parser)
    add_stage_flags(parser)
    add_tensorboard_flag(parser)
    add_val_flag(parser)
    add = parser.add_argument
    add("--train-dir", type=os.path.abspath, metavar="DIR", help="folder of images (default: runs/<name>/images)")
    add("--fkd-path", type=os.path.abspath, metavar="DIR", help="their label files, ours or published (default: runs/<name>/labels)")
    add("--output-dir", type=os.path.abspath, metavar="DIR", help="where results go (default: runs/<name>/student_<model>)")
    add("--model", metavar="ARCH", help="torchvision name of the student (default: resnet18)")
    add("--stem", choices=STEMS, help="first layers (default: the data set's, where the network can have them)")
    add("--classes", type=number_list, metavar="0-9,17", help="the classes of the set (default: what recover recorded, else all)")
    add("--epochs", type=number(int, 1), default=300, help="not more than the labels have")
    add("--batch-size", type=number(int, 1), help="checked against the labels (default: theirs)")
    add("--gradient-accumulation-steps", type=number(int, 1), default=2, help="micro-batches of a batch; BatchNorm sees one at a time")
    add("-T", "--temperature", type=number(float, above=0), default=20.0)
    add("--kl-t2", action="store_true", help="multiply the loss by T^2")
    add("--hard-labels", action="store_true", help="control: classes instead of the teacher's logits, from the same label files")
    add("--sgd", action="store_true", help="SGD instead of AdamW")
    add("-lr", "--learning-rate", type=number(float, above=0), default=0.2, help="of SGD")
    add("--momentum", type=number(float, 0, 1), default=0.9, help="of SGD")
    add("--weight-decay", type=number(float, 0), default=1e-4, help="of SGD")
    add("--adamw-lr", type=number(float, above=0), default=1e-3)
    add("--adamw-weight-decay", type=number(float, 0), default=0.01)
    add("--decay-all", action="store_true", help="weight decay on all parameters, not on weight matrices alone")
    add("--warmup-epochs", type=number(int, 0), default=0, help="epochs of linear warm-up from 0.01 of the rate")
    add("--seeds", type=number_list, default=[0], metavar="0-2", help="a student for each of these seeds")
    add("--fkd-seed", "--fkd_seed", type=number(int, 0), default=42, help="seed of the order in which the labels were made")
    add("--mix-type", choices=("cutmix", "mixup", "none"), help="checked against the labels (default: theirs)")
    add("--precision", choices=PRECISIONS, help="of the student's layers (default: tf32 on a GPU that has it, else fp32)")
    add("--compile", action="store_true", help="torch.compile on a GPU: half a minute at the start, then faster (README)")
    add("--eval-every", type=number(int, 1), default=10, help="epochs between evaluations")
    add("--save-every-sec", type=number(float, 0), default=120.0, help="seconds between checkpoints")
    add("--evaluate", type=os.path.abspath, metavar="CHECKPOINT", help="measure the network in this checkpoint and stop")
    add("-j", "--workers", type=number(int, 0), default=4, help="threads that prepare batches, 0 = none")
    add_dead_flags(parser, "validate")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
