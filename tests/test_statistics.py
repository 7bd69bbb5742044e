"""Class and group statistics, distances of images and their file, against formulas in fp64."""
import copy
import dataclasses

import numpy as np
import pytest
import torch

from sre2l.data.augment import unit_rng
from sre2l.data.image_folder import Images
from sre2l.kernels.norms import statistics_layers
from sre2l.nets import statistics
from sre2l.nets.checkpoints import hash_weights
from sre2l.nets.statistics import Statistics
from sre2l.nets.teacher import Teacher
from sre2l.run.errors import UserError
from tests.nets import Formula, SmallNet, calibrated

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CPU = torch.device("cpu")
NAMES = ("bn1", "bn2", "bn3")  # in the order of statistics_layers; `idle` stands after bn1


class Inputs(Formula):
    """The same forward pass; keeps the input of each BatchNorm layer. batch: normalise as in train mode."""

    def __init__(self, network, batch=False):
        super().__init__(network)
        self.batch, self.inputs = batch, {}

    def norm(self, name, x):
        self.inputs[name] = x
        if self.batch:
            axes = [axis for axis in range(x.ndim) if axis != 1]
            self.weights[f"{name}.running_mean"] = x.mean(axes)
            self.weights[f"{name}.running_var"] = x.var(axes, correction=0)
        return super().norm(name, x)


@pytest.fixture
def network():
    return calibrated(SmallNet(head_norm=True, idle_norm=True), 8, 3).float()


@pytest.fixture
def images():
    """23 images of three classes, in no order."""
    rng = np.random.default_rng(0)
    items = list(rng.integers(0, 256, (23, 8, 8, 3), dtype=np.uint8))
    return Images(items, np.array([0, 1, 2] * 7 + [0, 2]), ["a", "b", "c"], "here")


def shown(images, rows):
    """The images as the network sees them, fp64."""
    pixels = np.stack([images.items[row] for row in rows]) / 255
    return torch.from_numpy(((pixels - MEAN) / STD).transpose(0, 3, 1, 2))


def inputs_of(network, images, rows, batch=False):
    """-> {layer's name: its input in fp64}."""
    formula = Inputs(copy.deepcopy(network).double(), batch)
    formula.small(shown(images, rows))
    return formula.inputs


def spatial(x):
    """Mean and biased variance of each image and channel over height and width."""
    x = x.reshape(*x.shape[:2], -1)
    mean = x.sum(2) / x.shape[2]
    return mean, ((x - mean[:, :, None]) ** 2).sum(2) / x.shape[2]


def split_idle(values, network):
    """Check that the layer that never runs has its running statistics -> the values of the others."""
    layers = statistics_layers(network)
    assert [layer.num_features for layer in layers] == [6, 5, 8, 7]
    assert all(torch.equal(row, layers[1].running_mean) for row in values.mean[1])
    assert all(torch.equal(row, layers[1].running_var) for row in values.var[1])
    keep = (0, 2, 3)
    return [values.mean[k] for k in keep], [values.var[k] for k in keep]


def test_class_statistics_are_means_of_the_moments_of_each_image(network, images):
    """Within images alone: the variance between them is not in. A BatchNorm1d has no variance within one."""
    found = statistics.class_statistics(network, images, 3, MEAN, STD, CPU, batch_size=5)
    for name, mean, var in zip(NAMES, *split_idle(found, network), strict=True):
        for label in range(3):
            rows = np.flatnonzero(images.labels == label)
            m, v = spatial(inputs_of(network, images, rows)[name])
            assert torch.allclose(mean[label].double(), m.mean(0), rtol=1e-5, atol=1e-5)
            assert torch.allclose(var[label].double(), v.mean(0), rtol=1e-5, atol=1e-5)
    assert all(value.dtype == torch.float32 for value in found.mean + found.var)


def test_distances_are_those_of_psm(network, images):
    found = statistics.gps_distances(network, shown(images, range(23)).float()).numpy()
    inputs = inputs_of(network, images, range(23))
    layers = [layer for layer in statistics_layers(network) if layer is not network.idle]
    wanted = np.zeros(23)
    for name, layer in zip(NAMES, layers, strict=True):
        m, v = (value.numpy() for value in spatial(inputs[name]))
        mu, sigma = (value.double().numpy() for value in (layer.running_mean, layer.running_var))
        logs = np.log((v + 1e-6) / (sigma + 1e-6))
        d = np.sqrt(((m - mu) ** 2).sum(1)) + np.sqrt((logs ** 2).sum(1))
        wanted += d / np.sqrt(len(mu)) / 3
    assert found == pytest.approx(wanted, rel=1e-4)
    assert np.ptp(found) > 0.1


def test_group_statistics_are_those_of_train_mode_averaged_over_batches(network, images):
    """Unbiased variances, as running statistics have them, each layer's input normalised by its batch."""
    groups = [list(range(0, 9)), list(range(9, 23))]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.bn2.momentum = 0.3
    found = statistics.group_statistics(network, images, groups, MEAN, STD, CPU, batch_size=9)
    parts = [[groups[0]], np.array_split(unit_rng(0, 1).permutation(groups[1]), 2)]
    for name, mean, var in zip(NAMES, *split_idle(found, network), strict=True):
        for group, batches in enumerate(parts):
            inputs = [inputs_of(network, images, rows, batch=True)[name] for rows in batches]
            channels = [x.transpose(0, 1).flatten(1) for x in inputs]
            m = torch.stack([x.mean(1) for x in channels]).mean(0)
            v = torch.stack([x.var(1, correction=1) for x in channels]).mean(0)
            assert torch.allclose(mean[group].double(), m, rtol=1e-4, atol=1e-5)
            assert torch.allclose(var[group].double(), v, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert network.bn2.momentum == 0.3 and not any(module.training for module in network.modules())


def test_measuring_leaves_the_network_as_it_was(network, images):
    before = hash_weights(network)
    statistics.class_statistics(network, images, 3, MEAN, STD, CPU)
    statistics.gps_distances(network, shown(images, range(2)).float())
    assert hash_weights(network) == before and not network.bn1._forward_pre_hooks


def test_a_class_or_group_without_images_is_refused(network, images):
    with pytest.raises(UserError, match="class 3 has no image"):
        statistics.class_statistics(network, images, 4, MEAN, STD, CPU)
    with pytest.raises(UserError, match="group 1 has 1 images"):
        statistics.group_statistics(network, images, [[0, 1], [2]], MEAN, STD, CPU)


def test_the_file_keeps_statistics_and_refuses_what_is_not_of_this_teacher(network, tmp_path):
    teacher = Teacher(network, "small", "torchvision", 3, None, MEAN, STD, 8, None, None, "t.pth",
                      hash_weights(network))
    path = statistics.class_statistics_path(tmp_path / "teacher.e2.pth")
    assert path == tmp_path / "teacher.e2.class_statistics.pth"
    with pytest.raises(UserError, match="no class statistics of the teacher; squeeze"):
        statistics.load(path, teacher, "class")

    made = Statistics(*([torch.rand(3, width) for width in (6, 5, 8, 7)] for _ in range(2)))
    statistics.save(path, made, teacher.sha256, "class")
    found = statistics.load(path, teacher, "class")
    assert all(map(torch.equal, found.mean + found.var, made.mean + made.var))

    other = dataclasses.replace(teacher, sha256="0" * 64, source="o.pth")
    with pytest.raises(UserError, match="of another teacher than o.pth"):
        statistics.load(path, other, "class")
    with pytest.raises(UserError, match="holds no group statistics"):
        statistics.load(path, teacher, "group")
    for broken in (made.mean[:3], [*made.mean[:3], torch.rand(2, 7)], [*made.mean[:3], made.mean[3] * np.nan],
                   None, [1, 2, 3, 4]):
        statistics.save(path, Statistics(broken, made.var), teacher.sha256, "class")
        with pytest.raises(UserError, match="does not fit the BatchNorm layers of small"):
            statistics.load(path, teacher, "class")
