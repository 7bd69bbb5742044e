"""Validate: train a student from images and stored labels alone, and measure it on real images.

Run: python -m validate.train --dataset digits      (or sh train.sh digits)
Time: digits, 60 epochs of 100 images, about 45 s on two CPU cores. GPUS=4 sh train.sh takes four GPUs.
Result: runs/<name>/student_<model>/results.json with the whole protocol, and a checkpoint for each seed.
"""
import os
import time
from dataclasses import replace
from itertools import islice

import torch
from tqdm import tqdm

from relabel.recipe import add_teacher_flags
from sre2l.data.flags import add_stage_flags, data_spec
from sre2l.data.loader import micro_batches
from sre2l.nets import parallel, training
from sre2l.nets.evaluation import describe_chance, evaluate, keep_on_device
from sre2l.nets.models import build_for_training
from sre2l.nets.precision import PRECISIONS, autocast, start_device
from sre2l.run import processes, signals
from sre2l.run.device import upload
from sre2l.run.files import hash_json
from sre2l.run.flags import Parser, check_folders, network_name, number, number_list
from sre2l.run.log import eta
from sre2l.run.output import OutputFolder, check_dataset
from sre2l.run.paths import run_folder, student_name
from sre2l.run.start import run_script
from validate import checks, losses, results
from validate.data import find_data, load_stored_batches
from validate.deviations import TakeProtocol, fill_in, find_deviations
from validate.draws import temperature_at
from validate.evaluate import evaluate_checkpoint
from validate.protocol import add_protocol_flags, check_protocol, learning_rate, make_settings
from validate.published import PROTOCOLS
from validate.student import load_student, save_student

LOG_SEC = 30  # between lines of a training that is not measured
CHANCE_CAUSES = "too few epochs, a learning rate that is too large, or images that show nothing"


def train_student(args, data, folder, settings, seed, log, device, precision):
    """Train a student with one seed -> its history: {epoch, loss, lr} of each epoch, top1, top5 of some."""
    # Where the last checkpoint left off.
    spec = data.spec
    path = folder.path(f"seed{seed}/checkpoint.pth")
    student = load_student(args, spec, path, seed, hash_json([settings, seed]), device, precision)
    first = len(student.history)
    if first:
        log.line(f"seed {seed}: {'is done' if first == args.epochs else 'continues'} after epoch {first}")

    # What of the protocol is the same in every step.
    network = student.network
    one_pass = args.gradient_accumulation_steps == processes.world_size() == 1
    forward = training.compile_network(network, one_pass) if args.compile else network
    micro_size = data.labels.batch_size // args.gradient_accumulation_steps
    # Crops, mix and the teacher's logits are those that relabel stored, but for the hard phase of HALD.
    batches = load_stored_batches(args, data, first, device, seed)
    batches = iter(tqdm(batches, f"seed {seed}", total=(args.epochs - first) * data.batches_per_epoch,
                        unit="batch", disable=None, leave=False))
    begin = saved = logged = time.monotonic()

    for epoch in range(first, args.epochs):
        lr = learning_rate(args, epoch)
        training.set_lr(student.optimizer, lr)
        network.train()
        temperature = temperature_at(args, epoch)
        # On the device: to read it in every step would make the host wait for the GPU.
        loss_sum = torch.zeros((), device=device)  # over the images of this process
        seen = 0

        for batch, pixels, labels in islice(batches, data.batches_per_epoch):
            if signals.stop_requested():
                log.line(f"seed {seed}: stopped; the same command continues after the last saved epoch")
                signals.leave()

            # Every process mixes the whole batch, since the partners of a micro-batch lie in others.
            classes = data.images.labels[batch.rows]
            images, targets = losses.mix_and_targets(args, spec, classes, pixels, labels, temperature,
                                                     precision)
            own = upload(torch.from_numpy(classes), device)

            # Micro-batch k is process k mod N's. The gradient is the whole batch's, however it is cut.
            student.optimizer.zero_grad()
            batch_loss = torch.zeros((), device=device)
            for k, rows in enumerate(micro_batches(len(batch.rows), micro_size)):
                if k % processes.world_size() != processes.rank():
                    continue
                training.seed_torch(seed, epoch, batch.index, k)  # dropout is the same in whichever process
                with autocast(precision, device):
                    outputs = forward(images[rows])
                outputs = training.at_least_float32(outputs)
                loss = losses.student_loss(args, outputs, targets[rows], own[rows], temperature,
                                           is_hard=labels.logits is None)
                loss = loss * ((rows.stop - rows.start) / len(batch.rows))  # its part of the batch's mean
                student.scaler.scale(loss).backward()
                batch_loss += loss.detach()

            # One step a batch, however many micro-batches and processes it was cut into.
            loss_sum += batch_loss * len(batch.rows)
            seen += len(batch.rows)
            parallel.sum_gradients(network)
            student.scaler.step(student.optimizer)
            student.scaler.update()
            student.update_average(args.ema)

        # Measure and save. Nothing of an epoch that is not finite is saved.
        parallel.average_running_statistics(network)
        mean_loss = processes.sum_over_processes(loss_sum).item() / seen
        lr_flag = "-lr" if args.sgd else "--adamw-lr"
        training.check_finite(mean_loss, network, epoch + 1, lr_flag, precision)
        values = {"epoch": epoch + 1, "loss": round(mean_loss, 6), "lr": lr}
        is_last = epoch + 1 == args.epochs
        measured = ""
        if is_last or (epoch + 1) % args.eval_every == 0:
            with student.averaged():
                top1, top5 = evaluate(network, data.val, spec.mean, spec.std, device, precision=precision)
            values |= {"top1": top1, "top5": top5}
            measured = f"top1 {top1:.2f}%  top5 {top5:.2f}%  "
        if measured or time.monotonic() - logged >= LOG_SEC:
            log.line(f"seed {seed}  epoch {epoch + 1}/{args.epochs}  loss {values['loss']:.4f}  {measured}"
                     f"{eta(epoch + 1 - first, args.epochs - first, begin)}")
            logged = time.monotonic()
        student.history.append(values)
        log.metrics(seed=seed, **values)
        if is_last or signals.stop_requested() or time.monotonic() - saved >= training.CHECKPOINT_SEC:
            save_student(student, path, is_last)
            saved = time.monotonic()
    return student.history


def choose_folders(args, run):
    """Fill in what the user has left out: the student and the folders of a run."""
    args.model = args.model or "resnet18"
    args.train_dir = args.train_dir or str(run / "images")
    args.fkd_path = args.fkd_path or str(run / "labels")
    name = student_name(args.model) + "_hard" * args.hard_labels
    args.output_dir = args.output_dir or str(run / name)


def main(args):
    # Plan: what a flag can get wrong is refused before anything is loaded.
    spec = data_spec(args)
    if args.evaluate and not args.dry_run:
        return evaluate_checkpoint(args, spec)
    run = run_folder(args)
    check_folders(args.train_dir, args.fkd_path)
    choose_folders(args, run)
    checks.check_output(args)
    check_dataset(args.train_dir, spec.name)
    check_dataset(args.fkd_path, spec.name)
    fill_in(args, spec)
    check_protocol(args)
    folder = OutputFolder(args.output_dir, "student", args.overwrite, vars(get_args([])))
    if args.dry_run:
        return checks.dry_run(args, spec, folder)

    # Prepare: see that images, labels and student fit together. Nothing is written yet.
    device, precision = start_device(args.device, args.precision, args.deterministic, compiled=args.compile)
    processes.start(device)
    _, stem = build_for_training(spec, args.model, args.stem)
    # Size and normalisation come from the labels' manifest: the student sees the teacher's pixels.
    data = find_data(args, spec, device, precision)
    settings = make_settings(args, data.spec, stem, data.facts, data.val, precision)
    data = replace(data, val=keep_on_device(data.val, device))

    # Begin: this run becomes the only writer of its seeds; another protocol in the folder is refused.
    folder.begin(settings, [(seed, seed + 1) for seed in args.seeds])
    log = folder.open_log(args, device)
    labels = data.labels
    for note in data.notes:
        log.line(note)
    log.line(f"{args.model}: {args.epochs} epochs of {labels.num_images} images, batch {labels.batch_size}, "
             f"{precision}, measured on {len(data.val)} images of {data.val.root}"
             + f"; top1 is that of the averaged weights (--ema {args.ema:g})" * (args.ema > 0))
    deviations = find_deviations(args, spec, data.facts) if args.protocol else []
    for deviation in deviations:
        log.line(f"--protocol {args.protocol}: {deviation}")

    # Train a student for each seed. The first of several processes reports.
    rows = {}
    for seed in args.seeds:
        with signals.finishing_steps():
            history = train_student(args, data, folder, settings, seed, log, device, precision)
        row = rows[seed] = results.summarise(history)
        if processes.rank() == 0:
            num_bytes = {"image_bytes": data.facts["image_bytes"], "label_bytes": labels.num_bytes}
            with folder.lock.moment():  # other seeds may train beside these, and add theirs
                written = results.write_results(args, settings, rows, num_bytes, device, deviations)
            warning = describe_chance(row["top1"], data.spec.num_classes, len(data.val), CHANCE_CAUSES)
            log.line(f"seed {seed}: last top1 {row['top1']:.2f}%  top5 {row['top5']:.2f}%   "
                     f"(best top1 {row['best_top1']:.2f}% at epoch {row['best_epoch']}){warning}")

    # Finish with a page about the whole run.
    if processes.rank() == 0:
        log.line(results.write_page(run, folder.root))
        log.line(f"done: top1 {results.describe_top1(written)}, {folder.path('results.json')}")


def make_parser():
    parser = Parser(__doc__)
    add_stage_flags(parser, "validate", tensorboard=True, val=True)
    add = parser.add_argument
    # Where things are.
    add("--train-dir", type=os.path.abspath, metavar="DIR",
        help="folder of images (default: runs/<name>/images)")
    add("--fkd-path", type=os.path.abspath, metavar="DIR",
        help="their label files, ours or published (default: runs/<name>/labels)")
    add("--output-dir", type=os.path.abspath, metavar="DIR",
        help="where results go (default: runs/<name>/student_<model>)")

    # The student, and the labels that it learns from.
    add("--model", type=network_name, metavar="ARCH",
        help="the student: torchvision's name, a small one's, PATH.py:function (docs/networks.md; default: "
             "resnet18)")
    add("--classes", type=number_list, metavar="0-9,17",
        help="the classes of the set (default: what recover recorded, else all)")
    add("--batch-size", type=number(int, 1), help="checked against the labels (default: theirs)")

    add_teacher_flags(add)

    # The loss and the step.
    add("--protocol", action=TakeProtocol, choices=PROTOCOLS,
        help="a published protocol: it replaces what stands before it, and flags after it win; prints how "
             "this run deviates from it")
    add_protocol_flags(add)
    add("--hard-labels", action="store_true",
        help="control: classes instead of the teacher's logits, from the same label files")

    # Repetitions, and what has to be that of the labels.
    add("--seeds", type=number_list, default=[0], metavar="0-2", help="a student for each of these seeds")
    add("--fkd-seed", "--fkd_seed", type=number(int, 0), default=42,
        help="seed of the order in which the labels were made")
    add("--mix-type", choices=("cutmix", "mixup", "none"),
        help="checked against the labels (default: theirs)")

    # How it computes, and what it tells meanwhile.
    add("--precision", choices=PRECISIONS,
        help="of the student's layers (default: tf32 on a GPU that has it, else fp32)")
    add("--compile", action="store_true",
        help="torch.compile on a GPU: half a minute at the start, then faster (docs/speed.md)")
    add("--eval-every", type=number(int, 1), default=10, help="epochs between evaluations")
    add("--evaluate", type=os.path.abspath, metavar="CHECKPOINT",
        help="measure the network in this checkpoint and stop")
    add("-j", "--workers", type=number(int, 0), default=4, help="threads that prepare batches, 0 = none")
    return parser


def get_args(argv=None):
    return make_parser().parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
