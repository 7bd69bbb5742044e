"""A disk that fills, a folder that is read-only or goes away: one sentence; the same command continues."""
import errno
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from recover import recover
from relabel import relabel
from squeeze import squeeze
from sre2l.run.start import run_script
from stress.compare import differences, names_of
from tests.helpers import SMALL, before_call, close_locks
from tests.worlds import common, teacher
from validate import train

STAGES = {"squeeze": squeeze, "recover": recover, "relabel": relabel, "validate": train}
PAGE = 4096  # a tmpfs counts whole pages
ROOM = namedtuple("usage", "total used free")(1 << 40, 0, 1 << 40)


def flags_of(stage, world, run):
    """The flags with which a stage writes into run/run from the images, labels and teacher of `world`."""
    flags = common(run)
    if stage == "squeeze":
        return (*flags, "--real-data", world / "real", "--arch", SMALL, "--epochs", 2, "-b", 10, "-j", 0,
                "--eval-every", 1)
    if stage == "recover":
        return (*flags, *teacher(world), "--iteration", 2, "--ipc-end", 2, "--batch-size", 5, "--groups", 1,
                "--no-crop-flip", "--engine", "plain")
    if stage == "relabel":
        return *flags, *teacher(world), "--data", world / "run" / "images", "--epochs", 4, "-b", 8, "-j", 0
    return (*flags, "--val-dir", world / "real", "--model", SMALL, "--epochs", 2, "-j", 0, "--eval-every", 1,
            "--train-dir", world / "run" / "images", "--fkd-path", world / "run" / "labels")


@pytest.fixture
def run_stage(world, monkeypatch, capfd):
    """-> run_stage(stage, folder), which runs its command as the launcher does -> (exit code, its errors)."""
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


class Reference:
    """What an undisturbed run of a stage writes, and how often it calls os.fsync and os.replace for that."""

    def __init__(self, run_stage, stage, folder):
        self.run = folder / "run"
        with pytest.MonkeyPatch.context() as patch:
            self.calls = {name: before_call(patch, os, name, at=None) for name in ("fsync", "replace")}
            patch.setattr(relabel, "NUM_WRITERS", 1)  # several sometimes make one folder at the same time
            assert run_stage(stage, folder) == (0, "")


@pytest.fixture(scope="module")
def made():
    return {}


@pytest.fixture
def reference(run_stage, tmp_path_factory, made, stage):
    """The stage's Reference, made once for all tests."""
    if stage not in made:
        made[stage] = Reference(run_stage, stage, tmp_path_factory.mktemp(f"reference_{stage}"))
    return made[stage]


def mount(folder, *options):
    command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


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
    ballast = disk / "ballast"
    free = os.statvfs(disk).f_bavail * PAGE
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - left // PAGE * PAGE)
    return ballast


def no_half_files(whole, run):
    """Every file that is there under its own name is whole, so far as an undisturbed run writes it once."""
    assert not [name for name in names_of(run) - names_of(whole) if name.endswith(".tmp")]
    changing = ("settings.json", "checkpoint.pth", "manifest.json", ".png", ".sha256")
    both = [name for name in names_of(run) & names_of(whole) if (run / name).is_file()]
    fixed = {f"other contents: {name}" for name in both if not name.endswith(changing)}
    assert not fixed & set(differences(whole, run))


def one_sentence(said, code, *parts):
    is_sentence = re.fullmatch(r"error: [^\n]+\n", said)
    assert code == 2 and is_sentence and all(part in said for part in parts), (code, said)


@pytest.mark.parametrize("share", (0.0, 0.6))
@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_fills_stops_a_run(stage, share, disk, run_stage, reference, monkeypatch):
    """With room for a share of the result, which relabel cannot know; with room for all it continues."""
    whole = reference.run
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


def no_room():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_that_shows_when_a_file_is_flushed(stage, run_stage, reference, monkeypatch, tmp_path):
    """A network's file system takes every write and complains at fsync: the first, the middle or the last."""
    count = len(reference.calls["fsync"])
    for at in sorted({1, count // 2, count}):
        folder = tmp_path / f"{at}"
        with monkeypatch.context() as patch:
            before_call(patch, os, "fsync", at, no_room)
            patch.setattr(relabel, "NUM_WRITERS", 1)  # as in the reference
            code, said = run_stage(stage, folder)
        one_sentence(said, code, "No space left on device")
        no_half_files(reference.run, folder / "run")
        assert run_stage(stage, folder) == (0, "") and differences(reference.run, folder / "run") == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_that_cannot_be_written(stage, disk, run_stage, reference):
    """Read-only before a run, and when its result is there: the file is named, and nothing is changed."""
    for _ in range(2):
        close_locks()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        code, said = run_stage(stage, disk)
        one_sentence(said, code, "Read-only file system", str(disk / "run"))
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        if (disk / "run").exists():
            assert differences(reference.run, disk / "run") == []
        assert run_stage(stage, disk) == (0, "")
    assert differences(reference.run, disk / "run") == []


def remove(folder):
    """As somebody who does not give up: threads of a run still write into it."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("share", (0.5, 1.0))
@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_that_goes_away(stage, share, run_stage, reference, monkeypatch, tmp_path):
    """Somebody deletes the run folder while a file of it is put into place: the run ends."""
    at = max(1, int(share * len(reference.calls["replace"])))
    with monkeypatch.context() as patch:
        before_call(patch, os, "replace", at, lambda: remove(tmp_path / "run"))
        code, said = run_stage(stage, tmp_path)
    one_sentence(said, code, str(tmp_path / "run"))
    assert run_stage(stage, tmp_path) == (0, "") and differences(reference.run, tmp_path / "run") == []


def test_relabel_asks_for_the_room_it_needs(run_stage, monkeypatch, tmp_path):
    """The bytes are said before anything is written, and refused where they do not fit."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: ROOM._replace(free=1000))
    code, said = run_stage("relabel", tmp_path)
    one_sentence(said, code, str(tmp_path / "run" / "labels"))
    assert not list((tmp_path / "run").rglob("*.tar"))
