"""Checkpoints of training runs, torchvision's weights, and the hash that names a network's weights."""
import hashlib
import pickle
import re
from pathlib import Path

import torch
import torchvision

from sre2l.nets.models import check_arch, get_network
from sre2l.run.errors import UserError, first_line
from sre2l.run.processes import check_agreement, world_size
from sre2l.run.safe_load import safe_load

TEACHER_FORMAT = "sre2l-teacher-1"  # what our own checkpoints say under `format`
V1 = "IMAGENET1K_V1"  # the published teachers; for ResNet-50, torchvision's DEFAULT is V2


def read_checkpoint(path, advice=""):
    """torch.load without pickle -> a dict. Raises UserError for a missing, broken or unsafe file.

    advice: what to do about a file that holds other objects than tensors and plain values."""
    checkpoint = safe_load(path, "checkpoint", advice=advice)
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: holds a {type(checkpoint).__name__}, a checkpoint is a dict")
    return checkpoint


def continue_from(path, identity, network, optimizer, scaler):
    """Load what a training run left at `path` -> its checkpoint; {} where there is none yet.

    identity: the hash of the run's settings and seed. A finished run may have left no optimiser and scaler.
    Raises UserError for another run's checkpoint, for one that an older version took within an epoch, and
    where not all processes see the same."""
    checkpoint = read_checkpoint(path) if path.exists() else {}
    check_agreement(checkpoint.get("epoch", 0), f"{path}: not all processes see the same checkpoint; "
                                                f"the run folder must be one that all machines share")
    if not checkpoint:
        return checkpoint
    if checkpoint.get("identity") != identity:
        raise UserError(f"{path}: is another run's checkpoint, of other settings or another seed; "
                        f"bring this run's back, or delete the file to begin anew")
    if checkpoint.get("batches"):
        raise UserError(f"{path}: an older version took this checkpoint within epoch "
                        f"{checkpoint['epoch'] + 1}, and this version continues only at the beginning of an "
                        f"epoch; delete the file to begin anew")
    network.load_state_dict(checkpoint["model"])
    if "optimizer" in checkpoint:
        optimizer.load_state_dict(checkpoint["optimizer"])
        scaler.load_state_dict(checkpoint["scaler"])
    return checkpoint


def hash_weights(network):
    """sha256 over the names and bytes of all weights and buffers, whatever the device and the file format."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(key.encode() + data.numpy().tobytes())
    return digest.hexdigest()


def check_same_weights(network, arch):
    """Raise UserError in all processes unless each has built a network with the same weights."""
    if world_size() > 1:
        check_agreement(int(hash_weights(network)[:15], 16),
                        f"{arch}: its weights are others in each process; let the function draw them from "
                        f"torch, NumPy or Python's random as it finds them seeded")


def num_weight_bytes(network):
    return sum(value.nbytes for value in network.state_dict().values())


def check_download(file):
    """Raise UserError for a file in torch's cache folder whose sha256 does not begin as its name says.

    torchvision itself looks at the hash only while it downloads."""
    if not file.exists():
        return
    begin = re.search(r"-([0-9a-f]{8,})\.", file.name)[1]
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if not digest.startswith(begin):
        raise UserError(f"{file}: its sha256 begins with {digest[:len(begin)]}, not with {begin} as its name "
                        f"says: a broken or cut download; delete it, and it is downloaded anew")


def pretrained(arch):
    """torchvision's network with its IMAGENET1K_V1 weights, unpickled in torch's safe mode (safe_load.py)."""
    check_arch(arch)
    try:
        weights = torchvision.models.get_model_weights(arch)[V1]
    except (ValueError, KeyError):
        raise UserError(f"torchvision has no {V1} weights for {arch}; recover and relabel take a checkpoint "
                        f"of it with --teacher FILE") from None
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    check_download(file)
    try:
        return get_network(arch, weights=weights)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:  # no network, or no weights in the file
        raise UserError(f"could not download or read torchvision's weights of {arch} ({first_line(error)}); "
                        f"put the file into {file.parent}, or give recover and relabel a checkpoint with "
                        "--teacher") from None


def start_from_imagenet(network, arch):
    """Give a fresh network, in place, torchvision's ImageNet weights where they have its shapes -> the names
    of the layers that begin afresh: the last one, for other classes, and a changed stem."""
    here = network.state_dict()
    there = pretrained(arch).state_dict()
    # The last layer is for other classes, even where there are a thousand of them.
    other = get_network(arch, num_classes=1001).state_dict()
    fits = {name: value for name, value in there.items()
            if name in here and value.shape == here[name].shape == other[name].shape}
    network.load_state_dict({**here, **fits})
    return sorted({name.rpartition(".")[0] for name in here.keys() - fits.keys()})

