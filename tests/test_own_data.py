"""Data sets of one's own: facts found in the folder, kept beside the run, and used without a flag."""
import json
import os
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from recover import recover
from relabel import check, relabel
from squeeze import squeeze
from sre2l.data import own, real_images, scale
from sre2l.data.datasets import BY_SIZE, DATASETS, IMAGENET
from sre2l.data.image_folder import read_folder
from sre2l.data.real_images import find_split, read_digits, show, to_train_on
from sre2l.nets import checkpoints, models
from sre2l.run.errors import UserError
from sre2l.run.paths import ROOT
from tests.helpers import SMALL, bare_checkpoint, noise_folder, refused, run_main, synthetic_folder
from validate import random_real, train

NAMES = ["ant", "bee", "cat"]


def squeeze_args(root, *flags, dataset="photos"):
    real = ("--real-data", root / "photos") if (root / "photos").exists() else ()
    words = ("--dataset", dataset, "--name", root / "run", *real, *flags)
    return squeeze.get_args([str(word) for word in words])


# -- the facts

@pytest.mark.parametrize("shapes, size", [
    ([(20, 30)], 32), ([(40, 99), (70, 64), (300, 65)], 64), ([(127, 500)], 96), ([(240, 160)], 128),
    ([(2000, 3000)], 224)])
def test_the_size_is_the_largest_that_the_median_short_side_reaches(shapes, size):
    assert own.choose_size(np.array(shapes)) == size


def test_mean_and_deviation_are_those_of_the_pixels_that_an_evaluation_shows(tmp_path):
    rng = np.random.default_rng(0)
    for name in NAMES:
        (tmp_path / name).mkdir()
        for number in range(5):
            pixels = rng.integers(0, 200, (*rng.integers(30, 60, 2), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    images = read_folder(tmp_path)
    shown = np.stack([show(images.pixels(row), 32, 32) for row in range(len(images))]) / 255
    mean, std = own.measure(images, 32)
    assert np.allclose(mean, shown.mean((0, 1, 2)), atol=1e-4)
    assert np.allclose(std, shown.std((0, 1, 2)), atol=1e-4)


def test_the_facts_are_of_the_training_images_alone(tmp_path):
    noise_folder(tmp_path / "photos" / "train", NAMES, 4, size=70)
    noise_folder(tmp_path / "photos" / "valid", NAMES, 2, size=500)
    row = own.row_to_squeeze(squeeze_args(tmp_path))
    assert (row.num_classes, row.class_names, row.size) == (3, tuple(NAMES), 64)
    assert (row.num_train, row.val_fraction) == (12, None)
    assert (row.crop, row.padding, row.stem, row.resize_ratio) == BY_SIZE[64]
    own.write_facts(tmp_path, row)
    assert own.read_facts(tmp_path, "photos") == row
    assert own.row_to_squeeze(squeeze_args(tmp_path, "--input-size", 48)).size == 48


# -- layouts

@pytest.mark.parametrize("val", ["val", "valid", "validation", "test"])
def test_validation_images_may_have_any_of_four_names(val, tmp_path):
    noise_folder(tmp_path / "photos" / "train", NAMES, 3)
    noise_folder(tmp_path / "photos" / val, NAMES, 2)
    row = own.row_to_squeeze(squeeze_args(tmp_path))
    assert len(find_split(row, None, "train")) == 9 and len(find_split(row, None, "val")) == 6


def test_without_them_a_part_of_each_class_is_held_out_by_a_fixed_rule(tmp_path):
    noise_folder(tmp_path / "photos", NAMES[:2], 21)
    noise_folder(tmp_path / "photos", NAMES[2:], 3)
    row = own.row_to_squeeze(squeeze_args(tmp_path))
    train_images = find_split(row, None, "train")
    val_images = find_split(row, None, "val")
    assert row.val_fraction == own.VAL_FRACTION
    assert np.bincount(val_images.labels).tolist() == [2, 2, 1]
    assert sorted(train_images.items + val_images.items) == read_folder(tmp_path / "photos").items
    assert find_split(row, None, "val").items == val_images.items


def test_a_list_picks_classes_out_of_a_folder_with_more(tmp_path, monkeypatch):
    monkeypatch.setattr(real_images, "CLASS_LISTS", tmp_path)
    (tmp_path / "photos.txt").write_text("cat\nant\n")
    noise_folder(tmp_path / "photos", NAMES, 4)
    row = own.row_to_squeeze(squeeze_args(tmp_path))
    assert row.class_names == ("ant", "cat") and row.num_train == 6
    images = find_split(row, None, "train")
    assert [f"/{images.class_names[label]}/" in item for item, label in zip(images.items, images.labels)] == \
        [True] * 6
    (tmp_path / "photos.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match="has 3 class folders, and 1 of the 2 .* for photos .* 'dog'"):
        find_split(row, None, "train")


def test_a_part_can_be_held_out_of_any_set(tmp_path):
    row = own.row_to_squeeze(squeeze_args(tmp_path, "--val-fraction", 0.2, dataset="digits"))
    assert np.bincount(find_split(row, None, "val").labels).tolist() == [20] * 10
    assert len(find_split(row, None, "train")) == 800
    every = read_digits("train", 32)
    assert all(any(item is other or (item == other).all() for other in every.items)
               for item in find_split(row, None, "val").items[:3])


def test_the_held_out_part_is_the_same_where_the_folder_was_moved(tmp_path):
    noise_folder(tmp_path / "photos", NAMES, 10)
    row = own.row_to_squeeze(squeeze_args(tmp_path))
    held = find_split(row, None, "val")
    (tmp_path / "photos").rename(tmp_path / "moved")
    moved = find_split(row, tmp_path / "moved", "val")
    assert [item.replace("moved", "photos") for item in moved.items] == held.items
    with pytest.raises(UserError, match="no such folder; say with --real-data where photos lies now"):
        find_split(row, None, "val")
    others = noise_folder(tmp_path / "others" / "val", NAMES, 4)
    assert len(find_split(row, others.parent, "val")) == 12  # validation images of their own, all of them


def test_a_renamed_file_moves_what_is_held_out_and_is_refused(tmp_path):
    noise_folder(tmp_path / "photos", NAMES, 10)
    row = own.row_to_squeeze(squeeze_args(tmp_path))
    (tmp_path / "photos" / "bee" / "bee_003.png").rename(tmp_path / "photos" / "bee" / "zzz.png")
    with pytest.raises(UserError, match="files have other names than when a part was held out"):
        find_split(row, None, "val")


@pytest.mark.parametrize("change", (
    {"colour": "red"}, {"class_names": ["ant", "bee"]}, {"size": None, "num_classes": 4}))
def test_facts_that_squeeze_has_not_written_so_are_refused(change, tmp_path):
    noise_folder(tmp_path / "photos", NAMES, 3)
    own.write_facts(tmp_path / "run", own.row_to_squeeze(squeeze_args(tmp_path)))
    path = own.facts_path(tmp_path / "run")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match="not as squeeze wrote it"):
        own.read_facts(tmp_path / "run", "photos")


@pytest.mark.parametrize("train, val", [("Train", "Val"), ("TRAIN", "TEST"), ("training", "testing")])
def test_splits_may_be_capitalised(train, val, tmp_path):
    noise_folder(tmp_path / "photos" / train, NAMES, 3)
    noise_folder(tmp_path / "photos" / val, NAMES, 1)
    row = own.row_to_squeeze(squeeze_args(tmp_path))
    assert row.class_names == tuple(NAMES) and row.num_train == 9 and row.val_fraction is None


def test_another_normalisation_is_another_teacher(tmp_path):
    noise_folder(tmp_path / "photos", NAMES, 3)
    flags = ("--dataset", "photos", "--name", tmp_path / "run", "--device", "cpu", "-j", 0, "--epochs", 1,
             "--real-data", tmp_path / "photos", "--arch", SMALL, "--lr", 0.001, "-b", 3)
    run_main(squeeze, *flags, "--mean", "0.9,0.9,0.9")
    assert "mean: there [0.9, 0.9, 0.9], here None" in refused(squeeze, *flags)


@pytest.mark.parametrize("place", ("photos", "moved"))
def test_a_folder_that_has_changed_since_is_refused(place, tmp_path):
    """One photograph more moves what is held out: a part of the training images would be measured."""
    noise_folder(tmp_path / "photos", NAMES, 10)
    row = own.row_to_squeeze(squeeze_args(tmp_path))
    (tmp_path / "photos").rename(tmp_path / place)
    folder = tmp_path / place / "ant"
    (folder / "new.png").write_bytes((folder / "ant_000.png").read_bytes())
    with pytest.raises(UserError, match="28 of them to train on; there were 27 when a part was held out"):
        find_split(row, tmp_path / place, "val")


def test_imagenets_flat_val_comes_with_a_list(tmp_path):
    noise_folder(tmp_path / "photos" / "train", NAMES, 2, suffix="JPEG")
    (tmp_path / "photos" / "val").mkdir()
    lines = ["ImageId,PredictionString"]
    for number, name in enumerate(reversed(NAMES)):
        source = tmp_path / "photos" / "train" / name / f"{name}_000.JPEG"
        (tmp_path / "photos" / "val" / f"v{number}.JPEG").write_bytes(source.read_bytes())
        lines.append(f"v{number},{name} 1 2 3 4 {name} 5 6 7 8 ")
    (tmp_path / "photos" / "LOC_val_solution.csv").write_text("\n".join(lines))
    row = own.row_to_squeeze(squeeze_args(tmp_path))
    val_images = find_split(row, None, "val")
    assert val_images.class_names == NAMES and val_images.labels.tolist() == [2, 1, 0]


def test_what_systems_leave_between_images_is_passed_over_and_counted(tmp_path, capsys):
    noise_folder(tmp_path, NAMES, 2)
    (tmp_path / "ant" / "._ant_000.png").write_bytes(b"\0\5\x16\7")
    noise_folder(tmp_path / ".ipynb_checkpoints", ["x"], 1)
    noise_folder(tmp_path / "__MACOSX", ["x"], 1)
    images = read_folder(tmp_path)
    assert images.class_names == NAMES and len(images) == 6
    read_folder(tmp_path)
    told = capsys.readouterr()
    assert told.err.count("passed over 3 files and folders that a system left there, such as") == 1
    assert told.out == ""  # which is JSON in a dry run


# -- what cannot be trained on

def one_class(root):
    noise_folder(root, NAMES[:1], 4)


def one_image(root):
    noise_folder(root, NAMES[:2], 4)
    noise_folder(root, NAMES[2:], 1)


def val_without_a_class(root):
    noise_folder(root / "train", NAMES, 2)
    noise_folder(root / "val", NAMES[:2], 2)


def val_of_other_names(root):
    noise_folder(root / "train", NAMES, 2)
    noise_folder(root / "val", ["ant", "bee", "dog"], 2)


def test_and_no_train(root):
    noise_folder(root / "test", NAMES, 2)
    noise_folder(root / "images", NAMES, 2)


test_and_no_train.__test__ = False


def splits_of_other_names(root):
    noise_folder(root / "training_set", NAMES, 2)
    noise_folder(root / "test_set", NAMES, 2)


def link_around(root):
    noise_folder(root, NAMES, 2)
    (root / "ant" / "again").symlink_to(root)


def link_to_nowhere(root):
    noise_folder(root, NAMES, 2)
    (root / "dog").symlink_to(root / "gone")


def no_text(root):
    noise_folder(root, NAMES, 2)
    os.mkdir(os.fsencode(root) + b"/b\xfcrste")


def empty_class(root):
    noise_folder(root, NAMES, 2)
    (root / "dog").mkdir()


@pytest.mark.parametrize("make, message", [
    (one_class, "one class alone, 'ant'; a data set needs two or more, a folder for each"),
    (one_image, "class 'cat' has 1 image to train on; it needs two"),
    (val_without_a_class, "val: 2 class folders, train has 3; the first that differs is number 2: no folder"),
    (val_of_other_names, "number 2: 'dog' where 'cat' is expected"),
    (test_and_no_train, "has test/ and no train/; give the folder that holds both"),
    (splits_of_other_names, "test_set, training_set look like splits, not classes"),
    (link_around, "ant/again: is a link to a folder around it"),
    (link_to_nowhere, "dog: is a link that leads nowhere"),
    (no_text, "name is not UTF-8"),
    (empty_class, "classes dog. A class is a folder with images in it that may be read (.jpg")])
def test_what_cannot_be_trained_on_is_refused_before_anything_is_written(make, message, tmp_path):
    make(tmp_path / "photos")
    found = refused(squeeze, "--dataset", "photos", "--name", tmp_path / "run", "--device", "cpu",
                    "--real-data", tmp_path / "photos")
    assert message in found
    assert not (tmp_path / "run").exists()


def test_the_validation_images_of_a_known_set_have_the_classes_of_its_training_images(tmp_path):
    noise_folder(tmp_path / "real" / "train", [f"c{i}" for i in range(10)], 2)
    noise_folder(tmp_path / "real" / "val", [f"d{i}" for i in range(10)], 2)
    found = refused(squeeze, "--dataset", "cifar10", "--name", tmp_path / "run", "--device", "cpu",
                    "--real-data", tmp_path / "real", "--arch", SMALL)
    assert "number 0: 'd0' where 'c0' is expected" in found and "train has 10" in found


@pytest.mark.parametrize("content, more", [(b"no image", 10), ("cut", 6)])
def test_the_first_twenty_files_that_cannot_be_used_are_named(content, more, tmp_path):
    """By their headers or where they are decoded; nothing is recorded, so the mended folder is taken."""
    noise_folder(tmp_path / "photos", NAMES, 15)
    for file in sorted((tmp_path / "photos").glob("[ab]*/*.png")):
        data = file.read_bytes()
        file.write_bytes(data[:len(data) // 2] if content == "cut" else content)
    flags = ("--dataset", "photos", "--name", tmp_path / "run", "--device", "cpu", "--real-data",
             tmp_path / "photos")
    lines = refused(squeeze, *flags).splitlines()
    assert "of its files cannot be used; mend or remove them" in lines[0]
    assert sum("not a readable image" in line for line in lines) == 20
    assert lines[-1] == f"  and {more} more"
    assert not (tmp_path / "run").exists()


# -- names

@pytest.mark.parametrize("name, message", [
    ("cifar-10", "did you mean cifar10?"), ("Digits", "did you mean digits?"), ("a b", "letters, digits and"),
    ("digts", "did you mean digits?"), ("digitss", "did you mean digits?"),
    ("cifra10", "did you mean cifar10?"), ("imagenet", "did you mean imagenet1k?"),
    ("tiny-imagenet-200", "did you mean tiny-imagenet?"), ("imagefruit", "needs --real-data DIR"),
    ("../x", "letters, digits and"), ("photos", "needs --real-data DIR; known are imagenet1k")])
def test_a_name_that_is_no_data_set_is_a_sentence(name, message, tmp_path):
    assert message in refused(squeeze, "--dataset", name, "--name", tmp_path / "run")
    if "--real-data" in message:
        message = f"begin with: sh squeeze/squeeze.sh {name} --name {tmp_path / 'run'} --real-data DIR."
    assert message in refused(recover, "--dataset", name, "--name", tmp_path / "run")


@pytest.mark.parametrize("stage", [recover, relabel])
def test_who_brings_a_teacher_to_a_run_without_the_facts_is_told_the_command_that_takes_it(stage, tmp_path):
    """squeeze.sh has no --teacher."""
    start = f"begin with: sh run.sh photos --name {tmp_path / 'run'} --real-data DIR --teacher"
    flags = (stage, "--dataset", "photos", "--name", tmp_path / "run", "--teacher", tmp_path / "t.pth")
    assert f"{start} {tmp_path / 't.pth'} --arch ARCH." in refused(*flags)
    assert f"{start} {tmp_path / 't.pth'} --arch resnet34." in refused(*flags, "--arch", "resnet34")


def test_a_run_belongs_to_one_data_set(tmp_path):
    noise_folder(tmp_path / "photos", NAMES, 3)
    own.write_facts(tmp_path / "run", own.row_to_squeeze(squeeze_args(tmp_path)))
    found = refused(recover, "--dataset", "pictures", "--name", tmp_path / "run")
    assert "holds the facts of photos, this run is of pictures" in found


def test_a_folder_that_has_moved_is_where_squeeze_was_told_and_overwrite_knows_the_place(tmp_path):
    noise_folder(tmp_path / "photos", NAMES, 5)
    own.write_facts(tmp_path / "run", own.row_to_squeeze(squeeze_args(tmp_path)))
    (tmp_path / "photos").rename(tmp_path / "moved")
    told = squeeze_args(tmp_path, "--real-data", tmp_path / "moved")
    own.record_facts(told, own.row_to_squeeze(told))
    assert own.read_facts(tmp_path / "run", "photos").source == str(tmp_path / "moved")
    assert own.row_to_squeeze(squeeze_args(tmp_path, "--overwrite")).source == str(tmp_path / "moved")


def test_what_contradicts_the_facts_is_refused(tmp_path):
    folder = noise_folder(tmp_path / "photos", ["1", "2", "10"], 3)
    flags = ("--dataset", "photos", "--name", tmp_path / "run", "--device", "cpu")
    own.write_facts(tmp_path / "run", own.row_to_squeeze(squeeze_args(tmp_path)))
    assert "has 3 classes, a folder for each" in refused(recover, *flags, "--num-classes", 7)
    found = refused(squeeze, *flags, "--real-data", folder, "--class-order", "numeric")
    assert "the classes have the other order there" in found


def test_overwrite_forgets_the_facts_of_the_run_that_it_deletes(tmp_path):
    own.record_facts(squeeze_args(tmp_path), own.row_to_squeeze(
        squeeze_args(tmp_path, "--val-fraction", 0.2, dataset="digits")))
    assert own.facts_path(tmp_path / "run").exists()
    again = squeeze_args(tmp_path, "--overwrite", dataset="digits")
    own.record_facts(again, own.row_to_squeeze(again))
    assert not own.facts_path(tmp_path / "run").exists()


# -- pixels

def test_photographs_are_kept_at_twice_the_size_of_their_crops(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "ant").mkdir()
    for number, shape in enumerate([(300, 200), (130, 400), (60, 90)]):
        pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "ant" / f"{number}.png")
    spec = own.replace(DATASETS["tiny-imagenet"], size=64)
    images, resized = to_train_on(read_folder(tmp_path), spec)
    assert resized == "short side at most 128"
    assert images.shapes(range(3)).tolist() == [[192, 128], [128, 394], [60, 90]]
    assert [images.pixels(row).shape[:2] for row in range(3)] == [(192, 128), (128, 394), (60, 90)]


def test_padded_crops_are_of_images_of_the_networks_size(tmp_path):
    """A padded crop of a photograph as it is would squeeze the whole of it into the network's square."""
    noise_folder(tmp_path, NAMES, 1, size=50)
    spec = DATASETS["cifar10"]
    images = read_folder(tmp_path)
    shown, resized = to_train_on(images, spec)
    assert resized == "resized and cropped"
    assert shown.shapes(range(3)).tolist() == [[32, 32]] * 3
    assert (shown.pixels(1) == show(images.pixels(1), 32, 32)).all()
    digits = read_digits("train", 32)
    assert to_train_on(digits, DATASETS["digits"]) == (digits, None)


def test_padded_crops_of_synthetic_images_of_another_size_are_refused(tmp_path):
    synthetic_folder(tmp_path / "images", ipc=1, size=48)
    teacher = bare_checkpoint(tmp_path / "t.pth")
    flags = ("--dataset", "digits", "--name", tmp_path / "run", "--device", "cpu", "--epochs", 1,
             "--data", tmp_path / "images", "--teacher", teacher, "--arch", SMALL, "--allow-chance")
    message = refused(relabel, *flags)
    assert "48 by 48 pixels; padded crops are for images of the network's 32 by 32" in message
    run_main(relabel, *flags, "--crop", "resized")


# -- ImageNet's weights

@pytest.mark.parametrize("stem, afresh", [("torchvision", ["fc"]), ("conv3x3", ["conv1", "fc"])])
def test_a_teacher_may_start_from_imagenets_weights(stem, afresh, monkeypatch):
    """Every layer that has their shape has them; the last one, and a changed stem, begin afresh."""
    torch.manual_seed(1)
    source = models.get_network("resnet18", weights=None)
    monkeypatch.setattr(checkpoints, "pretrained", lambda arch: source)
    network, _ = models.build_network("resnet18", 3, stem)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert checkpoints.start_from_imagenet(network, "resnet18") == afresh
    for name, value in network.state_dict().items():
        wanted = before if name.rpartition(".")[0] in afresh else source.state_dict()
        assert torch.equal(value, wanted[name])


def test_a_thousand_classes_of_ones_own_are_not_imagenets(monkeypatch):
    torch.manual_seed(1)
    source = models.get_network(SMALL, weights=None)
    monkeypatch.setattr(checkpoints, "pretrained", lambda arch: source)
    network, _ = models.build_network(SMALL, 1000, "torchvision")
    assert checkpoints.start_from_imagenet(network, SMALL) == ["fc"]
    assert torch.equal(network.conv5[0].weight, source.conv5[0].weight)
    assert not torch.equal(network.fc.weight, source.fc.weight)


def test_squeeze_begins_with_them_in_their_normalisation(tmp_path, monkeypatch, capsys):
    noise_folder(tmp_path / "photos", NAMES, 3)
    monkeypatch.setattr(checkpoints, "pretrained", lambda arch: models.get_network(arch, weights=None))
    flags = ("--dataset", "photos", "--name", tmp_path / "run", "--device", "cpu", "-j", 0, "--epochs", 1)
    with_weights = (*flags, "--real-data", tmp_path / "photos", "--weights", "IMAGENET1K_V1", "--arch", SMALL)
    run_main(squeeze, *with_weights, "-b", 3, "--lr", 0.001)
    assert f"IMAGENET1K_V1 weights of {SMALL}; afresh: fc" in capsys.readouterr().out
    facts = json.loads((tmp_path / "run" / "dataset.json").read_text())
    assert tuple(facts["mean"]) == IMAGENET[0]
    assert "weights: there 'IMAGENET1K_V1', here None" in refused(squeeze, *flags, "-b", 3, "--arch", SMALL,
                                                                   "--lr", 0.001)


# -- launchers

@pytest.mark.parametrize("number, name", [
    (3, "small"), (2_000, "small"), (2_001, "medium"), (50_001, "large")])
def test_the_scale_is_by_the_number_of_training_images(number, name):
    assert scale.scale_of(number) == name


def scale_said(capsys, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["scale", *map(str, words)])
    scale.main()
    return capsys.readouterr().out.strip()


def test_the_scale_is_that_of_the_run_from_its_first_command_on(tmp_path, capsys, monkeypatch):
    """Counted before a part is held out, and then recorded: the same command takes the same settings."""
    monkeypatch.setattr(scale, "SCALES", {"small": 29, "medium": 1000})
    noise_folder(tmp_path / "disk", NAMES, 10)
    (tmp_path / "photos").symlink_to(tmp_path / "disk")
    flags = ("--dataset", "photos", "--name", tmp_path / "run", "--real-data", tmp_path / "photos")
    assert scale_said(capsys, monkeypatch, "--launcher", "squeeze.sh", *flags) == "medium"
    own.write_facts(tmp_path / "run", own.row_to_squeeze(squeeze_args(tmp_path)))
    for launcher in ("squeeze.sh", "recover.sh"):
        assert scale_said(capsys, monkeypatch, "--launcher", launcher, *flags[:4]) == "medium"
    own.facts_path(tmp_path / "run").write_text("no json")
    assert scale_said(capsys, monkeypatch, "--launcher", "recover.sh", *flags[:4]) == "small"


def test_the_scale_is_told_before_torch_is_imported(tmp_path):
    noise_folder(tmp_path / "photos" / "train", NAMES, 2)
    code = "from sre2l.data import scale; import sys; scale.main(); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, "--dataset", "photos", "--real-data", str(tmp_path / "photos")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "small\n"


# -- the whole

def test_later_stages_need_no_flag(tmp_path, capsys):
    """Squeeze finds the facts; recover, relabel, check, validate and the control take them from the run."""
    noise_folder(tmp_path / "photos", NAMES, 5, size=40)
    name = ("--dataset", "photos", "--name", tmp_path / "run")
    stage = (*name, "--device", "cpu")
    run_main(squeeze, *stage, "--real-data", tmp_path / "photos", "--epochs", 1, "-b", 6,
             "-j", 0, "--lr", 0.001)
    facts = "photos: 3 classes (ant ... cat), 12 images to train on and 3 to measure on (10% of each class "\
            "is held out), one of which is 33 points"
    assert facts in capsys.readouterr().out
    run_main(recover, *stage, "--iteration", 1, "--ipc-end", 2, "--batch-size", 6,
             "--allow-chance")
    run_main(relabel, *stage, "--epochs", 1, "-b", 6, "-j", 0, "--allow-chance")
    run_main(check, *name)
    run_main(train, *stage, "--epochs", 1, "-j", 0, "--gradient-accumulation-steps", 1)
    said = capsys.readouterr().out
    assert "warning: of 3 images that is not clearly above chance (1 in 3); too few epochs" in said
    run_main(random_real, *name)
    results = json.loads((tmp_path / "run" / "student_resnet18" / "results.json").read_text())
    assert results["protocol"]["val"]["num_images"] == 3
    facts = json.loads((tmp_path / "run" / "dataset.json").read_text())
    assert facts["class_names"] == NAMES and facts["source"] == str(tmp_path / "photos")


def test_squeeze_takes_the_recorded_facts_and_refuses_others(tmp_path):
    args = Namespace(dataset="photos", name=tmp_path / "run", overwrite=False, val_fraction=None,
                     class_order=None, real_data=None)
    noise_folder(tmp_path / "photos", NAMES, 3)
    own.write_facts(tmp_path / "run", own.row_to_squeeze(squeeze_args(tmp_path)))
    assert own.row_to_squeeze(args).class_names == tuple(NAMES)
    args.val_fraction = 0.3
    with pytest.raises(UserError, match="--val-fraction was 0.1 there"):
        own.row_to_squeeze(args)
