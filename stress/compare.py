"""Is a folder of results what another one is? Names and bytes but for times; checkpoints by their values."""
import torch

from sre2l.run.files import read_json

TIMES = {"log.txt", "metrics.jsonl", "args.json", "report.html"}  # these depend on the clock


def names_of(folder):
    """The paths of all files and folders below a folder, relative to it. Lock files stay and do not count."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".lock"}


def is_log(name):
    name = name.rpartition("/")[2].removeprefix("images.").removeprefix("labels.")
    return name.split(".rank")[0] in TIMES | {"metrics"}


def same_values(one, other):
    """Are two nested values equal, tensors bit by bit?"""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        same_kind = one.dtype == other.dtype and one.shape == other.shape
        return same_kind and one.numpy().tobytes() == other.numpy().tobytes()
    if isinstance(one, dict):
        return list(one) == list(other) and all(same_values(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same_values, one, other))
    return one == other


def same_json(one, other, but_for):
    """Do two JSON files say the same, but for some keys?"""
    one, other = ({key: value for key, value in read_json(path).items() if key not in but_for}
                  for path in (one, other))
    return same_values(one, other)


def same_file(one, other):
    """Are two files equal: byte for byte, checkpoints by their values, results without their seconds?

    A record also names the launch that wrote it, which is another one in every run of several processes."""
    if one.read_bytes() == other.read_bytes():
        return True
    if one.suffix == ".pth":
        return same_values(*(torch.load(path, weights_only=True) for path in (one, other)))
    if one.name == "results.json":
        return same_json(one, other, {"seconds"})
    if one.name.endswith(("manifest.json", "settings.json")):
        return same_json(one, other, {"launch", "sha256"})
    return False


def differences(reference, folder, may_differ=()):
    """-> sentences on what is missing in `folder`, left over in it, or other than in `reference`."""
    wanted = names_of(reference)
    found = names_of(folder)
    missing = [f"missing: {name}" for name in sorted(wanted - found)]
    left_over = [f"left over: {name}" for name in sorted(found - wanted)]
    changed = []
    for name in sorted(wanted & found):
        compared = (reference / name).is_file() and not is_log(name) and name not in may_differ
        if compared and not same_file(reference / name, folder / name):
            changed.append(f"other contents: {name}")
    return missing + left_over + changed
