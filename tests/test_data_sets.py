"""Data sets in the formats in which they are published, written here small: IDX, MATLAB's, binary, lists."""
import json
import struct
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from relabel import check
from report import chain, estimate
from sre2l.data import image_folder, own, torchvision_sets
from sre2l.data.datasets import DATASETS
from sre2l.data.real_images import (
    CLASS_LISTS,
    find_split,
    hold_out,
    read_real,
    read_split,
    read_val,
    to_train_on,
)
from sre2l.data.torchvision_sets import TORCHVISION
from sre2l.run.errors import UserError
from sre2l.run.paths import ROOT
from tests.helpers import SMALL, noise_folder, run_main
from tests.test_launchers import planned
from tests.test_own_data import scale_said, squeeze_args

NUM = {"train": 30, "val": 20}  # images of a split that is written here


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_idx(path, array):
    """An array of bytes as MNIST's files have it: two zeros, type, dimensions, sizes in big-endian, bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def write_mnist(root, folder="MNIST"):
    """MNIST's four files; image i of a split has the class i modulo 10 -> {split: (n, 28, 28)}."""
    pixels = {}
    for seed, (split, prefix) in enumerate((("train", "train"), ("val", "t10k"))):
        pixels[split] = noise(NUM[split], 28, 28, seed=seed)
        write_idx(root / folder / "raw" / f"{prefix}-images-idx3-ubyte", pixels[split])
        labels = np.arange(NUM[split], dtype=np.uint8) % 10
        write_idx(root / folder / "raw" / f"{prefix}-labels-idx1-ubyte", labels)
    return pixels


def as_element(kind, data):
    """A data element of a MATLAB file: its type, its length and its bytes, to a multiple of eight."""
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def write_mat(path, **arrays):
    """Arrays of uint8 or uint16 as a MATLAB file of level 5, without compression, columns first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<HH", 0x0100, 0x4D49)
    for name, array in arrays.items():
        array_class, kind = {"uint8": (9, 2), "uint16": (11, 4)}[array.dtype.name]
        data += as_element(14, b"".join((
            as_element(6, struct.pack("<II", array_class, 0)),
            as_element(5, struct.pack(f"<{array.ndim}i", *array.shape)),
            as_element(1, name.encode()),
            as_element(kind, array.tobytes("F")))))
    path.write_bytes(data)


def write_stl10(root):
    """STL-10's binary files: channels, columns, rows; classes from 1 -> {split: (n, 96, 96, 3)}."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    pixels = {}
    for seed, (split, name) in enumerate((("train", "train"), ("val", "test"))):
        pixels[split] = noise(NUM[split], 96, 96, 3, seed=seed)
        (folder / f"{name}_X.bin").write_bytes(pixels[split].transpose(0, 3, 2, 1).tobytes())
        (folder / f"{name}_y.bin").write_bytes(bytes(i % 10 + 1 for i in range(NUM[split])))
    (folder / "unlabeled_X.bin").write_bytes(b"")
    (folder / "class_names.txt").write_text("\n".join(f"k{i}" for i in range(10)) + "\n")
    return pixels


def write_jpeg(path, size=40, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(size, size, 3, seed=seed)).save(path)
    return str(path)


def write_eurosat(root, per_class=10, size=64):
    """eurosat/2750/<class>/<class>_<i>.jpg."""
    names = [f"Land{i}" for i in range(10)]
    for label, name in enumerate(names):
        for i in range(1, per_class + 1):
            write_jpeg(root / "eurosat" / "2750" / name / f"{name}_{i}.jpg", size, 100 * label + i)
    return names


@pytest.fixture
def any_size(monkeypatch):
    """torchvision compares the checksums of these sets with those of the published files."""
    for module in ("stl10", "svhn", "flowers102"):
        check_integrity = torchvision.datasets.utils.check_integrity
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity",
                            lambda path, md5=None, look=check_integrity: look(path))


# -- files that hold all images

@pytest.mark.parametrize("name, folder", [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_files_are_read_and_grey_becomes_rgb(name, folder, tmp_path):
    pixels = write_mnist(tmp_path, folder)
    for split in ("train", "val"):
        images = read_real(DATASETS[name], tmp_path, split)
        assert images.labels.tolist() == [i % 10 for i in range(NUM[split])]
        for row, grey in enumerate(pixels[split]):
            assert (images.pixels(row) == grey[..., None]).all() and images.pixels(row).shape == (28, 28, 3)
    assert images.class_names == list(TORCHVISION[name].kind.classes)
    shown, said = to_train_on(images, DATASETS[name])
    assert shown.pixels(0).shape == (32, 32, 3) and said == "resized and cropped"


def test_stl10s_binary_files_are_read(tmp_path, any_size):
    pixels = write_stl10(tmp_path)
    for split in ("train", "val"):
        images = read_real(DATASETS["stl10"], tmp_path, split)
        assert images.labels.tolist() == [i % 10 for i in range(NUM[split])]
        assert (np.stack(images.items) == pixels[split]).all()
    assert images.class_names == [f"k{i}" for i in range(10)]


def write_svhn(root):
    """SVHN's files: (32, 32, 3, n), and classes from 1; 10 is the digit 0 -> {split: (n, 32, 32, 3)}."""
    pixels = {}
    for seed, (split, name) in enumerate((("train", "train"), ("val", "test"))):
        pixels[split] = noise(NUM[split], 32, 32, 3, seed=seed)
        labels = np.arange(NUM[split]) % 10 + 1
        write_mat(root / f"{name}_32x32.mat", X=pixels[split].transpose(1, 2, 3, 0),
                  y=labels[:, None].astype(np.uint8))
    return pixels


def test_svhns_matlab_files_are_read_and_ten_is_zero(tmp_path, any_size):
    pytest.importorskip("scipy")
    pixels = write_svhn(tmp_path)
    for split in ("train", "val"):
        images = read_real(DATASETS["svhn"], tmp_path, split)
        assert images.labels.tolist() == [(i + 1) % 10 for i in range(NUM[split])]
        assert (np.stack(images.items) == pixels[split]).all()
        assert images.items[0].flags.c_contiguous
    assert images.class_names == [str(digit) for digit in range(10)]


def test_without_the_package_that_reads_matlab_files_one_sentence(tmp_path, any_size, monkeypatch):
    write_svhn(tmp_path)
    for name in ("scipy", "scipy.io"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="^svhn: .*the package scipy.*pip install scipy; or give a folder"):
        read_real(DATASETS["svhn"], tmp_path, "train")


# -- image files with lists

def never(*_, **__):
    raise AssertionError("an image was read")


def files_of(name, root, split, monkeypatch):
    """The images of a split, of which none may be decoded while they are found."""
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", never)
        return read_real(DATASETS[name], root, split)


def test_imagenette_is_read_by_its_folders(tmp_path, monkeypatch):
    wnids = (CLASS_LISTS / "imagenette.txt").read_text().split()
    wanted = {split: [write_jpeg(tmp_path / "imagenette2" / split / wnid / f"{wnid}_{i}.JPEG")
                      for wnid in wnids for i in range(2)] for split in ("train", "val")}
    for split in ("train", "val"):
        images = files_of("imagenette", tmp_path, split, monkeypatch)
        assert images.items == wanted[split] and images.class_names == wnids
        assert images.labels.tolist() == [label for label in range(10) for _ in range(2)]
    # The folder itself, in our layout, is the same set: a teacher of the one knows the other.
    again = read_val(DATASETS["imagenette"], tmp_path / "imagenette2", class_names=images.class_names)
    assert again.items == wanted["val"] and again.pixels(0).shape == (224, 224, 3)


def test_food101_is_read_by_its_lists(tmp_path, monkeypatch):
    names = [f"dish_{i:03d}" for i in range(101)]
    (tmp_path / "food-101" / "meta").mkdir(parents=True)
    (tmp_path / "food-101" / "images").mkdir()
    for split, numbers in (("train", (7, 3)), ("test", (5,))):
        rows = {name: [f"{name}/{number}" for number in numbers] for name in reversed(names)}
        (tmp_path / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(rows))
    write_jpeg(tmp_path / "food-101" / "images" / "dish_100" / "7.jpg", seed=3)
    images = files_of("food101", tmp_path, "train", monkeypatch)
    assert images.class_names == names and np.bincount(images.labels).tolist() == [2] * 101
    folder = tmp_path / "food-101" / "images" / "dish_100"
    assert images.items[:2] == [str(folder / "7.jpg"), str(folder / "3.jpg")]
    assert images.labels[0] == 100 and images.pixels(0).shape == (40, 40, 3)
    assert len(files_of("food101", tmp_path, "val", monkeypatch)) == 101


def write_pets(root):
    """Lists of images that need not be there."""
    (root / "oxford-iiit-pet" / "images").mkdir(parents=True)
    (root / "oxford-iiit-pet" / "annotations").mkdir()
    for split, number in (("trainval", 1), ("test", 2)):
        lines = [f"pet_{label}_{number} {label} 1 1\n" for label in range(37, 0, -1)]
        (root / "oxford-iiit-pet" / "annotations" / f"{split}.txt").write_text("".join(lines))


def test_oxford_iiit_pet_is_read_by_its_lists(tmp_path, monkeypatch):
    write_pets(tmp_path)
    for split, number in (("train", 1), ("val", 2)):
        images = files_of("oxford-iiit-pet", tmp_path, split, monkeypatch)
        assert images.labels.tolist() == list(range(36, -1, -1))
        assert images.items[0] == str(tmp_path / "oxford-iiit-pet" / "images" / f"pet_37_{number}.jpg")
    assert images.class_names == [f"Pet {label}" for label in range(1, 38)]


def test_flowers102_is_trained_on_two_of_its_three_parts(tmp_path, any_size, monkeypatch):
    """Image i + 1 has the class i modulo 102; of each three, the parts train, val and test have one."""
    pytest.importorskip("scipy")
    folder = tmp_path / "flowers-102"
    ids = np.arange(1, 307, dtype=np.uint16)[None]
    (folder / "jpg").mkdir(parents=True)
    write_mat(folder / "imagelabels.mat", labels=(ids - 1) % 102 + 1)
    write_mat(folder / "setid.mat", trnid=ids[:, :102], valid=ids[:, 102:204], tstid=ids[:, 204:])
    train = files_of("flowers102", tmp_path, "train", monkeypatch)
    val = files_of("flowers102", tmp_path, "val", monkeypatch)
    assert train.labels.tolist() == [*range(102), *range(102)] and val.labels.tolist() == list(range(102))
    assert train.items[102] == str(folder / "jpg" / "image_00103.jpg")
    assert val.items[0] == str(folder / "jpg" / "image_00205.jpg")
    assert train.class_names[:2] == ["pink primrose", "hard-leaved pocket orchid"]


def test_a_tenth_of_eurosat_is_held_out(tmp_path, monkeypatch):
    names = write_eurosat(tmp_path, size=8)
    row = own.row_to_squeeze(squeeze_args(tmp_path, "--real-data", tmp_path, dataset="eurosat"))
    assert (row.val_fraction, row.num_train, row.source) == (0.1, 90, str(tmp_path))
    own.write_facts(tmp_path / "run", row)
    recorded = own.read_facts(tmp_path / "run", "eurosat")
    assert recorded == row
    train, val = (find_split(recorded, None, split) for split in ("train", "val"))
    assert train.class_names == names and np.bincount(val.labels).tolist() == [1] * 10
    assert not set(train.items) & set(val.items) and len({*train.items, *val.items}) == 100
    # Folders that have validation images of their own keep them, and the run knows it.
    noise_folder(tmp_path / "split" / "train", names, 3)
    noise_folder(tmp_path / "split" / "val", names, 2)
    row = own.row_to_squeeze(squeeze_args(tmp_path, "--real-data", tmp_path / "split", "--overwrite",
                                          dataset="eurosat"))
    assert row.val_fraction is None and row.source == str(tmp_path / "split")
    assert len(find_split(row, None, "train")) == 30 and len(find_split(row, None, "val")) == 20


def test_a_held_out_part_is_the_same_wherever_the_folder_lies(tmp_path):
    write_eurosat(tmp_path / "a", size=8)
    row = own.row_to_squeeze(squeeze_args(tmp_path, "--real-data", tmp_path / "a", dataset="eurosat"))
    held = [find_split(row, None, "val").labels.tolist()]
    (tmp_path / "a").rename(tmp_path / "b")
    images = find_split(row, str(tmp_path / "b"), "val")
    assert images.labels.tolist() == held[0] and images.items[0].startswith(str(tmp_path / "b"))
    # Of torchvision's other sets of files, too.
    for folder in ("c", "d"):
        write_pets(tmp_path / folder)
    spec = own.replace(DATASETS["oxford-iiit-pet"], val_fraction=0.1)
    hashes = {own.with_files(spec, tmp_path / folder).files_sha256 for folder in ("c", "d")}
    assert len(hashes) == 1


def test_what_a_system_leaves_among_class_folders_is_no_image(tmp_path):
    wnids = (CLASS_LISTS / "imagenette.txt").read_text().split()
    names = write_eurosat(tmp_path, 2, size=8)
    for wnid in wnids:
        write_jpeg(tmp_path / "imagenette2" / "train" / wnid / "1.JPEG", 8)
    for name, folder, class_name in (("eurosat", "eurosat/2750", names[0]),
                                     ("imagenette", "imagenette2/train", wnids[0])):
        number = len(read_split(DATASETS[name], tmp_path, "train"))
        write_jpeg(tmp_path / folder / "__MACOSX" / "1.jpg", 8)
        (tmp_path / folder / class_name / "._1.jpg").write_bytes(b"Mac OS X")
        images = read_split(DATASETS[name], tmp_path, "train")
        assert len(images) == number == (20 if name == "eurosat" else 10)
        assert images.class_names == (names if name == "eurosat" else wnids)


def test_a_set_of_other_numbers_than_published_is_warned_of_once(tmp_path, capsys):
    write_eurosat(tmp_path, 2, size=8)
    write_mnist(tmp_path)
    for _ in range(2):
        read_split(DATASETS["eurosat"], tmp_path, "train")
        read_split(DATASETS["mnist"], tmp_path, "val")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "20 images of eurosat, of which 27,000 are published" in lines[0]
    assert "(val): 20 images of mnist, of which 10,000" in lines[1]
    own_number = own.replace(DATASETS["mnist"], num_images=(30, 20))
    read_split(own_number, tmp_path, "train")
    assert not capsys.readouterr().err


def test_one_process_downloads_and_the_others_wait(tmp_path, monkeypatch):
    """Threads stand for processes: each opens the folder by itself, as a process does."""
    monkeypatch.setattr(torchvision_sets, "ROOT", tmp_path)
    writers = []

    class MNIST(torchvision.datasets.MNIST):
        def __init__(self, root, download, **arguments):
            if not (root / "MNIST").exists():
                writers.append(root)
                time.sleep(0.2)
                write_mnist(root)
            super().__init__(root, **arguments)

    monkeypatch.setitem(TORCHVISION, "mnist", torchvision_sets.halves(MNIST, "MNIST/raw"))
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda split: len(read_split(DATASETS["mnist"], None, split)),
                              ("train", "val", "train")))
    assert found == [30, 20, 30] and len(writers) == 1


def test_labels_that_do_not_fit_the_images_are_refused(tmp_path, any_size):
    raw = write_mnist(tmp_path) and tmp_path / "MNIST" / "raw"
    write_idx(raw / "train-labels-idx1-ubyte", np.arange(20, dtype=np.uint8) % 10)
    with pytest.raises(UserError, match="30 images and 20 labels, which are not of one set"):
        read_split(DATASETS["mnist"], tmp_path, "train")
    write_idx(raw / "train-labels-idx1-ubyte", np.arange(30, dtype=np.uint8))
    with pytest.raises(UserError, match="has the label 10, and 10 classes from 0 on"):
        read_split(DATASETS["mnist"], tmp_path, "train")


# -- what is wrong is a sentence

@pytest.mark.parametrize("name", TORCHVISION)
def test_what_cannot_be_downloaded_is_a_sentence(name, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise URLError("no network")
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torchvision_sets, "ROOT", tmp_path)
    with pytest.raises(UserError) as caught:
        find_split(DATASETS[name], None, "val")
    said = str(caught.value)
    assert said.startswith(f"{name}: torchvision could not load or download it (")
    assert "no network" in said and "give a folder with --real-data" in said and "\n" not in said


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def test_files_that_are_cut_short_are_a_sentence(tmp_path):
    write_mnist(tmp_path)
    cut(tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte")
    with pytest.raises(UserError, match="^mnist: torchvision could not load"):
        read_real(DATASETS["mnist"], tmp_path, "train")
    (tmp_path / "food-101" / "meta").mkdir(parents=True)
    (tmp_path / "food-101" / "images").mkdir()
    (tmp_path / "food-101" / "meta" / "train.json").write_text("{")
    with pytest.raises(UserError, match="^food101: torchvision could not load"):
        read_real(DATASETS["food101"], tmp_path, "train")
    with pytest.raises(UserError, match="imagewoof has no embedded images: say where they are"):
        read_real(DATASETS["imagewoof"], None, "train")


# -- classes out of more

def test_a_list_of_classes_picks_them_out_of_all_of_imagenet(tmp_path):
    """Labels are positions in the sorted list; images of other classes are left out; val may be flat."""
    wanted = (CLASS_LISTS / "imagenet100.txt").read_text().split()
    assert wanted == sorted(set(wanted)) and len(wanted) == DATASETS["imagenet100"].num_classes
    noise_folder(tmp_path / "train", [*wanted, "n00000001", "n02500000", "n99999999"], 1, size=8)
    images = read_real(DATASETS["imagenet100"], tmp_path, "train")
    assert images.class_names == wanted and images.labels.tolist() == list(range(100))
    assert all(f"/{wanted[label]}/" in item for item, label in zip(images.items, images.labels))
    (tmp_path / "val").mkdir()
    shown = [wanted[7], "n00000001", *wanted]
    lines = [f"i{number},{wnid} 1 1 9 9\n" for number, wnid in enumerate(shown)]
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(lines))
    val = read_real(DATASETS["imagenet100"], tmp_path, "val", class_names=wanted)
    assert val.labels.tolist() == [7, *range(100)] and val.items[1].endswith("i2.JPEG")


def test_a_folder_that_lacks_classes_of_the_list_is_refused_with_the_first(tmp_path):
    wanted = (CLASS_LISTS / "imagewoof.txt").read_text().split()
    noise_folder(tmp_path / "train", [*wanted[1:], "a", "b"], 1, size=8)
    with pytest.raises(UserError, match=f"11 class folders, and 1 of the 10 .*imagewoof.txt.*'{wanted[0]}'"):
        read_real(DATASETS["imagewoof"], tmp_path, "train")


# -- the rows

def test_an_estimate_counts_what_is_published_and_downloads_nothing(monkeypatch):
    monkeypatch.setattr(estimate, "find_split", never)
    for row in DATASETS.values():
        if row.name != "digits":
            found = [estimate.count_images(row, None, split) for split in ("train", "val")]
            assert found == list(row.num_images)
    other = own.replace(DATASETS["cifar10"], val_fraction=0.2)
    assert estimate.count_images(other, None, "train") is None


def test_the_published_numbers_of_eurosat_are_those_of_the_rule():
    """A tenth of each of its ten classes, of 2,000, 2,500 or 3,000 images."""
    sizes = (3000, 3000, 3000, 2500, 2500, 2000, 2500, 3000, 2500, 3000)
    labels = np.repeat(np.arange(10), sizes)
    images = image_folder.Images(list(range(len(labels))), labels, [str(i) for i in range(10)], "")
    numbers = tuple(len(hold_out(images, 0.1, split)) for split in ("train", "val"))
    assert numbers == DATASETS["eurosat"].num_images


def test_only_sets_that_nobody_can_download_need_a_folder_from_the_first_stage_on(tmp_path):
    for name in DATASETS:
        args = chain.get_args(["--dataset", name])
        asked = squeeze_args(tmp_path, dataset=name)
        if name in TORCHVISION or name == "digits":
            chain.check_real_images(args, asked)
        else:
            with pytest.raises(UserError, match=f"^{name}: .*say where they are with --real-data DIR"):
                chain.check_real_images(args, asked)


def test_a_row_may_say_its_scale_and_what_a_run_recorded_wins(tmp_path, capsys, monkeypatch):
    noise_folder(tmp_path / "real" / "train", ["ant", "bee"], 1)
    said = partial(scale_said, capsys, monkeypatch, "--name", tmp_path / "run", "--dataset")
    assert said("stl10", "--launcher", "squeeze.sh", "--real-data", tmp_path / "real") == "medium"
    assert said("food101", "--launcher", "relabel.sh") == "large"
    own.write_facts(tmp_path / "run", own.replace(DATASETS["stl10"], scale="small"))
    assert said("stl10", "--launcher", "relabel.sh") == "small"


def test_the_table_of_the_documentation_has_the_facts_of_every_row():
    text = (ROOT / "docs" / "data-sets.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    lines = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert {line[0] for line in lines[2:]} == set(DATASETS)
    for name, classes, numbers, _, view, settings, files in lines[2:]:
        row = DATASETS[name]
        stem = {"torchvision": "torchvision", "conv3x3": "3x3", "conv3x3-s2": "3x3 stride 2"}[row.stem]
        assert classes.split(" (")[0] == f"{row.num_classes}, {row.size}"
        assert numbers == ", ".join(map(str, row.num_images or (1000, 797)))
        assert view == f"{row.crop}, {stem}, {'yes' if row.flip else 'no'}"
        assert (row.scale or "") in settings
        if name in TORCHVISION:
            assert TORCHVISION[name].place.removeprefix("*") in files


def test_as_many_classes_of_other_names_are_taken_with_a_warning(tmp_path, capsys):
    wanted = (CLASS_LISTS / "imagewoof.txt").read_text().split()
    for names, warned in ((["a", *wanted[1:]], True), (wanted, False)):
        root = tmp_path / names[0]
        noise_folder(root / "train", names, 1, size=8)
        assert read_real(DATASETS["imagewoof"], root, "train").class_names == names
        said = capsys.readouterr().err
        assert ("1 of its class folders, such as 'a', are not among" in said) == warned


@pytest.mark.parametrize("name", ["kmnist", "emnist", "imagenet200", "flowers", "cars", "pets", "imagenet21k",
                                  "ImageNet-21K"])
def test_other_sets_of_the_field_are_no_slips_of_ours(name):
    own.check_dataset_name(name)


# -- all stages

@pytest.mark.parametrize("name, write, size", [
    ("mnist", write_mnist, 32), ("stl10", write_stl10, 96), ("eurosat", write_eurosat, 64)])
def test_all_stages_from_the_original_files(name, write, size, tmp_path, any_size, capsys):
    """By the launchers' flags, but for lengths; later stages get the folder as squeeze does."""
    write(tmp_path / "real")
    real = ("--real-data", tmp_path / "real")
    run = ("--name", tmp_path / "run")
    steps = [("squeeze/squeeze.sh", *real, "--arch", SMALL, "--epochs", 1, "-b", 10, "-j", 0),
             ("recover/recover.sh", *real, "--iteration", 1, "--ipc-end", 1, "--allow-chance"),
             ("relabel/relabel.sh", "--epochs", 1, "-b", 10, "-j", 0, "--allow-chance"),
             ("validate/train.sh", *real, "--model", SMALL, "--epochs", 1, "-j", 0),
             ("validate/random_real.sh", *real, "--model", SMALL)]
    for launcher, *flags in steps:
        run_main(*planned(tmp_path, launcher, name, *flags, *run))
    run_main(check, "--dataset", name, *run)
    first = image_folder.decode(tmp_path / "run" / "images" / "new000" / "class000_id000.jpg")
    assert first.shape == (size, size, 3)
    teacher = torch.load(tmp_path / "run" / "teacher" / "teacher.pth", weights_only=True)
    assert tuple(teacher["mean"]) == DATASETS[name].mean and teacher["size"] == size
    student = tmp_path / "run" / f"student_{SMALL}" / "results.json"
    val = json.loads(student.read_text())["protocol"]["val"]
    assert val["num_images"] == (10 if name == "eurosat" else NUM["val"])
