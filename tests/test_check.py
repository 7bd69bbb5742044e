"""relabel/check.sh: its report, exit codes, what it says of missing folders, how it reads a hash file."""
import shutil

import numpy as np
import pytest

from relabel import check
from sre2l.check.verify import read_checked, verify_images
from sre2l.data.image_folder import encode, image_path
from sre2l.run.errors import UserError
from sre2l.run.hashes import read_hash_file
from sre2l.run.log import in_bytes
from sre2l.run.output import OutputFolder
from tests.helpers import launch, refused, release_locks, run_main, synthetic_folder
from tests.worlds import recover_flags, relabel_flags

HASH = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def run(world):
    """Recovered images and their labels, both with manifests and hashes."""
    folder = world / "checked"
    run_main(*recover_flags(world, "--ipc-end", 2, name=folder))
    run_main(*relabel_flags(world, "--name", folder, "--epochs", 2, "-b", 8))
    return folder


def lines(capsys, *flags):
    """The report of a check that finds no fault."""
    run_main(check, "--dataset", "cifar10", "-j", 2, *flags)
    return capsys.readouterr().out.splitlines()


def test_a_whole_run_has_a_line_for_each_check_and_no_fault(run, capsys):
    report = lines(capsys, "--name", run)
    assert report[-1] == "no fault found"
    assert all(line.startswith("ok ") for line in report[:-2]) and len(report) == 10
    assert "agreement" in report[-3] and "warning" not in report[-3]
    assert report[-2].startswith("note   warning: that is near chance")
    assert f"{run}/images, contents: 20 of 20 decode, 32 by 32 pixels, 20 hashes right" in report[2]
    assert f"{run}/labels, contents: 6 of 6 load and have the right fields, 6 hashes right" in report[6]


def test_images_alone_are_checked_before_there_are_labels(run, tmp_path, capsys):
    for path in run.glob("images*"):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    report = lines(capsys, "--name", tmp_path)
    assert any("no labels there yet, so not checked" in line for line in report)
    assert report[-1] == "no fault found"


def test_the_launcher_exits_1_with_the_first_fault_named_which_is_not_one_for_quick(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    image = tmp_path / "run" / "images" / "new003" / "class003_id001.jpg"
    image.write_bytes(image.read_bytes()[:-9])
    result = launch("relabel/check.sh", "cifar10", "--name", tmp_path / "run")
    assert result.returncode == 1 and str(image) in result.stderr
    assert "FAULT" in result.stdout and "Traceback" not in result.stderr
    assert lines(capsys, "--name", tmp_path / "run", "--quick")[-1].startswith("no fault found")
    nothing = refused(check, "--dataset", "cifar10", "--name", tmp_path / "none")
    assert "neither images nor labels there yet" in nothing


def test_another_data_set_and_a_folder_gone_while_its_records_stand_are_faults(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "labels")
    gone = f"{tmp_path}/run/labels: this folder is missing"
    other = "was made for cifar10, this run is of digits"
    for dataset, folder, fault in (("digits", run, other), ("cifar10", tmp_path / "run", gone)):
        with pytest.raises(SystemExit) as caught:
            run_main(check, "--dataset", dataset, "--name", folder)
        assert caught.value.code == 1 and fault in capsys.readouterr().err


def test_folders_without_records_say_what_cannot_be_found(tmp_path, capsys):
    report = lines(capsys, "--data", synthetic_folder(tmp_path / "images"), "--fkd-path", tmp_path,
                   "--dry-run")
    assert "bytes_to_read" in "".join(report)
    report = lines(capsys, "--data", tmp_path / "images", "--name", tmp_path / "none")
    assert any(line.startswith("note   images without hashes: a JPEG has no checksum") for line in report)


def test_images_of_another_size_or_twice_the_same_are_named_without_records(tmp_path):
    root = synthetic_folder(tmp_path / "images")
    shutil.copy(synthetic_folder(tmp_path / "large", size=40) / "new002" / "class002_id000.jpg",
                root / "new002" / "class002_id000.jpg")
    assert "new002/class002_id000.jpg: is 40 by 40 pixels, the set has 32 by 32" in first_fault(tmp_path)
    shutil.copy(root / "new001" / "class001_id000.jpg", root / "new002" / "class002_id000.jpg")
    assert "new002/class002_id000.jpg: is new001/class001_id000.jpg once more" in first_fault(tmp_path)


def first_fault(folder):
    return next(finding.faults[0]
                for finding in check.verify(folder / "images", folder / "none", 10, 32) if finding.faults)


def test_relabel_names_the_stray_image_that_its_classes_do_not_share(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    extra = tmp_path / "run" / "images" / "new001" / "class001_id002.jpg"
    shutil.copy(extra.with_name("class001_id000.jpg"), extra)
    assert str(extra) in refused(*relabel_flags(run.parent, "--name", tmp_path / "run"))


OUTSIDE = ("../a.tar", "..", "/a.tar", "epoch_0/../b.tar", "epoch_0//b.tar", "a\\b.tar", "a\x07.tar", "a\0b")


@pytest.mark.parametrize("line", [*(f"{HASH}  {name}\n" for name in OUTSIDE), "\n",
                                  "x" * 64 + "  a.tar\n", HASH.upper() + "  a.tar\n", HASH + " a.tar\n",
                                  HASH + "  b.tar\n", HASH + "  c.tar"])
def test_a_line_that_is_no_hash_of_a_file_inside_is_passed_over_by_a_run_and_named_by_check(line, tmp_path):
    """The last two: a name for the second time, and a line without its end."""
    path = tmp_path / "labels.sha256"
    path.write_text(f"{HASH}  b.tar\n{line}")
    assert read_hash_file(path) == {"b.tar": HASH}
    with pytest.raises(UserError, match=rf"{path}: line 2 "):
        read_hash_file(path, strict=True)


def test_a_stage_that_is_done_names_what_the_next_one_would_refuse(world, tmp_path):
    """Without the stray all is well."""
    labels = tmp_path / "labels"
    recover = recover_flags(world, "--engine", "plain", name="strays")  # it starts in half the time
    relabel = relabel_flags(world, "--epochs", 1, "-b", 8, "--fkd-path", labels)
    of_images = ("new000/notes.txt", "new000/class000_id007.jpg", ".DS_Store", "new010")
    of_labels = ("notes.txt", "epoch_0/batch_9.tar", "epoch_7")
    for flags, root, strays in ((recover, world / "strays" / "images", of_images),
                                (relabel, labels, of_labels)):
        run_main(*flags)
        for stray in strays:
            path = root / stray
            path.touch() if "." in stray else path.mkdir()
            assert f"{path}: all is done, but this is no file of the set" in refused(*flags)
            path.unlink() if "." in stray else path.rmdir()
        run_main(*flags)


def test_bytes_are_shown_in_a_unit_that_fits():
    shown = [in_bytes(number) for number in (0, 999, 1000, 541_080, 3 * 10 ** 10)]
    assert shown == ["0 bytes", "999 bytes", "1.0 kB", "541.1 kB", "30.0 GB"]


def recorded_images(root, pairs):
    """An image folder with its records, as a run that was stopped leaves it. pairs: (ipc, class)."""
    names = [image_path("", label, ipc, 10).as_posix() for ipc, label in pairs]
    images = OutputFolder(root, "images")
    images.begin({"classes": list(range(10))})
    images.write(dict.fromkeys(names, encode(np.zeros((32, 32, 3), np.uint8))))
    release_locks()


@pytest.mark.parametrize("num_done", (4, 7))
def test_a_set_of_which_a_run_has_not_yet_made_every_class_is_not_complete(num_done, tmp_path):
    """Whatever part of the classes has the last image: of less than half, too."""
    pairs = [(0, label) for label in range(10)] + [(1, label) for label in range(num_done)]
    recorded_images(tmp_path / "images", pairs)
    with pytest.raises(UserError, match="is missing|is not complete"):
        read_checked(verify_images(tmp_path / "images", 10))


def test_a_set_of_more_classes_than_the_run_wants_is_refused(tmp_path):
    recorded_images(tmp_path / "images", [(0, label) for label in range(10)])
    read_checked(verify_images(tmp_path / "images", 10))
    with pytest.raises(UserError, match="10 class folders, the set has 5"):
        read_checked(verify_images(tmp_path / "images", 10, list(range(5))))
