"""Settings travel with results, and an output folder is started afresh only where it is a run's own."""
import json

import pytest

from relabel import relabel
from sre2l.errors import UserError
from sre2l.settings import finish, keep_settings, outputs_of, read_record, recorded, start_afresh
from tests.helpers import refused, run_main
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
    run_main(*recover_flags(world, "--lr", 0.5, "--overwrite", name=name))
    assert f"--overwrite: deleting {world / name / 'images'}: 10 files in it and 6 beside it" in capsys.readouterr().out
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
    for kind in ("images", "labels"):
        root = world / "run" / kind
        inside, around = outputs_of(root, kind)
        assert len(inside) == len(files_of(root))
        assert {path.name for path in around} == {path.name for path in root.parent.iterdir() if path.name.startswith(f"{kind}.")}
