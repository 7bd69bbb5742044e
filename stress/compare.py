"""Is a folder of results what another one is? Names and bytes, but for what tells times; checkpoints by their values."""
import json

import torch

TIMES = {"log.txt", "metrics.jsonl", "args.json", "report.html"}  # what these say depends on the clock and on who wrote last


def names_of(folder):
    """The paths of all files and folders below a folder, relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def is_log(name):
    return name.rpartition("/")[2].removeprefix("images.").removeprefix("labels.").split(".rank")[0] in TIMES | {"metrics"}


def same_values(one, other):
    """Are two nested values equal, tensors bit by bit?"""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same_values(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same_values, one, other))
    return one == other


def same_file(one, other):
    """Are two files equal: byte for byte, checkpoints by their values, results.json but for the seconds?"""
    if one.read_bytes() == other.read_bytes():
        return True
    if one.suffix == ".pth":
        return same_values(*(torch.load(path, weights_only=True) for path in (one, other)))
    if one.name == "results.json":
        return same_values(*({**json.loads(path.read_text()), "seconds": None} for path in (one, other)))
    return False


def differences(reference, folder, may_differ=()):
    """-> sentences on what is missing in `folder`, left over in it, or other than in `reference`."""
    wanted, found = names_of(reference), names_of(folder)
    common = (name for name in sorted(wanted & found) if (reference / name).is_file() and not is_log(name) and name not in may_differ)
    return ([f"missing: {name}" for name in sorted(wanted - found)] + [f"left over: {name}" for name in sorted(found - wanted)]
            + [f"other contents: {name}" for name in common if not same_file(reference / name, folder / name)])
