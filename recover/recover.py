"""Recover: optimise noise until the teacher's BatchNorm statistics and class predictions match, and write the images.

Run: python -m recover.recover --dataset digits      (or sh recover.sh digits)
Time: digits, 100 images, about 60 s on two CPU cores; ResNet-18 at 224 takes 30 us per image-iteration on one H200.
Result: runs/<name>/images/new000/class000_id000.jpg ..., and beside the folder its manifest, log, metrics and contact sheet.
"""
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from recover.engines import ENGINES, choose_groups, make_engine
from recover.objective import Weights, check_statistics
from recover.pictures import animate, contact_sheet, save_snapshot, to_pixels
from recover.step import Stepper
from recover.state import Keeper
from recover.batches import chunk_name, draw_chunk, image_names, make_chunks, make_units, missing_pairs, write_units
from recover.views import draw_view
from recover.watch import check_finite, make_watch
from sre2l.run.claims import claim
from sre2l.run.processes import rank, world_size
from sre2l.run.files import sidecar, hash_json
from sre2l.data.flags import add_run_flags, add_stage_flags, add_teacher_flags, add_tensorboard_flag, data_spec
from sre2l.run.flags import Parser, add_dead_flags, check_folders, number
from sre2l.data.image_folder import suffix_of
from sre2l.run.signals import finishing_steps, leave, stop_requested
from sre2l.check.manifest import complete
from sre2l.nets.models import load_teacher
from sre2l.nets.precision import PRECISIONS
from sre2l.run.errors import UserError
from sre2l.run.log import RunLog, print_plan
from sre2l.run.paths import run_folder
from sre2l.run.start import run_script
from sre2l.run.tensorboard import check_tensorboard
from sre2l.run.settings import check_plan, keep_settings, planned_deletion, recorded, refuse_unclaimed, start_afresh
from sre2l.nets.teacher import check_top1, find_teacher, teacher_at_hand
from sre2l.nets.training import start_device
from sre2l.check.verify import refuse_strays

FREE = ("precision",)     # settings that may differ between the runs that fill one folder
SWITCHES = ("lossless",)  # settings that are True or not there


def cosine_rates(lr, iterations):
    """The learning rate of each iteration: a cosine that starts at lr and ends just above 0."""
    return [lr * (1 + math.cos(math.pi * t / iterations)) / 2 for t in range(iterations)]


def optimise(stepper, drawn, targets, rates, watch, kept=(0, None), before=lambda iteration: None):
    """G units at once: noise -> T steps of Adam -> the last iterate. drawn: draw_unit's of each, targets (G, B) -> (G, B, 3, S, S), normalised.

    watch(iteration, images, terms) is called after each step, with the terms before it; before(iteration) ahead of each. kept: (iterations
    done, the stepper's tensors after them), where a run that was stopped left them."""
    noise, views = zip(*drawn)
    stepper.start(torch.stack(noise).to(targets.device), targets, list(zip(*views)), rates)
    first, tensors = kept
    for tensor, value in zip(stepper.tensors, tensors or ()):
        tensor.copy_(value)
    for iteration in range(first, len(rates)):
        before(iteration)
        watch(iteration, stepper.images, stepper.step(iteration))
    return stepper.images


def make_settings(args, spec, classes, teacher):
    """What an image depends on. The IPC range, device, logging and verifier are not among it."""
    keys = ("dataset", "batch_size", "iteration", "lr", "jitter", "signed_jitter", "no_crop_flip", "r_bn", "first_bn_multiplier",
            "tv_l2", "l2_scale", "seed", "precision", "engine", "groups")
    settings = {key: getattr(args, key) for key in keys} | {"lossless": args.lossless or None}
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
    spec, command = data_spec(args), hash_json(vars(args) | {"dry_run": False})
    check_folders(args.val_dir)
    check_tensorboard(args.tensorboard)
    classes = check_args(args, spec)
    root = Path(args.syn_data_path or run_folder(args)) / args.exp_name
    units = make_units(classes, args.batch_size, args.ipc_start, args.ipc_end)
    if args.dry_run:
        teacher, spec = teacher_at_hand(args, spec)
        if teacher:
            check_statistics(teacher)
        num_images = (args.ipc_end - args.ipc_start) * len(classes)
        # noise-like pixels: PNG stores them as they are, JPEG takes about a third of a byte for each
        size = num_images * (100 + (3 * spec.size + 2) * spec.size if args.lossless else 620 + spec.size ** 2 // 3)
        settings, record = make_settings(args, spec, classes, teacher), sidecar(root, "manifest.json")
        deletes = planned_deletion(record, root, "images", command) if args.overwrite else check_plan(record, settings, FREE, SWITCHES)
        return print_plan(settings, images=num_images, units=len(units),
                          images_computed=sum(len(unit.pairs) for unit in units), bytes=size, output=str(root), deletes=deletes)

    device, _ = start_device(args.device, args.precision, args.deterministic, training=False)
    teacher, spec = find_teacher(args, spec)
    check_statistics(teacher)
    teacher.network.to(device)
    verifier = load_verifier(args, spec, device)
    manifest = sidecar(root, "manifest.json")
    claim(root, None if args.overwrite else (args.ipc_start, args.ipc_end))
    check_top1(teacher, spec, args, device)
    if args.overwrite:
        start_afresh(manifest, root, "images", command)
    refuse_unclaimed(root)
    pairs = [(ipc, label) for ipc in range(args.ipc_start, args.ipc_end) for label in classes]
    names = image_names(pairs, spec.num_classes, suffix_of(args.lossless))
    missing = missing_pairs(root, names)
    to_write = {pair: names[pair] for pair in missing}
    weights = Weights(args.r_bn, args.first_bn_multiplier, args.tv_l2, args.l2_scale)
    num_left = sum(not missing.isdisjoint(unit.pairs) for unit in units)
    engine, note = make_engine(args.engine, teacher.network, weights, spec.size,
                               args.precision if num_left and args.precision else recorded(manifest, "precision"))
    args.engine, args.precision = engine.name, engine.precision
    args.groups = args.groups or recorded(manifest, "groups") or choose_groups(engine, units, spec.size, device)
    settings = make_settings(args, spec, classes, teacher)
    keep_settings(manifest, settings, free=FREE, command=command if args.overwrite else None)
    args.groups = settings["groups"] = recorded(manifest, "groups")  # where several processes chose, the first's choice
    log = RunLog(partial(sidecar, root), vars(args), device, sliced=True)
    log.line(f"{note}, {args.precision}, {args.groups} batch{'es' * (args.groups > 1)} at a time")
    log.line(f"{len(pairs)} images in batches of {args.batch_size}: {len(units)} in all, {num_left} left to do -> {root}")
    draw = partial(draw_view, spec.size, args.jitter, args.signed_jitter, not args.no_crop_flip)
    draw_units = partial(draw_chunk, seed=args.seed, size=spec.size, iterations=args.iteration, draw=draw)
    rates = cosine_rates(args.lr, args.iteration)
    low, high = (torch.tensor([(edge - m) / s for m, s in zip(spec.mean, spec.std)], device=device).view(3, 1, 1) for edge in (0, 1))
    stepper = Stepper(engine, low, high)
    first = f"unit{units[0].index}." if units[0].index else ""  # another range beside this one has a first batch of its own
    snapshots = sidecar(root, f"{first}snapshots")
    chunks = [chunk for chunk in make_chunks(units, args.groups) if any(not missing.isdisjoint(unit.pairs) for unit in chunk)]
    chunks = chunks[rank()::world_size()]

    def snapshot(iteration):
        if iteration % args.snapshot_every == 0 or iteration == args.iteration:
            save_snapshot(to_pixels(stepper.images[0], spec.mean, spec.std), snapshots, iteration)

    with ThreadPoolExecutor(1) as drawer, ThreadPoolExecutor(1) as writer, finishing_steps():  # beside the computation: the next noise, the last files
        keeper = Keeper(root, settings, args.ipc_start, args.save_every_sec, writer, log)
        if rank() == 0:  # a kill may have come between a unit's last file and this
            keeper.forget([unit for unit in units if missing.isdisjoint(unit.pairs)])
        drawn, written = [drawer.submit(draw_units, chunk) for chunk in chunks[:1]], []
        for number_done, chunk in enumerate(chunks, 1):
            noise_and_views = drawn.pop().result()
            drawn = [drawer.submit(draw_units, later) for later in chunks[number_done:number_done + 1]]
            targets = torch.tensor([[label for _, label in unit.pairs] for unit in chunk], device=device)
            kept = keeper.load(chunk, device)
            if kept[0]:
                log.line(f"{chunk_name(chunk)}: continues after iteration {kept[0]}")
            pictured = args.snapshot_every and chunk[0] is units[0]
            if pictured and not kept[0]:
                shutil.rmtree(snapshots, ignore_errors=True)

            def before(iteration):
                if pictured:
                    snapshot(iteration)
                stop = stop_requested() or any(future.done() and future.exception() for future in written)
                if iteration and (stop or keeper.is_due()):
                    check_finite(stepper, chunk, iteration - 1, weights, args.precision)
                    keeper.save(chunk, iteration, stepper.tensors)
                if stop:
                    log.line(f"{chunk_name(chunk)}: stopped after iteration {iteration}")
                    for future in written:
                        future.result()
                    leave()

            with tqdm(total=args.iteration, initial=kept[0], desc=chunk_name(chunk), disable=None if rank() == 0 else True, leave=False) as bar:
                watch = make_watch(log, bar, chunk, args, weights, targets, verifier, stepper, spec.num_classes)
                images = optimise(stepper, noise_and_views, targets, rates, watch, kept, before)
            if pictured:
                snapshot(args.iteration)
                animate(snapshots, sidecar(root, f"{first}gif"))
            for future in written:  # a full disk shows here
                future.result()
            pixels = [to_pixels(batch, spec.mean, spec.std) for batch in images]
            written = [writer.submit(write_units, root, chunk, pixels, to_write, keeper.forget)]
            for unit in chunk:
                log.metrics(unit=unit.index, images=len(missing.intersection(unit.pairs)), precision=args.precision)
            log.line(f"{chunk_name(chunk)}: computed, {len(chunks) - number_done} more of this process to do")
        for future in written:
            future.result()

    if not complete(root, list(names.values()), log, "images"):
        return
    refuse_strays(root, "images")
    contact_sheet(root, sidecar(root, "png"))
    log.line(f"done: {len(pairs)} images in {root}, contact sheet {sidecar(root, 'png')}")


def get_args(argv=None):
    parser = Parser(__doc__)
    add_run_flags(parser)
    add_stage_flags(parser)
    add_teacher_flags(parser)
    add_tensorboard_flag(parser)
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
    add("--crop-flip", action="store_false", dest="no_crop_flip", default=False, help="crop and flip, where a launcher's table says not to")
    add("--tv-l2", type=number(float, 0), default=0.0, help="weight of the total variation")
    add("--l2-scale", type=number(float, 0), default=0.0, help="weight of the images' L2 norm")
    add("--ipc-start", type=number(int, 0, 999), default=0, help="first image index per class")
    add("--ipc-end", "--ipc", type=number(int, 1, 1000), default=50, help="images per class (end of the range)")
    add("--syn-data-path", type=os.path.abspath, metavar="DIR", help="where image folders go (default: runs/<name>)")
    add("--exp-name", default="images", help="name of the image folder in it")
    add("--lossless", action="store_true", help="write PNG files instead of JPEG at quality 75")
    add("--precision", choices=PRECISIONS, help="of the teacher (default: fp16 on a GPU, fp32 on a CPU); may change when a run continues")
    add("--groups", type=number(int, 1), help="batches computed at a time, each as if alone (default: what fits and helps)")
    add("--engine", choices=ENGINES, default="fast", help="plain: the readable reference, for comparison")
    add("--verifier", nargs="?", const="", metavar="ARCH", help="a second network whose top-1 on the images is logged")
    add("--verifier-arch", metavar="ARCH", help="the same, in the released spelling (default: mobilenet_v2)")
    add("--verifier-arch-path", type=os.path.abspath, metavar="FILE", help="checkpoint of the verifier")
    add("--print-period", "--print_period", type=number(int, 1), help="iterations between log lines (default: a fortieth of all)")
    add("--save-every-sec", type=number(float, 0), default=120.0, help="seconds between saves of the batches under way")
    add("--snapshot-every", type=number(int, 0), default=0, help="iterations between pictures of the first batch, 0 = none")
    add_dead_flags(parser, "recover")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
