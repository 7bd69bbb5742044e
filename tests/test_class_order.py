"""The order of classes is proved: by names, else by what the user says, else by a teacher's answers."""
import numpy as np
import pytest
import torch
from PIL import Image

from recover import recover
from squeeze import squeeze
from sre2l.data.datasets import DATASETS
from sre2l.data.real_images import order_classes, read_real
from sre2l.nets import teacher
from sre2l.nets.evaluation import is_chance, share_in_best_order
from sre2l.run.errors import UserError
from tests.helpers import SMALL, bare_checkpoint, noise_folder, refused, run_main

NUMBERED = [f"class{number}" for number in range(1, 13)]
SPEC = teacher.dataclasses.replace(DATASETS["cifar10"], num_classes=12)


def first_pixel(images):
    """{class: the first pixel of its first image}: which folder a class is."""
    firsts = {label: row for row, label in reversed(list(enumerate(images.labels.tolist())))}
    return {label: images.pixels(row)[0, 0, 0] for label, row in firsts.items()}


@pytest.fixture
def numbered(tmp_path):
    """Folders class1 ... class12 in which every pixel is the folder's number -> the one that holds val/."""
    for number, name in enumerate(NUMBERED, 1):
        (tmp_path / "real" / "val" / name).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (32, 32), (number,) * 3).save(tmp_path / "real" / "val" / name / f"{index}.png")
    return tmp_path / "real"


@pytest.mark.parametrize("names, numeric", [
    (["0", "1", "10", "2"], ["0", "1", "2", "10"]),
    (["class1", "class10", "class9"], ["class1", "class9", "class10"]),
    (["n01440764", "n02102040"], ["n01440764", "n02102040"]),
    (["ant", "bee", "c4t"], ["ant", "bee", "c4t"])])
def test_two_orders_are_refused_until_one_is_said(names, numeric):
    assert order_classes(names, "x", "numeric") == numeric
    assert order_classes(names, "x", "text") == names
    if names == numeric:
        assert order_classes(names, "x", None) == names
        return
    with pytest.raises(UserError, match="as text and .* by number.*--class-order text or numeric"):
        order_classes(names, "x", None)


def test_a_class_is_the_folder_that_the_order_says(numbered):
    by_number = first_pixel(read_real(SPEC, numbered, "val", order="numeric"))
    assert by_number == {label: label + 1 for label in range(12)}
    as_text = first_pixel(read_real(SPEC, numbered, "val", order="text"))
    assert [as_text[label] for label in range(5)] == [1, 10, 11, 12, 2]


def test_names_that_are_known_say_the_class_in_any_order(numbered):
    names = NUMBERED[5:] + NUMBERED[:5]
    found = first_pixel(read_real(SPEC, numbered, "val", class_names=names))
    assert found == {label: int(name.removeprefix("class")) for label, name in enumerate(names)}


def test_a_foreign_teacher_needs_the_order_and_squeeze_tells_its_own(numbered, tmp_path, capsys):
    checkpoint = bare_checkpoint(tmp_path / "t.pth", num_classes=12)
    flags = ("--dataset", "cifar10", "--num-classes", 12, "--name", tmp_path / "run", "--device", "cpu")
    found = refused(recover, *flags, "--teacher", checkpoint, "--arch", SMALL, "--val-dir", numbered)
    assert "--class-order text or numeric" in found
    noise_folder(numbered / "train", NUMBERED, 2)
    run_main(squeeze, *flags, "--real-data", numbered, "--epochs", 1, "-b", 8, "-j", 0, "--arch", SMALL,
             "--lr", 0.001)
    assert "classes in text order, 'class1', 'class10', 'class11' ...; --class-order numeric" in \
        capsys.readouterr().out


def test_what_squeeze_has_measured_is_measured_again_only_on_other_images(tmp_path, monkeypatch, capsys):
    noise_folder(tmp_path / "real" / "train", ["ant", "bee"], 3)
    noise_folder(tmp_path / "real" / "val", ["ant", "bee"], 2)
    noise_folder(tmp_path / "other" / "val", ["ant", "bee"], 2, seed=1)
    flags = ("--dataset", "insects", "--name", tmp_path / "run", "--device", "cpu")
    run_main(squeeze, *flags, "--real-data", tmp_path / "real", "--arch", SMALL, "--epochs", 1, "-b", 3,
             "-j", 0, "--lr", 0.001)
    measured = []
    answer_all = teacher.answer_all
    monkeypatch.setattr(teacher, "answer_all", lambda *args: measured.append(1) or answer_all(*args))
    short = (*flags, "--allow-chance", "--iteration", 1, "--ipc-end", 1)
    run_main(recover, *short)
    assert "as squeeze measured" in capsys.readouterr().out and not measured
    run_main(recover, *short, "--overwrite", "--val-dir", tmp_path / "other")
    run_main(recover, *short, "--overwrite", "--teacher", tmp_path / "run" / "teacher" / "teacher.pth")
    assert "as squeeze measured" not in capsys.readouterr().out and len(measured) == 2


# -- what the answers of a teacher tell

def test_an_order_that_answers_speak_for_is_found_on_images_it_was_not_read_from():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(20), 30))
    order = rng.permutation(20)
    is_right = rng.random(len(labels)) < 0.9
    answers = np.where(is_right, order[labels], rng.integers(0, 20, len(labels)))
    share, found = share_in_best_order(answers, labels)
    assert abs(share - 0.905) < 0.05 and found == dict(enumerate(order.tolist()))
    share, _ = share_in_best_order(rng.integers(0, 200, 600), np.repeat(np.arange(200), 3))
    assert share < 0.03  # luck is no order


@pytest.mark.parametrize("answers", ([0, 0, 1, 1, 2, 2], [1, 0, 1, 1, 2, 2], [1, 1, 0, 0, 2, 2]))
def test_a_few_images_say_nothing_about_the_order(answers):
    assert teacher.describe_order(np.array(answers), np.array([0, 0, 1, 1, 2, 2]), 50.0) is None


@pytest.mark.parametrize("num_classes, num_images, top1, expected", [
    (200, 10_000, 0.9, True), (200, 10_000, 1.1, False), (10, 797, 19.9, True), (10, 797, 20.1, False),
    (2, 1000, 74, False), (2, 1000, 59, True), (2, 24, 74, True), (6, 24, 45, False), (3, 3, 66, True)])
def test_what_is_chance(num_classes, num_images, top1, expected):
    """Twice chance, ten points above it for few classes, three standard deviations for few images."""
    assert is_chance(top1, num_classes, num_images) == expected


def test_a_teacher_in_another_order_is_told_so(tmp_path, monkeypatch):
    """A perfect teacher in the text order of the folders 0 ... 99 is right for 12 % of the images."""
    noise_folder(tmp_path / "real" / "val", [str(number) for number in range(100)], 4)
    labels = torch.arange(100).repeat_interleave(4)
    text = sorted(range(100), key=str)
    answers = torch.tensor([text.index(label) for label in labels.tolist()])
    monkeypatch.setattr(teacher, "answer_all", lambda *_: (answers.numpy(), labels.numpy()))
    checkpoint = bare_checkpoint(tmp_path / "t.pth", num_classes=100)
    flags = ("--dataset", "cifar100", "--name", tmp_path / "run", "--device", "cpu", "--teacher", checkpoint,
             "--arch", SMALL, "--val-dir", tmp_path / "real", "--class-order", "numeric")
    message = refused(recover, *flags)
    assert "top-1 12.00%" in message and "about 100% if its classes were in another order" in message
    assert "--class-order" in message and "--allow-chance goes on" in message
