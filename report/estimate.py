"""How long the stages would take on this machine: a few of their steps, on noise, times what they plan."""
import math
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from recover.engines import Matched, make_engine
from recover.objective import Weights, statistics_layers
from recover.step import Stepper
from recover.views import WHOLE_IMAGE
from relabel.plan import num_label_bytes
from sre2l.data.codecs import NONE, codec_in
from sre2l.data.datasets import DATASETS
from sre2l.data.real_images import find_split
from sre2l.nets.functions import recorded_name
from sre2l.nets.models import build_network

CPU_BATCH = 25  # images in a timed step on a CPU, where more change little
STEP_SEC = 1  # that the timed steps of a kind take in all


@dataclass(frozen=True)
class Rates:
    """Seconds for one image: a training step, a forward pass, an iteration of recover."""
    train: float
    forward: float
    recover: float


def seconds_for(step, device):
    """Mean seconds of one call of step, after two that warm up."""
    for _ in range(2):
        step()
    done = 0
    begin = time.monotonic()
    while time.monotonic() - begin < STEP_SEC:
        step()
        done += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
    return (time.monotonic() - begin) / done


def measure_rates(arch, stem, spec, batch_size, device):
    """Time the steps of a network with random weights on a batch of noise -> Rates.

    A network without BatchNorm, which only a student can be, has no iterations of recover."""
    batch = batch_size if device.type == "cuda" else min(batch_size, CPU_BATCH)
    network, _ = build_network(arch, spec.num_classes, stem, size=spec.size)
    network.to(device)
    images = torch.randn(batch, 3, spec.size, spec.size, device=device)
    targets = torch.arange(batch, device=device) % spec.num_classes

    def train():
        network.zero_grad()
        F.cross_entropy(network(images), targets).backward()

    @torch.inference_mode()
    def forward():
        network(images)

    seconds = {"train": seconds_for(train, device)}
    network.eval().requires_grad_(False)
    seconds["forward"] = seconds_for(forward, device)
    if not statistics_layers(network):
        return Rates(seconds["train"] / batch, seconds["forward"] / batch, math.nan)
    engine, _ = make_engine("fast", [Matched(network, Weights(0.01, 1.0, 0.0, 0.0))], None, spec.size, None)
    low, high = (edge.expand(3, 1, 1).contiguous() for edge in (images.amin(), images.amax()))
    stepper = Stepper(engine, low, high)
    stepper.start(images[None], targets[None], [[WHOLE_IMAGE]], [0.1])
    seconds["recover"] = seconds_for(lambda: stepper.step(0), device)
    return Rates(**{name: value / batch for name, value in seconds.items()})


def count_images(spec, path, split):
    """The number of real images of a split: as published where no folder is given, for an estimate downloads
    nothing; None where nobody knows it."""
    row = DATASETS.get(spec.name)
    if path is None and spec.source is None and spec.name != "digits":
        is_published = row and row.num_images and row.val_fraction == spec.val_fraction
        return row.num_images[split == "val"] if is_published else None
    return len(find_split(spec, path, split))


def picking(settings, num_train, num_classes, rates):
    """Seconds of pick's forward passes; None without the number of real images. settings: of its plan."""
    if settings["score"] == "random":
        return 0.0
    if num_train is None:
        return None
    scored = min(num_train, (settings["most"] or num_train) * num_classes)
    return scored * max(1, settings["crops"]) * rates.forward


def of_iteration(rates, rule):
    """Seconds of an iteration of recover for one image, over the teachers that have BatchNorm: their sum, or
    where they take turns their mean. rule: of --teachers."""
    matching = [rate.recover for rate in rates if not math.isnan(rate.recover)]
    return sum(matching) / (1 if rule == "sum" else len(matching)) if matching else math.nan


def planned_teachers(plans):
    """Network and stem of each teacher. Those of torchvision's that are not trained stand in recover's plan,
    else in squeeze's; those of the user's files in relabel's."""
    if "squeeze" not in plans:
        named = plans["relabel"].get("teachers") or [plans["relabel"]["teacher"]]
        return [(teacher["arch"], teacher["stem"]) for teacher in named]
    settings = plans["squeeze"]["settings"]
    if "recover" in plans:
        settings = plans["recover"]["settings"]["teacher"]
    untrained = [(arch, "torchvision") for arch in settings["arch"].split(",")]
    return plans["squeeze"].get("teachers", untrained)


def estimate(plans, spec, path, device, typed=()):
    """What each step would take and write -> {step: (seconds, bytes)}; seconds None where nobody can tell.

    plans: what --dry-run of squeeze, pick, recover, relabel and validate printed, without those that the
    chain leaves out; path: of the real images; typed: the networks as the user names them, where plans do not
    say in which folder a file is."""
    settings = {name: plan["settings"] for name, plan in plans.items()}
    paths = {recorded_name(name): name for name in typed}
    planned = *planned_teachers(plans), (settings["validate"]["model"], settings["validate"]["stem"])
    *teachers, student = ((paths.get(name, name), stem) for name, stem in planned)
    batch = settings.get("recover", settings["relabel"])["batch_size"]
    rates = {teacher: measure_rates(*teacher, spec, batch, device) for teacher in teachers}
    if student not in rates:
        rates[student] = measure_rates(*student, spec, min(128, settings["relabel"]["batch_size"]), device)
    of_student = rates[student]
    of_teachers = [rates[teacher] for teacher in teachers]
    num_train = count_images(spec, path, "train")
    num_val = count_images(spec, path, "val")
    made = plans.get("recover", plans.get("pick"))  # the images that are labelled
    num_images = made["images"]

    def training(plan, images, rates):
        if plan["epochs"] and None in (images, num_val):
            return None
        passes = plan["epochs"] * (images or 0)
        return passes * rates.train + plan.get("evaluations", 0) * (num_val or 0) * rates.forward

    seconds = {}
    if "squeeze" in plans:
        trained = [training(plans["squeeze"], num_train, rate) for rate in of_teachers]
        seconds["squeeze"] = None if None in trained else sum(trained)
    if "pick" in plans:
        seconds["pick"] = picking(settings["pick"], num_train, spec.num_classes, of_teachers[0])
    if "recover" in plans:
        image_iterations = settings["recover"]["iteration"] * plans["recover"]["images_computed"]
        rule = settings["recover"].get("teacher_rule")
        seconds["recover"] = image_iterations * of_iteration(of_teachers, rule)
    forward = sum(rate.forward for rate in of_teachers)
    labelling = settings["relabel"]["epochs"] * num_images * forward
    seconds |= {"relabel": labelling, "validate": training(plans["validate"], num_images, of_student)}
    if codec_in(settings["relabel"]) == NONE and seconds["validate"] is not None:
        seconds["relabel"] = 0.0  # the teacher runs beside the student
        seconds["validate"] += labelling
    sizes = {name: plan["bytes"] for name, plan in plans.items()}
    # relabel cannot count images that are not there yet.
    sizes["relabel"] = num_label_bytes(num_images, settings["relabel"])

    # The controls repeat the last stages: one the student, the others images, labels and student.
    of_control = None if seconds["validate"] is None else seconds["relabel"] + seconds["validate"]
    seconds |= {"hard labels": training(plans["validate"], num_images, of_student),
                "random real images": of_control}
    sizes |= {"hard labels": sizes["validate"],
              "random real images": made["bytes"] + sizes["relabel"] + sizes["validate"]}
    if "pick" in plans and "recover" in plans:
        seconds["picked real images"] = of_control
        sizes["picked real images"] = sizes["relabel"] + sizes["validate"]
    return {name: (seconds[name], sizes[name]) for name in seconds}
