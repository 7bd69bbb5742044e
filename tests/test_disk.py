"""A disk that fills, a folder that cannot be written, a folder that goes away: one sentence, exit code 2, and the same command continues."""
import errno
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from recover import recover
from relabel import relabel
from sre2l.data import pixel_store as store
from sre2l.run import claims
from sre2l.data.image_folder import read_synthetic
from sre2l.run.start import run_script
from squeeze import squeeze
from stress.compare import differences, names_of
from tests.helpers import SMALL, synthetic_folder
from tests.worlds import common, teacher
from validate import train

STAGES = {"squeeze": squeeze, "recover": recover, "relabel": relabel, "validate": train}
PAGE = 4096  # a tmpfs counts whole pages
ROOM = namedtuple("usage", "total used free")(1 << 40, 0, 1 << 40)


def flags_of(stage, world, run):
    """The flags with which a stage writes into run/run from the images, labels and teacher of `world`, as in stress/torture.py."""
    flags = common(run)
    if stage == "squeeze":
        return *flags, "--real-data", world / "real", "--arch", SMALL, "--epochs", 2, "-b", 10, "-j", 0, "--eval-every", 1
    if stage == "recover":
        return *flags, *teacher(world), "--iteration", 2, "--ipc-end", 2, "--batch-size", 5, "--no-crop-flip", "--groups", 1
    if stage == "relabel":
        return *flags, *teacher(world), "--data", world / "run" / "images", "--epochs", 4, "-b", 8, "-j", 0
    return (*flags, "--val-dir", world / "real", "--model", SMALL, "--epochs", 2, "-j", 0, "--eval-every", 1, "--save-every-sec", 0,
            "--train-dir", world / "run" / "images", "--fkd-path", world / "run" / "labels")


@pytest.fixture
def run_stage(world, monkeypatch, capfd):
    """-> run_stage(stage, folder): the stage's command as the launcher starts it -> (exit code, what it said on standard error)."""
    def run(stage, folder):
        monkeypatch.setattr(sys, "argv", list(map(str, (stage, *flags_of(stage, world, folder)))))
        capfd.readouterr()
        code = 0
        try:
            run_script(STAGES[stage].main, STAGES[stage].get_args)
        except SystemExit as end:
            code = end.code or 0
        return code, capfd.readouterr().err
    return run


@pytest.fixture(scope="module")
def made():
    return {}


@pytest.fixture
def reference(run_stage, tmp_path_factory, made):
    """-> reference(stage): what an undisturbed run writes."""
    def make(stage):
        if stage not in made:
            made[stage] = tmp_path_factory.mktemp(f"reference_{stage}")
            assert run_stage(stage, made[stage]) == (0, "")
        return made[stage] / "run"
    return make


def mount(folder, *options):
    return subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path):
    """A file system of 32 MB of its own; skipped where we may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or not mount(folder, "-o", "size=32m"):
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk, left):
    """Leave so many bytes free -> the file that takes the rest."""
    ballast, free = disk / "ballast", os.statvfs(disk).f_bavail * PAGE
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - left // PAGE * PAGE)
    return ballast


def no_half_files(reference, run):
    """Every file that is there under its own name is whole, so far as an undisturbed run writes it once."""
    assert not [name for name in names_of(run) - names_of(reference) if name.endswith(".tmp")]
    changing = ("settings.json", "checkpoint.pth", "manifest.json", ".png", ".sha256")
    there = [name for name in names_of(run) & names_of(reference) if (run / name).is_file() and not name.endswith(changing)]
    assert not [name for name in differences(reference, run) if name.startswith("other") and name.removeprefix("other contents: ") in there]


def one_sentence(said, code, *parts):
    assert code == 2 and re.fullmatch(r"error: [^\n]+\n", said) and all(part in said for part in parts), (code, said)


@pytest.mark.parametrize("share", (0.0, 0.4, 0.8))
@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_fills_stops_a_run_that_later_continues(stage, share, disk, run_stage, reference, monkeypatch):
    """A file system with room for a share of the result, which relabel cannot know; then with room for all."""
    whole = reference(stage)
    pages = sum(-(-path.stat().st_size // PAGE) for path in whole.rglob("*") if path.is_file())
    ballast = fill(disk, int(share * pages) * PAGE)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: ROOM)
    code, said = run_stage(stage, disk)
    one_sentence(said, code, "No space left on device")
    if (disk / "run").exists():
        no_half_files(whole, disk / "run")
    ballast.unlink()
    assert run_stage(stage, disk) == (0, "")
    assert differences(whole, disk / "run") == []


def after_calls(monkeypatch, module, name, act, at=None):
    """Let act() happen before the `at`-th call of module.name, in whatever thread -> the list of calls, one True each."""
    original, calls, numbers = getattr(module, name), [], itertools.count(1)

    def call(*args, **options):
        calls.append(True)
        if next(numbers) == at:  # not the list's length, to which another thread may add in between
            act()
        return original(*args, **options)
    monkeypatch.setattr(module, name, call)
    return calls


def no_room():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_that_shows_when_a_file_is_flushed(stage, run_stage, reference, monkeypatch, tmp_path):
    """A network's file system takes every write and complains at fsync. At the first, the middle and the last call; needs no root."""
    with monkeypatch.context() as patch:
        calls = after_calls(patch, os, "fsync", no_room)
        assert run_stage(stage, tmp_path / "count")[0] == 0
    for at in sorted({1, len(calls) // 2, len(calls)}):
        with monkeypatch.context() as patch:
            after_calls(patch, os, "fsync", no_room, at)
            code, said = run_stage(stage, tmp_path / f"{at}")
        one_sentence(said, code, "No space left on device")
        no_half_files(reference(stage), tmp_path / f"{at}" / "run")
        assert run_stage(stage, tmp_path / f"{at}") == (0, "")
        assert differences(reference(stage), tmp_path / f"{at}" / "run") == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_that_cannot_be_written(stage, disk, run_stage, reference):
    """Read-only before a run, and when its result is there: the sentence names the file, and nothing is changed."""
    for _ in range(2):
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        code, said = run_stage(stage, disk)
        one_sentence(said, code, "Read-only file system", str(disk / "run"))
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        if (disk / "run").exists():
            assert differences(reference(stage), disk / "run") == []
        assert run_stage(stage, disk) == (0, "")
    assert differences(reference(stage), disk / "run") == []


def remove(folder):
    """As somebody who does not give up: threads of a run still write into it."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("share", (0.5, 1.0))
@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_that_goes_away(stage, share, run_stage, reference, monkeypatch, tmp_path):
    """Somebody deletes the run folder while a file of it is put into place; nothing goes on as if it were whole."""
    with monkeypatch.context() as patch:
        calls = after_calls(patch, os, "replace", None)
        assert run_stage(stage, tmp_path / "count")[0] == 0
    monkeypatch.setattr(claims, "HEARTBEAT_SEC", 0.01)
    with monkeypatch.context() as patch:
        after_calls(patch, os, "replace", lambda: remove(tmp_path / "run"), max(1, int(share * len(calls))))
        code, said = run_stage(stage, tmp_path)
    one_sentence(said, code, str(tmp_path / "run"))
    assert run_stage(stage, tmp_path) == (0, "") and differences(reference(stage), tmp_path / "run") == []


def test_relabel_asks_for_the_room_it_needs(run_stage, monkeypatch, tmp_path):
    """The bytes are said before anything is written, and refused where they do not fit."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: ROOM._replace(free=1000))
    code, said = run_stage("relabel", tmp_path)
    one_sentence(said, code, str(tmp_path / "run" / "labels"))
    assert not list((tmp_path / "run").rglob("*.tar"))


def test_decoded_pixels_that_do_not_fit_are_decoded_at_each_use(disk, tmp_path, monkeypatch):
    """The disk was free when asked and is full when written: no mapped file, none left over, no SIGBUS."""
    images = read_synthetic(synthetic_folder(tmp_path / "images"), 10)
    monkeypatch.setattr(store, "fits_memory", lambda _: False)
    fill(disk, 8 * PAGE)  # of the 60 KB of pixels
    monkeypatch.setattr(shutil, "disk_usage", lambda _: ROOM)
    kept, note = store.keep_decoded(images, folder=disk / "run", identity="x")
    assert kept is images and "decoded at each use" in note and os.listdir(disk / "run") == [".pixels.lock"]
