"""Which precision the teacher ran in: measured, recorded, refused where it is too far from fp32; several processes write what one writes."""
import copy
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from relabel import half, relabel
from sre2l.data.augment import Mix
from sre2l.data.loader import BatchDataset, Batches
from sre2l.data.datasets import DATASETS
from sre2l.kernels.cpu.convs import host_kernels
from sre2l.data.image_folder import read_synthetic
from sre2l.data.label_files import LabelBatch, read_label_batch
from sre2l.nets.models import load_teacher
from sre2l.nets.precision import pick_precision
from sre2l.run.files import sidecar
from sre2l.run.errors import UserError
from sre2l.run.paths import ROOT
from validate.checks import describe_labels
from tests.helpers import SMALL, bare_checkpoint, refused, run_main, synthetic_folder
from tests.parity import network_of
from tests.test_continue import files_of
from tests.worlds import common, teacher

CPU = torch.device("cpu")


@pytest.fixture
def flags(tmp_path):
    """Flags of a relabel run with 20 images in batches of 8, two epochs."""
    synthetic_folder(tmp_path / "run" / "images")
    bare_checkpoint(tmp_path / "teacher.pth")
    return (relabel, *common(tmp_path), *teacher(tmp_path), "--epochs", 2, "-b", 8, "-j", 0)


def logits_of(root):
    return torch.cat([read_label_batch(root, epoch, index).logits.float() for epoch in range(2) for index in range(3)])


def manifest(root):
    return json.loads(sidecar(root, "manifest.json").read_text())["settings"]


def nothing_compiles(*_):
    raise OSError("no C compiler")


@pytest.mark.parametrize("precision, switches, compared", (("fp16", (), 64), ("bf16", (), 64), ("fp16", ("--batch-statistics",), 4)))
def test_half_precision_is_measured_against_fp32_before_anything_is_written(flags, tmp_path, precision, switches, compared, monkeypatch):
    """The recorded difference and KL are those of the first batch's label files of two runs, one in each precision; of the whole batch where its
    statistics make them."""
    monkeypatch.setattr(half, "host_network", nothing_compiles)  # both as torch computes them
    monkeypatch.setattr(half, "MOST_COMPARED", compared)
    exact, rough = tmp_path / "exact", tmp_path / "half"
    run_main(*flags, *switches, "--label-precision", "fp32", "--fkd-path", exact)
    run_main(*flags, *switches, "--label-precision", "fp32", "--fkd-path", rough, "--precision", precision)
    assert manifest(exact)["precision"] == "fp32" and manifest(exact)["half_against_fp32"] is None
    found = manifest(rough)
    a, b = (read_label_batch(root, 0, 0).logits.double() for root in (rough, exact))
    p, q = (a / 20).softmax(1), (b / 20).softmax(1)
    kl = (p * (p / q).log()).sum(1).mean().item()
    assert found["precision"] == precision and 0 < (a - b).abs().max().item() == found["half_against_fp32"]["largest_difference"]
    assert found["half_against_fp32"]["kl_t20"] == pytest.approx(kl, rel=1e-3, abs=1e-14) and kl < 1e-5
    assert f"{precision}, as it is, against fp32 on the first batch" in sidecar(rough, "log.txt").read_text()
    assert switches or (logits_of(rough) - logits_of(exact)).abs().max() < 0.05


@pytest.mark.parametrize("precision", ("fp32", "bf16"))
def test_on_a_cpu_the_teacher_computes_by_the_compiled_kernels(flags, tmp_path, precision, monkeypatch):
    """The labels are torch's to rounding, the same in every run; where nothing compiles, or what compiles is off, they are torch's."""
    if host_kernels(torch.float32)[0] is None:
        pytest.skip(host_kernels(torch.float32)[1])
    roots = [tmp_path / name for name in ("ours", "again", "torch", "off")]
    for root in roots[:2]:
        run_main(*flags, "--label-precision", "fp32", "--fkd-path", root, "--precision", precision)
    assert f"{precision}, Winograd's convolutions, against fp32 on the first batch" in sidecar(roots[0], "log.txt").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(half, "host_network", nothing_compiles)
        run_main(*flags, "--label-precision", "fp32", "--fkd-path", roots[2], "--precision", precision)
    assert "not Winograd's convolutions: OSError: no C compiler" in sidecar(roots[2], "log.txt").read_text()
    monkeypatch.setattr(half, "host_network", lambda network, size: torch.nn.Sequential(network, torch.nn.LayerNorm(10)))
    run_main(*flags, "--label-precision", "fp32", "--fkd-path", roots[3], "--precision", precision)
    assert f"{precision}, as it is, against fp32 on the first batch" in sidecar(roots[3], "log.txt").read_text()
    labels = [logits_of(root) for root in roots]
    assert torch.equal(labels[0], labels[1]) and torch.equal(labels[2], labels[3])
    assert (labels[0] - labels[2]).norm() < {"fp32": 1e-5, "bf16": 2e-2}[precision] * labels[2].norm()


def test_batch_statistics_are_those_of_train_mode(flags, tmp_path):
    """The logits are what the network gives in train mode for the same mixed batch, its last short batch too; the folder is no other run's."""
    root, spec = tmp_path / "labels", DATASETS["cifar10"]
    run_main(*flags, "--label-precision", "fp32", "--fkd-path", root, "--batch-statistics")
    evaluated, images = load_teacher(spec, tmp_path / "teacher.pth", SMALL).network, read_synthetic(tmp_path / "run" / "images", 10)
    network = copy.deepcopy(evaluated).train()
    replay = BatchDataset(images, 32, lambda batch, _: read_label_batch(root, batch.epoch, batch.index))
    for batch in Batches(20, 8, 42, 2):
        _, pixels, sheet = replay[batch]
        wanted = half.teacher_logits(network, pixels, sheet, spec, "fp32")
        other = half.teacher_logits(evaluated, pixels, sheet, spec, "fp32")
        assert (sheet.logits - wanted).norm() < 1e-3 * wanted.norm() and (other - wanted).norm() > 0.1 * wanted.norm()
    assert manifest(root)["batch_statistics"] is True and describe_labels(None, None, manifest(root), None)["batch_statistics"] is True
    assert "batch_statistics" in refused(*flags, "--label-precision", "fp32", "--fkd-path", root)
    bare_checkpoint(tmp_path / "plain.pth", "squeezenet1_1", stem="torchvision")
    plain = ("--teacher", tmp_path / "plain.pth", "--arch", "squeezenet1_1", "--stem", "torchvision")
    assert "no BatchNorm layer" in refused(*flags, "--fkd-path", tmp_path / "x", "--batch-statistics", *plain)
    for batch_size, dry in ((19, ()), (19, ("--dry-run",)), (1, ())):
        assert "a batch of one" in refused(*flags, "--fkd-path", tmp_path / "x", "--batch-statistics", "--batch-size", batch_size, *dry)
    assert not (tmp_path / "x").exists()


def test_of_several_processes_all_label_with_the_form_that_all_can_make(monkeypatch):
    """Each asks the others as often as they ask it, or one would wait for ever: of two machines one may have no compiler."""
    if host_kernels(torch.float32)[0] is None:
        pytest.skip(host_kernels(torch.float32)[1])
    network, spec = network_of("small", 32).float(), replace(DATASETS["digits"], size=32)
    item = None, torch.zeros(2, 3, 32, 32, dtype=torch.uint8), LabelBatch(None, Mix())
    ours, theirs = [], []
    monkeypatch.setattr(half, "largest", lambda value: theirs.append(int(value)) or int(value))
    with monkeypatch.context() as patch:
        patch.setattr("sre2l.kernels.cpu.host.host_kernels", lambda dtype: (None, "convolutions by torch (no C compiler)"))
        assert half.measured_form(network, item, spec, "fp32")[1]["form"] == "as it is"
    monkeypatch.setattr(half, "largest", lambda value: ours.append(int(value)) or max(value, theirs[len(ours) - 1]))
    assert half.measured_form(network, item, spec, "fp32")[1]["form"] == "as it is"
    assert (theirs, ours) == ([1, 0], [0, 0])


def test_a_half_precision_that_is_too_far_off_is_refused_with_nothing_written(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(half, "HALF_KL", 1e-30)
    message = refused(*flags, "--precision", "bf16")
    assert "--precision bf16: on the first batch" in message and "use --precision fp32" in message
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["images"]
    run_main(*flags)
    before = files_of(tmp_path)
    assert "--precision bf16: on the first batch" in refused(*flags, "--precision", "bf16", "--overwrite")
    assert files_of(tmp_path) == before


def test_labels_started_afresh_forget_the_precision_of_those_before(flags, tmp_path):
    run_main(*flags, "--precision", "bf16")
    run_main(*flags, "--overwrite")
    assert manifest(tmp_path / "run" / "labels")["precision"] == "fp32"


def test_labels_of_one_precision_are_not_continued_in_another(flags):
    run_main(*flags)
    assert "precision: there 'fp32', here 'bf16'" in refused(*flags, "--precision", "bf16")


def test_a_precision_that_the_device_lacks_is_refused(flags):
    assert "tf32 needs an NVIDIA GPU" in refused(*flags, "--precision", "tf32")
    with pytest.raises(UserError, match="trains on a GPU only"):
        pick_precision("fp16", CPU, training=True)
    assert [pick_precision(name, CPU) for name in (None, "fp32", "bf16", "fp16")] == ["fp32", "fp32", "bf16", "fp16"]


def test_logits_that_are_not_finite_are_refused_and_not_recorded(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(relabel, "teacher_logits", lambda network, pixels, *rest: torch.full((len(pixels), 10), 1e6))
    message = refused(*flags)  # beyond fp16's 65504
    assert "not finite in fp32 and --label-precision fp16" in message and "epoch 0, batch 0" in message
    assert not list((tmp_path / "run").glob("labels/epoch_*/*")) and not sidecar(tmp_path / "run" / "labels", "sha256").exists()


def launch_two(module, *flags):
    """Run a stage in two processes, as GPUS=2 does -> CompletedProcess."""
    command = [sys.executable, "-m", "sre2l.run.launch", "--standalone", "--nproc_per_node=2", "-m", module, *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


def test_two_processes_write_what_one_writes(flags, tmp_path):
    """Every byte of every label file and of the hash file; also when both continue a run whose files are partly gone."""
    one, two = tmp_path / "one", tmp_path / "two"
    run_main(*flags, "--fkd-path", one)
    for _ in range(2):
        done = launch_two("relabel.relabel", *flags[1:], "--fkd-path", two)
        assert done.returncode == 0, done.stderr
        files = {path.relative_to(one): path.read_bytes() for path in one.rglob("*.tar")}
        assert len(files) == 6 and {path.relative_to(two): path.read_bytes() for path in two.rglob("*.tar")} == files
        assert sidecar(two, "sha256").read_bytes() == sidecar(one, "sha256").read_bytes()
        (two / "epoch_1" / "batch_0.tar").unlink()
        (two / "epoch_0" / "batch_2.tar").write_bytes(b"damaged")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ("fp32", "tf32", "fp16"))
def test_labels_from_the_gpu_are_those_of_the_cpu(flags, tmp_path, precision):
    """The same crops and mixes, and logits within the precision's own error, written while the GPU goes on."""
    run_main(*flags, "--label-precision", "fp32", "--fkd-path", tmp_path / "cpu")
    on_gpu = [flag if flag != "cpu" else "cuda" for flag in flags]
    run_main(*on_gpu, "-j", 2, "--label-precision", "fp32", "--fkd-path", tmp_path / "gpu", "--precision", precision)
    for epoch in range(2):
        for index in range(3):
            mine, other = (read_label_batch(tmp_path / name, epoch, index) for name in ("cpu", "gpu"))
            assert torch.equal(mine.crops.boxes, other.crops.boxes) and torch.equal(mine.mix.partner, other.mix.partner)
    error = (logits_of(tmp_path / "cpu") - logits_of(tmp_path / "gpu")).abs().max()
    assert error < {"fp32": 1e-4, "tf32": 2e-2, "fp16": 2e-2}[precision]
