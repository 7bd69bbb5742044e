"""Real data in the layouts that people have, and the embedded digits."""
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from recover.batches import image_names
from recover.pick import write_images
from recover.picks import pick_random
from sre2l.check.verify import read_checked, read_synthetic, verify_images
from sre2l.data import image_folder, pixel_store
from sre2l.data.datasets import DATASETS, Dataset
from sre2l.data.image_folder import Images, fingerprint, image_path, read_folder
from sre2l.data.real_images import decode_own, read_digits, read_real, read_val, show, shown_at
from sre2l.run import limits
from sre2l.run.errors import UserError
from sre2l.run.layout import scan
from sre2l.run.output import OutputFolder
from sre2l.run.paths import ROOT
from tests.helpers import noise_folder, synthetic_folder
from validate.random_real import are_lossless


def test_digits_are_the_1797_scans_split_once_and_for_all():
    train = read_digits("train", 32)
    val = read_digits("val", 32)
    assert (len(train), len(val)) == (1000, 797)
    assert np.bincount(train.labels).tolist() == [100] * 10
    assert np.bincount(val.labels).tolist() == [78, 82, 77, 83, 81, 82, 81, 79, 74, 80]
    pixels = np.stack(train.items)
    assert pixels.shape[1:] == (32, 32, 3) and pixels.dtype == np.uint8
    assert (pixels[..., 0] == pixels[..., 2]).all()
    spec = DATASETS["digits"]
    assert abs(pixels.mean() / 255 - spec.mean[0]) < 1e-3 and abs(pixels.std() / 255 - spec.std[0]) < 1e-3


def test_digits_file_names_source_and_licence():
    with np.load(ROOT / "sre2l" / "data" / "digits.npz") as stored:
        assert "Alpaydin" in str(stored["source"]) and "CC BY 4.0" in str(stored["licence"])
        assert stored["scans"].max() == 16


def tiny_folder(root, wnids):
    """Tiny-ImageNet's own layout, one image a class in train and in val; val lists the classes in reverse."""
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for i, wnid in enumerate(reversed(wnids)):
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("x\t0\t0\t1\t1\n")
        Image.new("RGB", (64, 64), (wnids.index(wnid), 0, 0)).save(folder / f"{wnid}_0.JPEG")
        Image.new("RGB", (64, 64), (wnids.index(wnid), 9, 9)).save(root / "val" / "images" / f"val_{i}.JPEG",
                                                                   "PNG")
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def test_tiny_imagenet_is_read_as_it_is_distributed(tmp_path):
    wnids = sorted(f"n{1000 + 7 * i:08d}" for i in range(200))
    root = tiny_folder(tmp_path, wnids)
    train = read_real(DATASETS["tiny-imagenet"], root, "train")
    assert train.class_names == wnids and train.labels.tolist() == list(range(200))
    for path in (root, root / "val"):
        val = read_val(DATASETS["tiny-imagenet"], path, class_names=wnids)
        assert [int(val.pixels(i)[0, 0, 0])
                for i in range(200)] == val.labels.tolist() == list(reversed(range(200)))
    shutil.rmtree(root / "train" / wnids[5])
    with pytest.raises(UserError, match="199 class folders, tiny-imagenet has 200"):
        read_real(DATASETS["tiny-imagenet"], root, "train")


def test_cifar_is_read_from_torchvisions_own_files(tmp_path, monkeypatch):
    """CIFAR-10's pickled batches as torchvision stores them, without its list of checksums."""
    import torchvision
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("data_batch_1", "test_batch"):
        rows = {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8),
                "labels": [i % 10 for i in range(20)]}
        (folder / name).write_bytes(pickle.dumps(rows))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"k{i}" for i in range(10)]}))
    kind = torchvision.datasets.CIFAR10
    for name, value in {"train_list": [["data_batch_1", None]], "test_list": [["test_batch", None]],
                        "meta": {**kind.meta, "md5": None}}.items():
        monkeypatch.setattr(kind, name, value)
    train = read_real(DATASETS["cifar10"], tmp_path, "train")
    assert len(train) == 20 and train.pixels(3).shape == (32, 32, 3) and train.class_names[3] == "k3"


def test_a_subset_of_classes_keeps_the_teachers_indices(tmp_path):
    noise_folder(tmp_path / "val", ["a", "b", "c"], 1)
    val = read_real(DATASETS["imagenet1k"], tmp_path, "val", classes=[0, 217, 701])
    assert val.labels.tolist() == [0, 217, 701]
    with pytest.raises(UserError, match="3 class folders, imagenet1k has 1000 classes and --classes names 2"):
        read_real(DATASETS["imagenet1k"], tmp_path, "val", classes=[0, 217])


def test_a_process_decodes_the_images_that_it_measures_and_no_other(tmp_path, monkeypatch):
    """Of 11 images, process 1 of 3 has four. The set's identity is that of images decoded all at once."""
    noise_folder(tmp_path / "val", ["a", "b"], 6, size=40)
    (tmp_path / "val" / "b" / "b_005.png").unlink()
    val = read_val(Dataset("x", 2, 32, *[(0.5,) * 3] * 2, "padded", 4, True, "conv3x3"), tmp_path)
    whole = Images([show(read_folder(tmp_path / "val").pixels(i), 32, 32) for i in range(11)], val.labels,
                   val.class_names, val.root)
    assert fingerprint(val) == fingerprint(whole)
    parts = [decode_own(val, rank, 3) for rank in range(3)]
    for index in range(11):
        part = parts[index % 3]
        row = index // 3
        assert np.array_equal(part.pixels[row], whole.items[index]) and part.labels[row] == val.labels[index]
    assert [len(part.pixels) for part in parts] == [4, 4, 3] and all(len(part) == 11 for part in parts)
    assert len(decode_own(val, 11, 12).pixels) == 0  # more processes than images

    with monkeypatch.context() as patch:  # as for a GPU, which gets its images in parts: here two at a time
        patch.setattr(pixel_store, "fits_gpu", lambda *_: True)
        patch.setattr(image_folder, "PART_BYTES", 2 * 32 * 32 * 3)
        assert torch.equal(decode_own(val, 0, 2).pixels, decode_own(whole, 0, 2).pixels)
    assert torch.equal(decode_own(val, 0, 2).pixels, decode_own(whole, 0, 2).pixels)

    decoded = []
    monkeypatch.setattr(image_folder, "decode", lambda path, decode=image_folder.decode:
                        decoded.append(path) or decode(path))
    decode_own(val, 1, 3)
    assert sorted(decoded) == [val.items[i] for i in (0, 1, 4, 7, 10)]  # the first tells the size


def test_a_part_that_does_not_fit_into_memory_is_refused_in_its_own_numbers(tmp_path, monkeypatch):
    """2 of 10 images are 6,144 bytes, all of them 30,720; half of the memory counts."""
    noise_folder(tmp_path / "val", ["a", "b"], 5)
    val = shown_at(read_folder(tmp_path / "val"), 32, 32)
    monkeypatch.setattr(limits, "usable_memory", lambda: 20_000)
    assert len(decode_own(val, 0, 5).pixels) == 2
    with pytest.raises(UserError, match="10 of its 10 images, which process 0 of 1 measures, take 0.0 GB"):
        decode_own(val)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # the other process wants as much
    with pytest.raises(UserError, match="2 of its 10 images, which process 0 of 5 measures"):
        decode_own(val, 0, 5)


def test_an_evaluation_shows_no_black_border_at_any_size():
    """A row of 64 pixels whose images are shown at 72 of them: the ratio is the row's own."""
    white = Images([np.full((80, 100, 3), 255, np.uint8)], np.zeros(1, np.int64), [], "")
    for size, ratio in ((64, 72 / 64), (32, 256 / 224), (224, 256 / 224), (96, 1)):
        assert (shown_at(white, size, round(size * ratio)).pixels(0) == 255).all()
    # as runs have recorded it
    assert [DATASETS[name].eval_resize for name in ("imagenet1k", "cifar10")] == [256, None]


def test_synthetic_folders_tell_their_class_by_name(tmp_path):
    synthetic_folder(tmp_path / "a", num_classes=4)
    for label in (0, 2):
        shutil.rmtree(tmp_path / "a" / f"new{label:03d}")
    assert read_synthetic(tmp_path / "a", 10, classes=[1, 3]).labels.tolist() == [1, 1, 3, 3]
    noise_folder(tmp_path / "b", ["cat", "dog"], 2)
    assert read_synthetic(tmp_path / "b", 10, classes=[5, 9]).labels.tolist() == [5, 5, 9, 9]


def test_names_of_images(tmp_path):
    """Also of many classes and images: recover's layout, in which nothing is a stray."""
    names = {image_path("", *case): case for case in ((7, 12, 1000), (7, 12, 10450), (10449, 1234, 10450))}
    assert [*map(str, names)] == ["new007/class007_id012.jpg", "new00007/class00007_id012.jpg",
                                  "new10449/class10449_id1234.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    there, _, stray = scan(tmp_path, "images")
    assert len(there) == 3 and not stray


def test_random_real_images_are_ipc_of_each_class_and_a_prefix_of_more():
    images = read_digits("train", 32)
    ten = range(10)
    few = pick_random(images, ten, 3, seed=1)
    many = pick_random(images, ten, 10, seed=1)
    rows = {pair: cell.row for pair, (cell,) in many.items()}
    assert sorted(few) == [(i, c) for i in range(3) for c in range(10)]
    assert all(images.labels[row] == label for (_, label), row in rows.items())
    assert len(set(rows.values())) == 100
    assert all(many[key] == cells for key, cells in few.items())
    assert pick_random(images, ten, 3, seed=2) != few
    with pytest.raises(UserError, match="has 100 images, 101 are wanted"):
        pick_random(images, ten, 101, seed=1)


@pytest.mark.parametrize("suffix", (".jpg", ".png"))
def test_random_real_images_are_written_once_and_checked_as_recovers_are(tmp_path, suffix):
    """A second start writes what is missing or damaged; a set whose hashes are gone is refused.

    They have the kind of files that the images have: JPEG also where those are of many kinds."""
    assert not are_lossless(["a.JPEG", "b.png"])
    root = tmp_path / "images"
    real = read_digits("train", 32)
    chosen = pick_random(real, range(10), 2, seed=1)
    names = image_names(chosen, 10, suffix == ".png")
    folder = OutputFolder(root, "images")
    folder.begin({"source": "digits", "size": 32, "classes": list(range(10))})

    def store():
        write_images(folder, real, chosen, names, 32)
        folder.finish(list(names.values()))
        return {path: path.stat().st_mtime_ns for path in sorted(root.rglob(f"*{suffix}"))}
    first = store()
    damaged = min(first)
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-1])
    second = store()
    assert len(first) == 20 and are_lossless(list(first)) == (suffix == ".png")
    assert damaged.read_bytes() == data
    assert {path for path in first if first[path] != second[path]} == {damaged}
    assert len(read_checked(verify_images(root, 10))) == 20
    folder.path("sha256").unlink()
    with pytest.raises(UserError, match="images.sha256: this file of hashes is missing"):
        read_checked(verify_images(root, 10))


def test_a_subset_out_of_all_folders():
    """--classes on a complete real set picks those classes; with the teacher's names, too."""
    val = read_real(DATASETS["digits"], None, "val", classes=[3, 7])
    assert np.bincount(val.labels, minlength=10).tolist() == [0, 0, 0, 83, 0, 0, 0, 79, 0, 0]
    assert len(read_real(DATASETS["digits"], None, "val", classes=[3, 7],
                         class_names=[str(d) for d in range(10)])) == 83 + 79
