"""Recover: optimise noise until a teacher's BatchNorm statistics and class predictions match; write images.

Run: python -m recover.recover --dataset digits      (or sh recover.sh digits)
Time: digits, 100 images: 60 to 80 s on two CPU cores. ResNet-18 at 224, one H200: 30 us per image-iteration.
Result: runs/<name>/images/new000/class000_id000.jpg ... and, beside the folder, manifest, log and metrics.
"""
import math
import os
from argparse import BooleanOptionalAction
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

from recover import pictures, plan
from recover.batches import draw, group_batches, image_names, index_ranges, plan_batches
from recover.blocks import Course, Iterations, block_list
from recover.engines import ENGINES
from recover.state import StateKeeper
from recover.step import Stepper, pixel_bounds
from recover.targets import bn_target
from recover.views import CURRICULA, LEAST_AREA, draw_view, least_areas
from recover.watch import Watch, load_verifier
from sre2l.data.flags import add_stage_flags, data_spec
from sre2l.data.image_folder import encode
from sre2l.nets.precision import PRECISIONS, start_device
from sre2l.nets.teacher import check_teachers, find_teachers
from sre2l.run import processes, signals
from sre2l.run.ahead import in_order
from sre2l.run.flags import Parser, network_name, number, numbers
from sre2l.run.output import OutputFolder
from sre2l.run.paths import run_folder
from sre2l.run.start import run_script


def cosine_rates(lr, iterations):
    """The learning rate of each iteration: a cosine that starts at lr and ends just above 0."""
    return [lr * (1 + math.cos(math.pi * t / iterations)) / 2 for t in range(iterations)]


def draw_views_of(args, blocks):
    """For each iteration the function that draws its view from a generator."""
    areas = least_areas(args.crop_curriculum, args.crop_scale, args.curriculum_milestone, args.iteration)
    return [partial(draw_view, block.size, args.jitter, args.signed_jitter, not args.no_crop_flip,
                    least_area=areas[t])
            for block in blocks for t in range(block.first, block.stop)]


def draw_start(args, spec, blocks, real, draw_views, group):
    """What a group begins with -> (noise, views, {pixels: real images}, None without): batches.draw, and of
    the real images those of each block's size that is needed."""
    noise, views = draw(group, args.seed, blocks[0].size, draw_views)
    if real is None:
        return noise, views, None
    sizes = {block.size for block in (blocks if args.merge else blocks[:1])}
    return noise, views, {size: real.read(group, size, spec.mean, spec.std) for size in sizes}


def having(missing, parts):
    """Those of the batches or groups in which an image is missing."""
    return [part for part in parts if not missing.keys().isdisjoint(part.pairs)]


def write_images(folder, group, pixels, names, keeper):
    """Write the images of a group, on a thread beside the computation, then forget its state.

    pixels: (B, H, W, 3) uint8 of each batch; names: {(ipc, class): path in the folder} of the wanted ones."""
    for batch, images in zip(group.batches, pixels):
        wanted = [(names[pair], image) for pair, image in zip(batch.pairs, images) if pair in names]
        folder.write({name: encode(image, Path(name).suffix) for name, image in wanted})
    keeper.forget(group.batches)


def optimise(group, first, course, watch, snapshots, keeper, writing):
    """Do the iterations of a group, from `first` on. The run ends after the one under way, whose state is
    saved, where a signal asks for it or the images before could not be written (writing: their Future)."""
    stepper = course.stepper
    with watch.following(group, first):
        for iteration in range(first, watch.iterations):
            snapshots.take(group, iteration, stepper.images)
            has_failed = writing.done() and writing.exception() is not None
            should_stop = signals.stop_requested() or has_failed
            # Only finite images are saved, or the next run would go on from broken ones.
            if iteration and (should_stop or keeper.is_due()):
                watch.check_finite(iteration - 1)
                keeper.save(group, iteration, stepper.tensors)
            if should_stop:
                watch.log.line(f"{group.name}: stopped after iteration {iteration}")
                writing.result()
                signals.leave()
            watch.after(iteration, course.step(iteration))
    snapshots.take(group, watch.iterations, stepper.images)


def log_group(log, group, missing, precision, num_left):
    """Say that a group is computed: of each batch how many images are new, and how many groups are left."""
    for batch in group.batches:
        log.metrics(unit=batch.index, images=len(missing.keys() & set(batch.pairs)), precision=precision)
    log.line(f"{group.name}: computed, {num_left} more of this process to do")


def main(args):
    # Plan: which images, which of them share a batch (a part of the method), and where they go.
    spec = data_spec(args)
    classes = plan.check_args(args, spec)
    batches = plan_batches(classes, args.batch_size, args.ipc_start, args.ipc_end, args.batch_order)
    root = Path(args.syn_data_path or run_folder(args)) / args.exp_name
    folder = OutputFolder(root, "images", args.overwrite, vars(get_args([])), plan.FREE)
    args.r_bn = plan.recorded_r_bn(args.r_bn, folder.earlier_settings())
    if args.dry_run:
        return plan.dry_run(args, spec, classes, batches, folder)

    # Prepare: what a flag can get wrong is refused here, before anything is written or deleted.
    device, _ = start_device(args.device, args.precision, args.deterministic, training=False)
    teachers, spec = find_teachers(args, spec)
    blocks = plan.prepare_blocks(args, spec, teachers)
    real = plan.prepare_real(args, spec, batches, root)
    for teacher in teachers:
        teacher.network.to(device)
    matched, target_hashes = plan.match_teachers(args, teachers, batches, spec.size)
    verifier = load_verifier(args, spec, device)
    check_teachers(teachers, spec, args, device)

    # This process's part.
    pairs = [(ipc, label) for ipc in range(args.ipc_start, args.ipc_end) for label in classes]
    names = image_names(pairs, spec.num_classes, args.lossless)
    own_batches = batches[processes.rank()::processes.world_size()]
    own = {pair: names[pair] for batch in own_batches for pair in batch.pairs if pair in names}

    # The engine computes loss and gradient; what it is, is among the settings that an image depends on.
    engines, note, chosen = plan.choose_engines(args, matched, blocks, batches, folder, own, device)
    settings = plan.settings_of(args, folder.defaults, spec, classes, teachers, blocks, real, target_hashes)
    settings = folder.begin(settings, index_ranges(own, spec.num_classes), chosen)
    args.groups = settings["groups"]

    # What is there as it was recorded is kept. A batch with any image missing is computed as a whole.
    absent = set(folder.missing(list(own.values())))
    missing = {pair: name for pair, name in own.items() if name in absent}
    unfinished = having(missing, own_batches)
    groups = having(missing, group_batches(own_batches, args.groups))
    log = folder.open_log(args, device)
    log.line(plan.describe_computation(args, note, teachers, matched))
    others = sum(len(batch.pairs) for batch in batches) - len(pairs)
    log.line(f"{len(pairs)} images{f' and {others} others that share their batches' * bool(others)}, "
             f"in batches of {args.batch_size}: {len(batches)} in all, "
             f"{len(unfinished)} left to do -> {root}")

    # Everything random about a batch depends on the seed and the batch's index alone.
    draw_group = partial(draw_start, args, spec, blocks, real, draw_views_of(args, blocks))
    stepper = Stepper(engines[blocks[0].size], *pixel_bounds(spec.mean, spec.std, device))
    course = Course(stepper, engines, blocks, cosine_rates(args.lr, args.iteration), args.merge)
    watch = Watch(args, log, stepper, matched, spec.num_classes, verifier)
    snapshots = pictures.Snapshots(args, folder, batches[0], spec)

    # Loop: on threads beside the computation, the next noise is drawn and the last images are written.
    drawn = in_order(draw_group, groups, threads=1)
    with closing(drawn), ThreadPoolExecutor(1) as writer, signals.finishing_steps():
        keeper = StateKeeper(root, settings, args.ipc_start, args.save_every_sec, writer, log)
        keeper.forget([batch for batch in own_batches if batch not in unfinished])  # a late kill leaves some
        writing = Future()  # of the last group's images
        writing.set_result(None)
        for done, (group, (noise, views, start)) in enumerate(zip(groups, drawn), 1):
            first, tensors = keeper.load(group, device)
            for engine in engines.values():
                engine.take_up(group)
            course.start(noise.to(device), views, start, group.targets(device), first, tensors)

            optimise(group, first, course, watch, snapshots, keeper, writing)

            # One group is written while the next is computed, never two: its images wait in memory.
            writing.result()
            pixels = [pictures.to_pixels(images, spec.mean, spec.std) for images in stepper.images]
            writing = writer.submit(write_images, folder, group, pixels, missing, keeper)
            log_group(log, group, missing, args.precision, len(groups) - done)
        writing.result()

    # Finish: of several processes the last one finds the set complete.
    if folder.finish(list(names.values())):
        pictures.contact_sheet(root, folder.path("png"))
        log.line(f"done: {len(pairs)} images in {root}, contact sheet {folder.path('png')}", from_any=True)


def make_parser():
    parser = Parser(__doc__)
    add_stage_flags(parser, "recover", teacher=True, tensorboard=True)
    add = parser.add_argument
    # The optimisation. Defaults are the published settings of ImageNet.
    add("--seed", type=number(int, 0), default=0, help="of noise, crops and rolls")
    add("--iteration", action=Iterations, type=number(int, 1), default=4000, help="steps of Adam")
    add("--batch-size", type=number(int, 1), default=100,
        help="images optimised together; part of the method")
    add("--lr", type=number(float, above=0), default=0.25, help="learning rate at step 0, cosine to 0")

    # Where it begins, and how it is cut. The total of --blocks replaces --iteration.
    add("--init", default="noise", metavar="noise|picked|FOLDER",
        help="begin with these real images, in recover's layout; picked: runs/<name>/picked of pick.sh")
    add("--blocks", type=block_list, metavar="500@200,500",
        help="steps@pixels of each block, a fresh Adam in each (default: one of --iteration steps)")
    add("--merge", type=number(float, 0, 1), default=0.0, metavar="A",
        help="after each block but the last, A times the real image and 1 - A times the image")
    add("--batch-order", choices=("ipc", "class"), default="ipc",
        help="class: a batch holds the images of one class after the other")

    # The terms of the loss.
    add("--r-bn", type=plan.r_bn_type, default=0.01, metavar="R[,R]|auto[:R]",
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
    add("--signed-jitter", action=BooleanOptionalAction, default=False,
        help="roll by -jitter..jitter instead of 0..jitter")
    add("--no-crop-flip", action="store_true", help="neither crop nor flip, only roll")
    add("--crop-flip", action="store_false", dest="no_crop_flip", default=False,
        help="crop and flip, where a launcher's table says not to")

    add("--crop-scale", type=number(float, 0, 1, above=0), default=LEAST_AREA, metavar="LOW",
        help="least area of a crop, as a share of the image")
    add("--crop-curriculum", choices=CURRICULA, default="none",
        help="least areas that fall from 1, the whole image, to --crop-scale")
    add("--curriculum-milestone", type=number(float, 0, 1), metavar="M",
        help="share of the iterations after which they have fallen (default: 1)")

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
