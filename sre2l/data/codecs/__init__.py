"""How the teacher's logits are stored: a module for each codec, and this one door to them.

A codec has a `name`, as --codec and the manifest spell it, and three functions:

    shapes(rows, classes)   the arrays that hold so many rows, in their order: [(numpy dtype, shape), ...]
    encode(logits)          logits (m, C), float16 or float32 -> [numpy array, ...] of these shapes
    decode(arrays, classes) -> logits (m, C); -inf where nothing is stored, which softmax takes for 0

The codec `none` stores nothing; its logits are the teacher's own, computed anew (relabel/recipe.py)."""
import argparse
import re

from sre2l.data.codecs.exact import Exact
from sre2l.data.codecs.topk import TopK
from sre2l.data.codecs.uint8 import Uint8
from sre2l.run.errors import UserError

NONE = "none"
NAMES = "fp16, fp32, uint8, topk:K (such as topk:5) or none"


def codec_of(name):
    """The codec of this name. Raises ValueError for any other name; 'none' has no arrays and is another."""
    if name in ("fp16", "fp32"):
        return Exact(name)
    if name == "uint8":
        return Uint8()
    match = re.fullmatch(r"topk:([1-9]\d{0,4})", name)
    if match is None:
        raise ValueError(f"{name!r}: choose {NAMES}")
    return TopK(int(match[1]))


def codec_name(text):
    """An argparse type: the name of a codec."""
    try:
        return text if text == NONE else codec_of(text).name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def is_sparse(name):
    """Does this codec leave out logits, so that only their softmax is known?"""
    return name.startswith("topk")


def check_classes(name, classes):
    """Raise UserError for a codec that keeps the logits of more classes than there are."""
    if is_sparse(name) and codec_of(name).k > classes:
        raise UserError(f"--codec {name}: there are {classes} classes; fp16 stores all of their logits")


def codec_in(settings):
    """The name of the codec of labels with these settings. It is recorded where it is none of the exact ones,
    whose name stands at `logits`."""
    return settings.get("codec") or settings["logits"]
