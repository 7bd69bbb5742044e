"""Recover: optimise noise until a teacher's BatchNorm statistics and class predictions match; write images.

Run: python -m recover.recover --dataset digits      (or sh recover.sh digits)
Time: digits, 100 images: 60 to 80 s on two CPU cores. ResNet-18 at 224, one H200: 30 us per image-iteration.
Result: runs/<name>/images/new000/class000_id000.jpg ... and, beside the folder, manifest, log and metrics.
"""
import math
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

from recover import pictures
from recover.batches import draw, group_batches, image_names, index_ranges, plan_batches
from recover.engines import ENGINES, Matched, choose_groups, make_engine
from recover.objective import WEIGHTS, Weights, check_statistics
from recover.several import check_shares, choose_r_bn, common_weights, r_bn_type, recorded_r_bn
from recover.state import StateKeeper
from recover.step import Stepper, pixel_bounds
from recover.targets import bn_target, load_targets
from recover.views import draw_view
from recover.watch import Watch, load_verifier
from sre2l.data.flags import add_stage_flags, data_spec
from sre2l.data.image_folder import encode
from sre2l.nets.functions import recorded_name
from sre2l.nets.models import build_for
from sre2l.nets.precision import PRECISIONS, start_device
from sre2l.nets.teacher import check_top1, find_teachers
from sre2l.run import processes, signals
from sre2l.run.ahead import in_order
from sre2l.run.errors import UserError
from sre2l.run.flags import Parser, network_name, number, numbers
from sre2l.run.output import OutputFolder
from sre2l.run.paths import run_folder
from sre2l.run.start import run_script

# What an image depends on, besides the data set's facts and the teacher.
SETTINGS = ("dataset", "batch_size", "iteration", "lr", "jitter", "signed_jitter", "no_crop_flip",
            *WEIGHTS, "seed", "precision", "engine", "groups", "lossless")
FREE = ("precision",)  # may differ between the runs that fill one folder


def cosine_rates(lr, iterations):
    """The learning rate of each iteration: a cosine that starts at lr and ends just above 0."""
    return [lr * (1 + math.cos(math.pi * t / iterations)) / 2 for t in range(iterations)]


def settings_of(args, spec, classes, teachers, target_hashes=()):
    """What an image depends on. The IPC range, device, logging and verifier are not among it.

    target_hashes: of the files that --bn-target reads."""
    settings = {key: getattr(args, key) for key in SETTINGS}
    planned = {"arch": recorded_name(args.arch or "resnet18"), "file": args.teacher}
    described = teachers[0].describe() if teachers else planned
    settings |= {"size": spec.size, "classes": classes, "teacher": described}

    # What a run with one teacher and its running statistics does not have.
    if len(teachers) > 1:
        settings |= {"teachers": [teacher.describe() for teacher in teachers],
                     "teacher_rule": args.teacher_rule, "teacher_weights": args.teacher_weights}
    if args.bn_target != "running":
        settings |= {"bn_target": args.bn_target, "bn_target_sha256": list(target_hashes) or None}
    return settings


def match_teachers(args, teachers, batches, size):
    """What each teacher's terms count, and what its statistics are to match -> ([Matched], the hashes of the
    files that --bn-target reads). Refuses what does not fit the teachers or the batches.

    args.r_bn and args.teacher_weights, which are recorded, become what was chosen."""
    networks = [teacher.network for teacher in teachers]
    check_statistics(networks, teachers[0].arch)
    args.teacher_weights = check_shares(args.teacher_weights, args.teacher_rule, len(teachers))
    targets, hashes = load_targets(args, teachers, batches)
    r_bns = choose_r_bn(args.r_bn, networks, args.first_bn_multiplier, args.batch_size, size, args.seed)
    if not isinstance(args.r_bn, float):
        args.r_bn = r_bns if len(r_bns) > 1 else r_bns[0]
    weights = [Weights(r_bn, args.first_bn_multiplier, args.tv_l2, args.l2_scale) for r_bn in r_bns]
    return [Matched(*parts) for parts in zip(networks, weights, targets)], hashes


def check_args(args, spec):
    """Ranges that one flag alone does not tell -> the list of classes."""
    classes = args.classes or list(range(spec.num_classes))
    if classes[-1] >= spec.num_classes:
        last = spec.num_classes - 1
        raise UserError(f"--classes: class {classes[-1]} is out of range, {args.dataset} has "
                        f"{spec.num_classes} (0-{last})")
    if args.ipc_start >= args.ipc_end:
        raise UserError(f"--ipc-start {args.ipc_start} is not below --ipc-end {args.ipc_end}")
    if args.jitter > spec.size:
        raise UserError(f"--jitter {args.jitter} is more than the image size, {spec.size} pixels")
    return classes


def dry_run(args, spec, classes, batches, folder):
    """--dry-run: print the settings, how many images and how many bytes."""
    teachers, spec = find_teachers(args, spec)
    if teachers:
        check_statistics([teacher.network for teacher in teachers], teachers[0].arch)
    elif args.arch:  # still to be trained: without BatchNorm that would be in vain
        check_statistics([build_for(spec, arch, None)[0] for arch in args.arch.split(",")], args.arch)
    num_images = (args.ipc_end - args.ipc_start) * len(classes)
    # Noise-like pixels: PNG stores them as they are, JPEG takes about a third of a byte for each.
    image_bytes = 100 + (3 * spec.size + 2) * spec.size if args.lossless else 620 + spec.size ** 2 // 3
    num_computed = sum(len(batch.pairs) for batch in batches)
    folder.dry_run(settings_of(args, spec, classes, teachers), images=num_images, units=len(batches),
                   images_computed=num_computed, bytes=num_images * image_bytes)


def missing_images(folder, names):
    """Those of `names`, {(ipc, class): path in the folder}, whose file is not there as it was recorded."""
    missing = set(folder.missing(list(names.values())))
    return {pair: name for pair, name in names.items() if name in missing}


def write_images(folder, group, pixels, names, keeper):
    """Write the images of a group, on a thread beside the computation, then forget its state.

    pixels: (B, H, W, 3) uint8 of each batch; names: {(ipc, class): path in the folder} of the wanted ones."""
    for batch, images in zip(group.batches, pixels):
        wanted = [(names[pair], image) for pair, image in zip(batch.pairs, images) if pair in names]
        folder.write({name: encode(image, Path(name).suffix) for name, image in wanted})
    keeper.forget(group.batches)


def main(args):
    # Plan: which images, which of them share a batch (a part of the method), and where they go.
    spec = data_spec(args)
    classes = check_args(args, spec)
    batches = plan_batches(classes, args.batch_size, args.ipc_start, args.ipc_end)
    root = Path(args.syn_data_path or run_folder(args)) / args.exp_name
    defaults = {key: value for key, value in vars(get_args([])).items() if key in SETTINGS}
    folder = OutputFolder(root, "images", args.overwrite, defaults, free=FREE)
    args.r_bn = recorded_r_bn(args.r_bn, folder.earlier_settings())
    if args.dry_run:
        return dry_run(args, spec, classes, batches, folder)

    # Prepare: what a flag can get wrong is refused here, before anything is written or deleted.
    device, _ = start_device(args.device, args.precision, args.deterministic, training=False)
    teachers, spec = find_teachers(args, spec)
    for teacher in teachers:
        teacher.network.to(device)
    matched, target_hashes = match_teachers(args, teachers, batches, spec.size)
    verifier = load_verifier(args, spec, device)
    if processes.rank() == 0 or args.overwrite:  # whoever may delete has measured first
        for teacher in teachers:
            check_top1(teacher, spec, args, device)

    # This process's part, and what is missing of it.
    # A batch is computed as a whole, even where a single image of it is missing.
    pairs = [(ipc, label) for ipc in range(args.ipc_start, args.ipc_end) for label in classes]
    names = image_names(pairs, spec.num_classes, args.lossless)
    own_batches = batches[processes.rank()::processes.world_size()]
    own = {pair: names[pair] for batch in own_batches for pair in batch.pairs if pair in names}
    missing = missing_images(folder, own)

    # The engine computes loss and gradient; several batches at a time keep a GPU busy.
    # A run with nothing left to do asks for no precision: the record keeps that of the images.
    earlier = folder.earlier_settings() or {}
    precision = args.precision if missing else None
    precision = precision or earlier.get("precision")
    engine, note = make_engine(args.engine, matched, args.teacher_weights, spec.size, precision)

    # What was chosen is recorded in place of what was asked for: it is what an image depends on.
    args.engine = engine.name
    args.precision = engine.precision
    chosen = {} if args.groups else {"groups": choose_groups(engine, batches, spec.size, device)}
    part = index_ranges(own, spec.num_classes)
    settings = folder.begin(settings_of(args, spec, classes, teachers, target_hashes), part, chosen)
    args.groups = settings["groups"]

    # Another run may have ended since the first look: what it has written is kept.
    missing = missing_images(folder, missing)
    unfinished = [batch for batch in own_batches if not missing.keys().isdisjoint(batch.pairs)]
    groups = group_batches(own_batches, args.groups)
    groups = [group for group in groups if not missing.keys().isdisjoint(group.pairs)]

    log = folder.open_log(args, device)
    log.line(f"{note}, {args.precision}, {args.groups} batch{'es' * (args.groups > 1)} at a time")
    if len(teachers) > 1:
        each = ", ".join(f"{teacher.arch} with r_bn {one.weights.r_bn:g}"
                         for teacher, one in zip(teachers, matched))
        log.line(f"teachers, {args.teacher_rule}: {each}")
    log.line(f"{len(pairs)} images in batches of {args.batch_size}: {len(batches)} in all, "
             f"{len(unfinished)} left to do -> {root}")

    # Everything random about a batch depends on the seed and the batch's index alone.
    draw_one_view = partial(draw_view, spec.size, args.jitter, args.signed_jitter, not args.no_crop_flip)
    draw_group = partial(draw, seed=args.seed, size=spec.size, iterations=args.iteration,
                         draw_one_view=draw_one_view)
    rates = cosine_rates(args.lr, args.iteration)
    stepper = Stepper(engine, *pixel_bounds(spec.mean, spec.std, device))
    period = args.print_period or max(1, args.iteration // 40)
    watch = Watch(log, stepper, common_weights([one.weights for one in matched]), args.precision,
                  args.iteration, period, spec.num_classes, verifier)
    first = f"unit{batches[0].index}." if batches[0].index else ""  # of a range that begins later
    snapshots = pictures.Snapshots(folder.path(f"{first}snapshots"), folder.path(f"{first}gif"),
                                   args.snapshot_every, args.iteration, spec.mean, spec.std)

    # Loop: on threads beside the computation, the next noise is drawn and the last images are written.
    drawn = in_order(draw_group, groups, threads=1)
    with closing(drawn), ThreadPoolExecutor(1) as writer, signals.finishing_steps():
        keeper = StateKeeper(root, settings, args.ipc_start, args.save_every_sec, writer, log)
        keeper.forget([batch for batch in own_batches if batch not in unfinished])  # a late kill leaves some
        writing = None
        for done, (group, (noise, views)) in enumerate(zip(groups, drawn), 1):
            engine.take_up(group)
            stepper.start(noise.to(device), group.targets(device), views, rates)
            first_iteration, tensors = keeper.load(group, device)
            if tensors:
                log.line(f"{group.name}: continues after iteration {first_iteration}")
                for tensor, value in zip(stepper.tensors, tensors):
                    tensor.copy_(value)
            is_pictured = args.snapshot_every and group.batches[0] is batches[0]
            if is_pictured and not tensors:
                snapshots.clear()

            with watch.following(group, first_iteration):
                for iteration in range(first_iteration, args.iteration):
                    if is_pictured:
                        snapshots.take(iteration, stepper.images[0])
                    should_stop = signals.stop_requested() or has_failed(writing)
                    # Only finite images are saved, or the next run would go on from broken ones.
                    if iteration and (should_stop or keeper.is_due()):
                        watch.check_finite(iteration - 1)
                        keeper.save(group, iteration, stepper.tensors)
                    if should_stop:
                        log.line(f"{group.name}: stopped after iteration {iteration}")
                        wait_for(writing)
                        signals.leave()
                    terms = stepper.step(iteration)
                    watch.after(iteration, terms)

            if is_pictured:
                snapshots.take(args.iteration, stepper.images[0])
            # One group is written while the next is computed, never two: its images wait in memory.
            wait_for(writing)
            pixels = [pictures.to_pixels(images, spec.mean, spec.std) for images in stepper.images]
            writing = writer.submit(write_images, folder, group, pixels, missing, keeper)
            for batch in group.batches:
                num_new = len(missing.keys() & set(batch.pairs))
                log.metrics(unit=batch.index, images=num_new, precision=args.precision)
            log.line(f"{group.name}: computed, {len(groups) - done} more of this process to do")
        wait_for(writing)

    # Finish: of several processes the last one finds the set complete.
    if folder.finish(list(names.values())):
        pictures.contact_sheet(root, folder.path("png"))
        log.line(f"done: {len(pairs)} images in {root}, contact sheet {folder.path('png')}", from_any=True)


def has_failed(writing):
    """Has the thread that writes images met an error, such as a full disk?"""
    return writing is not None and writing.done() and writing.exception() is not None


def wait_for(writing):
    """Wait until the images before are on the disk; raises what went wrong there."""
    if writing is not None:
        writing.result()


def make_parser():
    parser = Parser(__doc__)
    add_stage_flags(parser, "recover", teacher=True, tensorboard=True)
    add = parser.add_argument
    # The optimisation. Defaults are the published settings of ImageNet.
    add("--seed", type=number(int, 0), default=0, help="of noise, crops and rolls")
    add("--iteration", type=number(int, 1), default=4000, help="steps of Adam")
    add("--batch-size", type=number(int, 1), default=100,
        help="images optimised together; part of the method")
    add("--lr", type=number(float, above=0), default=0.25, help="learning rate at step 0, cosine to 0")

    # The terms of the loss.
    add("--r-bn", type=r_bn_type, default=0.01, metavar="R[,R]|auto[:R]",
        help="weight of the BatchNorm term, which depends on the architecture; of several teachers one for "
             "each, or auto: R (0.01) for the first, and so that the others' terms on noise weigh as much")
    add("--first-bn-multiplier", type=number(float, 0), default=10.0,
        help="weight of the first BatchNorm layer within that term")

    add("--bn-target", type=bn_target, default="running", metavar="running|class:W|group",
        help="what the statistics are to match: the teacher's running ones, to a share W those of the "
             "batch's classes (squeeze --class-statistics), or those of its group of picked real images")

    # Several teachers (--teacher A,B).
    add("--teachers", dest="teacher_rule", choices=("cycle", "sum"), default="cycle",
        help="several teachers take turns, one an iteration, or are summed in each")
    add("--teacher-weights", type=numbers, metavar="W,W", help="weights in the sum (default: 1 each)")

    # The view of an iteration. recover.sh leaves crop and flip out for CIFAR and digits.
    add("--jitter", "--image_shifting", type=number(int, 0), default=32, help="largest random roll, pixels")
    add("--signed-jitter", action="store_true", help="roll by -jitter..jitter instead of 0..jitter")
    add("--no-crop-flip", action="store_true", help="neither crop nor flip, only roll")
    add("--crop-flip", action="store_false", dest="no_crop_flip", default=False,
        help="crop and flip, where a launcher's table says not to")

    # Priors, which the published settings do without.
    add("--tv-l2", type=number(float, 0), default=0.0, help="weight of the total variation")
    add("--l2-scale", type=number(float, 0), default=0.0, help="weight of the images' L2 norm")

    # Which images, and where they go.
    add("--ipc-start", type=number(int, 0, 999), default=0, help="first image index per class")
    add("--ipc-end", "--ipc", type=number(int, 1, 1000), default=50,
        help="images per class (end of the range)")
    add("--syn-data-path", type=os.path.abspath, metavar="DIR",
        help="where image folders go (default: runs/<name>)")
    add("--exp-name", default="images", help="name of the image folder in it")
    add("--lossless", action="store_true", help="write PNG files instead of JPEG at quality 75")

    # How they are computed, which changes speed and rounding but not the method.
    add("--precision", choices=PRECISIONS,
        help="of the teacher (default: fp16 on a GPU, fp32 on a CPU); may change when a run continues")
    add("--groups", type=number(int, 1),
        help="batches computed at a time, each as if alone (default: what fits and helps)")
    add("--engine", choices=ENGINES, default="fast", help="plain: the readable reference, for comparison")

    # A second opinion on the images while they form.
    add("--verifier", nargs="?", const="", type=network_name, metavar="ARCH",
        help="a second network whose top-1 on the images is logged")
    add("--verifier-arch", type=network_name, metavar="ARCH",
        help="the same, in the released spelling (default: mobilenet_v2)")
    add("--verifier-arch-path", type=os.path.abspath, metavar="FILE", help="checkpoint of the verifier")

    # What the run tells and keeps meanwhile.
    add("--print-period", "--print_period", type=number(int, 1),
        help="iterations between log lines (default: a fortieth of all)")
    add("--save-every-sec", type=number(float, 0), default=120.0,
        help="seconds between saves of the batches under way")
    add("--snapshot-every", type=number(int, 0), default=0,
        help="iterations between pictures of the first batch, 0 = none")
    return parser


def get_args(argv=None):
    return make_parser().parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
