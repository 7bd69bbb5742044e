"""The same command again: what is there stays, what is missing comes out as in an uninterrupted run."""
import json

import pytest
import torch

from sre2l.check.manifest import read_hashes
from sre2l.run.files import hash_file
from stress.compare import same_values
from tests.helpers import bare_checkpoint, before_call, run_main, synthetic_folder
from tests.worlds import recover_flags, relabel_flags, train_flags


def files_of(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock"]
    return {path.relative_to(folder): path.read_bytes() for path in files}


def interrupt(monkeypatch, module, at):
    """Die, as by kill -9, in the `at`-th evaluation of a stage, which then saves after every epoch."""
    def die():
        raise KeyboardInterrupt
    monkeypatch.setattr("sre2l.nets.training.CHECKPOINT_SEC", 0)
    before_call(monkeypatch, module, "evaluate", at, die)


def test_recover_fills_in_what_is_missing_or_became_a_link(tmp_path):
    bare_checkpoint(tmp_path / "teacher.pth")
    flags = recover_flags(tmp_path, "--iteration", 2, "--ipc-end", 2, name="run")
    run_main(*flags)
    images = tmp_path / "run" / "images"
    before = files_of(images)
    (images / "new003" / "class003_id001.jpg").unlink()
    linked = images / "new004" / "class004_id001.jpg"
    linked.rename(tmp_path / "away.jpg")
    linked.symlink_to(tmp_path / "away.jpg")
    kept = images / "new003" / "class003_id000.jpg"
    stamp = kept.stat().st_mtime_ns
    run_main(*flags)
    assert files_of(images) == before and not linked.is_symlink()
    assert kept.stat().st_mtime_ns == stamp


def test_relabel_rewrites_missing_and_changed_files_only(tmp_path):
    synthetic_folder(tmp_path / "run" / "images")
    bare_checkpoint(tmp_path / "teacher.pth")
    flags = relabel_flags(tmp_path, "--epochs", 2, "-b", 8)
    run_main(*flags)
    labels = tmp_path / "run" / "labels"
    logits = {path: torch.load(path) for path in sorted(labels.rglob("*.tar"))}
    paths = list(logits)
    paths[0].unlink()
    data = bytearray(paths[1].read_bytes())
    data[len(data) // 2] ^= 1
    paths[1].write_bytes(data)
    stamp = paths[2].stat().st_mtime_ns
    run_main(*flags)
    assert paths[2].stat().st_mtime_ns == stamp
    assert all(same_values(torch.load(path), before) for path, before in logits.items())
    hashes = read_hashes(labels)
    assert {str(path.relative_to(labels)): hash_file(path) for path in paths} == hashes


def test_seeds_that_are_added_join_those_that_are_done(world, tmp_path):
    """In results.json, in order, with their mean; another protocol's do not."""
    student = tmp_path / "student"
    flags = train_flags(world, "--stem", "torchvision", "-T", 1, "--output-dir", student, "--seeds")
    alone = {}
    for seeds, wanted in (("4", {"4"}), ("1,2", {"1", "2", "4"}), ("2", {"1", "2", "4"})):
        run_main(*flags, seeds)
        results = json.loads((student / "results.json").read_text())
        assert set(results["seeds"]) == wanted
        assert results["seeds_used"]["students"] == sorted(map(int, wanted))
        alone |= {seed: results["seeds"][seed]["top1"] for seed in seeds.split(",")}
    assert results["top1"]["mean"] == pytest.approx(sum(alone.values()) / 3, abs=1e-3)
    run_main(*flags, "0", "--adamw-lr", 0.01, "--overwrite")
    assert set(json.loads((student / "results.json").read_text())["seeds"]) == {"0"}
