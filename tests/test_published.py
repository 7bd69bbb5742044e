"""The released archives of images and labels as they come to train.sh.

They are unpacked by the commands of docs/released-files.md, whole and in part. What does not fit is refused.
"""
import fnmatch
import json
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from relabel import check, relabel
from sre2l.check.folders import find_sets
from sre2l.run.paths import ROOT
from stress.damage_world import RELEASED, make_released
from tests.helpers import SMALL, bare_checkpoint, launch, noise_folder, refused, run_main
from tests.test_label_files import rename_in_pickle
from validate import train

pytestmark = pytest.mark.skipif(shutil.which("unzip") is None, reason="this machine has no unzip")
IMAGES, LABELS = "sre2l_in1k_rn18_4k_ipc50", "FKD_cutmix_fp16"
UNPACK = f"""mkdir -p published/images published/labels
unzip -q {IMAGES}.zip '*/class*_id*.jpg' -d published/images
tar xzf {LABELS}.tar.gz -C published/labels --exclude='._*' --exclude=.DS_Store"""
TRAIN = (f"sh validate/train.sh --train-dir published/images/{IMAGES} --fkd-path published/labels/{LABELS} "
         f"--val-dir /data/imagenet --name published")
FIRST_TEN = f"unzip -q {IMAGES.replace('50', '200')}.zip '*/class*_id00[0-9].jpg' -d published/ipc10"
FIRST_FIFTY = "'*/class*_id0[0-4][0-9].jpg'"
FIRST_FIVE = f"unzip -q {IMAGES}.zip '*/class*_id00[0-4].jpg' -d published/ipc5"  # of a set that has ten
TOPS = {  # the folders above images and labels in their archives
    "in a folder of its name": (IMAGES, LABELS),
    "deeper": (f"SRe2L_IN-1K/{IMAGES}", f"relabel/{LABELS}"),
    "without a folder": ("", ""),
    "from a Mac": (IMAGES, LABELS),
}
SMALLER = ("--num-classes", RELEASED["num_classes"], "--input-size", 32, "--model", SMALL,
           "--epochs", RELEASED["epochs"], "--workers", 0)


def as_released(path):
    """Rewrite a label file as torch 2.0 and numpy 1 left it: the corners of the box are numpy's integers."""
    fields = torch.load(path)
    fields[4] = [np.int64(corner) for corner in fields[4]]
    torch.save(fields, path)
    rename_in_pickle(path, "numpy.core.multiarray")


def with_strays(files):
    """files {name in the archive: bytes}, with what a Mac adds: ._ files, and .DS_Store in each folder."""
    strays = {}
    for name in files:
        path = Path(name)
        strays[str(Path("__MACOSX", path.parent, f"._{path.name}"))] = b"\0\5\x16\7"
        if path.suffix == ".tar":
            strays[str(path.with_name(f"._{path.name}"))] = b"\0\5\x16\7"
        strays[str(path.with_name(".DS_Store"))] = b"\0\0\0\1Bud1"
    return files | strays


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A set in the released formats, images and labels, and real images to measure on."""
    root = make_released(tmp_path_factory.mktemp("source"))
    for path in root.glob("labels/*/*.tar"):
        as_released(path)
    noise_folder(root / "real" / "val", [f"n{label}" for label in range(RELEASED["num_classes"])], 2)
    bare_checkpoint(root / "teacher.pth")
    return root


def pack(source, target, top):
    """The two archives, in `target`, each with the folders that TOPS says on top."""
    contents = []
    for kind, folder in zip(("images", "labels"), TOPS[top]):
        files = {}
        for path in (source / kind).rglob("*.*"):
            files[Path(folder, path.relative_to(source / kind)).as_posix()] = path.read_bytes()
        contents.append(with_strays(files) if top == "from a Mac" else files)
    with zipfile.ZipFile(target / f"{IMAGES}.zip", "w") as archive:
        for name, data in contents[0].items():
            archive.writestr(name, data)
    (target / "packed").mkdir()
    for name, data in contents[1].items():
        (target / "packed" / name).parent.mkdir(parents=True, exist_ok=True)
        (target / "packed" / name).write_bytes(data)
    with tarfile.open(target / f"{LABELS}.tar.gz", "w:gz") as archive:
        archive.add(target / "packed", arcname=".")
    shutil.rmtree(target / "packed")


def shell(commands, cwd):
    subprocess.run(["sh", "-ec", commands], cwd=cwd, check=True)


def train_flags(folder, source, *more):
    """Those of TRAIN, for the small set."""
    line = TRAIN.replace("published/", f"{folder}/published/")
    line = line.replace("/data/imagenet", f"{source}/real")
    line = line.replace("--name published", f"--name {folder}/run")
    return line.split()[2:] + list(map(str, (*SMALLER, *more)))


def test_the_commands_of_the_page_take_a_macs_archives_to_a_result(source, tmp_path):
    """The lines themselves, by the launcher, paths relative to where the user stands."""
    pack(source, tmp_path, "from a Mac")
    shell(UNPACK, tmp_path)
    flags = [flag.removeprefix(f"{tmp_path}/") for flag in train_flags(tmp_path, source)]
    result = launch(ROOT / "validate" / "train.sh", *flags, "--name", tmp_path / "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "10 classes, cutmix read from the files; order seed 42" in result.stdout
    results = json.loads((tmp_path / "run" / f"student_{SMALL}" / "results.json").read_text())
    assert results["protocol"]["labels"]["num_images"] == RELEASED["num_classes"] * RELEASED["ipc"]
    assert results["protocol"]["labels"]["teacher"] is None and 0 <= results["top1"]["mean"] <= 100


@pytest.mark.parametrize("top", TOPS)
def test_wherever_the_archives_put_their_folders_a_sentence_names_them(top, source, tmp_path):
    """Train is given the folder above and names those that are meant. Check finds no fault in these."""
    pack(source, tmp_path, top)
    shell(UNPACK, tmp_path)
    images = tmp_path / "published" / "images" / TOPS[top][0]
    labels = tmp_path / "published" / "labels" / TOPS[top][1]
    flags = train_flags(tmp_path, source, "--dataset", "imagenet1k")
    for flag, kind, wanted in (("--train-dir", "images", images), ("--fkd-path", "labels", labels)):
        above = tmp_path / "published"
        message = refused(train, *flags, "--train-dir", images, "--fkd-path", labels, flag, above)
        assert message == f"{above}: no {kind} are in this folder; {kind} are in {wanted}: give that one"
    run_main(check, "--dataset", "imagenet1k", "--num-classes", RELEASED["num_classes"],
             "--data", images, "--fkd-path", labels)
    run_main(train, *flags, "--train-dir", images, "--fkd-path", labels)
    assert (tmp_path / "run" / f"student_{SMALL}" / "results.json").exists()


def test_a_search_for_a_set_asks_about_no_file_and_passes_over_what_cannot_be_read(tmp_path, monkeypatch):
    """--train-dir may be a whole ImageNet by mistake, or a disk with a lost+found."""
    for name in ("a/new000/class000_id000.jpg", "a/new000/class000_id001.jpg", "b/c/n01/x.jpg",
                 "lost+found/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "linked").symlink_to(tmp_path / "a")

    def scandir(path, original=os.scandir):
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)
    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "stat", None)
    assert find_sets(tmp_path, "images") == [f"{tmp_path}/a"] and find_sets(tmp_path, "labels") == []


def test_strays_are_counted_and_none_is_taken_for_a_set(source, tmp_path):
    """A Mac's archive is unpacked with all that is in it. The first stray is named, and how many more."""
    pack(source, tmp_path, "from a Mac")
    shell(f"mkdir -p published/labels; unzip -q {IMAGES}.zip -d published/images; "
          f"tar xzf {LABELS}.tar.gz -C published/labels", tmp_path)
    images = tmp_path / "published" / "images" / IMAGES
    labels = tmp_path / "published" / "labels" / LABELS
    assert find_sets(tmp_path / "published", "images") == [str(images)]
    assert find_sets(tmp_path / "published", "labels") == [str(labels)]
    message = refused(train, *train_flags(tmp_path, source))
    stray = images / "new000" / ".DS_Store"
    assert message == f"{stray}: does not belong into a folder of images; move it away (and 9 more)"
    shell("find published -name .DS_Store -o -name '._*' | xargs rm", tmp_path)
    run_main(train, *train_flags(tmp_path, source))


def test_the_first_images_of_each_class_are_unpacked_relabelled_and_trained_on(source, tmp_path):
    """An IPC subset is the first m files of each class. The labels of the whole are refused for it."""
    pack(source, tmp_path, "in a folder of its name")
    shell(f"{UNPACK}\n{FIRST_FIVE}", tmp_path)
    part = tmp_path / "published" / "ipc5" / IMAGES
    found = sorted(path.name for path in part.glob("new003/*"))
    assert found == [f"class003_id{i:03d}.jpg" for i in range(5)]
    assert len(list(part.glob("*/*"))) == 50
    flags = train_flags(tmp_path, source, "--dataset", "imagenet1k")
    message = refused(train, *flags, "--train-dir", part)
    assert "stored labels cannot be reused for a subset: relabel the images" in message
    common = ("--dataset", "imagenet1k", "--num-classes", RELEASED["num_classes"], "--input-size", 32,
              "--name", tmp_path / "part", "--epochs", 2, "-j", 0)
    run_main(relabel, *common, "--data", part, "--teacher", source / "teacher.pth", "--arch", SMALL, "-b", 16)
    run_main(train, *common, "--train-dir", part, "--val-dir", source / "real", "--model", SMALL)
    results = json.loads((tmp_path / "part" / f"student_{SMALL}" / "results.json").read_text())
    assert results["protocol"]["labels"]["num_images"] == 50


def test_the_patterns_of_the_page_are_the_first_ten_and_fifty_of_each_class():
    names = [f"set/new999/class999_id{i:03d}.jpg" for i in range(200)]
    for number, pattern in ((10, FIRST_TEN.split()[3]), (50, FIRST_FIFTY)):
        assert fnmatch.filter(names, pattern.strip("'")) == names[:number]


def roll_classes(_, labels):
    """Labels of a teacher with another class order."""
    for path in labels.glob("*/*.tar"):
        fields = torch.load(path)  # which sre2l.data.label_files has taught numpy's integers
        torch.save([*fields[:5], fields[5].roll(1, dims=1)], path)


def lose_an_image(images, _):
    (images / "new003" / "class003_id007.jpg").unlink()


def lose_a_label_file(_, labels):
    (labels / "epoch_1" / "batch_1.tar").unlink()


def cut_a_label_file(_, labels):
    (labels / "epoch_1" / "batch_1.tar").write_bytes(b"PK\3\4")


MISTAKES = {  # what happens to the files, flags added, the sentence
    "another class order": (roll_classes, (), "these labels do not belong to"),
    "another seed of the order": (None, ("--fkd-seed", 1), "or --fkd-seed is not 1"),
    "a label file missing": (
        lose_a_label_file, (),
        "epoch_1/batch_1.tar: is missing, or .* bring it back from where these labels came from"),
    "a label file cut off": (
        cut_a_label_file, (),
        "epoch_1/batch_1.tar: has 4 bytes, .* bring it back from where these labels came from"),
    "an image missing": (
        lose_an_image, (),
        "class003_id007.jpg: is missing; bring it back from where these images came from"),
    "exchanged": (
        None, ("--train-dir", "published/labels"),
        "labels: no images are in this folder; labels are in .*/FKD_cutmix_fp16$"),
    "not unpacked": (
        None, ("--train-dir", f"{IMAGES}.zip"),
        "zip: is a file; give a folder, that of an unpacked archive for instance"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_does_not_fit_is_refused(mistake, source, tmp_path, monkeypatch):
    harm, flags, sentence = MISTAKES[mistake]
    pack(source, tmp_path, "in a folder of its name")
    shell(UNPACK, tmp_path)
    if harm:
        harm(tmp_path / "published" / "images" / IMAGES, tmp_path / "published" / "labels" / LABELS)
    monkeypatch.chdir(tmp_path)
    assert re.search(sentence, refused(train, *train_flags(tmp_path, source), *flags))
    assert not (tmp_path / "run").exists()


def test_the_page_about_released_files_gives_these_commands():
    text = (ROOT / "docs" / "released-files.md").read_text()
    for line in (*UNPACK.splitlines(), TRAIN, FIRST_TEN, FIRST_FIFTY):
        assert line in text
