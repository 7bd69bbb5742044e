"""The device that a process computes on, with what glibc keeps of its memory and which versions it has."""
import contextlib
import ctypes
import platform
import subprocess

import numpy as np
import torch

from sre2l.run.errors import UserError
from sre2l.run.paths import ROOT
from sre2l.run.processes import local_rank, local_world_size, world_size

M_TRIM_THRESHOLD = -1  # of glibc's mallopt
M_MMAP_MAX = -4


def keep_freed_memory():
    """Let glibc keep large blocks that are freed, instead of faulting every page in again at the next use: an
    elementwise operation on 64 MB takes 4.6 ms so and 35 ms otherwise (two cores)."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)
        libc.mallopt(M_MMAP_MAX, 0)  # large blocks from the heap as well


def give_back_memory():
    """Give the system what has been freed so far, once: after work that will not come again."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def pick_device(name):
    """'auto', 'cpu', 'cuda' or 'cuda:N' -> torch.device, which becomes the current GPU.

    Of several processes each has its own. Raises UserError where there is no such device."""
    count = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: choose auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return device
    has = f"this machine has {count} GPUs that torch {torch.__version__} can use"
    if world_size() > 1:
        if device.index is not None:
            raise UserError(f"--device {name}: {world_size()} processes take a GPU each; "
                            f"choose them with CUDA_VISIBLE_DEVICES")
        if local_world_size() > count:
            raise UserError(f"GPUS={local_world_size()}: {has}")
        device = torch.device("cuda", local_rank())
    elif (device.index or 0) >= count:
        raise UserError(f"--device {name}: {has}")
    if device.index is not None:
        torch.cuda.set_device(device)  # kernels, events and graphs go to the current GPU
    return device


def versions(device):
    """What a result depends on besides its settings, for logs and manifests."""
    import torchvision  # not above: it takes 1.6 s, and the stages that come here have it already
    commit = "unknown"
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    threads = torch.get_num_threads()
    return {
        "python": platform.python_version(), "torch": torch.__version__,
        "torchvision": torchvision.__version__, "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {threads} threads",
        "threads": threads, "deterministic": torch.are_deterministic_algorithms_enabled(),
        "processes": world_size(), "commit": commit}


def upload(tensor, device):
    """Copy a tensor from the CPU to the device. The host does not wait for what the GPU has still to do."""
    if device.type == "cuda" and not tensor.is_cuda:
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        return pinned.to(device, non_blocking=True)
    return tensor.to(device)
