"""Several processes over gloo: they train what one trains, and end as one does."""
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from sre2l.run import processes
from sre2l.data.augment import apply_mix, draw_mix
from sre2l.nets.parallel import RunningStatistics
from sre2l.run.paths import ROOT
from sre2l.run.seeds import unit_rng
from tests.helpers import SMALL, launch
from tests.worlds import labelled_images
from validate import shares


def run(module, *flags, processes=1):
    """python -m module in one process, or in several under our torchrun -> CompletedProcess."""
    engine = ["-m", "sre2l.run.launch", "--standalone", f"--nproc_per_node={processes}"] * (processes > 1)
    return subprocess.run([sys.executable, *engine, "-m", module, *map(str, flags)], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("kind", ("none", "mixup", "cutmix"))
@pytest.mark.parametrize("num_rows, micro_size, world", [(8, 4, 2), (8, 2, 2), (5, 4, 2), (9, 4, 2), (7, 2, 4), (3, 2, 4), (16, 2, 4), (6, 3, 1)])
def test_shares_hold_every_row_once_mixed_as_in_the_whole_batch(kind, num_rows, micro_size, world):
    """Each process mixes only the crops that it asks for; put together they are the whole mixed batch; no row is asked for twice."""
    mix = draw_mix(kind, 1.0, num_rows, 6, unit_rng(num_rows, micro_size))
    images = torch.randn(num_rows, 3, 6, 6)
    whole, seen = apply_mix(images, mix), []
    for rank in range(world):
        share = shares.share_of(num_rows, mix, micro_size, rank, world)
        mixed = apply_mix(images[share.rows], share.mix)[:len(share.own)]
        assert torch.equal(mixed, whole[share.own])
        assert len(set(share.rows.tolist())) == len(share.rows) <= max(1, 2 * len(share.own))
        for number, rows in zip(share.numbers, share.parts):
            assert share.own[rows].tolist() == list(range(num_rows))[shares.micro_batches(num_rows, micro_size)[number]]
        assert sum(share.gaps) + len(share.parts) == share.num_parts == len(shares.micro_batches(num_rows, micro_size))
        seen += share.own.tolist()
    assert sorted(seen) == list(range(num_rows))


def test_one_process_has_the_whole_batch():
    mix = draw_mix("mixup", 1.0, 5, 6, unit_rng(0))
    share = shares.share_of(5, mix, 4, 0, 1)
    assert share.rows.tolist() == list(range(5)) and torch.equal(share.mix.partner, mix.partner) and share.gaps == [0, 0]


@pytest.mark.parametrize("lengths", [(4, 4, 4, 4), (4, 3), (2,), (4, 4, 2)])
def test_running_statistics_are_those_of_one_process(lengths, monkeypatch):
    """Three processes' terms, summed, equal r <- (1 - m) r + m s over the micro-batches in order; the count too. Momenta differ."""
    def network():
        return nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=0.01)).double()

    batches = [torch.randn(length, 3, 2, 2, dtype=torch.float64) for length in lengths]
    one, processes = network(), [network() for _ in range(3)]
    for batch in batches:
        one(batch)
    for rank, other in enumerate(processes):
        monkeypatch.setenv("WORLD_SIZE", "3")
        monkeypatch.setenv("RANK", str(rank))
        statistics = RunningStatistics(other)
        statistics.split()
        gap = 0
        for number, batch in enumerate(batches):
            if number % 3 == rank:
                statistics.skip(gap)
                other(batch)
                gap = 0
            else:
                gap += 1
        statistics.skip(gap)
    for key, value in one.state_dict().items():
        if "running" in key or "tracked" in key:
            assert (sum(other.state_dict()[key] for other in processes) - value).abs().max() < 1e-14


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """-> (root, flags of validate for a set in it)."""
    root = tmp_path_factory.mktemp("processes")
    return root, labelled_images(root, "cutmix", "--device", "cpu")


def student(folder):
    return torch.load(folder / "seed0" / "checkpoint.pth")


@pytest.mark.parametrize("steps, optimizer", [(2, ()), (4, ("--sgd", "--learning-rate", 0.01))])
def test_two_processes_train_the_student_of_one_in_fp64(steps, optimizer, labelled):
    """Loss, parameters and running statistics after two epochs with a short last batch, which in 2 micro-batches of 8 leaves one process
    without a row. MobileNetV3 has dropout and another BatchNorm momentum, and is tame: a ShuffleNet's loss on images of 32 pixels moves by
    1 % when its first weights change by 1e-15."""
    root, flags = labelled
    flags = (*flags, "--model", "mobilenet_v3_small", "--gradient-accumulation-steps", steps, "-T", 1, *optimizer)
    results = []
    for number in (1, 2):
        done = run("tests.fp64", "validate.train", *flags, "--output-dir", root / f"fp64_{steps}_{number}", processes=number)
        assert done.returncode == 0, done.stderr
        results.append(student(root / f"fp64_{steps}_{number}"))
    one, two = results
    assert [row["loss"] for row in two["history"]] == pytest.approx([row["loss"] for row in one["history"]], rel=1e-6)
    for key, value in one["model"].items():
        assert value.dtype == (torch.int64 if key.endswith("tracked") else torch.float64)
        assert (two["model"][key] - value).abs().max() <= 1e-12 * max(1, value.abs().max()), key


def test_two_processes_train_validate_as_one_does(labelled):
    """fp32, AdamW, through the launcher: the same losses and accuracies, one log, one checkpoint, wall time; then nothing is left to do."""
    root, flags = labelled
    losses_of = []
    for gpus in (1, 2):
        folder = root / f"fp32_{gpus}"
        done = launch("validate/train.sh", "cifar10", *flags, "--model", SMALL, "--gradient-accumulation-steps", 2, "--output-dir", folder, GPUS=str(gpus))
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert done.stdout.count("done: top1") == 1
        history = [json.loads(line) for line in open(folder / "metrics.jsonl")]
        results = json.loads((folder / "results.json").read_text())
        assert len(history) == 2 and results["seconds"]["validate"] == pytest.approx(sum(row["seconds"] for row in history), abs=0.1)
        losses_of.append([row["loss"] for row in history])
    assert losses_of[1] == pytest.approx(losses_of[0], rel=1e-5)
    assert sorted(path.name for path in folder.iterdir()) == ["args.json", "log.txt", "metrics.jsonl", "report.html", "results.json", "seed0",
                                                            "settings.json"]


def test_two_processes_train_a_teacher(labelled):
    """Squeeze over gloo: the loss is finite and falls under the rule that the log states; one teacher, with counts and statistics of all."""
    root, _ = labelled
    done = launch("squeeze/squeeze.sh", "cifar10", "--name", root / "squeezed", "--real-data", root / "real", "--arch", SMALL, "--epochs", 2,
                  "-b", 8, "-j", 0, "--device", "cpu", GPUS="2")
    assert done.returncode == 0, done.stderr
    assert "BatchNorm sees what one process has of a batch, 4 images" in done.stdout
    teacher = torch.load(root / "squeezed" / "teacher" / "teacher.pth")
    counts = {int(value) for key, value in teacher["model"].items() if key.endswith("tracked")}
    assert counts == {8} and 0 <= teacher["top1"] <= 100


def test_micro_batches_must_be_a_multiple_of_the_processes(labelled):
    """One sentence from both processes, exit code 2."""
    root, flags = labelled
    done = launch("validate/train.sh", "cifar10", *flags, "--model", SMALL, "--gradient-accumulation-steps", 1, "--output-dir", root / "no", GPUS="2")
    assert done.returncode == 2
    assert re.fullmatch(r"error: --gradient-accumulation-steps 1 is not a multiple of the 2 processes.*type --gradient-accumulation-steps 2 .*\n", done.stderr)


@pytest.mark.parametrize("gpus", ("0", "two", "-1", "1.5"))
def test_gpus_is_a_positive_number(gpus):
    done = launch("recover/recover.sh", "digits", "--dry-run", GPUS=gpus)
    assert done.returncode == 2 and done.stderr == f"error: GPUS={gpus}: how many processes? A whole number, 1 or more\n"


def test_one_process_takes_its_gpu_as_the_current_one(monkeypatch):
    """Kernels, events and graphs go to the current GPU, whatever --device says. A plain 'cuda' is the current one; torch refuses to set it."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(torch.device("cuda", torch.cuda._utils._get_device_index(device))))
    processes.start(torch.device("cuda"))
    processes.start(torch.device("cuda:1"))
    assert chosen == [torch.device("cuda:1")]
