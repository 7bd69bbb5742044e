"""What a process may use of its machine: the device, cores and memory."""
import contextlib
import ctypes
import math
import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch

from sre2l.run.errors import UserError
from sre2l.run.paths import ROOT
from sre2l.run.processes import local_rank, local_world_size, world_size

M_TRIM_THRESHOLD = -1  # of glibc's mallopt
M_MMAP_MAX = -4
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
MEMORY_SHARE = 0.5  # for pixels, of the memory that the processes of this machine may use
PART_BYTES = 2 ** 30  # of pixels that are decoded before they are copied to a GPU
GPU_SHARE = 0.5     # for pixels, of the GPU memory that is free: the rest is the network's


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


def cgroup_folders(controller):
    """The folders whose limits hold for this process. controller: 'cpu' or 'memory' of cgroup v1.

    In a container the path may be the host's: there the limits are in the topmost folder."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:  # not Linux
        return []

    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = CGROUPS / controller if controllers else CGROUPS
        parts = [part for part in path.split("/") if part not in ("", "..")]
        folders += [top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return folders


def read_limits(folder, name):
    """The numbers in a file of a cgroup, infinity for 'max'; none where there is no such file."""
    try:
        return [math.inf if word == "max" else float(word) for word in (folder / name).read_text().split()]
    except (OSError, ValueError):
        return []


def usable_cores():
    """How many cores this process may keep busy, at least 1: by its affinity mask and its CPU quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # macOS has no masks
        cores = os.cpu_count() or 1
    for folder in cgroup_folders("cpu"):
        limits = read_limits(folder, "cpu.max")
        if not limits:  # cgroup v1 has a file for each of the two numbers
            limits = read_limits(folder, "cpu.cfs_quota_us") + read_limits(folder, "cpu.cfs_period_us")
        if len(limits) == 2 and 0 < limits[0] < math.inf:  # v1 writes -1 for no limit
            cores = min(cores, math.ceil(limits[0] / limits[1]))
    return max(cores, 1)


def machine_memory():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def usable_memory():
    """How much memory this process and its neighbours in the same container or job may fill, bytes."""
    memory = machine_memory()
    for folder in cgroup_folders("memory"):
        limits = read_limits(folder, "memory.max") or read_limits(folder, "memory.limit_in_bytes")
        memory = min([memory, *limits])
    return int(memory)


def fits_gpu(num_bytes, device):
    """Is there room for so many bytes of pixels in the GPU's memory?"""
    if device.type != "cuda":
        return False
    return num_bytes <= GPU_SHARE * torch.cuda.mem_get_info(device)[0]


def memory_room():
    """How many bytes of pixels this process may keep in memory; the machine's processes have equal parts."""
    return MEMORY_SHARE * usable_memory() / local_world_size()
