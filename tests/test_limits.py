"""Cores and memory that a process may use: cgroups of both versions, affinity, systems without these."""
import os

import pytest

from sre2l.run import limits


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 16 cores and 64 GB -> machine(own cgroups, {file: text}), which writes these files."""
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    monkeypatch.setattr(limits, "OWN_CGROUPS", tmp_path / "self")
    monkeypatch.setattr(limits, "machine_memory", lambda: 64_000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(16), raising=False)

    def make(own, files):
        (tmp_path / "self").write_text(own)
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
    return make


V1 = "9:memory:/docker/3f\n4:cpu,cpuacct:/docker/3f\n1:name=systemd:/docker/3f\n"
NO_LIMIT = "9223372036854771712\n"


@pytest.mark.parametrize("own, files, cores, memory", [
    ("0::/\n", {"cpu.max": "max 100000\n", "memory.max": "max\n"}, 16, 64_000),
    # in a container
    ("0::/\n", {"cpu.max": "150000 100000\n", "memory.max": "8000\n"}, 2, 8000),
    # the folder above limits too
    ("0::/slurm/job_7\n", {"slurm/job_7/memory.max": "max\n", "slurm/memory.max": "9000\n",
                           "slurm/job_7/cpu.max": "300000 100000\n"}, 3, 9000),
    ("0::/../other\n", {"memory.max": "7000\n"}, 16, 7000),
    (V1, {"cpu/docker/3f/cpu.cfs_quota_us": "50000\n", "cpu/docker/3f/cpu.cfs_period_us": "100000\n",
          "memory/docker/3f/memory.limit_in_bytes": "6000\n",
          "memory/memory.limit_in_bytes": NO_LIMIT}, 1, 6000),
    # paths of the host, seen from inside
    (V1, {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n",
          "memory/memory.limit_in_bytes": "5000\n"}, 4, 5000),
    (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n",
          "memory/memory.limit_in_bytes": NO_LIMIT}, 16, 64_000),
    ("0::/\n", {}, 16, 64_000),
    ("0::/\n", {"cpu.max": "many\n", "memory.max": "\n"}, 16, 64_000)])
def test_the_least_limit_of_a_process_counts(machine, own, files, cores, memory):
    machine(own, files)
    assert limits.usable_cores() == cores and limits.usable_memory() == memory


def test_an_affinity_mask_counts(machine, monkeypatch):
    machine("0::/\n", {"cpu.max": "800000 100000\n"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert limits.usable_cores() == 2


def test_a_system_without_cgroups_and_masks(tmp_path, monkeypatch):
    """macOS has neither /proc nor os.sched_getaffinity."""
    monkeypatch.setattr(limits, "OWN_CGROUPS", tmp_path / "none")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert limits.usable_cores() == 8 and limits.usable_memory() == limits.machine_memory() > 2 ** 27
