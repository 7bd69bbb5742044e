"""Settings travel with results, and an output folder is started afresh only where it is a run's own."""
import contextlib
import json
import os
import threading
import time
from pathlib import Path

import pytest

from relabel import relabel
from sre2l.run import settings
from sre2l.run.errors import UserError
from sre2l.run.settings import finish, keep_settings, outputs_of, planned_deletion, read_record, recorded, start_afresh
from squeeze import squeeze
from tests.helpers import SMALL, refused, run_main
from tests.test_continue import files_of
from tests.worlds import common, recover_flags, teacher, train_flags


def test_settings_that_were_changed_by_hand_are_refused(tmp_path):
    path = tmp_path / "settings.json"
    keep_settings(path, {"lr": 0.25, "seed": 0})
    assert recorded(path, "lr") == 0.25 and recorded(path, "other") is None and recorded(tmp_path / "none") is None
    path.write_text(path.read_text().replace("0.25", "0.35"))
    with pytest.raises(UserError, match=f"{path}: not as a run wrote it"):
        keep_settings(path, {"lr": 0.35, "seed": 0})
    path.write_text(json.dumps({"settings": {"lr": 0.25, "seed": 0}}))
    with pytest.raises(UserError, match="not as a run wrote it"):
        recorded(path)


def test_overwrite_deletes_what_a_run_left_and_says_so(world, capsys):
    """Another learning rate is refused with the difference; with --overwrite the set is made anew, and no other file is touched."""
    name = "afresh"
    run_main(*recover_flags(world, name=name))
    first = files_of(world / name / "images")
    (world / name / "images.notes.txt").write_text("mine")
    assert "lr: there 0.25, here 0.5" in (message := refused(*recover_flags(world, "--lr", 0.5, name=name))) and "--overwrite" in message
    (world / name / "images.snapshots").mkdir()
    (world / name / "images.snapshots" / "iteration_000000.png").write_bytes(b"")
    run_main(*recover_flags(world, "--lr", 0.5, "--overwrite", name=name))
    assert not (world / name / "images.snapshots").exists()  # nothing is left in it
    assert f"--overwrite: deleting {world / name / 'images'}: 10 files in it and 7 beside it" in capsys.readouterr().out
    second = files_of(world / name / "images")
    assert second.keys() == first.keys() and second != first
    assert (world / name / "images.notes.txt").read_text() == "mine"
    run_main(*recover_flags(world, "--lr", 0.5, name=name))
    assert files_of(world / name / "images") == second
    assert set(read_record(world / name / "images.manifest.json")) == {"settings", "hashes", "sha256"}


def test_overwrite_of_a_run_that_it_began_and_that_was_killed_continues_it(tmp_path, capsys):
    record, root = tmp_path / "images.manifest.json", tmp_path / "images"
    keep_settings(record, {"lr": 1})
    (root / "new000").mkdir(parents=True)
    (root / "new000" / "class000_id000.jpg").touch()
    start_afresh(record, root, "images", "command")
    assert not root.exists() and not record.exists()
    keep_settings(record, {"lr": 2}, command="command")
    (root / "new000").mkdir(parents=True)
    (root / "new000" / "class000_id000.jpg").touch()
    keep_settings(record, {"lr": 2})  # the same without --overwrite goes on as well, and finishes nothing
    start_afresh(record, root, "images", "command")
    assert files_of(root) and "it continues" in capsys.readouterr().out
    finish(record)
    start_afresh(record, root, "images", "command")
    assert not root.exists()


def test_overwrite_deletes_nothing_where_a_file_is_not_a_runs(tmp_path):
    root = tmp_path / "images"
    (root / "new000").mkdir(parents=True)
    for name in ("new000/class000_id000.jpg", "new000/notes.txt"):
        (root / name).touch()
    with pytest.raises(UserError, match="no manifest stands beside it"):
        start_afresh(tmp_path / "images.manifest.json", root, "images", "")
    keep_settings(tmp_path / "images.manifest.json", {})
    with pytest.raises(UserError, match="notes.txt: no file of a run"):
        start_afresh(tmp_path / "images.manifest.json", root, "images", "")
    assert len(files_of(root)) == 2


@pytest.mark.parametrize("owner, name", ((Path, "unlink"), (Path, "rmdir"), (os, "rmdir")))
@pytest.mark.parametrize("kind", ("images", "teacher"))
def test_overwrite_that_was_killed_goes_on(kind, owner, name, tmp_path, monkeypatch):
    """At each call that deletes something: the same command then deletes the rest."""
    root = tmp_path / kind
    record = tmp_path / ".." / tmp_path.name / kind / "settings.json" if kind == "teacher" else tmp_path / "images.manifest.json"
    inside = [root / "teacher.pth"] if kind == "teacher" else [root / f"new00{label}" / f"class00{label}_id000.jpg" for label in (0, 1)]
    original = getattr(owner, name)
    for at in range(4):
        keep_settings(record, {})
        for path in inside:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        left = [at]

        def die(path, **options):
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt
            return original(path, **options)
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(owner, name, die)
            start_afresh(record, root, kind, "command")
        start_afresh(record, root, kind, "command")
        assert not record.exists() and not files_of(root)


def test_overwrite_keeps_links_to_folders(tmp_path):
    """An output folder may be a link to a larger disk; a link inside one is nobody's output."""
    (tmp_path / "disk" / "new000").mkdir(parents=True)
    (tmp_path / "disk" / "new000" / "class000_id000.jpg").touch()
    root, record = tmp_path / "images", tmp_path / "images.manifest.json"
    root.symlink_to(tmp_path / "disk")
    keep_settings(record, {})
    (root / "new001").symlink_to(tmp_path)
    with pytest.raises(UserError, match="new001: no file of a run"):
        start_afresh(record, root, "images", "")
    assert files_of(root)
    (root / "new001").unlink()
    start_afresh(record, root, "images", "")
    assert root.is_symlink() and not list(root.iterdir()) and not record.exists()


def test_two_runs_that_begin_at_once_do_not_both_keep_their_settings(tmp_path, monkeypatch):
    """The second waits until the first has written its own, and is refused."""
    write, entered, outcomes = settings.write_record, threading.Event(), []

    def slowly(*args):
        entered.set()
        time.sleep(0.2)
        write(*args)
    monkeypatch.setattr(settings, "write_record", slowly)
    first = threading.Thread(target=lambda: outcomes.append(keep_settings(tmp_path / "settings.json", {"lr": 1})))
    first.start()
    assert entered.wait(10)
    with pytest.raises(UserError, match="lr: there 1, here 2"):
        keep_settings(tmp_path / "settings.json", {"lr": 2})
    first.join()
    assert outcomes == [None] and recorded(tmp_path / "settings.json", "lr") == 1


@pytest.mark.parametrize("stage", ("labels", "student"))
def test_overwrite_in_the_other_stages(stage, world, tmp_path):
    if stage == "labels":
        flags = relabel, *common(world), *teacher(world), "--epochs", 1, "-b", 8, "-j", 0, "--fkd-path", tmp_path / "labels"
        change = ("--seed", 5)
    else:
        flags, change = train_flags(world, "--output-dir", tmp_path / "student"), ("--adamw-lr", 0.1)
    run_main(*flags)
    before = files_of(tmp_path)
    assert "here" in refused(*flags, *change)
    run_main(*flags, *change, "--overwrite")
    after = files_of(tmp_path)
    assert after.keys() == before.keys() and after != before


def test_only_what_a_run_writes_counts_as_its_output(world):
    """All that stands beside images and labels of the world belongs to them."""
    (world / "run" / "labels.png").touch()  # a plot of somebody's
    for kind, others in (("images", set()), ("labels", {"labels.png"})):
        root = world / "run" / kind
        inside, around = outputs_of(root, kind)
        assert len(inside) == len(files_of(root))
        assert {path.name for path in around} == {path.name for path in root.parent.iterdir() if path.name.startswith(f"{kind}.")} - others
    (world / "run" / "labels.png").unlink()


def planned(capsys, *flags):
    """The plan of a stage's --dry-run."""
    capsys.readouterr()
    run_main(*flags, "--dry-run")
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("stage", ("teacher", "images", "labels", "student"))
def test_a_dry_run_says_what_overwrite_would_delete_and_deletes_nothing(stage, world, tmp_path, capsys):
    """What the run then deletes; nothing where there is nothing yet, and nothing but a refusal where a file is no run's."""
    flags = {"teacher": (squeeze, *common(tmp_path, tmp_path), "--real-data", world / "real", "--arch", SMALL, "--epochs", 1, "-b", 10, "-j", 0),
             "images": recover_flags(world, "--syn-data-path", tmp_path, name=tmp_path),
             "labels": (relabel, *common(world), *teacher(world), "--epochs", 1, "-b", 8, "-j", 0, "--fkd-path", tmp_path / "labels"),
             "student": train_flags(world, "--output-dir", tmp_path / "student")}[stage]
    root = tmp_path / stage
    assert planned(capsys, *flags)["deletes"] is None
    assert planned(capsys, *flags, "--overwrite")["deletes"] == {"folder": str(root), "files": 0, "beside": [], "bytes": 0}
    run_main(*flags)
    before = files_of(tmp_path)
    assert planned(capsys, *flags)["deletes"] is None
    other = {"teacher": ("--lr", 0.7), "images": ("--lr", 0.7), "labels": ("--mix-type", "none"), "student": ("-T", 7)}[stage]
    for more in ((), ("--dry-run",)):
        assert "this output belongs to a run with other settings" in refused(*flags, *other, *more)
    plan = planned(capsys, *flags, "--overwrite")["deletes"]
    assert files_of(tmp_path) == before and plan["files"] == len(files_of(root)) > 0
    assert plan["beside"] == sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    run_main(*flags, "--overwrite")
    said = f"deleting {root}: {plan['files']} files in it and {len(plan['beside'])} beside it, {plan['bytes'] / 1e6:.1f} MB"
    assert said in capsys.readouterr().out
    (root / "notes.txt").touch()
    assert "notes.txt: no file of a run, so --overwrite deletes nothing" in refused(*flags, "--overwrite", "--dry-run")


def test_a_dry_run_knows_the_run_that_the_same_command_would_continue(tmp_path):
    root, record = tmp_path / "images", tmp_path / "images.manifest.json"
    (root / "new000").mkdir(parents=True)
    (root / "new000" / "class000_id000.jpg").touch()
    keep_settings(record, {}, command="command")
    assert planned_deletion(record, root, "images", "command")["files"] == 0
    assert planned_deletion(record, root, "images", "another")["files"] == 1
    record.unlink()
    with pytest.raises(UserError, match="no manifest stands beside it"):
        planned_deletion(record, root, "images", "command")


def test_a_dry_run_refuses_more_epochs_than_the_labels_have(world):
    flags = train_flags(world, "--epochs", 1000, "--output-dir", world / "none")
    assert (refusal := refused(*flags, "--dry-run")) == refused(*flags) and "--epochs asks for 1000" in refusal
