"""The benchmark's section recover: microseconds per image and iteration of ours and of the plain formulation."""
import time
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count

import torch

from recover.engines import enough_groups
from recover.fast import FastEngine
from recover.objective import Weights
from recover.step import Stepper
from recover.views import draw_view
from sre2l.data.datasets import DATASETS
from sre2l.nets.models import build_network
from sre2l.run.seeds import unit_rng
from bench.measure import Side, forward_gflop, peak_memory, spread, sync, time_pairs
from bench.plain import Look, PlainBatch, PlainObjective

NUM_VIEWS = 16  # drawn ahead, used in turn
ROLLS = {"imagenet1k": (0, 32), "tiny-imagenet": (-4, 4)}  # least and largest, pixels; elsewhere 0..4, and no crop and no flip
WEIGHTS = Weights(r_bn=0.01, first_bn_multiplier=10.0, tv_l2=0.0, l2_scale=0.0)  # published
LR = 0.25
FULL = (("resnet18", "imagenet1k", 100), ("resnet50", "imagenet1k", 100), ("mobilenet_v2", "imagenet1k", 100),
        ("resnet18", "tiny-imagenet", 100), ("resnet18", "cifar100", 100))
QUICK = (("resnet18", "imagenet1k", 10), ("mobilenet_v2", "imagenet1k", 10), ("resnet18", "tiny-imagenet", 20), ("resnet18", "cifar100", 50))


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


def make_stepper(case, precision, device):
    engine = FastEngine(make_teacher(case, device), WEIGHTS, case.spec.size, precision)
    return Stepper(engine, *(torch.tensor(edge, device=device).view(3, 1, 1) for edge in case.bounds))


def build_ours(case, precision, groups, device, stepper=None):
    """-> run() that is one iteration of `groups` stacked batches, with a stepper that there is already or a new one."""
    stepper, rng, crop_flip = stepper or make_stepper(case, precision, device), unit_rng(0), case.spec.size > 32
    views = [[draw_view(case.spec.size, case.rolls[1], case.rolls[0] < 0, crop_flip, rng) for _ in range(groups)] for _ in range(NUM_VIEWS)]
    stepper.start(*batches(case, groups, device), views, [LR] * NUM_VIEWS)
    done = count()
    return lambda: stepper.step(next(done) % NUM_VIEWS)


def build_plain(case, device):
    """-> run() that is one iteration of one batch."""
    look = Look(case.spec.size, case.rolls, crop_flip=case.spec.size > 32)
    images, targets = batches(case, 1, device)
    batch = PlainBatch(PlainObjective(make_teacher(case, device), WEIGHTS, look), images[0], targets[0], *case.bounds)
    return lambda: batch.step(LR)


def our_side(case, precision, groups, device):
    return Side(partial(build_ours, case, precision, groups, device), tf32=(precision == "tf32",) * 2, benchmark=True)


def measure(case, precision, groups, device, num_pairs, least_seconds, peak):
    """One row of the table. groups: None = as recover chooses for a large set; peak: TFLOP/s of a matrix product in this precision, or None."""
    groups = groups or (enough_groups(1000, case.batch, case.spec.size) if device.type == "cuda" else 1)
    ours, plain = our_side(case, precision, groups, device), Side(partial(build_plain, case, device))
    memory = {"mb": peak_memory(ours, device), "mb_plain": peak_memory(plain, device)}
    if groups > 1:
        memory["mb_groups1"] = peak_memory(our_side(case, precision, 1, device), device)
    pairs = [(1e6 * first / (groups * case.batch), 1e6 * second / case.batch)
             for first, second in time_pairs((ours, plain), device, num_pairs, least_seconds)]
    gflop, ours = 2 * forward_gflop(case.network, case.spec, case.spec.size), spread(first for first, _ in pairs)
    tflop_s = gflop / ours["median"] * 1e3  # GFLOP / us = 1000 TFLOP/s
    return {"section": "recover", **asdict(case), "size": case.spec.size, "groups": groups, "precision": precision,
            "unit": "us per image-iteration", "ours": ours, "plain": spread(second for _, second in pairs),
            "ratio": spread((second / first for first, second in pairs), 3),
            **{key: value and round(value / 1e6, 1) for key, value in memory.items()},
            "gflop": round(gflop, 3), "tflop_s": round(tflop_s, 3), "share_of_peak": peak and round(tflop_s / peak, 3)}


def growth(case, precision, groups, device, iterations, num_batches=10):
    """Microseconds per image-iteration of each of several batches (stacks of them) that one stepper optimises one after the other."""
    with our_side(case, precision, groups, device).backends():
        stepper, times = make_stepper(case, precision, device), []
        for _ in range(1 + num_batches):
            sync(device)
            start = time.perf_counter()
            run = build_ours(case, precision, groups, device, stepper)
            for _ in range(iterations):
                run()
            sync(device)
            times.append(1e6 * (time.perf_counter() - start) / (iterations * groups * case.batch))
    return times[1:]  # the first warms up
