"""The weights in anybody's checkpoint: found, freed of what wraps their names, loaded whole or refused."""
import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from sre2l.nets.checkpoints import read_checkpoint
from sre2l.nets.models import is_torchvision
from sre2l.run.errors import UserError, first_line
from sre2l.run.safe_load import is_whole

# Where weights lie, alone or one inside another. The first of these that is there is read.
CONTAINERS = ("model", "state_dict", "net", "model_state_dict", "model_ema", "ema", "state_dict_ema")
WRAPPERS = ("module", "_orig_mod")  # DataParallel, DDP and AveragedModel; torch.compile. Anywhere in a name
PREFIXES = ("model", "net", "backbone", "student")  # the attribute of a larger module that holds the network
COUNTER = "n_averaged"  # of AveragedModel: no weight
# Heads of inception_v3 and googlenet that only help their training.
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.", "aux_classifier.")
OPTIONAL = "num_batches_tracked"  # of BatchNorm; old files lack it
SHOWN = 5  # names in a message

HOW_TO_SAVE = """
Where you know who wrote the file (this runs the code in it), save its weights alone, and give that file:
    saved = torch.load({path!r}, weights_only=False)
    torch.save(saved["state_dict"], "weights.pth")  # of a whole network: saved.state_dict()"""


def read_safetensors(path):
    """The tensors of a safetensors file -> dict. Raises UserError, also where the package is missing."""
    try:
        from safetensors.torch import load_file  # not above: an extra
    except ImportError:
        raise UserError(f"{path}: a safetensors file needs a package: 'python3 -m pip install safetensors'"
                        ) from None
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such checkpoint") from None
    except Exception as error:  # the package's own error, or the operating system's
        raise UserError(f"{path}: is damaged, or no safetensors file ({first_line(error)})") from None


def is_safetensors(path):
    """By its name, or by its header: eight bytes of length, then JSON."""
    if Path(path).suffix.lower() == ".safetensors":
        return True
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(10)[8:] == b'{"'
    return False


def read_any_checkpoint(path):
    """Anybody's checkpoint -> dict. Raises UserError for a missing, broken or unsafe file."""
    if is_safetensors(path):
        return read_safetensors(path)
    return read_checkpoint(path, HOW_TO_SAVE.format(path=str(path)))


def paths_to_weights(checkpoint, depth=2):
    """The names of CONTAINERS, up to two, that lead to dicts with tensors in them; the first path wins.

    A checkpoint with tensors of its own has the path []."""
    found = []
    if depth > 0:
        for key in CONTAINERS:
            if isinstance(checkpoint.get(key), dict):
                found += [[key, *path] for path in paths_to_weights(checkpoint[key], depth - 1)]
    if any(isinstance(value, torch.Tensor) for value in checkpoint.values()):
        found.append([])
    return found


def without_wrappers(name):
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def prefixes_of(names):
    """Every row of PREFIXES with which one of the names begins, '' first, then the short ones."""
    found = {()}
    for name in names:
        words = name.split(".")[:-1]
        for length in range(1, len(words) + 1):
            if words[length - 1] not in PREFIXES:
                break
            found.add(tuple(words[:length]))
    in_order = sorted(found, key=lambda words: (len(words), [PREFIXES.index(word) for word in words]))
    return ["".join(f"{word}." for word in words) for words in in_order]


def shown(names):
    """The first few names, and how many there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more


@dataclass(frozen=True)
class FoundWeights:
    """A checkpoint's weights, and how they lay there.

    weights: {name without wrappers and prefix: tensor}. keys: the containers around them. left_out: entries
    beside the prefix, and those that are no tensors. unread: other containers with weights."""
    weights: dict
    keys: list
    prefix: str
    left_out: list
    unread: list

    def describe(self):
        """Where the weights lie: "under 'state_dict', prefix 'model.' taken off"."""
        where = f"under '{'.'.join(self.keys)}'" if self.keys else "at the top"
        where += f", prefix '{self.prefix}' taken off" if self.prefix else ""
        where += f"; left out: {shown(self.left_out)}" if self.left_out else ""
        return where + (f"; not read: {shown(self.unread)}" if self.unread else "")


def read_tensors(entries, path, wanted, unwrap):
    """Entries of a container -> ({unwrapped name: tensor}, the names of what is no tensor)."""
    tensors = {}
    others = []
    has_counter = COUNTER in {name.rpartition(".")[2] for name in wanted}  # a buffer of the network's own
    for key, value in entries.items():
        name = unwrap(str(key))
        if not isinstance(value, torch.Tensor):
            others.append(str(key))
        elif name.rpartition(".")[2] == COUNTER and not has_counter:
            continue
        elif name in tensors:
            raise UserError(f"{path}: has {name} twice, with and without {' or '.join(WRAPPERS)}; save one "
                            f"of the two networks alone")
        else:
            tensors[name] = value
    return tensors, others


def find_weights(checkpoint, path, wanted, unwrap):
    """What of a checkpoint is a network's -> FoundWeights. wanted: the names of its weights, unwrapped, as
    `unwrap` does it. Heads that help a training are no weights where the network has none of their name.

    The prefix is the shortest with which the fewest are missing. Raises UserError where there are no weights,
    or two under one name."""
    paths = paths_to_weights(checkpoint)
    keys = paths[0] if paths else []
    entries = checkpoint
    for key in keys:
        entries = entries[key]
    tensors, others = read_tensors(entries, path, wanted, unwrap)
    if not tensors or not all(map(is_whole, tensors.values())):
        raise UserError(f"{path}: no network weights under {', '.join(map(repr, CONTAINERS))} or at the top, "
                        f"which holds {shown(list(checkpoint)) or 'nothing'}")
    prefix = min(prefixes_of(tensors),
                 key=lambda prefix: sum(prefix + name not in tensors for name in wanted))
    unwanted = tuple(head for head in AUXILIARY if not any(name.startswith(head) for name in wanted))
    used = [name for name in tensors if not name.removeprefix(prefix).startswith(unwanted)]
    weights = {name.removeprefix(prefix): tensors[name] for name in used if name.startswith(prefix)}
    left_out = [name for name in used if not name.startswith(prefix)] + others
    unread = [".".join(other) for other in paths if other != keys[:len(other)]]
    return FoundWeights(weights, keys, prefix, left_out, unread)


def find_faults(own, found, checkpoint, arch):
    """Why weights do not fit -> sentences; none where they do. own: {name: tensor} of the network's."""
    faults = []
    for name, value in own.items():
        there = found.weights.get(name, value)
        if there.shape != value.shape:
            faults.append(f"{name} is {tuple(there.shape)} in the checkpoint, {tuple(value.shape)} in {arch}")
            break  # a wrong depth or width would fill pages
        if there.is_floating_point() != value.is_floating_point():
            faults.append(f"{name} is of type {there.dtype} in the checkpoint, {value.dtype} in {arch}")
            break

    missing = [name for name in own if name not in found.weights and not name.endswith(OPTIONAL)]
    extra = [name for name in found.weights if name not in own]
    if missing or extra:
        kinds = ((missing, "missing"), (extra, "unknown"))
        firsts = [f"{names[0]} is {word}" for names, word in kinds if names]
        faults.append(f"{len(missing)} weights missing and {len(extra)} unknown for {arch} "
                      f"({', '.join(firsts)})")
        faults.append(f"the checkpoint has {shown(list(checkpoint))}, weights {found.describe()}")
    return faults


def load_weights(network, checkpoint, path, arch):
    """Load all weights of anybody's checkpoint into a network; a line says where they lay, if not plainly.

    Raises UserError with the first keys that do not fit."""
    here = network.state_dict()
    unwrap = without_wrappers
    if len(set(map(unwrap, here))) < len(here):  # a layer of the network's own has a wrapper's name
        unwrap = str
    own_names = {unwrap(key): key for key in here}
    wanted = [name for name in own_names if not name.endswith(OPTIONAL)]
    found = find_weights(checkpoint, path, wanted, unwrap)
    faults = find_faults({name: here[key] for name, key in own_names.items()}, found, checkpoint, arch)
    if faults:
        flags = "--arch, --stem" if is_torchvision(arch) else "--arch"  # no other network takes --stem
        raise UserError(f"{path}: {'; '.join(faults)}; check {flags} and --num-classes")
    if found.prefix or found.left_out or found.unread:
        # not on standard output, where a --dry-run's JSON is alone
        print(f"{path}: weights {found.describe()}", file=sys.stderr)
    network.load_state_dict({own_names[name]: value for name, value in found.weights.items()}, strict=False)
