"""One writer at a time, files whole or not at all, logs that go on."""
import os
import re
import time
from pathlib import Path

import pytest

from sre2l.run import claims, files, signals
from sre2l.run.errors import UserError
from sre2l.run.log import RunLog, read_metrics, stage_seconds
from tests.helpers import refused
from tests.worlds import common, recover_flags, teacher, train_flags
from relabel import relabel


@pytest.fixture(autouse=True)
def no_claims_left(monkeypatch):
    monkeypatch.setattr(claims, "PATIENCE_SEC", 0.1)
    yield
    claims.release()


def foreign_claim(root, owner, part=None, age_sec=0):
    """The claim of another process -> its path."""
    path = files.sidecar(root, f"{owner}.claim")
    files.write_json(path, {"run": 1, "part": part, "host": owner.split(".")[0], "pid": int(owner.split(".")[1]), "since": "noon"})
    os.utime(path, (time.time() - age_sec,) * 2)
    return path


def test_a_living_process_keeps_others_out_and_a_dead_one_does_not(tmp_path, other):
    root = tmp_path / "images"
    path = foreign_claim(root, files.token_of(other.pid))
    with pytest.raises(UserError, match=f"process {other.pid} on .* has been writing to it since noon"):
        claims.claim(root)
    assert [file for file in tmp_path.iterdir()] == [path]
    other.kill()
    other.wait()
    claims.claim(root)
    assert [file.name for file in tmp_path.iterdir()] == [f"images.{files.token()}.claim"]
    claims.release()
    assert not list(tmp_path.iterdir())


def test_a_killed_process_whose_parent_has_not_looked_yet_is_dead(tmp_path, other):
    foreign_claim(tmp_path / "images", files.token_of(other.pid))
    other.kill()
    while files.start_of(other.pid) is not None:
        time.sleep(0.01)
    claims.claim(tmp_path / "images")


def test_another_process_with_the_number_of_a_dead_one_is_not_it(tmp_path, other):
    owner = files.token_of(other.pid)
    foreign_claim(tmp_path / "images", f"{owner.rpartition('.')[0]}.17")
    claims.claim(tmp_path / "images")


@pytest.mark.parametrize("stale_sec, age_sec", ((5, 0), (20, 17), (20, 60)))
def test_a_silent_process_of_another_machine_counts_as_dead_after_a_while(tmp_path, monkeypatch, capsys, stale_sec, age_sec):
    """A job that was killed and that a scheduler starts on another machine waits for that, and goes on."""
    monkeypatch.setattr(files, "STALE_SEC", stale_sec)
    monkeypatch.setattr(claims, "STALE_SEC", stale_sec)
    last_sign = foreign_claim(tmp_path / "images", "elsewhere.12.34", age_sec=age_sec).stat().st_mtime
    begin = time.monotonic()
    claims.claim(tmp_path / "images")
    assert time.time() - last_sign > stale_sec - 0.1 and time.monotonic() - begin < 30
    assert ("waiting for a sign of life of process 12 on elsewhere" in capsys.readouterr().out) == (age_sec < stale_sec)
    assert [path.name for path in tmp_path.glob("*.claim")] == [f"images.{files.token()}.claim"]


def test_a_process_of_another_machine_that_shows_life_keeps_others_out(tmp_path, monkeypatch):
    path, alone = foreign_claim(tmp_path / "images", "elsewhere.12.34", age_sec=30), files.alone_in

    def beat_meanwhile(folder):
        os.utime(path)
        return alone(folder)
    monkeypatch.setattr(claims, "alone_in", beat_meanwhile)
    with pytest.raises(UserError, match="process 12 on elsewhere"):
        claims.claim(tmp_path / "images")


@pytest.mark.parametrize("mine, theirs, free", (((0, 5), (5, 10), True), ((5, 10), (0, 5), True), ((0, 5), (4, 10), False), ((0, 5), (0, 5), False),
                                                ((3, 4), (0, 9), False), (None, (0, 5), False), ((0, 5), None, False)))
def test_ranges_that_share_no_image_may_share_a_folder(tmp_path, other, mine, theirs, free):
    foreign_claim(tmp_path / "images", files.token_of(other.pid), theirs)
    if free:
        return claims.claim(tmp_path / "images", mine)
    with pytest.raises(UserError, match="has been writing"):
        claims.claim(tmp_path / "images", mine)


def test_a_claim_on_one_folder_is_none_on_its_neighbour(tmp_path, other):
    foreign_claim(tmp_path / "images.more", files.token_of(other.pid))
    foreign_claim(tmp_path / "image", files.token_of(other.pid))
    claims.claim(tmp_path / "images")


def test_the_second_of_two_runs_is_told_so_in_every_stage(world, tmp_path, other):
    """With a living process's claim on its output, each stage stops with a sentence before it writes anything there."""
    owner = files.token_of(other.pid)
    for root, flags in ((world / "claimed" / "images", recover_flags(world, name="claimed")),
                        (tmp_path / "labels", (relabel, *common(world), *teacher(world), "--epochs", 1, "-b", 8, "--fkd-path", tmp_path / "labels")),
                        (tmp_path / "student", train_flags(world, "--output-dir", tmp_path / "student"))):
        foreign_claim(root, owner)
        assert f"process {other.pid} on" in refused(*flags)
        assert not root.exists()


def test_a_claim_that_vanishes_stops_the_run(tmp_path, monkeypatch):
    """Its folder was removed, or another machine took this process for dead: the loop hears of it at its next step."""
    monkeypatch.setattr(claims, "HEARTBEAT_SEC", 0.02)
    claims.claim(tmp_path / "images")
    path, = claims.held
    before = path.stat().st_mtime_ns
    with signals.finishing_steps():
        deadline = time.monotonic() + 10
        while path.stat().st_mtime_ns == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime_ns > before and not signals.stop_requested()
        path.unlink()
        while not signals.stop_requested() and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(UserError, match="claim is gone"):
            signals.leave()


def test_leftovers_of_dead_processes_are_removed_and_those_of_living_ones_stay(tmp_path, other):
    alive, dead, far = files.token_of(other.pid), "x.1.2", "elsewhere.3.4"
    dead = f"{files.host()}.{other.pid}.1"
    kept = [f"a.jpg.{alive}.0.tmp", f"images.{far}.1.tmp", "mine.tmp", f"images.sha256.{dead}"]
    for name in (*kept, f"a.jpg.{dead}.0.tmp", f"images.{dead}.claim", f"old.{far}.7.tmp"):
        (tmp_path / name).touch()
    os.utime(tmp_path / f"old.{far}.7.tmp", (1e9, 1e9))
    claims.claim(tmp_path / "images")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, f"images.{files.token()}.claim"])


def test_a_file_is_on_the_disk_before_its_name_is_and_its_name_before_the_next_step(tmp_path, monkeypatch):
    """What happens to the disk, in order: new folders, the contents, the name, the folder of the name."""
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(re.sub(r"\.[^/]*tmp$", ".tmp", os.readlink(f"/proc/self/fd/{handle}"))) or fsync(handle))
    monkeypatch.setattr(os, "replace", lambda a, b: done.append("rename") or replace(a, b))
    files.write_bytes(tmp_path / "a" / "b" / "c.bin", b"x", tmp_path / "a")
    assert done == [str(tmp_path), str(tmp_path / "a"), f"{tmp_path}/a.tmp", "rename", str(tmp_path / "a" / "b")]
    assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"x"


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


def test_a_log_that_was_torn_goes_on(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "seconds": 2.5}\nnot json\n{"epoch": 2, "sec')
    (tmp_path / "log.txt").write_text("one\ntw")
    log = RunLog(tmp_path.joinpath, {}, claims.torch.device("cpu"))
    log.metrics(epoch=2)
    values = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["epoch"] for row in values] == [1, 2] and stage_seconds(tmp_path / "metrics.jsonl") == pytest.approx(2.5, abs=0.1)
    assert (tmp_path / "log.txt").read_text().startswith("one\n2")


def test_every_flag_of_a_command_is_part_of_it(tmp_path):
    assert files.hash_json({"a": 1, "b": Path("x")}) == files.hash_json({"b": "x", "a": 1}) != files.hash_json({"a": 1, "b": "y"})
