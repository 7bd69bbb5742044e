"""The teacher of a run, frozen: from our own checkpoint, from anybody's, or from torchvision."""
import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sre2l.data.datasets import STEMS
from sre2l.data.flags import override
from sre2l.data.image_folder import fingerprint
from sre2l.data.real_images import decode_own, read_val
from sre2l.nets.checkpoints import TEACHER_FORMAT, V1, hash_weights, pretrained
from sre2l.nets.evaluation import first_answers, is_chance, share_in_best_order
from sre2l.nets.functions import is_function, recorded_name, source_sha256
from sre2l.nets.models import build_network, check_shapes
from sre2l.nets.weights import load_weights, read_any_checkpoint
from sre2l.run.errors import UserError
from sre2l.run.flags import split_files
from sre2l.run.output import recorded
from sre2l.run.paths import launcher_command, run_folder, teacher_names
from sre2l.run.processes import rank

# Where checkpoints say their top-1: ours in percent, those of others also as a share.
TOP1_KEYS = ("top1", "acc", "acc1", "best_acc1", "best_acc", "best_prec1")
# What our own say, where they say it.
FACTS = {"arch": str, "stem": str, "dataset": str, "num_classes": int, "size": int, "mean": tuple | list,
         "std": tuple | list, "class_names": tuple | list | None, "top1": float | int | None,
         "seed": int | None, "arch_sha256": str}
PART = 4096  # images that are decoded at a time
OTHER_ORDER = 20  # points of top-1 by which another order of the classes is the likelier one
FALL = 10  # points of top-1 below what the checkpoint says that want a reason


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen network in eval mode, with the facts that an image or a label depends on.

    class_names, top1 and seed are None where the checkpoint does not tell them. arch: its name as it is
    recorded; arch_sha256: of the file where that is PATH.py:function, else None. stated_top1: in percent,
    what the checkpoint says in any way; top1 is our own checkpoints' alone, and images and labels record
    that one. mean, std: of the images that the network takes; own_normalisation: those that it was trained
    with, (mean, std), where a layer in front of it converts."""
    network: nn.Module
    arch: str
    stem: str
    num_classes: int
    class_names: list | None
    mean: tuple
    std: tuple
    size: int
    top1: float | None
    seed: int | None
    source: str
    sha256: str
    arch_sha256: str | None = None
    stated_top1: float | None = None
    own_normalisation: tuple | None = None

    def describe(self):
        """The facts for settings and manifests. Where the checkpoint lies is not among them."""
        keys = ("arch", "stem", "num_classes", "mean", "std", "size", "top1", "seed", "sha256")
        keys += tuple(key for key in ("arch_sha256", "own_normalisation") if getattr(self, key) is not None)
        return {key: getattr(self, key) for key in keys}

    def check_takes(self, size):
        """Raise UserError where it takes images of its own size, but not of this one."""
        if size != self.size:
            check_shapes(self.network, self.arch, self.num_classes, size)


def is_ours(checkpoint):
    return isinstance(checkpoint.get("format"), str) and checkpoint["format"] == TEACHER_FORMAT


def check_facts(path, facts):
    """Raise UserError where a checkpoint of ours says what squeeze and validate never write."""
    for key in FACTS & facts.keys():
        value = facts[key]
        fits = isinstance(value, FACTS[key])
        if key in ("mean", "std"):
            fits = fits and len(value) == 3 and all(isinstance(number, float | int) for number in value)
        if not fits or key == "stem" and value not in STEMS or key == "size" and value < 1:
            raise UserError(f"{path}: says {key} is {value!r}, which no checkpoint of ours has")


def same_or_refuse(path, stored, requested, flag):
    """The checkpoint's own fact, else the flag's value. Raises UserError where they differ."""
    if stored is not None and requested is not None and stored != requested:
        raise UserError(f"{path}: the checkpoint says {stored}, {flag} says {requested}")
    return requested if stored is None else stored


def choose_arch(path, stored, requested, default):
    """The name of the network to build: what the user types, else the checkpoint's, else the default.

    Raises UserError where the two differ, and for a function that the checkpoint alone names: no checkpoint
    runs code. Of two paths the file's name and the function have to be the same."""
    same_or_refuse(path, stored, requested and recorded_name(requested), "--arch or --model")
    if requested is None and stored is not None and is_function(stored):
        name = f"PATH/{stored}" if ".py:" in stored else stored
        raise UserError(f"{path}: its network is {stored}, code that runs only where you name it yourself: "
                        f"type --arch {name} (--model in validate, --verifier for a verifier)")
    return requested or stored or default


def find_stated_top1(checkpoint):
    """What a checkpoint says of its top-1, in percent; None where it says nothing of the kind."""
    for key in TOP1_KEYS:
        value = checkpoint.get(key)
        if isinstance(value, torch.Tensor | np.number) and len(value.shape) == 0:
            value = value.item()
        if isinstance(value, int | float) and 0 < value <= 100:
            return float(value if is_ours(checkpoint) or value > 1 else 100 * value)
    return None


def torchvision_network(spec, arch, stem):
    """torchvision's network with its ImageNet weights."""
    if stem not in (None, "torchvision"):
        raise UserError(f"--stem {stem}: torchvision's weights have torchvision's stem; give a checkpoint "
                        "with --teacher")
    network = pretrained(arch)
    if spec.num_classes != 1000:
        raise UserError(f"torchvision's {arch} has 1000 classes, --num-classes says {spec.num_classes}; "
                        f"use --classes for a subset")
    return network


def stored_network(spec, path, checkpoint, facts, arch, stem, default_arch):
    """The network of a checkpoint -> (network, arch, stem).

    facts: what our own checkpoints tell; {} for anybody else's."""
    if facts.get("dataset", spec.name) != spec.name:
        raise UserError(f"{path}: was trained on {facts['dataset']}, this run is of {spec.name}")
    if facts.get("num_classes", spec.num_classes) != spec.num_classes:
        raise UserError(f"{path}: the teacher has {facts['num_classes']} classes, {spec.name} has "
                        f"{spec.num_classes}; --num-classes says how many a set has")
    arch = choose_arch(path, facts.get("arch"), arch, default_arch)
    wanted = same_or_refuse(path, facts.get("stem"), stem, "--stem") or spec.stem
    size = facts.get("size", spec.size)
    network, has = build_network(arch, spec.num_classes, wanted, strict_stem=stem is not None, size=size)
    if facts.get("arch_sha256") not in (None, source_sha256(arch)):
        raise UserError(f"{path}: the code of {arch}, or a file beside it, has been edited since; bring it "
                        f"back, train anew, or take the weights alone (docs/networks.md)")
    load_weights(network, checkpoint, path, arch)
    if not facts and spec.name == "imagenet1k" and hasattr(network, "transform_input"):
        network.transform_input = True  # what torchvision's weights of inception_v3 and googlenet want
    return network, arch, has


def load_teacher(spec, path, arch=None, stem=None, default_arch="resnet18"):
    """The teacher for a data set -> Teacher. path: a checkpoint; None means torchvision's ImageNet weights.

    spec: the data set's row. arch, stem: what the user says; None means as the checkpoint says, else
    default_arch with the data set's stem. Raises UserError where the checkpoint and the user contradict each
    other, or the weights do not fit."""
    if path is None:
        arch = arch or default_arch
        network = torchvision_network(spec, arch, stem)
        facts, stem, source, stated = {}, "torchvision", f"torchvision {V1}", None
    else:
        checkpoint = read_any_checkpoint(path)
        facts = checkpoint if is_ours(checkpoint) else {}
        check_facts(path, facts)
        network, arch, stem = stored_network(spec, path, checkpoint, facts, arch, stem, default_arch)
        source = str(path)
        stated = find_stated_top1(checkpoint)
    size = facts.get("size", spec.size)
    check_shapes(network, arch, spec.num_classes, size)
    return Teacher(
        network.eval().requires_grad_(False), recorded_name(arch), stem, spec.num_classes,
        facts.get("class_names"), tuple(facts.get("mean", spec.mean)), tuple(facts.get("std", spec.std)),
        size, facts.get("top1"), facts.get("seed"), source, hash_weights(network), source_sha256(arch),
        stated)


class Converted(nn.Module):
    """A network that takes images in another normalisation than its own, (mean, std) of each channel."""

    def __init__(self, network, mean, std, own_mean, own_std):
        super().__init__()
        mean, std, own_mean, own_std = (torch.tensor(v).view(3, 1, 1) for v in (mean, std, own_mean, own_std))
        self.register_buffer("scale", std / own_std)
        self.register_buffer("shift", (mean - own_mean) / own_std)
        self.network = network

    def forward(self, x):
        return self.network(x * self.scale + self.shift)


def teacher_files(args):
    """-> [(checkpoint, name of the network or None), ...], one for each teacher; torchvision's have the
    checkpoint None. By default the checkpoints are those that squeeze leaves in the run folder.

    Raises UserError where the numbers of --teacher and --arch differ."""
    archs = args.arch.split(",") if args.arch else []
    if args.teacher is None:
        files = [run_folder(args) / name / "teacher.pth" for name in teacher_names(archs or [""])]
        if args.dataset == "imagenet1k":
            files = [None] * len(files)
    else:
        files = [Path(file) for file in split_files(args.teacher)]
    if archs and len(archs) != len(files):
        raise UserError(f"--arch names {len(archs)} network{'s' * (len(archs) > 1)} for {len(files)} "
                        f"checkpoint{'s' * (len(files) > 1)}; name one for each, between commas")
    return list(zip(files, archs or [None] * len(files)))


def check_same_classes(first, other):
    """Raise UserError where two teachers are known to have classes of other names or in another order."""
    names = first.class_names, other.class_names
    if None not in names and list(names[0]) != list(names[1]):
        raise UserError(f"{other.source}: its classes are not those of {first.source}, or are in another "
                        f"order; several teachers need the same")


def as_shown(teacher, spec):
    """A further teacher as it is shown images of the first one's normalisation, which spec has."""
    own = teacher.mean, teacher.std
    if own == (spec.mean, spec.std):
        return teacher
    network = Converted(teacher.network, spec.mean, spec.std, *own).eval()
    return dataclasses.replace(teacher, network=network, mean=spec.mean, std=spec.std, own_normalisation=own)


def find_teachers(args, spec):
    """The run's teachers -> ([Teacher, ...], the data set's row with the first one's normalisation and size).

    --input-size, --mean and --std win over what the first teacher's checkpoint says. Each of the others is
    shown its own normalisation: a layer in front of its network converts. A --dry-run gets ([], spec) where
    one is still to be downloaded or trained. Raises UserError for teachers of different classes."""
    pairs = teacher_files(args)
    stored = [file for file, _ in pairs if file is not None]
    untrained = [file for file in stored if file.is_relative_to(run_folder(args)) and not file.exists()]
    if args.dry_run and (untrained or not stored):
        return [], spec
    if untrained:
        make = f"train one ({launcher_command(args, 'squeeze/squeeze.sh')})"
        raise UserError(f"{untrained[0]}: no teacher there; {make} or give one with --teacher FILE")
    first, *others = [load_teacher(spec, file, arch, args.stem) for file, arch in pairs]
    spec = override(spec, args, mean=first.mean, std=first.std, size=first.size)
    for teacher in others:
        check_same_classes(first, teacher)
    for teacher in (first, *others):
        teacher.check_takes(spec.size)
    first = dataclasses.replace(first, mean=spec.mean, std=spec.std)
    return [first, *(as_shown(teacher, spec) for teacher in others)], spec


def described_or_planned(args, teachers):
    """What settings say of each teacher; of one that a dry run does not have yet, what the flags say."""
    planned = {"arch": recorded_name(args.arch or "resnet18"), "file": args.teacher}
    return [teacher.describe() for teacher in teachers] or [planned]


def teacher_weights(weights, num_teachers):
    """--teacher-weights, by default 1 for each teacher. Raises UserError for another number of them."""
    weights = weights or [1.0] * num_teachers
    if len(weights) != num_teachers:
        raise UserError(f"--teacher-weights has {len(weights)} numbers for {num_teachers} "
                        f"teacher{'s' * (num_teachers > 1)}; give one for each, between commas")
    return weights


def describe_order(answers, labels, top1):
    """What says that the classes are in another order; None where top1, in percent, is as good as in any."""
    share, order = share_in_best_order(answers, labels)
    luck = 150 / math.sqrt(max(1, len(labels) // 2))  # three standard deviations, points
    moved = next((label for label, answer in order.items() if label != answer), None)
    if moved is None or 100 * share < top1 + max(OTHER_ORDER, luck):
        return None
    return (f"about {100 * share:.0f}% if its classes were in another order: it takes class {moved} for "
            f"class {order[moved]}, and so on; is --class-order the other one, or are the folders renamed?")


def describe_fall(teacher, top1, num_images, classes):
    """A warning where a measured top-1, in percent, is far below what the teacher's checkpoint says; else ''.

    classes: those that were measured; None for all, with which alone the two compare."""
    luck = 150 / math.sqrt(num_images)  # three standard deviations, points
    if classes or teacher.stated_top1 is None or top1 > teacher.stated_top1 - max(FALL, luck):
        return ""
    return (f"\nwarning: the checkpoint says {teacher.stated_top1:.2f}%; strides and normalisation are not "
            f"in the weights: is --stem, --input-size, --mean, --std or the class order another one?")


def answer_all(teacher, images, device):
    """The teacher's answers and the right ones (n,) int64 each, of all images, whatever other processes do.

    Part by part: of several processes each may measure, and all images would fill the memory."""
    answers = []
    for first in range(0, len(images), PART):
        part = slice(first, first + PART)
        own = decode_own(dataclasses.replace(images, items=images.items[part], labels=images.labels[part]),
                         device=device)
        batches = first_answers(teacher.network, own, teacher.mean, teacher.std, device)
        answers += [classes[:, 0].cpu() for classes, _ in batches]
    return torch.cat(answers).numpy(), images.labels


def measured_by_squeeze(teacher, args, images):
    """Did squeeze train the run's own teacher and measure it on these very images, as they are shown now?"""
    if args.teacher is not None or teacher.top1 is None:  # a file of others in its place has none
        return False
    found = recorded(run_folder(args) / "teacher" / "settings.json") or {}
    is_as_trained = args.mean is None and args.std is None and args.input_size is None
    is_as_trained &= found.get("arch_sha256") == teacher.arch_sha256
    return is_as_trained and found.get("val") == fingerprint(images)


def check_teachers(teachers, spec, args, device):
    """check_top1 of each teacher -> the first one's top-1. Of several processes the first measures, and each
    that may delete what is there; the others get None."""
    if rank() > 0 and not args.overwrite:
        return None
    found = [check_top1(teacher, spec, args, device) for teacher in teachers]
    return found[0] if found else None


def check_top1(teacher, spec, args, device):
    """The teacher's top-1 in percent on real validation images; None where none are given or built in.

    Where squeeze has measured it on the same images, its figure counts. Raises UserError below twice chance,
    and where another order of the classes would raise it by a lot."""
    has_own = spec.name == "digits" or (spec.source and Path(spec.source).is_dir())
    if args.val_dir is None and not has_own:
        if spec.source:
            print(f"{spec.source}: there is no such folder, so the teacher is not measured; --real-data says "
                  f"where {spec.name} lies now")
        return None
    images = read_val(spec, args.val_dir, args.classes, teacher.class_names, order=args.class_order)
    if measured_by_squeeze(teacher, args, images):
        top1, why, how = teacher.top1, None, ", as squeeze measured"
    else:
        answers, labels = answer_all(teacher, images, device)
        top1 = round(100 * float((answers == labels).mean()), 4)
        why, how = describe_order(answers, labels, top1), ""
    print(f"teacher {teacher.arch} ({teacher.source}): top-1 {top1:.2f}% on {len(images)} images of "
          f"{images.root}{how}{describe_fall(teacher, top1, len(images), args.classes)}")
    if why is None and is_chance(top1, spec.num_classes, len(images)):
        why = (f"which is not clearly above chance (1 in {spec.num_classes}); has it been trained for too "
               f"few epochs, or is the class order, the normalisation or --arch another one?")
    if why:
        message = f"{teacher.source}: top-1 {top1:.2f}% on {images.root}, {why}"
        if not args.allow_chance:
            raise UserError(f"{message} --allow-chance goes on")
        print(f"warning: {message}")
    return top1
