"""How many cores and how much memory the processes of a run may use.

A container, a batch system or an affinity mask may allow less than the machine has."""
import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
MEMORY_SHARE = 0.5  # for pixels, of the memory that the processes of this machine may use
PART_BYTES = 2 ** 30  # of pixels that are decoded before they are copied to a GPU
GPU_SHARE = 0.5     # for pixels, of the GPU memory that is free: the rest is the network's


def cgroup_folders(controller):
    """The folders whose limits hold for this process. controller: 'cpu' or 'memory' of cgroup v1.

    In a container the path may be the host's: there the limits are in the topmost folder."""
    try:
        lines = OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
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
        words = (folder / name).read_text(encoding="utf-8").split()
        return [math.inf if word == "max" else float(word) for word in words]
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
    import torch  # not above: it takes seconds, and the queue of results/ only asks for cores
    return num_bytes <= GPU_SHARE * torch.cuda.mem_get_info(device)[0]


def memory_room():
    """How many bytes of pixels this process may keep in memory; the machine's processes have equal parts."""
    from sre2l.run.processes import local_world_size  # not above: it brings torch
    return MEMORY_SHARE * usable_memory() / local_world_size()
