"""What several test files need: folders of noise, checkpoints of small teachers, runs of scripts and launchers."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sre2l.run import claims
from sre2l.run.files import write_bytes
from sre2l.data.label_files import encode_label_batch, label_path
from sre2l.nets.models import build_network
from sre2l.run.errors import UserError
from sre2l.run.paths import ROOT

SMALL = "shufflenet_v2_x0_5"  # torchvision's smallest classifier with BatchNorm


def noise_folder(root, class_names, per_class, size=32, suffix="png", seed=0):
    """<root>/<class>/<i>.<suffix> with uniform noise, `size` pixels square -> root."""
    rng = np.random.default_rng(seed)
    for name in class_names:
        (Path(root) / name).mkdir(parents=True)
        for i in range(per_class):
            Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(Path(root) / name / f"{name}_{i:03d}.{suffix}")
    return Path(root)


def synthetic_folder(root, num_classes=10, ipc=2, size=32, seed=0, suffix=".jpg"):
    """A folder of noise in recover's layout -> root."""
    rng = np.random.default_rng(seed)
    for label in range(num_classes):
        (Path(root) / f"new{label:03d}").mkdir(parents=True)
        for i in range(ipc):
            noise = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(noise).save(Path(root) / f"new{label:03d}" / f"class{label:03d}_id{i:03d}{suffix}")
    return Path(root)


def write_label_batch(root, epoch, index, sheet):
    """One label file, as relabel writes it."""
    write_bytes(label_path(root, epoch, index), encode_label_batch(sheet), root)


def bare_checkpoint(path, arch=SMALL, num_classes=10, wrap=lambda weights: weights, stem="torchvision"):
    """Save a fresh network's state dict as other people's checkpoints have it -> path."""
    torch.manual_seed(0)
    network, _ = build_network(arch, num_classes, stem)
    torch.save(wrap(network.state_dict()), path)
    return path


def run_main(module, *flags):
    """A script's main with these flags, in this process."""
    try:
        return module.main(module.get_args([str(flag) for flag in flags]))
    finally:
        claims.release()


def refused(module, *flags):
    """Run a script that must refuse its input -> the message. Anything but a UserError or argparse's exit 2 fails."""
    with pytest.raises((UserError, SystemExit)) as caught:
        run_main(module, *flags)
    if isinstance(caught.value, SystemExit):
        assert caught.value.code == 2
        return ""
    return str(caught.value)


def launch(launcher, *flags, cwd=ROOT, shell="sh", **env):
    """Run a launcher such as 'recover/recover.sh' with this Python first on the path -> CompletedProcess with text output."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run([shell, str(launcher), *map(str, flags)], cwd=cwd, capture_output=True, text=True,
                          env={**os.environ, "PATH": path, **env}, check=False)
