"""The device of this process, and the memory of its host."""
import contextlib
import ctypes
import platform
import subprocess

import numpy as np
import torch

from sre2l.run.errors import UserError
from sre2l.run.paths import ROOT
from sre2l.run.processes import local_rank, local_world_size, world_size


def keep_freed_memory():
    """Let glibc keep large blocks that are freed, instead of giving them back and faulting every page in again: an elementwise operation
    on 64 MB takes 4.6 ms so and 35 ms otherwise (two cores). Elsewhere nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-4, 0)            # M_MMAP_MAX: large blocks from the heap as well


def give_back_memory():
    """Give the system what has been freed so far, once: after work that will not come again."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def pick_device(name):
    """'auto', 'cpu', 'cuda' or 'cuda:N' -> torch.device; of several processes each its own GPU. Raises UserError where that is not there."""
    count, several = torch.cuda.device_count(), world_size() > 1
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: choose auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and several:
        if device.index is not None:
            raise UserError(f"--device {name}: {world_size()} processes take a GPU each; choose them with CUDA_VISIBLE_DEVICES")
        if local_world_size() > count:
            raise UserError(f"GPUS={local_world_size()}: this machine has {count} GPUs that torch {torch.__version__} can use")
        return torch.device("cuda", local_rank())
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"--device {name}: this machine has {count} GPUs that torch {torch.__version__} can use")
    return device


def versions(device):
    """What a result depends on besides its settings, for logs and manifests."""
    import torchvision  # not above: it takes 1.6 s, and the stages that come here have it already
    commit = "unknown"
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
                                capture_output=True, text=True, check=True).stdout.strip()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
            "numpy": np.__version__, "device": name, "threads": torch.get_num_threads(), "deterministic": torch.are_deterministic_algorithms_enabled(),
            "processes": world_size(), "commit": commit}
