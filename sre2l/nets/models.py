"""Networks: build one for a data set, load a teacher from torchvision or from anybody's checkpoint, frozen and in eval mode."""
import argparse
import difflib
import hashlib
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.models.inception import InceptionA, InceptionC, InceptionE

from sre2l.data.datasets import STEMS
from sre2l.run.errors import UserError, first_line
from sre2l.run.safe_load import is_whole, safe_load

TEACHER_FORMAT = "sre2l-teacher-1"
torch.serialization.add_safe_globals([argparse.Namespace])  # the flags of a run, which torchvision's reference scripts save as well
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.", "aux_classifier.")  # training-only heads of inception_v3 and googlenet


@dataclass(frozen=True)
class Teacher:
    """A frozen network in eval mode, with what its checkpoint says: the facts that a label or an image depends on."""
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

    def describe(self):
        """What a result depends on, for settings and manifests: not where the checkpoint lies."""
        keys = ("arch", "stem", "num_classes", "mean", "std", "size", "top1", "seed", "sha256")
        return {key: getattr(self, key) for key in keys}


def check_arch(arch):
    """Raise UserError, with close names, unless torchvision has a classifier of this name."""
    known = torchvision.models.list_models(module=torchvision.models)
    if arch not in known:
        close = difflib.get_close_matches(arch, known, 3, 0.4)
        raise UserError(f"'{arch}' is no torchvision classifier" + (f"; did you mean {', '.join(close)}?" if close else ""))


def replace_stem(network, stem):
    """3x3 convolution instead of conv1, no maxpool: for small images, on networks of the ResNet family, in place."""
    conv = network.conv1
    network.conv1 = nn.Conv2d(conv.in_channels, conv.out_channels, 3, stride=STEMS[stem], padding=1, bias=False)
    network.maxpool = nn.Identity()


def has_stem(network):
    return isinstance(getattr(network, "conv1", None), nn.Conv2d) and hasattr(network, "maxpool") and hasattr(network, "layer1")


def as_planes(_, inputs):
    """A hook before a layer: its inputs NCHW in memory."""
    return tuple(x.contiguous() for x in inputs)


def get_network(arch, **options):
    """torchvision's network of this name.

    NOTE: on a GPU, torch's gradient of an average pool whose windows overlap is wrong in NHWC (2.11, off by as much as it is long); torchvision has
    such pools in Inception v3 alone."""
    network = torchvision.models.get_model(arch, **options)
    for module in network.modules():
        if isinstance(module, (InceptionA, InceptionC, InceptionE)):
            module.register_forward_pre_hook(as_planes)
    return network


def build_network(arch, num_classes, stem, strict_stem=False):
    """A torchvision classifier with fresh weights -> (network, stem it has).

    A network without a conv1-maxpool stem keeps its own; with strict_stem that is a UserError."""
    check_arch(arch)
    heads = {"inception_v3": {"aux_logits": False, "init_weights": True}, "googlenet": {"aux_logits": False, "init_weights": True}}
    network = get_network(arch, weights=None, num_classes=num_classes, **heads.get(arch, {}))
    if stem == "torchvision" or not has_stem(network):
        if stem != "torchvision" and strict_stem:
            raise UserError(f"{arch} has no conv1 and maxpool to replace: --stem {stem} is for networks of the ResNet family")
        return network, "torchvision"
    replace_stem(network, stem)
    return network, stem


def check_input_size(network, arch, size):
    """Raise UserError unless the network can take images of size x size pixels; it is left in the mode it was in."""
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, size, size, device=next(network.parameters()).device))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"{arch} cannot take images of {size}x{size} pixels ({first_line(error)})") from None
    network.train(was_training)


def num_weight_bytes(network):
    return sum(value.nbytes for value in network.state_dict().values())


def read_checkpoint(path):
    """torch.load without pickle -> a dict; raises UserError for a missing, broken or unsafe file."""
    checkpoint = safe_load(path, "checkpoint")
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: holds a {type(checkpoint).__name__}, a checkpoint is a dict")
    return checkpoint


def read_own(path, identity):
    """A checkpoint that a run continues from: of its own settings and seed, as `identity` says. Raises UserError for another run's."""
    checkpoint = read_checkpoint(path)
    if checkpoint.get("identity") != identity:
        raise UserError(f"{path}: is another run's checkpoint, of other settings or another seed; bring this run's back, or delete the file to begin anew")
    return checkpoint


def find_weights(checkpoint, path):
    """The state dict under `model`, `state_dict` or `net`, or the checkpoint itself; without `module.` and auxiliary heads."""
    weights = next((checkpoint[key] for key in ("model", "state_dict", "net") if isinstance(checkpoint.get(key), dict)), checkpoint)
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    weights = {key: value for key, value in weights.items() if not key.startswith(AUXILIARY)}
    if not weights or not all(map(is_whole, weights.values())):
        raise UserError(f"{path}: no network weights under 'model', 'state_dict', 'net' or at the top")
    return weights


def load_weights(network, weights, path, arch):
    """Load all weights or raise UserError with the first key that does not fit."""
    wanted = network.state_dict()
    optional = {key for key in wanted if key.endswith("num_batches_tracked")}
    missing = [key for key in wanted if key not in weights and key not in optional]
    extra = [key for key in weights if key not in wanted]
    wrong = [key for key in wanted if key in weights and wanted[key].shape != weights[key].shape]
    if wrong:
        sizes = f"{tuple(weights[wrong[0]].shape)} in the checkpoint, {tuple(wanted[wrong[0]].shape)} in {arch}"
        raise UserError(f"{path}: {wrong[0]} is {sizes}; check --arch, --stem and --num-classes")
    if missing or extra:
        first = f"{missing[0]} is missing" if missing else f"{extra[0]} is unknown"
        raise UserError(f"{path}: {len(missing)} weights missing and {len(extra)} unknown for {arch} ({first}); check --arch and --stem")
    network.load_state_dict(weights, strict=False)


def hash_weights(network):
    """sha256 over the names and bytes of all weights and buffers, independent of device and file format."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_download(file):
    """Raise UserError where torchvision's file of weights is in torch's cache folder and its sha256 does not begin as its name says:
    torchvision looks at that only while it downloads."""
    if file.exists():
        begin = re.search(r"-([0-9a-f]{8,})\.", file.name)[1]
        with open(file, "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if not digest.startswith(begin):
            raise UserError(f"{file}: its sha256 begins with {digest[:len(begin)]}, not with {begin} as its name says: a broken or cut download; "
                            f"delete it, and it is downloaded anew")


def pretrained(arch):
    """torchvision's IMAGENET1K_V1 weights, never DEFAULT (for ResNet-50 that is V2) -> network. safe_load.py forbids torchvision to
    unpickle them freely, as it would."""
    check_arch(arch)
    try:
        weights = torchvision.models.get_model_weights(arch)["IMAGENET1K_V1"]
    except (ValueError, KeyError):
        raise UserError(f"torchvision has no IMAGENET1K_V1 weights for {arch}") from None
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    check_download(file)
    try:
        return get_network(arch, weights=weights)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:  # no network, or no weights in the file
        raise UserError(f"could not download or read torchvision's weights of {arch} ({first_line(error)}); "
                        f"put the file into {file.parent}, or give recover and relabel a checkpoint with --teacher") from None


def agree(path, stored, asked, flag):
    """The checkpoint's own fact, or the flag's value where the checkpoint says nothing; UserError where they contradict."""
    if stored is not None and asked is not None and stored != asked:
        raise UserError(f"{path}: the checkpoint says {stored}, {flag} says {asked}")
    return stored if stored is not None else asked


def load_teacher(spec, path, arch=None, stem=None, default_arch="resnet18"):
    """The teacher for a data set: from a checkpoint, or torchvision's ImageNet weights where path is None.

    spec: Dataset; arch, stem: what the user says, None = as the checkpoint, else default_arch with the data set's stem."""
    if path is None:
        if stem not in (None, "torchvision"):
            raise UserError(f"--stem {stem}: torchvision's weights have torchvision's stem; give a checkpoint with --teacher")
        arch, stem = arch or default_arch, "torchvision"
        network, meta, source = pretrained(arch), {}, "torchvision IMAGENET1K_V1"
        if spec.num_classes != 1000:
            raise UserError(f"torchvision's {arch} has 1000 classes, --num-classes says {spec.num_classes}; use --classes for a subset")
    else:
        checkpoint, source = read_checkpoint(path), str(path)
        meta = checkpoint if checkpoint.get("format") == TEACHER_FORMAT else {}
        if meta.get("dataset", spec.name) != spec.name:
            raise UserError(f"{path}: was trained on {meta['dataset']}, this run is of {spec.name}")
        arch = agree(path, meta.get("arch"), arch, "--arch or --model") or default_arch
        if meta.get("num_classes", spec.num_classes) != spec.num_classes:
            raise UserError(f"{path}: the teacher has {meta['num_classes']} classes, {spec.name} has {spec.num_classes}")
        asked = agree(path, meta.get("stem"), stem, "--stem")
        network, stem = build_network(arch, spec.num_classes, asked or spec.stem, strict_stem=stem is not None)
        load_weights(network, find_weights(checkpoint, path), path, arch)
        if not meta and spec.name == "imagenet1k" and hasattr(network, "transform_input"):
            network.transform_input = True  # torchvision's inception and googlenet weights want their inputs so
    check_input_size(network, arch, spec.size)
    return Teacher(network.eval().requires_grad_(False), arch, stem, spec.num_classes, meta.get("class_names"),
                   tuple(meta.get("mean", spec.mean)), tuple(meta.get("std", spec.std)), meta.get("size", spec.size),
                   meta.get("top1"), meta.get("seed"), source, hash_weights(network))
