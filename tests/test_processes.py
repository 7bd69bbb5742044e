"""Several processes over gloo: they train what one trains, and write what one writes."""
import json
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
import torch

from recover import recover
from relabel import relabel
from sre2l.data.datasets import DATASETS
from sre2l.data.real_images import read_real, shown_at
from sre2l.nets import statistics
from sre2l.nets.teacher import load_teacher
from sre2l.run.device import pick_device
from sre2l.run.files import sidecar
from sre2l.run.paths import ROOT
from tests.fp64 import in_float64, recorded_statistics
from tests.helpers import SMALL, launch, run_main
from tests.test_continue import files_of
from tests.worlds import labelled_images
from validate import train

TAME = "mobilenet_v3_small"  # it has dropout and a BatchNorm momentum of its own
BATCHES, MICRO_SIZE = (36, 4), 9  # of the student in fp64


def run(module, *flags, processes=1):
    """python -m module in one process, or in several under torchrun -> CompletedProcess."""
    torchrun = []
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run([sys.executable, *torchrun, "-m", module, *map(str, flags)], capture_output=True,
                          text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """-> (root, flags of validate for a set in it)."""
    root = tmp_path_factory.mktemp("processes")
    return root, labelled_images(root, "cutmix", "--device", "cpu")


def commands_of(labelled):
    """-> {stage: its flags but for the folder}."""
    root, student = labelled
    common = ("--dataset", "cifar10", "--device", "cpu")
    teacher = ("--teacher", root / "t.pth", "--arch", SMALL)
    return {
        "recover.recover": (*common, *teacher, "--iteration", 2, "--ipc-end", 1, "--jitter", 4, "--groups", 2,
                            "--batch-size", 3),
        "relabel.relabel": (*common, *teacher, "--data", root / "run" / "images", "--epochs", 2, "-b", 16,
                            "-j", 0),
        "validate.train": (*student, "--model", SMALL, "--gradient-accumulation-steps", 2),
        "squeeze.squeeze": (*common, "--real-data", root / "real", "--arch", "convnet3-w8",
                            "--epochs", 2, "-b", 8, "-j", 0)}


def averaged_statistics(met, momentum):
    """The running means and variances of two processes after two epochs of BATCHES, from what each
    micro-batch's layers met -> [(mean, variance) of each layer], batches that a process has seen.

    Micro-batch k goes to process k mod 2, where r <- (1 - m) r + m s; every epoch ends with the average."""
    counts = [-(-rows // MICRO_SIZE) for rows in BATCHES]
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


def test_two_processes_train_the_student_of_one_in_fp64(labelled):
    """Loss and averaged parameters after two epochs. Of the first batch each process has two micro-batches,
    of the second, a short one, the last process has no row. Running statistics are the average of what each
    has.

    A ShuffleNet would not do: its loss on images of 32 pixels moves by 1 % when its first weights change by
    1e-15."""
    root, flags = labelled
    labels = root / "large_batches"
    run_main(relabel, *commands_of(labelled)["relabel.relabel"], "-b", BATCHES[0], "--fkd-path", labels)
    flags = (*flags, "--fkd-path", labels, "--model", TAME, "--gradient-accumulation-steps", 4, "-T", 1,
             "--ema", 0.5)
    with in_float64(train), recorded_statistics() as met:
        run_main(train, *flags, "--output-dir", root / "fp64_1")
    done = run("tests.fp64", "validate.train", *flags, "--output-dir", root / "fp64_2", processes=2)
    assert done.returncode == 0, done.stderr

    one, two = (torch.load(root / f"fp64_{number}" / "seed0" / "checkpoint.pth") for number in (1, 2))
    losses = [[row["loss"] for row in student["history"]] for student in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    parameters = [key for key in one["model"] if "running" not in key and "tracked" not in key]
    for key in parameters:
        value = one["model"][key]
        assert value.dtype == torch.float64
        assert (two["model"][key] - value).abs().max() <= 1e-12 * max(1, value.abs().max()), key

    running, seen = averaged_statistics(met, momentum=0.01)
    layers = [key.removesuffix(".running_mean") for key in one["model"] if key.endswith(".running_mean")]
    assert len(parameters) + 3 * len(layers) == len(one["model"])
    for layer, (mean, variance) in zip(layers, running, strict=True):
        assert int(two["model"][f"{layer}.num_batches_tracked"]) == seen
        for name, value in (("running_mean", mean), ("running_var", variance)):
            found = two["model"][f"{layer}.{name}"]
            assert (found - value).abs().max() <= 1e-12 * max(1, value.abs().max()), (layer, name)


@pytest.fixture(scope="module")
def both(labelled):
    """All stages in one start of two processes, and all but squeeze in this one -> (root, how the two ended).

    Labels of two processes: from nothing in two/labels, and in damaged/labels where some are missing. The
    last command is refused."""
    root, _ = labelled
    flags = commands_of(labelled)
    run_main(recover, *flags["recover.recover"], "--name", root / "one")
    run_main(relabel, *flags["relabel.relabel"], "--fkd-path", root / "one" / "labels")
    run_main(train, *flags["validate.train"], "--output-dir", root / "one" / "student")
    (root / "damaged").mkdir()
    for path in (root / "one").glob("labels*"):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, root / "damaged" / path.name)
    (root / "damaged" / "labels" / "epoch_1" / "batch_0.tar").unlink()
    (root / "damaged" / "labels" / "epoch_0" / "batch_2.tar").write_bytes(b"damaged")

    blocks = ("--init", root / "run" / "images", "--blocks", "1@24,1", "--merge", 0.5, "--ipc-end", 2,
              "--batch-order", "class", "--exp-name", "blocks")
    run_main(recover, *flags["recover.recover"], "--name", root / "one", *blocks)

    commands = [("recover.recover", "--name", root / "two"),
                ("recover.recover", "--name", root / "two", *blocks),
                ("relabel.relabel", "--fkd-path", root / "two" / "labels"),
                ("relabel.relabel", "--fkd-path", root / "damaged" / "labels"),
                ("validate.train", "--output-dir", root / "two" / "student"),
                ("squeeze.squeeze", "--name", root / "two", "--keep-epochs", 1, "--class-statistics"),
                ("validate.train", "--gradient-accumulation-steps", 1, "--output-dir", root / "no")]
    lines = [(stage, list(map(str, (*flags[stage], *folder)))) for stage, *folder in commands]
    (root / "commands.json").write_text(json.dumps(lines))
    return root, run("tests.several", root / "commands.json", processes=2)


def test_two_processes_recover_what_one_recovers(both):
    """Every byte of images and manifest, in one log. Each computes two batches, the first both at once."""
    root, done = both
    assert done.stdout.count("done: 10 images") == 1
    names = ("images.manifest.json", "images.png", "images.sha256")
    one, two = root / "one", root / "two"
    assert files_of(one / "images") == files_of(two / "images") and len(files_of(one / "images")) == 10
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
    by_one, by_two = ({path.name for path in folder.glob("images*")} for folder in (one, two))
    assert by_two - by_one == {"images.metrics.rank1.jsonl"}

    # Each batch is computed once.
    files = [two / f"images.metrics{name}.jsonl" for name in ("", ".rank1")]
    rows = [[json.loads(line) for line in path.read_text().splitlines()] for path in files]
    assert [{row["unit"] for row in some if "unit" in row} for some in rows] == [{0, 2}, {1, 3}]


def test_two_processes_recover_in_blocks_by_class_what_one_recovers(both):
    root, _ = both
    one, two = root / "one" / "blocks", root / "two" / "blocks"
    assert files_of(one) == files_of(two) and len(files_of(one)) == 20
    assert sidecar(one, "manifest.json").read_bytes() == sidecar(two, "manifest.json").read_bytes()


@pytest.mark.parametrize("name", ("two", "damaged"))
def test_two_processes_relabel_as_one_does(name, both):
    """Every byte of every label file and of the hash file; also of a run whose files are partly gone."""
    root, _ = both
    one, other = root / "one" / "labels", root / name / "labels"
    assert len(files_of(one)) == 6 and files_of(other) == files_of(one)
    assert sidecar(other, "sha256").read_bytes() == sidecar(one, "sha256").read_bytes()


def test_two_processes_train_validate_as_one_does(both):
    """fp32, AdamW: the same losses, one log, one checkpoint, wall time."""
    root, done = both
    assert done.stdout.count("done: top1") == 1
    losses_of = []
    for name in ("one", "two"):
        folder = root / name / "student"
        history = [json.loads(line) for line in open(folder / "metrics.jsonl")]
        seconds = json.loads((folder / "results.json").read_text())["seconds"]["validate"]
        assert len(history) == 2 and seconds == pytest.approx(sum(row["seconds"] for row in history), abs=0.1)
        losses_of.append([row["loss"] for row in history])
    assert losses_of[1] == pytest.approx(losses_of[0], rel=1e-5)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["args.json", "log.txt", "metrics.jsonl", "report.html", "results.json", "seed0",
                     "settings.json"]


def test_two_processes_train_a_teacher(both):
    """The loss is finite under the rule that the log states; one teacher, with statistics of both."""
    root, done = both
    assert "BatchNorm sees what one process has of a batch, 4 images" in done.stdout
    teacher = torch.load(root / "two" / "teacher" / "teacher.pth")
    counts = {int(value) for key, value in teacher["model"].items() if key.endswith("tracked")}
    assert counts == {8} and 0 <= teacher["top1"] <= 100


def test_two_processes_measure_the_class_statistics_of_one(both):
    """Each takes half of the images; of the teacher and of the kept one."""
    root, _ = both
    spec = DATASETS["cifar10"]
    images = shown_at(read_real(spec, root / "real", "train"), spec.size, spec.size)
    for name in ("teacher.pth", "teacher.e1.pth"):
        teacher = load_teacher(spec, root / "two" / "teacher" / name)
        found = statistics.load(statistics.class_statistics_path(teacher.source), teacher, "class")
        wanted = statistics.class_statistics(teacher.network, images, 10, spec.mean, spec.std,
                                             torch.device("cpu"))
        for one, two in zip(wanted.mean + wanted.var, found.mean + found.var, strict=True):
            assert one.isfinite().all() and (one - two).norm() <= 1e-5 * one.norm()


def test_micro_batches_must_be_a_multiple_of_the_processes(both):
    """One sentence, before anything else on stderr. torchrun's own report follows; its exit code is 1."""
    root, done = both
    assert done.returncode == 1
    sentence = (r"error: --gradient-accumulation-steps 1 is not a multiple of the 2 processes.*"
                r"type --gradient-accumulation-steps 2 .*\n")
    assert re.match(sentence, done.stderr) and not (root / "no").exists()


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


@pytest.mark.parametrize("number, master", [(0, "127.0.0.1"), (1, "127.0.0.1"), (1, "no-such-host.invalid")])
def test_a_foreign_rank_is_said_and_waits_for_a_limited_time(number, master, tmp_path):
    """As in a shell of a cluster's job that sets RANK and WORLD_SIZE, where nobody else comes."""
    code = ("from datetime import timedelta; from sre2l.run import processes, start; "
            "from squeeze import squeeze; processes.MEETING = timedelta(seconds=2); "
            "start.run_script(squeeze.main, squeeze.get_args)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    foreign = {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": master, "MASTER_PORT": str(port)}
    flags = ("--dataset", "digits", "--name", tmp_path / "run", "--device", "cpu")
    done = subprocess.run([sys.executable, "-c", code, *map(str, flags)], capture_output=True, text=True,
                          check=False, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT), **foreign})
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    first, waiting, *rest = [line for line in done.stderr.splitlines() if not line.startswith("[")]
    assert f"this is process {number} of 2" in first and "unset RANK WORLD_SIZE" in first
    assert waiting == f"waiting for 1 more processes at {master}:{port}, for 0 minutes"
    assert f"error: process {number} of 2 on" in rest[-1] and "does not reach the others" in rest[-1]
