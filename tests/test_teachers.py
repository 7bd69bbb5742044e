"""Several teachers: the same classes, each shown its own normalisation, files and networks in pairs."""
import copy
from pathlib import Path

import pytest
import torch

from recover import recover
from squeeze import squeeze
from sre2l.data.flags import data_spec
from sre2l.nets.checkpoints import TEACHER_FORMAT
from sre2l.nets.models import build_network
from sre2l.nets.teacher import find_teachers
from sre2l.run.errors import UserError
from tests.helpers import refused

NAMES = [str(number) for number in range(10)]


def save_teacher(path, arch="convnet1-w8", **facts):
    """A fresh network as squeeze writes it, with other facts -> path."""
    torch.manual_seed(len(path.name))
    network, stem = build_network(arch, 10, "torchvision", size=32)
    saved = {"format": TEACHER_FORMAT, "arch": arch, "stem": stem, "class_names": NAMES, "dataset": "digits",
             "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "size": 32, "num_classes": 10, "seed": 0,
             "top1": 90.0, "model": network.state_dict()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**saved, **facts}, path)
    return path


def found(*flags):
    args = recover.get_args(["--dataset", "digits", *map(str, flags)])
    return find_teachers(args, data_spec(args))


def test_each_teacher_is_shown_its_own_normalisation(tmp_path):
    first = save_teacher(tmp_path / "first.pth")
    mean, std = (0.1, 0.2, 0.3), (0.2, 0.4, 0.8)
    other = save_teacher(tmp_path / "other.pth", "convnet2-w8", mean=mean, std=std)
    (_, teacher), spec = found("--teacher", f"{first},{other}")
    assert (spec.mean, spec.std) == ((0.5,) * 3, (0.5,) * 3) == (teacher.mean, teacher.std)
    assert teacher.describe()["own_normalisation"] == (mean, std)

    pixels = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    alone = copy.deepcopy(teacher.network.network).double()
    own = (pixels - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(std).double().view(3, 1, 1)
    torch.testing.assert_close(copy.deepcopy(teacher.network).double()((pixels - 0.5) / 0.5), alone(own),
                               rtol=1e-6, atol=1e-6)


def test_a_teacher_alone_is_described_as_before(tmp_path):
    (teacher,), _ = found("--teacher", save_teacher(tmp_path / "first.pth"))
    assert set(teacher.describe()) == {"arch", "stem", "num_classes", "mean", "std", "size", "top1", "seed",
                                       "sha256"}


def test_the_networks_that_squeeze_trains_by_one_command_are_found_by_their_names(tmp_path):
    run = tmp_path / "run"
    save_teacher(run / "teacher" / "teacher.pth")
    save_teacher(run / "teacher_convnet2-w8" / "teacher.pth", "convnet2-w8")
    flags = ("--name", run, "--arch", "convnet1-w8,convnet2-w8")
    folders = [Path(teacher.source).parent.name for teacher in found(*flags)[0]]
    assert folders == ["teacher", "teacher_convnet2-w8"]
    (run / "teacher_convnet2-w8" / "teacher.pth").unlink()
    with pytest.raises(UserError, match=r"convnet2-w8/teacher.pth: no teacher there; train one \(sh squeeze"):
        found(*flags)
    assert found(*flags, "--dry-run")[0] == []


def test_a_network_that_is_named_twice_is_refused_before_anything_trains(tmp_path):
    flags = ("--dataset", "digits", "--name", tmp_path / "run", "--arch",
             "convnet1-w8,convnet2-w8,convnet2-w8")
    for stage in (squeeze, recover):
        for more in ((), ("--dry-run",)):
            assert "--arch names convnet2-w8 twice" in refused(stage, *flags, *more)
    assert not (tmp_path / "run").exists()


def test_other_classes_are_refused(tmp_path):
    first = save_teacher(tmp_path / "first.pth")
    other = save_teacher(tmp_path / "other.pth", class_names=NAMES[::-1])
    with pytest.raises(UserError, match="other.pth: its classes are not those of .*first.pth, or are in"):
        found("--teacher", f"{first},{other}")


def test_a_network_is_named_for_each_file(tmp_path):
    files = [save_teacher(tmp_path / f"{name}.pth") for name in "ab"]
    both = f"{files[0]},{files[1]}"
    assert len(found("--teacher", both, "--arch", "convnet1-w8,convnet1-w8")[0]) == 2
    for archs, number in (("convnet1-w8", "1 network"), ("convnet1-w8,convnet1-w8,resnet18", "3 networks")):
        with pytest.raises(UserError, match=f"--arch names {number} for 2 checkpoints; name one for each"):
            found("--teacher", both, "--arch", archs)
