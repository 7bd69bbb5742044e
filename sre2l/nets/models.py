"""Networks by name: torchvision's classifiers, with the first layers that a data set's small images want; the
small networks of small.py; and any other, by the function of the user's that gives it (functions.py)."""
import difflib
import re

import torch
import torchvision
from torch import nn
from torchvision.models.inception import InceptionA, InceptionC, InceptionE

from sre2l.data.datasets import STEMS
from sre2l.nets.functions import call_function, is_function
from sre2l.nets.small import NAMES, build_small, is_small, replace_first_layers
from sre2l.run.errors import UserError, first_line

HAVE_AUXILIARY = ("inception_v3", "googlenet")  # heads that only help the network's own training


def is_torchvision(arch):
    return arch in torchvision.models.list_models(module=torchvision.models)


def check_arch(arch):
    """Raise UserError, with close names, unless this can be the name of a network."""
    if is_torchvision(arch) or is_small(arch) or is_function(arch):
        return
    known = [*torchvision.models.list_models(module=torchvision.models), *NAMES]
    # A path or a module is no slip of a short name.
    close = [] if re.search("[/.:]", arch) else difflib.get_close_matches(arch, known, 3, 0.4)
    hint = f"; did you mean {', '.join(close)}?" if close else ";"
    raise UserError(f"'{arch}' is no torchvision classifier and no small network of ours{hint} a network of "
                    f"your own is named as PATH.py:function or package.module:function")


def as_planes(_, inputs):
    """A hook that runs before a layer: the inputs become NCHW in memory."""
    return tuple(x.contiguous() for x in inputs)


def get_network(arch, **options):
    """torchvision's network of this name.

    NOTE: on a GPU, torch's gradient of an average pool with overlapping windows is wrong in NHWC (2.11; the
    error is as long as the gradient). Of torchvision's networks only Inception v3 has such pools."""
    network = torchvision.models.get_model(arch, **options)
    for module in network.modules():
        if isinstance(module, (InceptionA, InceptionC, InceptionE)):
            module.register_forward_pre_hook(as_planes)
    return network


def has_stem(network):
    """Does a network begin as a ResNet does: conv1, maxpool, layer1?"""
    has_conv1 = isinstance(getattr(network, "conv1", None), nn.Conv2d)
    return has_conv1 and hasattr(network, "maxpool") and hasattr(network, "layer1")


def build_network(arch, num_classes, stem, strict_stem=False, size=32):
    """A network with fresh weights -> (network, the stem it has). Runs the code that arch names, if any.

    size: of the images, pixels, which a ConvNet and torchvision's ViTs must know. A network without conv1 and
    maxpool keeps its own first layers, and so do all that are not torchvision's; with strict_stem that is a
    UserError."""
    check_arch(arch)
    if is_function(arch):
        network = call_function(arch, num_classes)
    elif is_small(arch):
        network = build_small(arch, num_classes, size)
    else:
        network = build_torchvision(arch, num_classes, size)
    if stem == "torchvision":
        return network, stem
    if is_torchvision(arch) and has_stem(network):
        replace_first_layers(network, STEMS[stem])
        return network, stem
    if strict_stem:
        why = "has no conv1 and maxpool to replace" if is_torchvision(arch) else "has first layers of its own"
        raise UserError(f"{arch} {why}: --stem {stem} is for torchvision's networks of the ResNet family")
    return network, "torchvision"


def build_torchvision(arch, num_classes, size):
    """torchvision's network of this name, without its ImageNet weights."""
    options = {"image_size": size} if arch.startswith("vit_") else {}
    if arch in HAVE_AUXILIARY:
        options = {"aux_logits": False, "init_weights": True}
    try:
        return get_network(arch, weights=None, num_classes=num_classes, **options)
    except AssertionError as error:
        raise UserError(f"{arch} cannot take images of {size}x{size} pixels ({first_line(error)})") from None


def build_for(spec, arch, stem):
    """A network with fresh weights for a data set -> (network, the stem it has).

    stem: what the user says, or None for the data set's, where the network can have it."""
    return build_network(arch, spec.num_classes, stem or spec.stem, stem is not None, spec.size)


def build_for_training(spec, arch, stem):
    """build_for, of a network that can be trained on the data set's images."""
    network, has = build_for(spec, arch, stem)
    check_shapes(network, arch, spec.num_classes, spec.size)
    check_trains(arch, spec.num_classes, spec.size)
    return network, has


def check_logits(network, arch, num_classes, size, number):
    """-> the logits (number, num_classes) of black images of size x size pixels. Raises UserError where the
    network makes anything else of them."""
    images = torch.zeros(number, 3, size, size, device=next(network.parameters()).device)
    mode = " in training" * network.training
    shown = f"{'an image' if number == 1 else f'{number} images'} of {size}x{size} pixels{mode}"
    try:
        logits = network(images)
    except Exception as error:  # of a network of the user's own it can be anything
        raise UserError(f"{arch} cannot take images of {size}x{size} pixels{mode} ({first_line(error)})"
                        ) from None
    found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
    if found != (number, num_classes):
        raise UserError(f"{arch} makes {found} of {shown}, where logits {(number, num_classes)} are wanted")
    return logits


def check_shapes(network, arch, num_classes, size):
    """Raise UserError unless the network makes logits (1, num_classes) of an image of size x size pixels; its
    mode is restored."""
    was_training = network.training
    with torch.no_grad():
        check_logits(network.eval(), arch, num_classes, size, 1)
    network.train(was_training)


def check_trains(arch, num_classes, size):
    """Raise UserError for a network of the user's own that cannot be trained: that in training makes other
    things than logits, or has no gradient. A second one is made for it, and none of other names."""
    if not is_function(arch):
        return
    logits = check_logits(call_function(arch, num_classes).train(), arch, num_classes, size, 2)
    try:
        logits.sum().backward()
    except Exception as error:
        raise UserError(f"{arch} cannot be trained ({first_line(error)})") from None
