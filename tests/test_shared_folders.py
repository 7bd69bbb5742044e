"""Several processes and machines in one folder: locks, also where a folder cannot be locked, and hash files that others write and merge."""
import errno
import fcntl
import os
import shutil
import stat
import tempfile
import threading
import time
from pathlib import Path

import pytest

from relabel.room import check_room
from sre2l.check import manifest
from sre2l.run import claims, files, signals
from tests.test_claims import foreign_claim

HASH = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def no_claims_left():
    yield
    claims.release()


@pytest.fixture
def nfs(monkeypatch):
    """Locks as NFS has them: of what is open for writing, so of no folder."""
    flock = fcntl.flock

    def lock(handle, how):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(handle, how)
    monkeypatch.setattr(fcntl, "flock", lock)


def enter(folder, purpose, order, name, leave=None):
    """Start a thread that is alone in a folder, until the event `leave` if there is one -> (the thread, an event: it is inside)."""
    inside = threading.Event()

    def stay():
        with files.alone_in(folder, purpose):
            order.append(name)
            inside.set()
            assert leave is None or leave.wait(60)
            order.append(name)
    thread = threading.Thread(target=stay)
    thread.start()
    return thread, inside


@pytest.mark.parametrize("purpose", (None, "pixels"))
@pytest.mark.parametrize("system", ("local", "nfs"))
def test_one_at_a_time_is_alone_in_a_folder(system, purpose, tmp_path, request):
    if system == "nfs":
        request.getfixturevalue("nfs")
    order, leave = [], threading.Event()
    first, inside = enter(tmp_path, purpose, order, "a", leave)
    assert inside.wait(60)
    second, inside = enter(tmp_path, purpose, order, "b")
    assert not inside.wait(0.2)
    leave.set()
    first.join()
    second.join()
    assert order == ["a", "a", "b", "b"]


def test_who_decodes_for_an_hour_keeps_no_claim_waiting(tmp_path):
    order, leave = [], threading.Event()
    decoding, inside = enter(tmp_path, "pixels", order, "pixels", leave)
    assert inside.wait(60)
    claiming, _ = enter(tmp_path, None, order, "claim")
    claiming.join(60)
    leave.set()
    decoding.join()
    assert order == ["pixels", "claim", "claim", "pixels"]


def test_a_lock_on_nfs_is_no_strangers_file(nfs, tmp_path):
    from sre2l.run.settings import keep_settings, start_afresh
    keep_settings(tmp_path / "teacher" / "settings.json", {})
    assert (tmp_path / "teacher" / ".folder.lock").exists()
    start_afresh(tmp_path / "teacher" / "settings.json", tmp_path / "teacher", "teacher", "")
    assert not list((tmp_path / "teacher").glob("*"))


def test_an_output_folder_may_be_a_link_to_another_disk(tmp_path, monkeypatch):
    """Its room is asked for, files are renamed within it, and leftovers there are removed."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or os.stat(shared).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("needs a second file system")
    with tempfile.TemporaryDirectory(dir=shared) as disk:
        (Path(disk) / "large").mkdir()
        (tmp_path / "labels").symlink_to(Path(disk) / "large")
        left = Path(disk) / f"large.{files.host()}.1.2.0.tmp"
        left.touch()
        claims.claim(tmp_path / "labels")
        asked = []
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, usage=shutil.disk_usage: asked.append(str(folder)) or usage(folder))
        check_room(tmp_path / "labels", 0)
        assert asked == [disk]
        files.write_bytes(tmp_path / "labels" / "epoch_0" / "batch_0.tar", b"x", tmp_path / "labels")
        assert not left.exists() and (Path(disk) / "large" / "epoch_0" / "batch_0.tar").read_bytes() == b"x"


def test_hashes_are_whole_while_another_process_merges_its_own(tmp_path, monkeypatch):
    """Its part is gone between the look at the names and the reading; its lines are in the main file then."""
    root, part = tmp_path / "images", tmp_path / "images.sha256.elsewhere.1.2"
    part.write_text(f"{HASH}  new000/class000_id000.jpg\n")
    original, calls = manifest.read_hash_file, []

    def merged_meanwhile(path, strict=False):
        calls.append(path)
        if len(calls) == 1:
            part.rename(tmp_path / "images.sha256")
        return original(path, strict)
    monkeypatch.setattr(manifest, "read_hash_file", merged_meanwhile)
    assert manifest.read_hashes(root) == {"new000/class000_id000.jpg": HASH}


def test_what_a_living_process_of_another_machine_records_stays_its_own(tmp_path, monkeypatch):
    """Also where this machine's clock is an hour ahead of the file system's."""
    root, part = tmp_path / "images", tmp_path / "images.sha256.elsewhere.1.2"
    part.write_text(f"{HASH}  new000/class000_id000.jpg\n")
    foreign_claim(root, "elsewhere.1.2", (0, 1))
    claims.claim(root, (1, 2))
    monkeypatch.setattr(files.time, "time", lambda original=time.time: original() + 3600)
    manifest.merge_hashes(root)
    assert part.exists()


def test_a_heartbeat_that_fails_for_a_moment_stops_nothing(tmp_path, monkeypatch):
    """A server that does not answer for a while is no removed folder."""
    tried = threading.Event()

    def fail(path):
        tried.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
    monkeypatch.setattr(claims, "HEARTBEAT_SEC", 0.02)
    monkeypatch.setattr(os, "utime", fail)
    claims.claim(tmp_path / "images")
    assert tried.wait(10)
    time.sleep(0.1)
    assert not signals.stop_requested() and claims.held


def test_a_line_that_a_full_disk_cut_is_an_error(tmp_path):
    """A write may end early without one. The file of lines has its name on the disk before what it tells of is written."""
    class Short:
        def __init__(self, file):
            self.file, self.fileno = file, file.fileno

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            return self.file.write(data[:10])
    path, original, synced = tmp_path / "images.sha256.x.1.2", open, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync", synced.append)
        files.append_line(path, f"{HASH}  a\n")
        assert synced == [Path(tmp_path)]
        patch.setattr("builtins.open", lambda *args, **options: Short(original(*args, **options)))
        with pytest.raises(OSError) as caught:
            files.append_line(path, f"{HASH}  b\n")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
