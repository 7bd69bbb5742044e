"""The teacher's precision: measured, recorded, refused too far from fp32."""
import copy
import json

import pytest
import torch
from torch import nn

from relabel import relabel, teacher_form
from sre2l.check.verify import read_synthetic
from sre2l.data.datasets import DATASETS
from sre2l.data.label_files import read_label_batch
from sre2l.data.loader import BatchDataset, Batches
from sre2l.kernels.cpu.convs import host_kernels
from sre2l.nets.precision import pick_precision
from sre2l.nets.teacher import load_teacher
from sre2l.run.errors import UserError
from sre2l.run.files import hash_json, sidecar
from tests.helpers import SMALL, bare_checkpoint, refused, run_main, synthetic_folder
from tests.test_continue import files_of
from tests.worlds import common, teacher
from validate.checks import describe_labels

CPU = torch.device("cpu")


@pytest.fixture
def flags(tmp_path):
    """Flags of a relabel run with 20 images in batches of 8, two epochs."""
    synthetic_folder(tmp_path / "run" / "images")
    bare_checkpoint(tmp_path / "teacher.pth")
    return (relabel, *common(tmp_path), *teacher(tmp_path), "--epochs", 2, "-b", 8, "-j", 0)


def logits_of(root):
    labels = [read_label_batch(root, epoch, index) for epoch in range(2) for index in range(3)]
    return torch.cat([one.logits.float() for one in labels])


def manifest(root):
    return json.loads(sidecar(root, "manifest.json").read_text())["settings"]


def nothing_compiles(*_):
    raise OSError("no C compiler")


@pytest.mark.parametrize("precision, switches, compared", (("fp16", (), 64), ("bf16", (), 64),
                                                           ("fp16", ("--batch-statistics",), 4)))
def test_half_precision_is_measured_against_fp32(flags, tmp_path, precision, switches, compared, monkeypatch):
    """What is recorded is what the first label files of two runs tell, one in each precision.

    Where the batch's own statistics count, the whole batch is compared."""
    monkeypatch.setattr(teacher_form, "host_network", nothing_compiles)  # both as torch computes them
    monkeypatch.setattr(teacher_form, "MOST_COMPARED", compared)
    exact, rough = tmp_path / "exact", tmp_path / "half"
    flags = (*flags, *switches, "--label-precision", "fp32")
    run_main(*flags, "--fkd-path", exact)
    run_main(*flags, "--fkd-path", rough, "--precision", precision)
    assert manifest(exact)["precision"] == "fp32" and manifest(exact)["half_against_fp32"] is None
    a, b = (read_label_batch(root, 0, 0).logits.double() for root in (rough, exact))
    p, q = (a / 20).softmax(1), (b / 20).softmax(1)
    kl = (p * (p / q).log()).sum(1).mean().item()
    found = manifest(rough)["half_against_fp32"]
    assert manifest(rough)["precision"] == precision
    assert 0 < (a - b).abs().max().item() == found["largest_difference"]
    assert found["kl_t20"] == pytest.approx(kl, rel=1e-3, abs=1e-14) and kl < 1e-5
    assert f"{precision}, as it is, against fp32 on the first batch" in sidecar(rough, "log.txt").read_text()
    assert switches or (logits_of(rough) - logits_of(exact)).abs().max() < 0.05


@pytest.mark.parametrize("precision", ("fp32", "bf16"))
def test_on_a_cpu_the_teacher_computes_by_the_compiled_kernels(flags, tmp_path, precision, monkeypatch):
    """Labels are torch's to rounding, the same in every run; without a compiler that is right, torch's."""
    if host_kernels(torch.float32)[0] is None:
        pytest.skip(host_kernels(torch.float32)[1])

    def labelled(name):
        root = tmp_path / name
        run_main(*flags, "--label-precision", "fp32", "--fkd-path", root, "--precision", precision)
        return logits_of(root), sidecar(root, "log.txt").read_text()
    ours, log = labelled("ours")
    assert f"{precision}, Winograd's convolutions, against fp32 on the first batch" in log
    assert torch.equal(ours, labelled("again")[0])
    monkeypatch.setattr(teacher_form, "host_network", nothing_compiles)
    torchs, log = labelled("torch")
    assert "not Winograd's convolutions: OSError: no C compiler" in log
    assert (ours - torchs).norm() < {"fp32": 1e-5, "bf16": 2e-2}[precision] * torchs.norm()
    another = nn.LayerNorm(10)
    monkeypatch.setattr(teacher_form, "host_network", lambda network, _: nn.Sequential(network, another))
    off, log = labelled("off")
    assert f"{precision}, as it is, against fp32 on the first batch" in log and torch.equal(off, torchs)


def test_batch_statistics_are_those_of_train_mode(flags, tmp_path):
    """The logits are the network's in train mode for the same mixed batch, the short last one too."""
    root = tmp_path / "labels"
    spec = DATASETS["cifar10"]
    flags = (*flags, "--label-precision", "fp32", "--fkd-path", root)
    run_main(*flags, "--batch-statistics")
    evaluated = load_teacher(spec, tmp_path / "teacher.pth", SMALL).network
    network = copy.deepcopy(evaluated).train()
    images = read_synthetic(tmp_path / "run" / "images", 10)
    replay = BatchDataset(images, 32, lambda batch, _: read_label_batch(root, batch.epoch, batch.index))
    for batch in Batches(20, 8, 42, 2):
        _, pixels, stored = replay[batch]
        wanted, other = (teacher_form.teacher_logits(form, pixels, stored, spec, "fp32")
                         for form in (network, evaluated))
        assert (stored.logits - wanted).norm() < 1e-3 * wanted.norm() < 1e-2 * (other - wanted).norm()
    assert manifest(root)["batch_statistics"] is True
    assert describe_labels(None, None, manifest(root), None)["batch_statistics"] is True
    assert "batch_statistics" in refused(*flags)  # the folder is no other run's
    assert "batch_statistics" in refused(*flags, "--batch-statistics", "--no-batch-statistics")


def test_batch_statistics_that_cannot_be_had_are_refused(flags, tmp_path):
    flags = (*flags, "--fkd-path", tmp_path / "x", "--batch-statistics")
    bare_checkpoint(tmp_path / "plain.pth", "squeezenet1_1", stem="torchvision")
    plain = ("--teacher", tmp_path / "plain.pth", "--arch", "squeezenet1_1", "--stem", "torchvision")
    assert "no BatchNorm layer" in refused(*flags, *plain)
    for batch_size, dry in ((19, ()), (19, ("--dry-run",)), (1, ())):
        assert "a batch of one" in refused(*flags, "--batch-size", batch_size, *dry)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("old", ({}, {"batch_statistics": None}))
def test_a_manifest_that_does_not_record_a_setting_has_its_default(flags, tmp_path, old):
    """As older runs left it: what is off is not there, or null. The same command continues, no other."""
    root = tmp_path / "run" / "labels"
    run_main(*flags)
    path = sidecar(root, "manifest.json")
    settings = {key: value for key, value in manifest(root).items() if key != "batch_statistics"} | old
    path.write_text(json.dumps({"settings": settings, "sha256": hash_json({"settings": settings})}))
    before = files_of(root)
    next(root.rglob("*.tar")).unlink()
    assert "batch_statistics" in refused(*flags, "--batch-statistics")
    run_main(*flags)
    assert files_of(root) == before
    assert describe_labels(None, None, manifest(root), None)["batch_statistics"] is None


def test_a_half_precision_that_is_too_far_off_is_refused_with_nothing_written(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_form, "HALF_KL", 1e-30)
    message = refused(*flags, "--precision", "bf16")
    assert "--precision bf16: on the first batch" in message and "use --precision fp32" in message
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["images"]
    run_main(*flags)
    before = files_of(tmp_path)
    assert "--precision bf16: on the first batch" in refused(*flags, "--precision", "bf16", "--overwrite")
    assert files_of(tmp_path) == before


def test_labels_of_one_precision_are_not_continued_in_another_but_made_afresh(flags, tmp_path):
    run_main(*flags, "--precision", "bf16")
    assert "precision: there 'bf16', here 'fp32'" in refused(*flags, "--precision", "fp32")
    run_main(*flags, "--overwrite")
    assert manifest(tmp_path / "run" / "labels")["precision"] == "fp32"


def test_a_precision_that_the_device_lacks_is_refused(flags):
    assert "tf32 needs an NVIDIA GPU" in refused(*flags, "--precision", "tf32")
    with pytest.raises(UserError, match="trains on a GPU only"):
        pick_precision("fp16", CPU, training=True)
    names = (None, "fp32", "bf16", "fp16")
    assert [pick_precision(name, CPU) for name in names] == ["fp32", "fp32", "bf16", "fp16"]


def test_logits_that_are_not_finite_are_refused_and_not_recorded(flags, tmp_path, monkeypatch):
    too_large = torch.full((8, 10), 1e6)  # beyond fp16's 65504
    monkeypatch.setattr(relabel, "mean_logits", lambda labellers, pixels, *rest: too_large[:len(pixels)])
    message = refused(*flags)
    assert "not finite in fp32 and --label-precision fp16" in message and "epoch 0, batch 0" in message
    root = tmp_path / "run" / "labels"
    assert not list(root.glob("epoch_*/*")) and not sidecar(root, "sha256").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ("fp32", "tf32", "fp16"))
def test_labels_from_the_gpu_are_those_of_the_cpu(flags, tmp_path, precision):
    """The same crops and mixes, and logits within the precision's own error."""
    run_main(*flags, "--label-precision", "fp32", "--fkd-path", tmp_path / "cpu")
    on_gpu = [flag if flag != "cpu" else "cuda" for flag in flags]
    run_main(*on_gpu, "-j", 2, "--label-precision", "fp32", "--fkd-path", tmp_path / "gpu",
             "--precision", precision)
    for epoch in range(2):
        for index in range(3):
            mine, other = (read_label_batch(tmp_path / name, epoch, index) for name in ("cpu", "gpu"))
            assert torch.equal(mine.crops.boxes, other.crops.boxes)
            assert torch.equal(mine.mix.partner, other.mix.partner)
    error = (logits_of(tmp_path / "cpu") - logits_of(tmp_path / "gpu")).abs().max()
    assert error < {"fp32": 1e-4, "tf32": 2e-2, "fp16": 2e-2}[precision]
