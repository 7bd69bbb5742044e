"""The same command again continues: what is there stays byte for byte, what is missing comes out as in an uninterrupted run."""
import json

import pytest
import torch

import squeeze.squeeze as squeeze
import validate.train as train
from recover import recover
from relabel import relabel
from sre2l.run.files import hash_file
from sre2l.check.manifest import read_hashes
from tests.helpers import SMALL, bare_checkpoint, noise_folder, run_main, synthetic_folder
from tests.worlds import labelled_images

NAMES = [f"c{i}" for i in range(10)]


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def interrupt(monkeypatch, module, at):
    """Ctrl-C during the `at`-th evaluation of a training stage."""
    calls, original = [], module.evaluate

    def evaluate(*args, **options):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return original(*args, **options)
    monkeypatch.setattr(module, "evaluate", evaluate)


@pytest.mark.parametrize("at", [2, 3])
def test_squeeze_continues_to_the_same_teacher(at, tmp_path, monkeypatch):
    noise_folder(tmp_path / "train", NAMES, 2)
    noise_folder(tmp_path / "val", NAMES, 1)
    flags = ("--dataset", "cifar10", "--real-data", tmp_path, "--arch", "mobilenet_v3_small", "--epochs", 3, "-b", 7, "-j", 0, "--eval-every", 1,
             "--device", "cpu")
    run_main(squeeze, *flags, "--name", tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, squeeze, at)
        run_main(squeeze, *flags, "--name", tmp_path / "cut")
    run_main(squeeze, *flags, "--name", tmp_path / "cut")
    whole, cut = (torch.load(tmp_path / name / "teacher" / "teacher.pth") for name in ("whole", "cut"))
    assert cut["top1"] == whole["top1"] and cut["class_names"] == NAMES
    assert all(torch.equal(cut["model"][key], value) for key, value in whole["model"].items())


def test_validate_continues_to_the_same_curve(tmp_path, monkeypatch):
    synthetic_folder(tmp_path / "run" / "images")
    bare_checkpoint(tmp_path / "t.pth")
    common = ("--dataset", "cifar10", "--name", tmp_path / "run", "--device", "cpu", "-j", 0)
    run_main(relabel, *common, "--teacher", tmp_path / "t.pth", "--arch", SMALL, "--epochs", 3, "-b", 8)
    noise_folder(tmp_path / "val", NAMES, 1)
    flags = (*common, "--val-dir", tmp_path, "--model", "mobilenet_v3_small", "--epochs", 3, "--eval-every", 1, "--save-every-sec", 0)
    run_main(train, *flags, "--output-dir", tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, train, 3)
        run_main(train, *flags, "--output-dir", tmp_path / "cut")
    run_main(train, *flags, "--output-dir", tmp_path / "cut")
    whole, cut = (torch.load(tmp_path / name / "seed0" / "checkpoint.pth") for name in ("whole", "cut"))
    assert cut["history"] == whole["history"] and len(cut["history"]) == 3
    assert all(torch.equal(cut["model"][key], value) for key, value in whole["model"].items())


def test_recover_fills_in_what_is_missing(tmp_path):
    bare_checkpoint(tmp_path / "t.pth")
    flags = ("--dataset", "cifar10", "--name", tmp_path / "run", "--teacher", tmp_path / "t.pth", "--arch", SMALL, "--device", "cpu",
             "--iteration", 2, "--batch-size", 10, "--ipc-end", 2, "--no-crop-flip")
    run_main(recover, *flags)
    images = tmp_path / "run" / "images"
    before = files_of(images)
    (images / "new003" / "class003_id001.jpg").unlink()
    kept = images / "new003" / "class003_id000.jpg"
    stamp = kept.stat().st_mtime_ns
    run_main(recover, *flags)
    assert files_of(images) == before and kept.stat().st_mtime_ns == stamp


def test_relabel_rewrites_missing_and_changed_files_only(tmp_path):
    synthetic_folder(tmp_path / "run" / "images")
    bare_checkpoint(tmp_path / "t.pth")
    flags = ("--dataset", "cifar10", "--name", tmp_path / "run", "--teacher", tmp_path / "t.pth", "--arch", SMALL, "--device", "cpu",
             "--epochs", 2, "-b", 8, "-j", 0)
    run_main(relabel, *flags)
    labels = tmp_path / "run" / "labels"
    logits = {path: torch.load(path) for path in sorted(labels.rglob("*.tar"))}
    paths = list(logits)
    paths[0].unlink()
    data = bytearray(paths[1].read_bytes())
    data[len(data) // 2] ^= 1
    paths[1].write_bytes(data)
    stamp = paths[2].stat().st_mtime_ns
    run_main(relabel, *flags)
    assert paths[2].stat().st_mtime_ns == stamp
    for path, before in logits.items():
        assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(torch.load(path), before))
    hashes = read_hashes(labels)
    assert {str(path.relative_to(labels)): hash_file(path) for path in paths} == hashes


def test_a_finished_stage_runs_again_without_work(tmp_path):
    noise_folder(tmp_path / "train", NAMES, 1)
    noise_folder(tmp_path / "val", NAMES, 1)
    flags = ("--dataset", "cifar10", "--real-data", tmp_path, "--arch", SMALL, "--epochs", 1, "-b", 10, "-j", 0, "--name", tmp_path / "r")
    run_main(squeeze, *flags)
    teacher = (tmp_path / "r" / "teacher" / "teacher.pth").read_bytes()
    run_main(squeeze, *flags)
    assert (tmp_path / "r" / "teacher" / "teacher.pth").read_bytes() == teacher
    assert len(list(map(json.loads, open(tmp_path / "r" / "teacher" / "metrics.jsonl")))) == 1


def test_squeeze_interrupted_before_its_teacher_file(tmp_path):
    """Killed between the last checkpoint and teacher.pth: the rerun writes it from the checkpoint."""
    noise_folder(tmp_path / "train", NAMES, 1)
    noise_folder(tmp_path / "val", NAMES, 1)
    flags = ("--dataset", "cifar10", "--real-data", tmp_path, "--arch", SMALL, "--epochs", 2, "-b", 10, "-j", 0, "--name", tmp_path / "r")
    run_main(squeeze, *flags)
    file = tmp_path / "r" / "teacher" / "teacher.pth"
    before = torch.load(file)
    file.unlink()
    run_main(squeeze, *flags)
    after = torch.load(file)
    assert after["top1"] == before["top1"] and all(torch.equal(after["model"][key], value) for key, value in before["model"].items())


def test_seeds_that_are_added_join_those_that_are_done(tmp_path):
    """In results.json, in order, with their mean; another protocol's do not."""
    flags = (*labelled_images(tmp_path, "mixup"), "--model", SMALL, "--stem", "torchvision", "-T", 1, "--device", "cpu")
    alone = {}
    for seeds, wanted in (("4", {"4"}), ("1,2", {"1", "2", "4"}), ("2", {"1", "2", "4"})):
        run_main(train, *flags, "--output-dir", tmp_path / "student", "--seeds", seeds)
        results = json.loads((tmp_path / "student" / "results.json").read_text())
        assert set(results["seeds"]) == wanted and results["seeds_used"]["students"] == sorted(map(int, wanted))
        alone |= {seed: results["seeds"][seed]["top1"] for seed in seeds.split(",")}
    assert results["top1"]["mean"] == pytest.approx(sum(alone.values()) / 3, abs=1e-3)
    run_main(train, *flags, "--output-dir", tmp_path / "student", "--seeds", "0", "--adamw-lr", 0.01, "--overwrite")
    assert set(json.loads((tmp_path / "student" / "results.json").read_text())["seeds"]) == {"0"}
