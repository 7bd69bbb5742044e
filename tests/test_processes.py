"""Several processes over gloo: they train what one trains."""
import json
import os
import re
import subprocess
import sys

import pytest
import torch

from sre2l.run.device import pick_device
from sre2l.run.paths import ROOT
from tests.helpers import SMALL, launch
from tests.worlds import labelled_images

TAME = "mobilenet_v3_small"  # it has dropout and a BatchNorm momentum of its own


def run(module, *flags, processes=1, **env):
    """python -m module in one process, or in several under torchrun -> CompletedProcess."""
    torchrun = []
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run([sys.executable, *torchrun, "-m", module, *map(str, flags)], capture_output=True,
                          text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT), **env})


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """-> (root, flags of validate for a set in it)."""
    root = tmp_path_factory.mktemp("processes")
    return root, labelled_images(root, "cutmix", "--device", "cpu")


def averaged_statistics(met, micro_size, momentum):
    """The running means and variances of two processes after two epochs of 16, 16 and 8 images, from what
    each micro-batch's layers met -> [(mean, variance) of each layer], batches that a process has seen.

    Micro-batch k goes to process k mod 2, where r <- (1 - m) r + m s; every epoch ends with the average."""
    counts = [rows // micro_size for rows in (16, 16, 8)]
    num_layers = len(met) // (2 * sum(counts))
    micro_batches = iter([met[i:i + num_layers] for i in range(0, len(met), num_layers)])
    running = [(torch.zeros_like(mean), torch.ones_like(var)) for mean, var in met[:num_layers]]
    seen = 0
    for _ in range(2):
        own = [list(running), list(running)]
        seen_by = [seen, seen]
        for count in counts:
            for k in range(count):
                layers = zip(own[k % 2], next(micro_batches), strict=True)
                own[k % 2] = [tuple(r + momentum * (s - r) for r, s in zip(*layer)) for layer in layers]
                seen_by[k % 2] += 1
        running = [tuple((a + b) / 2 for a, b in zip(*layer)) for layer in zip(*own)]
        seen = sum(seen_by) // 2
    return running, seen


@pytest.mark.parametrize("steps, optimizer", [(2, ()), (4, ("--sgd", "--learning-rate", 0.01))])
def test_two_processes_train_the_student_of_one_in_fp64(steps, optimizer, labelled):
    """Loss and parameters after two epochs with a short last batch, which in 2 micro-batches of 8 leaves one
    process without a row. Running statistics are the average of what each process has.

    A ShuffleNet would not do: its loss on images of 32 pixels moves by 1 % when its first weights change by
    1e-15."""
    root, flags = labelled
    flags = (*flags, "--model", TAME, "--gradient-accumulation-steps", steps, "-T", 1, *optimizer)
    students = []
    for number in (1, 2):
        folder = root / f"fp64_{steps}_{number}"
        env = {"STATISTICS": str(root / f"met_{steps}.pth")} if number == 1 else {}
        done = run("tests.fp64", "validate.train", *flags, "--output-dir", folder, processes=number, **env)
        assert done.returncode == 0, done.stderr
        students.append(torch.load(folder / "seed0" / "checkpoint.pth"))

    one, two = students
    losses = [[row["loss"] for row in student["history"]] for student in students]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    parameters = [key for key in one["model"] if "running" not in key and "tracked" not in key]
    for key in parameters:
        value = one["model"][key]
        assert value.dtype == torch.float64
        assert (two["model"][key] - value).abs().max() <= 1e-12 * max(1, value.abs().max()), key

    running, seen = averaged_statistics(torch.load(root / f"met_{steps}.pth"), 16 // steps, momentum=0.01)
    layers = [key.removesuffix(".running_mean") for key in one["model"] if key.endswith(".running_mean")]
    assert len(parameters) + 3 * len(layers) == len(one["model"])
    for layer, (mean, variance) in zip(layers, running, strict=True):
        assert int(two["model"][f"{layer}.num_batches_tracked"]) == seen
        for name, value in (("running_mean", mean), ("running_var", variance)):
            found = two["model"][f"{layer}.{name}"]
            assert (found - value).abs().max() <= 1e-12 * max(1, value.abs().max()), (layer, name)


def test_two_processes_train_validate_as_one_does(labelled):
    """fp32, AdamW, by the launcher: the same losses and accuracies, one log, one checkpoint, wall time."""
    root, flags = labelled
    flags = (*flags, "--model", SMALL, "--gradient-accumulation-steps", 2)
    losses_of = []
    for gpus in (1, 2):
        folder = root / f"fp32_{gpus}"
        done = launch("validate/train.sh", "cifar10", *flags, "--output-dir", folder, GPUS=str(gpus))
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert done.stdout.count("done: top1") == 1
        history = [json.loads(line) for line in open(folder / "metrics.jsonl")]
        seconds = json.loads((folder / "results.json").read_text())["seconds"]["validate"]
        assert len(history) == 2 and seconds == pytest.approx(sum(row["seconds"] for row in history), abs=0.1)
        losses_of.append([row["loss"] for row in history])
    assert losses_of[1] == pytest.approx(losses_of[0], rel=1e-5)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["args.json", "log.txt", "metrics.jsonl", "report.html", "results.json", "seed0",
                     "settings.json"]


def test_two_processes_train_a_teacher(labelled):
    """The loss is finite under the rule that the log states; one teacher, with statistics of both."""
    root, _ = labelled
    flags = ("--name", root / "squeezed", "--real-data", root / "real", "--arch", SMALL, "--device", "cpu")
    done = launch("squeeze/squeeze.sh", "cifar10", *flags, "--epochs", 2, "-b", 8, "-j", 0, GPUS="2")
    assert done.returncode == 0, done.stderr
    assert "BatchNorm sees what one process has of a batch, 4 images" in done.stdout
    teacher = torch.load(root / "squeezed" / "teacher" / "teacher.pth")
    counts = {int(value) for key, value in teacher["model"].items() if key.endswith("tracked")}
    assert counts == {8} and 0 <= teacher["top1"] <= 100


def test_micro_batches_must_be_a_multiple_of_the_processes(labelled):
    """One sentence, before torchrun's own report, whose exit code is 1."""
    root, flags = labelled
    flags = (*flags, "--model", SMALL, "--gradient-accumulation-steps", 1, "--output-dir", root / "no")
    done = launch("validate/train.sh", "cifar10", *flags, GPUS="2")
    assert done.returncode == 1
    sentence = (r"error: --gradient-accumulation-steps 1 is not a multiple of the 2 processes.*"
                r"type --gradient-accumulation-steps 2 .*")
    assert re.search(sentence, done.stderr) and not (root / "no").exists()


@pytest.mark.parametrize("gpus", ("0", "two", "-1", "1.5"))
def test_gpus_is_a_positive_number(gpus):
    done = launch("recover/recover.sh", "digits", "--dry-run", GPUS=gpus)
    assert done.returncode == 2
    assert done.stderr == f"error: GPUS={gpus}: how many processes? A whole number, 1 or more\n"


def test_one_process_takes_its_gpu_as_the_current_one(monkeypatch):
    """Kernels, events and graphs go to the current GPU. A plain 'cuda' is the current one."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert pick_device("cuda") == torch.device("cuda") and not chosen
    assert pick_device("cuda:1") == torch.device("cuda:1") and chosen == [torch.device("cuda:1")]
