"""What a run of recover will do, and what its images depend on: settings, checks of the flags, --dry-run."""
import copy
import os
from pathlib import Path

import torch

from recover.blocks import check_blocks, describe_blocks, plan_blocks
from recover.engines import Matched, choose_groups, make_engines
from recover.objective import LATER_WEIGHTS, WEIGHTS, PlainEngine, Weights, check_statistics
from recover.real_start import find_real
from recover.targets import check_groups, load_targets
from recover.views import LEAST_AREA, WHOLE_IMAGE
from sre2l.data.augment import unit_rng
from sre2l.data.flags import chosen_classes
from sre2l.nets.models import build_for, check_shapes
from sre2l.nets.teacher import described_or_planned, find_teachers, teacher_weights
from sre2l.run.errors import UserError
from sre2l.run.flags import number
from sre2l.run.paths import launcher_command, run_folder

# What an image depends on, besides the data set's facts and the teacher.
SETTINGS = ("dataset", "batch_size", "iteration", "lr", "jitter", "signed_jitter", "no_crop_flip",
            *WEIGHTS, "seed", "precision", "engine", "groups", "lossless")
# The same, but left out of the records where they have their defaults, as in older runs.
OPTIONS = ("init", "blocks", "merge", "crop_scale", "crop_curriculum", "curriculum_milestone", "batch_order",
           "bn_target", "teacher_rule", "teacher_weights", *LATER_WEIGHTS)
FREE = ("precision",)  # may differ between the runs that fill one folder
R_BN = 0.01      # the published one: the first teacher's, where `auto` comes without a number
MOST_NOISE = 32  # images of noise by which `auto` scales the others'
DIGITS = 4       # of what `auto` finds: rounding elsewhere then seldom gives another number


def settings_of(args, defaults, spec, classes, teachers, blocks, real, target_hashes=()):
    """What an image depends on. The IPC range, device, logging and verifier are not among it, but where
    batches are cut by class, the range is: it says which images share one.

    defaults: of all flags; target_hashes: of the files that --bn-target reads."""
    settings = {key: getattr(args, key) for key in SETTINGS}
    described = described_or_planned(args, teachers)
    settings |= {"size": spec.size, "classes": classes, "teacher": described[0]}
    if len(described) > 1:
        settings["teachers"] = described

    options = {key: getattr(args, key) for key in OPTIONS} | {"blocks": describe_blocks(blocks)}
    if args.init != "noise":  # in a dry run the folder may be still to be made
        options["init"] = real and real.describe()
    settings |= {key: value for key, value in options.items() if value != defaults[key]}
    if args.batch_order == "class":
        settings["ipc_range"] = [args.ipc_start, args.ipc_end]
    if target_hashes:
        settings["bn_target_sha256"] = target_hashes
    return settings


def check_args(args, spec):
    """Ranges that one flag alone does not tell -> the list of classes."""
    classes = chosen_classes(args, spec)
    if args.ipc_start >= args.ipc_end:
        raise UserError(f"--ipc-start {args.ipc_start} is not below --ipc-end {args.ipc_end}")
    check_options(args)
    check_verifier(args)
    return classes


def check_verifier(args):
    """Raise UserError for a second network without weights, also before a teacher is trained."""
    path = args.verifier_arch_path
    if path and not os.path.exists(path):
        raise UserError(f"--verifier-arch-path {path}: there is no such file")
    is_wanted = (args.verifier, args.verifier_arch) != (None, None)
    if is_wanted and not path and args.dataset != "imagenet1k":
        raise UserError(f"--verifier: torchvision has no weights for {args.dataset}; give "
                        f"--verifier-arch-path FILE")


def check_options(args):
    """Refuse options that would do nothing. --blocks says the number of iterations; a curriculum gets its
    milestone, and the folder of --init its whole path."""
    if args.init != "noise":
        args.init = os.path.abspath(run_folder(args) / "picked" if args.init == "picked" else args.init)
    if args.merge and args.init == "noise":
        raise UserError("--merge needs real images: --init picked, after pick.sh, or --init FOLDER")
    if args.merge and len(args.blocks or ()) < 2:
        raise UserError("--merge mixes real images in between blocks: give several, such as --blocks 500,500")
    if args.bn_target == "group" and args.init == "noise":
        raise UserError("--bn-target group: the statistics of the groups lie beside a folder of picked real "
                        "images; name it with --init FOLDER")
    is_cropped = args.crop_scale != LEAST_AREA or args.crop_curriculum != "none"
    if is_cropped and args.no_crop_flip:
        flag = "--crop-curriculum" if args.crop_curriculum != "none" else "--crop-scale"
        raise UserError(f"{flag}: --no-crop-flip leaves crops out, so it would do nothing; add --crop-flip")
    if args.crop_curriculum == "none" and args.curriculum_milestone is not None:
        raise UserError("--curriculum-milestone does nothing without --crop-curriculum; leave it away")
    if args.crop_curriculum != "none" and args.curriculum_milestone is None:
        args.curriculum_milestone = 1.0
    if args.blocks:
        args.iteration = sum(steps for steps, _ in args.blocks)


# -- an r_bn for each teacher

def r_bn_type(text):
    """An argparse type: '0.01' -> 0.01 of all teachers, '0.01,0.1' -> [0.01, 0.1], one each; 'auto' ->
    'auto:0.01', any 'auto:R' as it is."""
    kind, _, first = text.partition(":")
    if kind == "auto":
        return f"auto:{number(float, above=0)(first) if first else R_BN:g}"
    values = [number(float, 0)(part) for part in text.split(",")]
    return values if len(values) > 1 else values[0]


def recorded_r_bn(r_bn, settings):
    """What an earlier run has found where r_bn is 'auto:R'; else r_bn. settings: recorded ones, or None."""
    found = (settings or {}).get("r_bn")
    is_of_auto = isinstance(r_bn, str) and isinstance(found, list) and r_bn == f"auto:{found[0]:g}"
    return found if is_of_auto else r_bn


def noise_distances(networks, multiplier, images):
    """The BatchNorm term of each network on whole images (B, 3, S, S); 0 for one without BatchNorm layers."""
    distances = []
    targets = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    for network in networks:
        engine = PlainEngine(copy.deepcopy(network), Weights(1.0, multiplier, 0.0, 0.0))
        with torch.no_grad():
            distances.append(engine.batch_terms(images, targets, WHOLE_IMAGE).bn.item())
    return distances


def choose_r_bn(r_bn, networks, multiplier, batch_size, size, seed):
    """-> the r_bn of each network. r_bn: as r_bn_type gives it; multiplier: of the first BatchNorm layer.

    'auto:R' gives the first R and each of the others that with which its term weighs as much on a batch of
    noise, the same whenever the seed is. One without BatchNorm has no term to scale."""
    if isinstance(r_bn, list):
        if len(r_bn) != len(networks):
            raise UserError(f"--r-bn: {len(r_bn)} numbers for {len(networks)} "
                            f"teacher{'s' * (len(networks) > 1)}; give one for each, or a single one for all")
        return r_bn
    if not isinstance(r_bn, str):
        return [r_bn] * len(networks)

    first = float(r_bn.partition(":")[2])
    shape = min(batch_size, MOST_NOISE), 3, size, size
    noise = torch.from_numpy(unit_rng(seed).standard_normal(shape, dtype="float32"))
    distances = noise_distances(networks, multiplier, noise.to(next(networks[0].parameters())))
    reference = next(distance for distance in distances if distance)
    return [first if distance in (0, reference) else float(f"{first * reference / distance:.{DIGITS}g}")
            for distance in distances]


def check_shares(shares, rule, num_teachers):
    """-> the weight of each teacher in a sum; None where they take turns. shares: of --teacher-weights."""
    if rule == "cycle":
        if shares:
            raise UserError("--teacher-weights: teachers that take turns have no weights; add --teachers sum")
        return None
    if num_teachers == 1:
        raise UserError("--teachers sum: there is one teacher; name several, as in --teacher a.pth,b.pth")
    return teacher_weights(shares, num_teachers)


# -- teachers, blocks and real images

def match_teachers(args, teachers, batches, size):
    """What each teacher's terms count, and what its statistics are to match -> ([Matched], the hashes of the
    files that --bn-target reads). Refuses what does not fit the teachers or the batches.

    args.r_bn and args.teacher_weights, which are recorded, become what was chosen."""
    networks = [teacher.network for teacher in teachers]
    check_statistics(networks, teachers[0].arch)
    args.teacher_weights = check_shares(args.teacher_weights, args.teacher_rule, len(teachers))
    targets, hashes = load_targets(args.bn_target, args.init, teachers, batches)
    r_bns = choose_r_bn(args.r_bn, networks, args.first_bn_multiplier, args.batch_size, size, args.seed)
    if not isinstance(args.r_bn, float):
        args.r_bn = r_bns if len(r_bns) > 1 else r_bns[0]
    weights = [Weights(r_bn, args.first_bn_multiplier, args.tv_l2, args.l2_scale) for r_bn in r_bns]
    return [Matched(*parts) for parts in zip(networks, weights, targets)], hashes


def choose_engines(args, matched, blocks, batches, folder, own, device):
    """-> ({pixels: Engine}, a line that says which, {"groups": ...} where that is to be chosen).

    args.engine and args.precision become what was chosen. own: {(ipc, class): path in the folder} of this
    process's images. Where none of them is missing the record keeps their precision, whatever is typed."""
    recorded = (folder.earlier_settings() or {}).get("precision")
    precision = args.precision or recorded
    if precision != recorded and recorded and not folder.missing(list(own.values())):
        precision = recorded
    sizes = {block.size for block in blocks}
    engines, note = make_engines(args.engine, matched, args.teacher_weights, sizes, precision)
    engine = engines[max(sizes)]
    args.engine = engine.name
    args.precision = engine.precision
    chosen = {} if args.groups else {"groups": choose_groups(engine, batches, max(sizes), device)}
    return engines, note, chosen


def describe_computation(args, note, teachers, matched):
    """Lines for the log: the engine, by its note, and what each of several teachers counts."""
    line = f"{note}, {args.precision}, {args.groups} batch{'es' * (args.groups > 1)} at a time"
    if len(teachers) == 1:
        return line
    each = [f"{teacher.arch} with r_bn {one.weights.r_bn:g}" for teacher, one in zip(teachers, matched)]
    return f"{line}\n{len(teachers)} teachers, {args.teacher_rule}: {', '.join(each)}"


def prepare_blocks(args, spec, teachers):
    """-> the Blocks of the run. Raises UserError for one of a size that a teacher does not take."""
    blocks = plan_blocks(args.blocks or [(args.iteration, None)], spec.size)
    check_blocks(blocks, spec.size, args.jitter)
    for teacher in teachers:
        for block in blocks:
            teacher.check_takes(block.size)
    return blocks


def prepare_real(args, spec, batches, output):
    """-> the RealImages that --init names, not decoded in a dry run; None for noise, and in a dry run whose
    folder is not there yet."""
    if args.init == "noise":
        return None
    if not Path(args.init).exists():
        if args.dry_run:
            return None
        raise UserError(f"--init: {args.init}: there is no such folder; --init picked takes what "
                        f"'{launcher_command(args, 'recover/pick.sh')}' makes")
    real = find_real(args.init, spec, batches, output, args.ipc_end)
    return real if args.dry_run else real.decoded()


def dry_run(args, spec, classes, batches, folder):
    """--dry-run: print the settings, how many images and how many bytes."""
    if args.bn_target == "group":
        check_groups(batches, args.ipc_end)
    teachers, spec = find_teachers(args, spec)
    blocks = prepare_blocks(args, spec, teachers)
    if teachers:
        check_statistics([teacher.network for teacher in teachers], teachers[0].arch)
        args.teacher_weights = check_shares(args.teacher_weights, args.teacher_rule, len(teachers))
    elif args.arch:  # still to be trained: without BatchNorm that would be in vain
        archs = args.arch.split(",")
        networks = [build_for(spec, arch, None)[0] for arch in archs]
        check_statistics(networks, archs[0])
        for arch, network in zip(archs, networks):
            for size in {block.size for block in blocks} - {spec.size}:
                check_shapes(network, arch, spec.num_classes, size)
    real = prepare_real(args, spec, batches, folder.root)
    num_images = (args.ipc_end - args.ipc_start) * len(classes)
    # Noise-like pixels: PNG stores them as they are, JPEG takes about a third of a byte for each.
    image_bytes = 100 + (3 * spec.size + 2) * spec.size if args.lossless else 620 + spec.size ** 2 // 3
    num_computed = sum(len(batch.pairs) for batch in batches)
    begins_as = {} if args.init == "noise" else {"begins_as": args.init}
    folder.dry_run(settings_of(args, folder.defaults, spec, classes, teachers, blocks, real),
                   images=num_images, units=len(batches), images_computed=num_computed, **begins_as,
                   bytes=num_images * image_bytes)
