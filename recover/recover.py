"""Recover: optimise noise until the teacher's BatchNorm statistics and class predictions match, and write the images.

Run: python -m recover.recover --dataset digits      (or sh recover.sh digits)
Time: digits, 100 images, about 80 s on two CPU cores; ImageNet-1K, IPC 50, was published at 29 h on one RTX 4090.
Result: runs/<name>/images/new000/class000_id000.jpg ..., and beside the folder its manifest, log, metrics and contact sheet.
"""
import math
import os
import shutil
import time
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from recover.objective import PlainEngine, Weights, draw_view, statistics_layers
from recover.pictures import animate, contact_sheet, save_snapshot
from recover.units import make_units
from sre2l.flags import Parser, add_dead_flags, add_run_flags, add_stage_flags, add_teacher_flags, check_folders, data_spec, number
from sre2l.images import image_path, save_jpeg
from sre2l.models import load_teacher
from sre2l.runtime import (RunLog, UserError, atomic, beside, claim, eta, pick_device, print_plan, refuse_unclaimed, run_folder,
                           run_script, unit_rng)
from sre2l.teacher import check_top1, find_teacher

BETAS, EPS = (0.5, 0.9), 1e-8  # of Adam


def to_pixels(images, mean, std):
    """Normalised (B, 3, S, S) -> (B, S, S, 3) uint8: de-normalise, clamp to [0, 1], times 255, truncate (not round), as published."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (mean, std))
    return (images * std + mean).clamp(0, 1).mul(255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def optimise(engine, targets, args, spec, rng, watch):
    """One unit: noise -> T steps of Adam -> the last iterate. targets (B,) -> images (B, 3, S, S), normalised.

    watch(iteration, images, terms) is called after the loss of each iteration, before its step."""
    device = targets.device
    low, high = (torch.tensor([(edge - m) / s for m, s in zip(spec.mean, spec.std)], device=device).view(3, 1, 1) for edge in (0, 1))
    noise = rng.standard_normal((len(targets), 3, spec.size, spec.size), dtype="float32")
    images = torch.from_numpy(noise).to(device)
    optimizer = torch.optim.Adam([images], lr=args.lr, betas=BETAS, eps=EPS)

    for iteration in range(args.iteration):
        optimizer.param_groups[0]["lr"] = args.lr * (1 + math.cos(math.pi * iteration / args.iteration)) / 2
        view = draw_view(spec.size, args.jitter, args.signed_jitter, not args.no_crop_flip, rng)
        terms, images.grad = engine.loss_and_gradient(images, targets, view)
        watch(iteration, images, terms)
        optimizer.step()
        images.clamp_(low, high)
    return images


@torch.inference_mode()
def verifier_top1(verifier, images, targets):
    """The share in percent of images that a second network puts into their class."""
    return round(100 * (verifier.network(images).argmax(1) == targets).float().mean().item(), 2)


def make_watch(log, bar, unit, args, targets, verifier, snapshot):
    """The observer of one unit: progress bar, a log and metrics line every --print-period iterations, snapshots."""
    start, period = time.monotonic(), args.print_period or max(1, args.iteration // 40)

    def watch(iteration, images, terms):
        bar.update()
        if snapshot and iteration % args.snapshot_every == 0:
            snapshot(images, iteration)
        if iteration % period and iteration != args.iteration - 1:
            return
        values = {key: round(getattr(terms, key).item(), 6) for key in ("ce", "bn", "tv", "l2")}  # syncs the GPU
        if verifier:
            values["verifier_top1"] = verifier_top1(verifier, images, targets)
        priors = args.tv_l2 * values["tv"] + args.l2_scale * values["l2"]
        log.metrics(unit=unit.index, iteration=iteration, **values, r_bn_bn=round(args.r_bn * values["bn"], 6), priors=round(priors, 6))
        log.line(f"unit {unit.index}  iteration {iteration:5d}/{args.iteration}  ce {values['ce']:8.4f}  r_bn*bn {args.r_bn * values['bn']:9.4f}"
                 f"  priors {priors:8.4f}" + (f"  verifier {values['verifier_top1']:6.2f}%" if verifier else "")
                 + f"  {eta(iteration, args.iteration - 1, start)}")
    return watch


def missing_pairs(root, unit, wanted, num_classes):
    """The wanted (ipc, class) pairs of a unit whose images are not there yet."""
    return {(ipc, label) for ipc, label in unit.pairs if (ipc, label) in wanted and not image_path(root, label, ipc, num_classes).exists()}


def write_images(root, unit, pixels, wanted, num_classes):
    """Write the wanted pairs of a unit, each file whole or not at all."""
    for (ipc, label), image in zip(unit.pairs, pixels):
        if (ipc, label) in wanted:
            with atomic(image_path(root, label, ipc, num_classes), root) as tmp:
                save_jpeg(image, tmp)


def make_settings(args, spec, classes, teacher):
    """What an image depends on. The IPC range, device, logging and verifier are not among it."""
    keys = ("dataset", "batch_size", "iteration", "lr", "jitter", "signed_jitter", "no_crop_flip", "r_bn", "first_bn_multiplier",
            "tv_l2", "l2_scale", "seed")
    settings = {key: getattr(args, key) for key in keys}
    described = teacher.describe() if teacher else {"arch": args.arch or "resnet18", "file": args.teacher}
    return {**settings, "size": spec.size, "classes": classes, "teacher": described}


def load_verifier(args, spec, device):
    """The second network, only where one is asked for: --verifier [ARCH], weights from --verifier-arch-path or torchvision."""
    if args.verifier is None and args.verifier_arch is None and args.verifier_arch_path is None:
        return None
    if args.verifier_arch_path is None and args.dataset != "imagenet1k":
        raise UserError(f"--verifier: torchvision has no weights for {args.dataset}; give --verifier-arch-path FILE")
    verifier = load_teacher(spec, args.verifier_arch_path, args.verifier or args.verifier_arch, default_arch="mobilenet_v2")
    if (verifier.mean, verifier.std) != (spec.mean, spec.std):
        raise UserError(f"--verifier {verifier.arch}: its normalisation {verifier.mean}, {verifier.std} is not the teacher's {spec.mean}, {spec.std}")
    verifier.network.to(device)
    return verifier


def check_args(args, spec):
    """Ranges that one flag alone does not tell -> the list of classes."""
    classes = args.classes or list(range(spec.num_classes))
    if classes[-1] >= spec.num_classes:
        raise UserError(f"--classes: class {classes[-1]} is out of range, {args.dataset} has {spec.num_classes} (0-{spec.num_classes - 1})")
    if args.ipc_start >= args.ipc_end:
        raise UserError(f"--ipc-start {args.ipc_start} is not below --ipc-end {args.ipc_end}")
    if args.jitter > spec.size:
        raise UserError(f"--jitter {args.jitter} is more than the image size, {spec.size} pixels")
    return classes


def main(args):
    spec = data_spec(args)
    check_folders(args.val_dir)
    classes = check_args(args, spec)
    root = Path(args.syn_data_path or run_folder(args)) / args.exp_name
    units = make_units(classes, args.batch_size, args.ipc_start, args.ipc_end)
    wanted = {(ipc, label) for ipc in range(args.ipc_start, args.ipc_end) for label in classes}
    if args.dry_run:
        size = len(wanted) * (620 + spec.size ** 2 // 3)  # a JPEG's header, and about a third of a byte for each noise-like pixel
        return print_plan(make_settings(args, spec, classes, None), images=len(wanted), units=len(units),
                          images_computed=sum(len(unit.pairs) for unit in units), bytes=size, output=str(root))

    device = pick_device(args.device)
    teacher, spec = find_teacher(args, spec)
    if not statistics_layers(teacher.network):
        raise UserError(f"{teacher.arch} has no BatchNorm layer with running statistics, so there is nothing to match; "
                        f"choose a teacher with BatchNorm, such as resnet18")
    teacher.network.to(device)
    verifier = load_verifier(args, spec, device)
    check_top1(teacher, spec, args, device)
    settings = make_settings(args, spec, classes, teacher)
    refuse_unclaimed(root)
    claim(beside(root, "manifest.json"), settings)
    log = RunLog(partial(beside, root), vars(args), device)
    num_left = sum(bool(missing_pairs(root, unit, wanted, spec.num_classes)) for unit in units)
    log.line(f"{len(wanted)} images in batches of {args.batch_size}: {len(units)} in all, {num_left} left to do -> {root}")
    engine = PlainEngine(teacher.network, Weights(args.r_bn, args.first_bn_multiplier, args.tv_l2, args.l2_scale))
    first = f"unit{units[0].index}." if units[0].index else ""  # another range beside this one has a first batch of its own
    snapshots = beside(root, f"{first}snapshots")

    for unit in units:
        missing = missing_pairs(root, unit, wanted, spec.num_classes)
        if not missing:
            continue
        targets = torch.tensor([label for _, label in unit.pairs], device=device)

        def snapshot(images, iteration):
            save_snapshot(to_pixels(images, spec.mean, spec.std), snapshots, iteration)

        take_snapshots = snapshot if args.snapshot_every and unit is units[0] else None
        if take_snapshots:
            shutil.rmtree(snapshots, ignore_errors=True)
        with tqdm(total=args.iteration, desc=f"unit {unit.index}", disable=None, leave=False) as bar:
            watch = make_watch(log, bar, unit, args, targets, verifier, take_snapshots)
            images = optimise(engine, targets, args, spec, unit_rng(args.seed, unit.index), watch)
        if take_snapshots:
            snapshot(images, args.iteration)
            animate(snapshots, beside(root, f"{first}gif"))
        write_images(root, unit, to_pixels(images, spec.mean, spec.std), missing, spec.num_classes)
        final = {"verifier_top1": verifier_top1(verifier, images, targets)} if verifier else {}
        log.metrics(unit=unit.index, images=len(missing), **final)
        log.line(f"unit {unit.index}: {len(missing)} images written" + "".join(f", {k} {v}%" for k, v in final.items()))

    contact_sheet(root, beside(root, "png"))
    log.line(f"done: {len(wanted)} images in {root}, contact sheet {beside(root, 'png')}")


def get_args(argv=None):
    parser = Parser(__doc__)
    add_run_flags(parser)
    add_stage_flags(parser)
    add_teacher_flags(parser)
    add = parser.add_argument
    add("--seed", type=number(int, 0), default=0, help="of noise, crops and rolls")
    add("--iteration", type=number(int, 1), default=4000, help="steps of Adam")
    add("--batch-size", type=number(int, 1), default=100, help="images optimised together; part of the method")
    add("--lr", type=number(float, above=0), default=0.25, help="learning rate at step 0, cosine to 0")
    add("--r-bn", type=number(float, 0), default=0.01, help="weight of the BatchNorm term; depends on the architecture")
    add("--first-bn-multiplier", type=number(float, 0), default=10.0, help="weight of the first BatchNorm layer within that term")
    add("--jitter", "--image_shifting", type=number(int, 0), default=32, help="largest random roll, pixels")
    add("--signed-jitter", action="store_true", help="roll by -jitter..jitter instead of 0..jitter")
    add("--no-crop-flip", action="store_true", help="neither crop nor flip, only roll")
    add("--tv-l2", type=number(float, 0), default=0.0, help="weight of the total variation")
    add("--l2-scale", type=number(float, 0), default=0.0, help="weight of the images' L2 norm")
    add("--ipc-start", type=number(int, 0, 999), default=0, help="first image index per class")
    add("--ipc-end", "--ipc", type=number(int, 1, 1000), default=50, help="images per class (end of the range)")
    add("--syn-data-path", type=os.path.abspath, metavar="DIR", help="where image folders go (default: runs/<name>)")
    add("--exp-name", default="images", help="name of the image folder in it")
    add("--verifier", nargs="?", const="", metavar="ARCH", help="a second network whose top-1 on the images is logged")
    add("--verifier-arch", metavar="ARCH", help="the same, in the released spelling (default: mobilenet_v2)")
    add("--verifier-arch-path", type=os.path.abspath, metavar="FILE", help="checkpoint of the verifier")
    add("--print-period", "--print_period", type=number(int, 1), help="iterations between log lines (default: a fortieth of all)")
    add("--snapshot-every", type=number(int, 0), default=0, help="iterations between pictures of the first batch, 0 = none")
    add_dead_flags(parser, "recover")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
