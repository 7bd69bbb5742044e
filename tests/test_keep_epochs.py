"""Squeeze's teachers by age, its schedules and optimisers, and the class statistics that it writes."""
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from squeeze import squeeze
from sre2l.data.datasets import DATASETS
from sre2l.data.real_images import read_real
from sre2l.nets import statistics, training
from sre2l.nets.teacher import load_teacher
from sre2l.run.output import recorded
from tests.helpers import before_call, noise_folder, refused, run_main
from tests.test_stop_training import count_batches
from tests.worlds import NAMES

SPEC = DATASETS["cifar10"]
ARCH = "convnet3-w8"
NUM_BATCHES = 3  # of an epoch


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of squeeze but for the run folder; 20 images in batches of 7."""
    root = tmp_path_factory.mktemp("ages")
    noise_folder(root / "real" / "train", NAMES, 2)
    noise_folder(root / "real" / "val", NAMES, 1, seed=1)
    return (squeeze, "--dataset", "cifar10", "--real-data", root / "real", "--arch", ARCH, "-b", 7,
            "--device", "cpu", "-j", 0)


@pytest.fixture(scope="module")
def four(flags, tmp_path_factory):
    """The teacher's folder of a run in peace: four epochs at a constant rate, three of them kept."""
    root = tmp_path_factory.mktemp("four")
    run_main(*flags, *FOUR, "--name", root)
    return root / "teacher"


FOUR = ("--epochs", 4, "--lr-schedule", "constant", "--warmup-epochs", 1, "--keep-epochs", "1,2,4")
FILES = ("teacher.pth", "teacher.e1.pth", "teacher.e2.pth", "teacher.e4.pth")


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("teacher*.pth")}


def test_at_a_constant_rate_a_kept_teacher_is_that_of_a_shorter_run(flags, four, tmp_path):
    """Every byte of teacher.e2.pth, its top-1 among them. By the cosine the rates would differ."""
    run_main(*flags, "--epochs", 2, "--lr-schedule", "constant", "--warmup-epochs", 1, "--name", tmp_path)
    assert sorted(bytes_of(four)) == sorted(FILES)
    found = bytes_of(four)
    assert found["teacher.e2.pth"] == (tmp_path / "teacher" / "teacher.pth").read_bytes()
    assert found["teacher.e4.pth"] == found["teacher.pth"] != found["teacher.e1.pth"]


def test_a_kept_teacher_is_a_whole_one(four):
    kept = load_teacher(SPEC, four / "teacher.e1.pth")
    assert kept.arch == ARCH and kept.top1 is not None and kept.class_names == NAMES
    assert torch.load(four / "teacher.e1.pth")["epoch"] == 1


@pytest.mark.parametrize("at", (1, 2))
def test_a_run_that_dies_between_a_kept_teacher_and_its_checkpoint_continues(
        at, flags, four, tmp_path, monkeypatch):
    """The same command writes what a run in peace has written."""
    def die():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("sre2l.nets.training.CHECKPOINT_SEC", 0)
        before_call(patch, squeeze, "save", 2 * at, die)  # a kept teacher comes first
        run_main(*flags, *FOUR, "--name", tmp_path)
    folder = tmp_path / "teacher"
    assert (folder / f"teacher.e{at}.pth").exists() and not (folder / "teacher.pth").exists()
    steps = count_batches(monkeypatch, squeeze)
    run_main(*flags, *FOUR, "--name", tmp_path)
    assert len(steps) == (5 - at) * NUM_BATCHES and bytes_of(folder) == bytes_of(four)
    assert "already past" not in (folder / "log.txt").read_text()


def test_ages_that_are_past_are_said_and_the_last_one_is_there(flags, tmp_path, capsys):
    """A finished run has the weights of its last epoch alone."""
    run_main(*flags, "--epochs", 3, "--name", tmp_path)
    run_main(*flags, "--epochs", 3, "--keep-epochs", "1-3", "--name", tmp_path)
    assert "warning: --keep-epochs 1,2: already past" in capsys.readouterr().out
    found = bytes_of(tmp_path / "teacher")
    assert sorted(found) == ["teacher.e3.pth", "teacher.pth"]
    assert found["teacher.e3.pth"] == found["teacher.pth"]


def test_class_statistics_are_added_to_a_finished_run(flags, four, tmp_path, monkeypatch):
    """Nothing is trained; what is there stays; asked again nothing is measured. The first layer by hand."""
    folder = shutil.copytree(four, tmp_path / "teacher")
    before = bytes_of(folder)
    steps = count_batches(monkeypatch, squeeze)
    run_main(*flags, *FOUR, "--name", tmp_path, "--class-statistics")
    assert steps == []
    added = bytes_of(folder)
    assert {name: added.pop(name) for name in before} == before
    assert sorted(added) == sorted(name.replace(".pth", ".class_statistics.pth") for name in FILES)

    real = read_real(SPEC, flags[4], "train")
    pixels = np.stack([real.pixels(row) for row in range(len(real))]) / 255
    x = torch.from_numpy(((pixels - SPEC.mean) / SPEC.std).transpose(0, 3, 1, 2))
    for name in FILES:
        teacher = load_teacher(SPEC, folder / name)
        found = statistics.load(statistics.class_statistics_path(teacher.source), teacher, "class")
        weights = teacher.network.double().state_dict()
        inputs = F.conv2d(x, weights["layers.conv.0.weight"], weights["layers.conv.0.bias"], padding=1)
        for label in range(10):
            own = inputs[torch.from_numpy(real.labels == label)].flatten(2)
            assert torch.allclose(found.mean[0][label].double(), own.mean((0, 2)), atol=1e-5)
            assert torch.allclose(found.var[0][label].double(), own.var(2, correction=0).mean(0), rtol=1e-4)

    monkeypatch.setattr(statistics, "class_statistics", None)
    run_main(*flags, *FOUR, "--name", tmp_path, "--class-statistics")


def test_overwrite_deletes_kept_teachers_and_class_statistics(flags, tmp_path):
    for more in (("--keep-epochs", 1), ("--overwrite",)):
        run_main(*flags, "--epochs", 2, "--name", tmp_path, "--class-statistics", *more)
    assert sorted(bytes_of(tmp_path / "teacher")) == ["teacher.class_statistics.pth", "teacher.pth"]


def test_new_flags_are_settings_only_where_they_change_the_weights(flags, four, tmp_path, capsys):
    """A run of an older version, which has not recorded them, continues."""
    run_main(*flags, "--epochs", 1, "--name", tmp_path)
    plain = recorded(tmp_path / "teacher" / "settings.json")
    there = recorded(four / "settings.json")
    assert {*there} - {*plain} == {"lr_schedule"} and there["lr_schedule"] == "constant"
    for flag, value in (("--lr-schedule", "constant"), ("--optimizer", "adam")):
        message = refused(*flags, "--epochs", 1, "--name", tmp_path, flag, value)
        assert f"{flag[2:].replace('-', '_')}: there None, here '{value}'" in message
    run_main(*flags, "--epochs", 1, "--name", tmp_path, "--lr-schedule", "cosine", "--optimizer", "sgd")


@pytest.mark.parametrize("more, said", [
    (("--keep-epochs", "0,1"), "--keep-epochs 0: the training has the epochs 1 to 2"),
    (("--keep-epochs", "1,3"), "--keep-epochs 3: the training has the epochs 1 to 2"),
    (("--optimizer", "adam", "--momentum", 1), "--momentum 1: Adam's beta1"),
    (("--class-statistics", "--arch", "alexnet", "--input-size", 64), "alexnet has no BatchNorm layer"),
    (("--dataset", "imagenet1k", "--keep-epochs", 1), "--keep-epochs would do nothing")])
def test_what_cannot_be_is_refused_before_anything_is_written(more, said, flags, tmp_path):
    given = [flag for flag in flags if "--dataset" not in more or flag not in ("--dataset", "cifar10")]
    assert said in refused(*given, "--epochs", 2, "--name", tmp_path / "run", *more)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("warmup", (0, 2))
def test_a_constant_rate_follows_the_same_warm_up(warmup):
    rates = [training.lr_factor(epoch, 6, warmup, training.constant_factor) for epoch in range(6)]
    assert rates == pytest.approx([0.01, 0.505][:warmup] + [1] * (6 - warmup))


def test_adam_steps_as_its_formula_says():
    """In fp64, with the decay in the gradient, over five steps."""
    torch.manual_seed(0)
    parameter = torch.randn(7, dtype=torch.float64, requires_grad=True)
    x, m, v = parameter.detach().clone(), 0, 0
    optimizer = training.make_adam([parameter], 1e-3, 0.8, 1e-4, torch.device("cpu"))
    for step in range(1, 6):
        parameter.grad = torch.randn(7, dtype=torch.float64)
        g = parameter.grad + 1e-4 * x
        m, v = 0.8 * m + 0.2 * g, 0.999 * v + 0.001 * g ** 2
        x = x - 1e-3 * m / (1 - 0.8 ** step) / ((v / (1 - 0.999 ** step)).sqrt() + 1e-8)
        optimizer.step()
    assert torch.allclose(parameter.detach(), x, rtol=1e-10)


def test_adam_trains_a_teacher_and_continues(flags, tmp_path, monkeypatch):
    """Killed after an epoch, with Adam's moments in the checkpoint."""
    adam = (*flags, "--epochs", 2, "--optimizer", "adam", "--lr", 1e-3)
    run_main(*adam, "--name", tmp_path / "peace")

    def die():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("sre2l.nets.training.CHECKPOINT_SEC", 0)
        before_call(patch, squeeze, "save", 2, die)
        run_main(*adam, "--name", tmp_path / "killed")
    run_main(*adam, "--name", tmp_path / "killed")
    assert bytes_of(tmp_path / "killed" / "teacher") == bytes_of(tmp_path / "peace" / "teacher")
