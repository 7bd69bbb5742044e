"""The benchmark's section options: an iteration of recover with an option, and what it is made of without it.

If all is well, a target costs what the iteration without it costs, several teachers what each alone costs in
one iteration of its own, summed, a crop's curriculum what crops without it cost, and blocks nothing: two of
eight iterations, merged, from real images, are an upper bound for the published ones of 500."""
from dataclasses import asdict
from functools import partial
from itertools import count

import torch

from bench import recover as bench
from bench.measure import spread, time_pairs
from bench.recover import WEIGHTS, Case, make_teacher, our_side
from recover.batches import BatchGroup, ImageBatch
from recover.blocks import Course, plan_blocks
from recover.engines import make_fast_engine
from recover.several import CycleEngine, SumEngine
from recover.targets import BnTarget
from sre2l.kernels.norms import statistics_layers
from sre2l.nets.statistics import Statistics

SECOND = "mobilenet_v2"  # the other teacher
OPTIONS = ("class target", "group target", "two teachers in turn", "two teachers summed", "crop curriculum",
           "blocks")


def make_target(network, num_classes, normalises):
    """Statistics of every class or group near the running ones."""
    found = Statistics([], [])
    for layer in statistics_layers(network):
        drawn = torch.rand(num_classes, layer.num_features)
        found.mean.append(layer.running_mean.cpu() + 0.1 * drawn)
        found.var.append(layer.running_var.cpu() * (0.5 + drawn))
    return BnTarget(1.0 if normalises else 0.5, normalises, found)


def make_engine(option, case, precision, device):
    """The fast engine with this option; None: without any."""
    size = case.spec.size
    network = make_teacher(case, device)
    if option in ("class target", "group target"):
        target = make_target(network, case.spec.num_classes, option == "group target")
        return make_fast_engine(network, WEIGHTS, size, precision, target=target)
    other = make_teacher(Case(SECOND, case.dataset, case.batch), device)
    engines = [make_fast_engine(one, WEIGHTS, size, precision) for one in (network, other)]
    if option == "two teachers in turn":
        return CycleEngine(engines)
    return SumEngine(engines, [1.0, 1.0], WEIGHTS)


def build_blocks(case, precision, groups, device):
    """-> run() that is one iteration of NUM_VIEWS, in two blocks with a merge; the first begins the group."""
    size = case.spec.size
    number = bench.NUM_VIEWS
    engine = make_fast_engine(make_teacher(case, device), WEIGHTS, size, precision)
    images, targets = bench.batches(case, groups, device)
    views = bench.views_of(case, groups)
    blocks = plan_blocks([(number // 2, None)] * 2, size)
    stepper = bench.make_stepper(case, engine, device)
    course = Course(stepper, {size: engine}, blocks, [bench.LR] * number, merge=0.5)
    done = count()

    def run():
        iteration = next(done) % number
        if iteration == 0:
            course.start(images, views, {size: images}, targets)
        course.step(iteration)
    return run


def build_with(option, case, precision, groups, device):
    """-> run() that is one iteration, of teachers in turn one of each."""
    if option == "crop curriculum":
        return bench.build_ours(case, precision, groups, device, "cosine")
    if option == "blocks":
        return build_blocks(case, precision, groups, device)
    engine = make_engine(option, case, precision, device)
    images, targets = bench.batches(case, groups, device)
    engine.take_up(BatchGroup(tuple(ImageBatch(i, tuple((i, label) for label in labels))
                                    for i, labels in enumerate(targets.tolist()))))
    stepper = bench.make_stepper(case, engine, device)
    number = bench.NUM_VIEWS
    stepper.start(images, targets, bench.views_of(case, groups), [bench.LR] * number)
    done = count()

    def run():
        for _ in range(engine.period):
            stepper.step(next(done) % number)
    return run


def build_without(option, case, precision, groups, device):
    """-> run() that is one iteration without it; of several teachers one by each alone."""
    if option == "crop curriculum":
        return bench.build_ours(case, precision, groups, device, "none")
    cases = [case]
    if "two teachers" in option:
        cases.append(Case(SECOND, case.dataset, case.batch))
    runs = [our_side(one, precision, groups, device).build() for one in cases]

    def run():
        for one in runs:
            one()
    return run


def measure(option, case, precision, groups, device, num_pairs, least_seconds):
    """One row of the table. groups: of choose_groups."""
    groups = bench.choose_groups(case, groups, device)
    sides = [our_side(case, precision, groups, device, partial(build, option))
             for build in (build_with, build_without)]
    pairs, _ = time_pairs(sides, device, num_pairs, least_seconds)
    return {"section": "options", "option": option, **asdict(case), "size": case.spec.size, "groups": groups,
            "precision": precision, "unit": "ms per iteration", "ours": spread(1e3 * a for a, _ in pairs),
            "plain": spread(1e3 * b for _, b in pairs), "ratio": spread((b / a for a, b in pairs), 3)}
