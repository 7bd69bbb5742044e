"""Files whole or not at all, logs that go on, hash files that a kill has torn."""
import ast
import errno
import io
import os
import re
import tempfile
from pathlib import Path

import pytest
import torch

from relabel.plan import check_room
from sre2l.run import files
from sre2l.run.errors import UserError
from sre2l.run.hashes import read_hash_file, read_hashes
from sre2l.run.log import RunLog, read_metrics, stage_seconds
from sre2l.run.paths import ROOT

HASH = "0123456789abcdef" * 4


def test_a_file_is_on_the_disk_before_its_name_is_and_its_name_before_the_next_step(tmp_path, monkeypatch):
    """What happens to the disk, in order: new folders, the contents, the name, the folder of the name."""
    done = []
    fsync = os.fsync
    replace = os.replace

    def note_sync(handle):
        done.append(re.sub(r"\.[^/]*tmp$", ".tmp", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def note_rename(old, new):
        done.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_rename)
    root = tmp_path / "a"
    files.write_bytes(root / "b" / "c.bin", b"x", root)
    assert done == [str(tmp_path), str(root), f"{root}.tmp", "rename", str(root / "b")]
    assert (root / "b" / "c.bin").read_bytes() == b"x"


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    files.write_bytes(tmp_path / "a", b"old")
    with pytest.raises(ZeroDivisionError), files.atomic(tmp_path / "a") as tmp:
        tmp.write_bytes(b"new")
        raise ZeroDivisionError
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_equal_values_give_equal_checkpoints(tmp_path):
    for name in ("a.pth", "b.pth"):
        files.save_torch(tmp_path / name, {"x": [1, 2.5]})
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_hashes_of_settings_do_not_depend_on_the_order_of_keys():
    assert files.hash_json({"a": 1, "b": Path("x")}) == files.hash_json({"b": "x", "a": 1})
    assert files.hash_json({"a": 1, "b": "x"}) != files.hash_json({"a": 1, "b": "y"})


def test_a_log_that_was_torn_goes_on(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "seconds": 2.5}\nnot json\n{"epoch": 2, "sec')
    (tmp_path / "log.txt").write_text("one\ntw")
    log = RunLog(tmp_path.joinpath, {}, torch.device("cpu"))
    log.metrics(epoch=2)
    values = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["epoch"] for row in values] == [1, 2]
    assert stage_seconds(tmp_path / "metrics.jsonl") == pytest.approx(2.5, abs=0.5)
    assert (tmp_path / "log.txt").read_text().startswith("one\n2")


def test_a_line_that_a_kill_has_torn_counts_as_not_there(tmp_path):
    """Also after another line has been appended: what is left of a name is no name."""
    path = tmp_path / "images.sha256"
    path.write_text(f"{HASH}  new000/a.jpg\n{HASH}  new001/b")
    assert read_hashes(tmp_path / "images") == {"new000/a.jpg": HASH}
    with pytest.raises(UserError, match="line 2 is torn"):
        read_hash_file(path, strict=True)
    files.append_line(path, f"{HASH}  new002/c.jpg\n")
    assert read_hash_file(path, strict=True) == {"new000/a.jpg": HASH, "new002/c.jpg": HASH}


def test_a_line_that_a_full_disk_cut_is_an_error(tmp_path):
    """A write may end early without one. A new file's name is on the disk before the file counts."""
    class Short(io.FileIO):
        """A file whose writes end after ten bytes."""
        def write(self, data):
            return super().write(data[:10])

    path = tmp_path / "images.sha256"
    synced = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync", synced.append)
        files.append_line(path, f"{HASH}  a\n")
        assert synced == [tmp_path]
        patch.setattr("builtins.open", lambda path, mode, buffering: Short(path, mode))
        with pytest.raises(OSError) as caught:
            files.append_line(path, f"{HASH}  b\n")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)


def test_an_output_folder_may_be_a_link_to_another_disk(tmp_path):
    """Files are renamed within that disk, and its room is asked for."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or os.stat(shared).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("needs a second file system")
    with tempfile.TemporaryDirectory(dir=shared) as disk:
        (Path(disk) / "large").mkdir()
        root = tmp_path / "labels"
        root.symlink_to(Path(disk) / "large")
        check_room(root, 0, "--fkd-path")
        files.write_bytes(root / "epoch_0" / "batch_0.tar", b"x", root)
        assert (Path(disk) / "large" / "epoch_0" / "batch_0.tar").read_bytes() == b"x"


def opens_as_text(call):
    """Does a call read or write a file as text, so that it needs the encoding?"""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr in ("read_text", "write_text")
    if not isinstance(call.func, ast.Name) or call.func.id != "open":
        return False
    mode = call.args[1].value if len(call.args) > 1 else "r"
    return "b" not in mode


@pytest.mark.parametrize("folder", ("squeeze", "recover", "relabel", "validate", "sre2l", "report"))
def test_text_is_utf_8_whatever_the_locale(folder):
    for path in (ROOT / folder).rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        for call in filter(opens_as_text, calls):
            assert "encoding" in [keyword.arg for keyword in call.keywords], f"{path}:{call.lineno}"
