"""Networks: torchvision's classifiers, with the first layers that a data set's small images want."""
import difflib

import torch
import torchvision
from torch import nn
from torchvision.models.inception import InceptionA, InceptionC, InceptionE

from sre2l.data.datasets import STEMS
from sre2l.run.errors import UserError, first_line

OPTIONS = {  # of a fresh network: without the auxiliary heads, which only help its own training
    "inception_v3": {"aux_logits": False, "init_weights": True},
    "googlenet": {"aux_logits": False, "init_weights": True},
}


def check_arch(arch):
    """Raise UserError, with close names, unless torchvision has a classifier of this name."""
    known = torchvision.models.list_models(module=torchvision.models)
    if arch not in known:
        close = difflib.get_close_matches(arch, known, 3, 0.4)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise UserError(f"'{arch}' is no torchvision classifier{hint}")


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


def replace_first_layers(network, stem):
    """Give a ResNet, in place, what small images want: a 3x3 convolution as conv1, and no maxpool."""
    conv = network.conv1
    stride = STEMS[stem]
    network.conv1 = nn.Conv2d(conv.in_channels, conv.out_channels, 3, stride, padding=1, bias=False)
    network.maxpool = nn.Identity()


def build_network(arch, num_classes, stem, strict_stem=False):
    """A torchvision classifier with fresh weights -> (network, the stem it has).

    A network without conv1 and maxpool keeps its own first layers; with strict_stem that is a UserError."""
    check_arch(arch)
    network = get_network(arch, weights=None, num_classes=num_classes, **OPTIONS.get(arch, {}))
    if stem == "torchvision":
        return network, stem
    if has_stem(network):
        replace_first_layers(network, stem)
        return network, stem
    if strict_stem:
        raise UserError(f"{arch} has no conv1 and maxpool to replace: --stem {stem} is for networks of the "
                        "ResNet family")
    return network, "torchvision"


def build_for(spec, arch, stem):
    """A network with fresh weights for a data set -> (network, the stem it has).

    stem: what the user says, or None for the data set's, where the network can have it."""
    return build_network(arch, spec.num_classes, stem or spec.stem, strict_stem=stem is not None)


def check_input_size(network, arch, size):
    """Raise UserError unless the network can take images of size x size pixels; its mode is restored."""
    was_training = network.training
    network.eval()
    image = torch.zeros(1, 3, size, size, device=next(network.parameters()).device)
    try:
        with torch.no_grad():
            network(image)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"{arch} cannot take images of {size}x{size} pixels ({first_line(error)})") from None
    network.train(was_training)
