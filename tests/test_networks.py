"""Teachers from anywhere: every key layout, families with odd heads, stems, hashes; a verifier."""
import json

import pytest
import torch

from recover.objective import statistics_layers
from sre2l.data.datasets import DATASETS
from sre2l.nets.checkpoints import hash_weights
from sre2l.nets.models import build_network
from sre2l.nets.teacher import load_teacher
from sre2l.run.errors import UserError
from tests.helpers import (
    SMALL,
    bare_checkpoint,
    keep_last_images,
    noise_folder,
    refused,
    run_main,
    synthetic_folder,
)
from tests.worlds import NAMES, recover_flags, relabel_flags, train_flags
from validate import evaluate as measuring
from validate import train

LAYOUTS = {
    "torchvision references": lambda w: {"model": w, "epoch": 3},
    "DataParallel": lambda w: {"state_dict": {f"module.{key}": value for key, value in w.items()}},
    "kuangliu": lambda w: {"net": w, "acc": 95.0},
    "bare": lambda w: w,
    "DataParallel without batch counters": lambda w: {f"module.{key}": value for key, value in w.items()
                                                      if not key.endswith("num_batches_tracked")}}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_checkpoint_layout_loads_the_same_weights(layout, tmp_path):
    bare = load_teacher(DATASETS["cifar10"], bare_checkpoint(tmp_path / "bare.pth"), SMALL)
    path = bare_checkpoint(tmp_path / "t.pth", wrap=LAYOUTS[layout])
    teacher = load_teacher(DATASETS["cifar10"], path, SMALL)
    assert teacher.sha256 == bare.sha256
    assert not teacher.network.training and not any(p.requires_grad for p in teacher.network.parameters())


def test_the_hash_sees_one_changed_buffer():
    network, _ = build_network(SMALL, 10, "torchvision")
    before = hash_weights(network)
    statistics_layers(network)[-1].running_var[0] += 1e-6
    assert hash_weights(network) != before


@pytest.mark.parametrize("stem, first, second",
                         [("conv3x3", 32, 32), ("conv3x3-s2", 16, 16), ("torchvision", 16, 8)])
def test_stems_keep_the_resolution_they_promise(stem, first, second):
    network, _ = build_network("resnet18", 10, stem)
    features = network.conv1(torch.zeros(1, 3, 32, 32))
    assert features.shape[2] == first and network.maxpool(features).shape[2] == second


def test_a_network_without_such_a_stem_keeps_its_own_or_says_so():
    assert build_network("mobilenet_v2", 10, "conv3x3")[1] == "torchvision"
    with pytest.raises(UserError, match="has no conv1 and maxpool"):
        build_network("mobilenet_v2", 10, "conv3x3", strict_stem=True)


def test_a_teacher_with_an_auxiliary_head_that_never_runs(tmp_path):
    """googlenet's checkpoint has aux heads, which do not run in eval mode."""
    torch.manual_seed(0)
    import torchvision
    full = torchvision.models.googlenet(num_classes=10, aux_logits=True, init_weights=False)
    torch.save(full.state_dict(), tmp_path / "g.pth")
    assert load_teacher(DATASETS["cifar10"], tmp_path / "g.pth", "googlenet").arch == "googlenet"


def test_a_verifier_is_measured_and_logged(tmp_path, monkeypatch):
    """The last iteration's top-1 is the share of the written batch that the verifier puts into its class."""
    lasts = keep_last_images(monkeypatch)
    path = bare_checkpoint(tmp_path / "teacher.pth")
    run_main(*recover_flags(tmp_path, "--iteration", 2, "--batch-size", 5, "--print-period", 1, "--verifier",
                            SMALL, "--verifier-arch-path", path, name="run"))
    lines = map(json.loads, open(tmp_path / "run" / "images.metrics.jsonl"))
    rows = [row for row in lines if "iteration" in row]
    assert [row["iteration"] for row in rows] == [0, 1, 0, 1]
    assert all(0 <= row["verifier_top1"] <= 100 for row in rows)
    verifier = load_teacher(DATASETS["cifar10"], path, SMALL).network
    hits = [verifier(images).argmax(1) == torch.arange(5) + 5 * i for i, images in enumerate(lasts)]
    shares = [100 * hit.double().mean().item() for hit in hits]
    assert [row["verifier_top1"] for row in rows[1::2]] == shares and sum(shares) > 0


def test_evaluate_measures_a_students_checkpoint(tmp_path, capsys):
    """--evaluate on a network that always says 3 gives the share of threes among the digits."""
    weights = torch.load(bare_checkpoint(tmp_path / "s.pth"))
    weights["fc.weight"].zero_()
    weights["fc.bias"].copy_(torch.eye(10)[3])
    torch.save({"state_dict": weights}, tmp_path / "s.pth")
    flags = ("--dataset", "digits", "--evaluate", tmp_path / "s.pth", "--model", SMALL, "--device", "cpu")
    run_main(train, *flags)
    assert f"top1 {100 * 83 / 797:.2f}%" in capsys.readouterr().out
    assert "no such checkpoint" in refused(train, "--dataset", "digits", "--evaluate", tmp_path / "none.pth")
    for flag in ("--compile", "--tensorboard", "--hard-labels", "--overwrite"):
        assert f"{flag} would do nothing" in refused(train, *flags, flag)


def test_evaluate_shows_images_at_the_students_own_size(tmp_path, capsys, monkeypatch):
    bare_checkpoint(tmp_path / "s.pth", wrap=lambda w: {"format": "sre2l-teacher-1", "arch": SMALL,
                                                        "stem": "torchvision", "num_classes": 10,
                                                        "size": 64, "model": w})
    shown = []
    original = measuring.evaluate

    def evaluate(network, images, *rest, **options):
        shown.append(images.pixels(0).shape)
        return original(network, images, *rest, **options)
    monkeypatch.setattr(measuring, "evaluate", evaluate)
    run_main(train, "--dataset", "digits", "--evaluate", tmp_path / "s.pth", "--device", "cpu")
    assert shown == [(64, 64, 3)] and "top1" in capsys.readouterr().out


def test_a_normalisation_given_by_flags_reaches_images_and_labels(tmp_path):
    """A checkpoint from elsewhere knows none: --mean and --std say it, the manifest tells the student."""
    bare_checkpoint(tmp_path / "teacher.pth")
    synthetic_folder(tmp_path / "run" / "images")
    run_main(*relabel_flags(tmp_path, "--epochs", 1, "-b", 10, "--mean", "0.5,0.5,0.5", "--std",
                            "0.25,0.25,0.25"))
    manifest = json.loads((tmp_path / "run" / "labels.manifest.json").read_text())
    assert manifest["settings"]["std"] == [0.25, 0.25, 0.25]
    noise_folder(tmp_path / "real" / "val", NAMES, 1)
    run_main(*train_flags(tmp_path))
    results = json.loads((tmp_path / "run" / f"student_{SMALL}" / "results.json").read_text())
    assert results["protocol"]["std"] == [0.25, 0.25, 0.25]
