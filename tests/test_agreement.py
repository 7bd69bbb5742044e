"""Stored labels at chance: the warning at the end of relabel and at the start of validate."""
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sre2l.check.agreement import Agreement
from sre2l.data.augment import normalise
from sre2l.data.datasets import DATASETS
from sre2l.nets.models import build_network
from tests.helpers import SMALL, run_main
from tests.worlds import NAMES, relabel_flags, train_flags


def test_labels_at_chance_low_and_good():
    near = Agreement(0.12, 0.1, 4000)
    assert "that is near chance" in near.warning and near.is_chance
    assert "that is near chance" in Agreement(0.21, 0.1, 40).warning    # luck, in few rows
    # of such labels a student has learned 67 % of digits
    assert "that is low" in Agreement(0.33, 0.19, 6000).warning
    assert "that is low" in Agreement(0.21, 0.1, 4000).warning and not Agreement(0.21, 0.1, 4000).is_chance
    # picked and random real images get such labels, too, and nothing has recovered these
    for share in (0.12, 0.33):
        causes = Agreement(share, 0.19, 4000).warning.split("recover had")
        assert len(causes) == 2 and causes[0].endswith("were recovered, ")
    assert Agreement(0.55, 0.19, 4000).warning is None             # the demo
    # two classes and partners: twice chance is out of reach
    assert Agreement(0.9, 0.75, 4000).warning is None
    assert "55.0%" in Agreement(0.55, 0.19, 4000).text and "chance 19.0%" in Agreement(0.55, 0.19, 4000).text


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A teacher that tells ten colours apart, real images for validate -> (folder, colours (10, 3))."""
    root = tmp_path_factory.mktemp("colours")
    colours = np.array([[200 * (k & 1) + 30, 100 * (k >> 1 & 1) + 60, 40 * (k >> 2)] for k in range(10)],
                       np.uint8)
    for label, colour in enumerate(colours):
        (root / "real" / "val" / NAMES[label]).mkdir(parents=True)
        image = Image.new("RGB", (32, 32), tuple(colour.tolist()))
        image.save(root / "real" / "val" / NAMES[label] / "0.png")
    spec = DATASETS["cifar10"]
    labels = torch.arange(10)
    torch.manual_seed(0)
    network, _ = build_network(SMALL, 10, "torchvision")
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    images = normalise(torch.from_numpy(colours)[labels][:, :, None, None].expand(-1, -1, 32, 32),
                       torch.tensor(spec.mean), torch.tensor(spec.std))
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images + 0.05 * torch.randn_like(images)), labels).backward()
        optimizer.step()
    for norm in [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]:
        norm.reset_running_stats()
        norm.momentum = None  # an average
    network(images)
    torch.save(network.state_dict(), root / "teacher.pth")
    return root, colours


def painted(root, colours):
    """Four images of each colour, the first in the folder of class 0 -> root."""
    for label, colour in enumerate(colours):
        (root / f"new{label:03d}").mkdir(parents=True)
        for i in range(4):
            image = Image.new("RGB", (32, 32), tuple(colour.tolist()))
            image.save(root / f"new{label:03d}" / f"class{label:03d}_id{i:03d}.jpg")
    return root


CHANCE = "that is near chance, and a student may learn little: the teacher's classes are in another order"


@pytest.mark.parametrize("shift, wanted", [(0, None), (1, CHANCE)])
def test_a_wrong_class_order_is_warned_of_by_relabel_and_by_validate(shift, wanted, colours, tmp_path):
    """At the end of the one and at the start of the other."""
    folder, values = colours
    painted(tmp_path / "run" / "images", np.roll(values, shift, 0))
    name = ("--name", tmp_path / "run")
    run_main(*relabel_flags(folder, *name, "--epochs", 1, "-b", 8, "--mix-type", "none", "--padding", 0))
    run_main(*train_flags(folder, *name))
    for log in (tmp_path / "run" / "labels.log.txt", tmp_path / "run" / f"student_{SMALL}" / "log.txt"):
        warnings = [line for line in log.read_text().splitlines() if line.startswith("warning")]
        warnings = [line for line in warnings if "too few epochs" not in line]  # of a student of one epoch
        assert len(warnings) == (wanted is not None) and all(wanted in line for line in warnings)
