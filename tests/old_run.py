"""A run that an earlier version made (old_run.tar), and the teacher and real images it was made with.

The teacher's weights are a formula in whole numbers, so that every torch gives the same bytes."""
import tarfile
from pathlib import Path

import torch

from sre2l.nets.models import build_network
from tests.helpers import SMALL, noise_folder
from tests.worlds import NAMES, common, teacher

ARCHIVE = Path(__file__).with_suffix(".tar")


def formula_weights(network):
    """Give a network weights between -0.05 and 0.05 by a formula, and no biases."""
    for name, value in network.state_dict().items():
        if value.ndim > 1:
            index = torch.arange(value.numel(), dtype=torch.int64)
            value.copy_((((index * 40503 + 12345) % 65536).float() / 655360 - 0.05).view_as(value))
        elif name.endswith("bias"):
            value.zero_()


def unpack(root):
    """Write the run, its teacher and real images under `root` -> {stage: the flags that made it}."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(root, filter="data")
    network, _ = build_network(SMALL, 10, "torchvision")
    formula_weights(network)
    torch.save(network.state_dict(), root / "teacher.pth")
    for split in ("train", "val"):
        noise_folder(root / "real" / split, NAMES, 2)
    return {
        "recover": (*common(root), *teacher(root), "--iteration", 2, "--batch-size", 10, "--ipc-end", 1,
                    "--no-crop-flip", "--jitter", 4),
        "relabel": (*common(root), *teacher(root), "--epochs", 2, "-b", 5, "-j", 0),
        "validate": (*common(root), "--val-dir", root / "real", "--model", SMALL, "--epochs", 2,
                     "--gradient-accumulation-steps", 1, "-j", 0)}
