"""What several test files need: folders of noise, checkpoints of small teachers, runs of scripts."""
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recover import recover
from sre2l.data.label_files import encode_label_batch, label_path
from sre2l.nets.models import build_network
from sre2l.run.errors import UserError
from sre2l.run.files import write_bytes
from sre2l.run.lock import LOCKS
from sre2l.run.paths import ROOT

SMALL = "shufflenet_v2_x0_5"  # torchvision's smallest classifier with BatchNorm


def save_noise(rng, size, path):
    Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)


def noise_folder(root, class_names, per_class, size=32, suffix="png", seed=0):
    """<root>/<class>/<i>.<suffix> with uniform noise, `size` pixels square -> root."""
    root = Path(root)
    rng = np.random.default_rng(seed)
    for name in class_names:
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            save_noise(rng, size, root / name / f"{name}_{i:03d}.{suffix}")
    return root


def synthetic_folder(root, num_classes=10, ipc=2, size=32, seed=0, suffix=".jpg"):
    """A folder of noise in recover's layout -> root."""
    root = Path(root)
    rng = np.random.default_rng(seed)
    for label in range(num_classes):
        (root / f"new{label:03d}").mkdir(parents=True)
        for i in range(ipc):
            save_noise(rng, size, root / f"new{label:03d}" / f"class{label:03d}_id{i:03d}{suffix}")
    return root


def write_label_batch(root, epoch, index, label_batch):
    """One label file, as relabel writes it."""
    write_bytes(label_path(root, epoch, index), encode_label_batch(label_batch), root)


def bare_checkpoint(path, arch=SMALL, num_classes=10, wrap=lambda weights: weights, stem="torchvision"):
    """Save a fresh network's state dict as other people's checkpoints have it -> path."""
    torch.manual_seed(0)
    network, _ = build_network(arch, num_classes, stem)
    torch.save(wrap(network.state_dict()), path)
    return path


def release_locks():
    """End every run of this process, as far as its locks go."""
    for lock in LOCKS.values():
        lock.release()


def run_main(module, *flags):
    """A script's main with these flags, in this process, which then holds no lock any more."""
    try:
        return module.main(module.get_args([str(flag) for flag in flags]))
    finally:
        release_locks()


def close_locks():
    """Close the lock files of this process: a file system with one open for writing cannot be remounted."""
    for lock in LOCKS.values():
        os.close(lock.handle)
    LOCKS.clear()


def before_call(monkeypatch, owner, name, at, act=None):
    """Let act() happen before the `at`-th call of owner.name, in whatever thread -> a list of the calls."""
    original = getattr(owner, name)
    calls = []
    numbers = itertools.count(1)

    def call(*args, **options):
        calls.append(True)
        if next(numbers) == at:  # not the list's length, to which another thread may add in between
            act()
        return original(*args, **options)
    monkeypatch.setattr(owner, name, call)
    return calls


def keep_last_images(monkeypatch):
    """Keep what recover makes pixels of -> a list that fills with the last images of each batch."""
    lasts = []
    to_pixels = recover.pictures.to_pixels

    def keep(images, mean, std):
        lasts.append(images.clone())
        return to_pixels(images, mean, std)
    monkeypatch.setattr(recover.pictures, "to_pixels", keep)
    return lasts


def refused(module, *flags):
    """Run a script that must refuse its input, by a UserError or argparse's exit 2 -> the message."""
    with pytest.raises((UserError, SystemExit)) as caught:
        run_main(module, *flags)
    if isinstance(caught.value, SystemExit):
        assert caught.value.code == 2
        return ""
    return str(caught.value)


def launch(launcher, *flags, cwd=ROOT, shell="sh", **env):
    """Run a launcher such as 'recover/recover.sh' with this Python first on the path -> CompletedProcess."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run([shell, str(launcher), *map(str, flags)], cwd=cwd, capture_output=True, text=True,
                          env={**os.environ, "PATH": path, **env}, check=False)
