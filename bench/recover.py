"""The benchmark's section recover: microseconds per image and iteration, ours and the plain formulation's."""
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count

import torch

from bench.measure import Side, forward_gflop, free, megabytes, peak_memory, spread, time_pairs
from bench.plain import Look, PlainBatch, PlainObjective
from recover.engines import enough_groups, make_fast_engine
from recover.objective import Weights
from recover.step import Stepper
from recover.views import LEAST_AREA, draw_view, least_areas
from sre2l.data.augment import unit_rng
from sre2l.data.datasets import DATASETS
from sre2l.nets.models import build_network

NUM_VIEWS = 16  # drawn ahead, used in turn
ROLLS = {"imagenet1k": (0, 32), "tiny-imagenet": (-4, 4)}  # pixels; elsewhere 0..4, and no crop and no flip
WEIGHTS = Weights(r_bn=0.01, first_bn_multiplier=10.0, tv_l2=0.0, l2_scale=0.0)  # published
LR = 0.25
FULL = (
    ("resnet18", "imagenet1k", 100),
    ("resnet50", "imagenet1k", 100),
    ("mobilenet_v2", "imagenet1k", 100),
    ("resnet18", "tiny-imagenet", 100),
    ("resnet18", "cifar100", 100))
QUICK = {  # on a GPU most of a row's time goes into compiling kernels and choosing algorithms
    "cpu": (("resnet18", "imagenet1k", 10), ("mobilenet_v2", "imagenet1k", 10),
            ("resnet18", "tiny-imagenet", 20), ("resnet18", "cifar100", 50)),
    "cuda": (("resnet18", "imagenet1k", 10), ("resnet18", "cifar100", 50))}


@dataclass(frozen=True)
class Case:
    """A network (torchvision name, with the data set's stem) and the batch that it sees."""
    network: str
    dataset: str
    batch: int

    @property
    def spec(self):
        return DATASETS[self.dataset]

    @property
    def rolls(self):
        return ROLLS.get(self.dataset, (0, 4))

    @property
    def bounds(self):
        """The least and largest value of each channel, normalised."""
        return [[(edge - m) / s for m, s in zip(self.spec.mean, self.spec.std)] for edge in (0, 1)]


def make_teacher(case, device):
    """Random weights, running statistics of a batch of noise; frozen, in eval mode."""
    torch.manual_seed(0)
    network, _ = build_network(case.network, case.spec.num_classes, case.spec.stem)
    with torch.no_grad():
        network.train()(torch.randn(4, 3, case.spec.size, case.spec.size))
    return network.eval().requires_grad_(False).to(device)


def batches(case, groups, device):
    """-> images (G, B, 3, S, S) of noise, targets (G, B)."""
    shape = groups, case.batch, 3, case.spec.size, case.spec.size
    targets = torch.arange(case.batch, device=device) % case.spec.num_classes
    return torch.randn(shape, device=device), targets.expand(groups, -1).contiguous()


def choose_groups(case, groups, device):
    """How many batches of ours are stacked; groups: the user's, None = as recover chooses for a large set."""
    default = enough_groups(1000, case.batch, case.spec.size) if device.type == "cuda" else 1
    return groups or default


def make_stepper(case, engine, device):
    return Stepper(engine, *(torch.tensor(edge, device=device).view(3, 1, 1) for edge in case.bounds))


def views_of(case, groups, curriculum=None):
    """NUM_VIEWS lists of `groups` views. curriculum: of --crop-curriculum; crops of small images, too."""
    rng = unit_rng(0)
    crop_flip = case.spec.size > 32 or curriculum is not None
    low, high = case.rolls
    areas = least_areas(curriculum or "none", LEAST_AREA, 1.0, NUM_VIEWS)
    return [[draw_view(case.spec.size, high, low < 0, crop_flip, rng, area) for _ in range(groups)]
            for area in areas]


def build_ours(case, precision, groups, device, curriculum=None):
    """-> run() that is one iteration of `groups` stacked batches. curriculum: as in views_of."""
    engine = make_fast_engine(make_teacher(case, device), WEIGHTS, case.spec.size, precision)
    stepper = make_stepper(case, engine, device)
    views = views_of(case, groups, curriculum)
    stepper.start(*batches(case, groups, device), views, [LR] * NUM_VIEWS)
    done = count()
    return lambda: stepper.step(next(done) % NUM_VIEWS)


def build_plain(case, device):
    """-> run() that is one iteration of one batch."""
    look = Look(case.spec.size, case.rolls, crop_flip=case.spec.size > 32)
    images, targets = batches(case, 1, device)
    objective = PlainObjective(make_teacher(case, device), WEIGHTS, look)
    batch = PlainBatch(objective, images[0], targets[0], *case.bounds)
    return lambda: batch.step(LR)


def our_side(case, precision, groups, device, build=build_ours):
    """A side of ours. build: as build_ours."""
    build = partial(build, case, precision, groups, device)
    return Side(build, tf32=(precision == "tf32",) * 2, benchmark=True)


def measure(case, precision, groups, device, num_pairs, least_seconds, peak, quick=False):
    """One row of the table. groups: of choose_groups; quick: leave out the memory of a single group.

    peak: TFLOP/s of a matrix product in this precision, or None."""
    groups = choose_groups(case, groups, device)
    sides = our_side(case, precision, groups, device), Side(partial(build_plain, case, device))
    times, peaks = time_pairs(sides, device, num_pairs, least_seconds)
    free(device)

    # Memory: on a GPU the warm-up has counted it, on a CPU a new process finds it.
    if device.type == "cpu":
        peaks = [peak_memory(side, device) for side in sides]
    memory = {"mb": megabytes(peaks[0]), "mb_plain": megabytes(peaks[1])}
    if groups > 1 and not quick:
        memory["mb_groups1"] = megabytes(peak_memory(our_side(case, precision, 1, device), device))

    # Time and the share of what the device can do: forward and input gradient cost two forward passes.
    pairs = [(1e6 * first / (groups * case.batch), 1e6 * second / case.batch) for first, second in times]
    ours = spread(first for first, _ in pairs)
    gflop = 2 * forward_gflop(case.network, case.spec, case.spec.size)
    tflop_s = gflop / ours["median"] * 1e3  # GFLOP / us = 1000 TFLOP/s
    return {"section": "recover", **asdict(case), "size": case.spec.size, "groups": groups,
            "precision": precision, "unit": "us per image-iteration", "ours": ours,
            "plain": spread(second for _, second in pairs),
            "ratio": spread((second / first for first, second in pairs), 3), **memory,
            "gflop": round(gflop, 3), "tflop_s": round(tflop_s, 3),
            "share_of_peak": peak and round(tflop_s / peak, 3)}
