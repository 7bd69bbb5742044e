"""The benchmark compares like with like, measures what it says, and runs."""
import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from torchvision.transforms import RandomResizedCrop

from bench import bench, gpu, measure
from bench.bench import SECTIONS
from bench.plain import Look, PlainBatch, PlainObjective, train_batch
from bench.sides import our_stream, plain_dataset
from bench.world import SPEC, World, write_images, write_labels
from recover.objective import PlainEngine, Weights
from recover.views import View
from sre2l.data.augment import apply_mix, normalise
from sre2l.data.loader import micro_batches
from sre2l.nets.precision import PRECISIONS
from sre2l.run.log import read_metrics
from tests.helpers import SMALL, refused, run_main
from tests.nets import build
from tests.parity import total
from validate.losses import distillation_loss, soft_targets

SIZE = 20
CPU = torch.device("cpu")
TARGETS = torch.tensor([4, 0, 0, 2])


def seen(view, monkeypatch):
    """The plain formulation's Look, its draws fixed to those of a view."""
    look = Look(SIZE, (0, 4), crop_flip=view.window is not None)
    monkeypatch.setattr(RandomResizedCrop, "get_params", lambda *_: view.window)
    look.flip.p = float(view.flip)
    monkeypatch.setattr(torch, "randint", lambda *_: torch.tensor(view.roll))
    return look


VIEWS = View((3, 1, 11, 13), True, (5, -2)), View((0, 9, 20, 11), False, (0, 0)), View(None, False, (0, 3))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("network", ("conv", "resnet18"))
def test_plain_formulation_equals_the_plain_engine(network, view, monkeypatch):
    """Loss and gradient in fp64, with the same draws: the benchmark's two sides compute the same."""
    weights = Weights(0.7, 3.0, 0.02, 0.05)
    x = torch.randn(4, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    engine = PlainEngine(build(network)[0], weights)
    terms, (wanted,) = engine.loss_and_gradient(x[None], TARGETS[None], [view])
    x.requires_grad_()
    loss = PlainObjective(build(network)[0], weights, seen(view, monkeypatch)).loss(x, TARGETS)
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == pytest.approx(total(terms, weights).item(), rel=1e-12)
    assert (gradient - wanted).norm() <= 1e-12 * wanted.norm()


def test_plain_step_is_one_step_of_adam_and_a_clamp(monkeypatch):
    """Adam's first step moves each pixel by the learning rate against its gradient's sign, up to eps."""
    view = VIEWS[0]
    weights = Weights(0.01, 10.0, 0.0, 0.0)
    x = torch.randn(4, 3, SIZE, SIZE, dtype=torch.float64)
    low = [-1.0, -1.1, -1.2]
    high = [1.0, 1.1, 1.2]
    _, (gradient,) = PlainEngine(build("conv")[0], weights).loss_and_gradient(x[None], TARGETS[None], [view])

    objective = PlainObjective(build("conv")[0], weights, seen(view, monkeypatch))
    batch = PlainBatch(objective, x.clone(), TARGETS, low, high)
    batch.step(0.1)
    moved = x - 0.1 * gradient / (gradient.abs() + 1e-8)
    wanted = moved.clamp(*(torch.tensor(edge, dtype=torch.float64).view(3, 1, 1) for edge in (low, high)))
    torch.testing.assert_close(batch.images.detach(), wanted, rtol=0, atol=1e-9)
    assert torch.equal(batch.best, batch.images)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    world = World(root, num_images=20, size=40, batch=12, epochs=1, device=CPU, workers=0)
    write_images(world)
    write_labels(world)
    return world


def test_both_students_see_the_same_batches_and_loss(world):
    """Pixels after normalisation, and the loss of a step from the label files; the short last batch too."""
    dataset = plain_dataset("validate", world)
    for batch, pixels, labels in our_stream("validate", world, world.images, 0):
        samples, fields = dataset[batch]
        ours = normalise(pixels, SPEC.mean, SPEC.std)
        torch.testing.assert_close(ours, samples[0], rtol=0, atol=1e-5)
        losses = []
        for plain in (False, True):
            torch.manual_seed(0)
            network = torchvision.models.get_model(SMALL).train()
            if plain:
                optimizer = torch.optim.SGD(network.parameters(), 0)
                losses.append(train_batch(network, optimizer, samples, fields, CPU, 6, 20.0)[0])
            else:
                mixed = apply_mix(ours, labels.mix)
                targets = soft_targets(labels.logits, 20.0)
                losses.append(sum(
                    distillation_loss(network(mixed[rows]), targets[rows], 20.0).item()
                    * (rows.stop - rows.start) / len(batch.rows)
                    for rows in micro_batches(len(batch.rows), 6)))
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_sides_take_turns_after_both_are_warm():
    calls = []

    def build(name):
        calls.append(f"build {name}")
        return partial(calls.append, name)
    pairs, _ = measure.time_pairs([measure.Side(partial(build, name)) for name in "ab"], CPU, 3, 0)
    assert len(pairs) == 3
    assert calls == ["build a", "a", "a", "a", "build b", "b", "b", "b"] + ["a", "b"] * 3


def hold(megabytes):
    """A side that holds so much memory from its first run on, and twice that while it runs."""
    kept = []

    def run():
        kept[:] = [np.ones(megabytes << 20, np.uint8)]
        np.ones(megabytes << 20, np.uint8)
    return run


@pytest.mark.skipif(measure.resident("VmHWM:") is None, reason="resident memory is read as Linux tells it")
def test_peak_memory_is_of_the_side_alone():
    """Whatever this process has held before, and however small the side."""
    ballast = np.ones(300 << 20, np.uint8)
    for megabytes in (64, 16):
        peak = measure.peak_memory(measure.Side(partial(hold, megabytes)), CPU)
        assert peak / (2 * megabytes << 20) == pytest.approx(1, abs=0.15)
    assert ballast[-1] == 1


def test_flops_are_twice_the_published_multiply_adds():
    published = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["_ops"]
    assert measure.forward_gflop("resnet18", SPEC, 224) == pytest.approx(2 * published, rel=1e-3)


def test_peak_is_measured_in_every_precision():
    """Small: that it runs and puts torch's switches back."""
    before = torch.backends.cuda.matmul.allow_tf32
    assert all(measure.peak_tflops(CPU, precision, size=32) > 0 for precision in PRECISIONS)
    assert measure.peak_tb_s(CPU, 1 << 16) > 0
    assert torch.backends.cuda.matmul.allow_tf32 == before


def test_spread_and_table():
    assert measure.spread([3, 1.23456, 2]) == {"median": 2.0, "min": 1.235, "max": 3.0}
    rows = [{"a": "x", "b": measure.spread([1.0, 2.0, 4.0]), "c": None}, {"a": "longer", "b": 3, "c": None}]
    assert measure.table(rows, {"a": "A", "b": "B", "c": "C"}) == "A       B\nx       2 (1-4)\nlonger  3"


def test_benchmark_prints_a_json_line_for_every_row_and_tables(capsys):
    run_main(bench, "--quick", "--device", "cpu", "--precision", "fp32", "--pairs", 1, "--network", SMALL,
             "--dataset", "cifar100", "--batch", 4, "--images", 10, "--size", 32)
    lines = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    sections = ["recover"] + ["options"] * 6 + ["relabel"] * 4 + ["validate"] * 4
    assert [row["section"] for row in rows] == sections
    for row in rows:
        assert row.keys() >= {"device", "torch", "date", "pairs", "precision", "size", "batch", "unit"}
        ratio = row["ours"]["median"] / row["plain"]["median"]
        wanted = ratio if row["unit"] == "images/s" else 1 / ratio
        assert row["ratio"]["median"] == pytest.approx(wanted, rel=0.02)  # one pair: up to rounding
    assert [line for line in lines if line in SECTIONS] == list(SECTIONS)


def test_benchmark_refuses_an_unknown_section(capsys):
    assert refused(bench, "relable") == ""
    assert "'relable' is none of the sections recover, options" in capsys.readouterr().err


def test_the_gpu_script_always_ends_with_its_summary(monkeypatch, tmp_path):
    """A stage that fails and tests that hang are said, and what they had found by then counts."""
    hang = ("print('2 workers [3 items]\\n[gw0] [ 33%] PASSED tests/a.py::a', flush=True)\n"
            "import time; time.sleep(60)")
    done = "print('done: top-1 98.75% on 797 images\\nreport: a page')"
    commands = {"squeeze": [sys.executable, "-c", done], "recover": ["false"], "relabel": ["true"]}
    monkeypatch.setattr(gpu, "has_gpu", lambda: True)
    monkeypatch.setattr(gpu, "TESTS", [sys.executable, "-c", hang])
    peak = json.dumps({"section": "peak", "tb_s": 3, "tflop_s": {"fp16": 750.5}})
    monkeypatch.setattr(gpu, "BENCH", [sys.executable, "-c", f"print('{peak}')"])
    monkeypatch.setattr(gpu, "digits_commands", lambda *_: commands)
    monkeypatch.setattr(gpu, "LIMITS", {"tests": 3, "digits": 30, "bench": 30})
    assert gpu.main(tmp_path) == 1
    rows = read_metrics(tmp_path / "results.jsonl")
    assert [(row["part"], row["what"], row["end"]) for row in rows] == [
        ("digits", "squeeze", "done"), ("digits", "recover", "exit code 1"),
        ("digits", "relabel", "left out"), ("tests", "that need a GPU", "cut after 3 s"),
        ("bench", "peak", "done"), ("bench", "quick benchmark", "done")]
    assert rows[0]["result"] == "done: top-1 98.75% on 797 images"
    assert (rows[3]["selected"], rows[3]["passed"], rows[3]["failed"]) == (3, 1, 0)
    assert "cut after 3 s" in (tmp_path / "summary.txt").read_text()


def test_the_gpu_script_says_without_a_gpu_what_it_leaves_out(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "has_gpu", lambda: False)
    assert gpu.main(tmp_path) == 0
    rows = read_metrics(tmp_path / "results.jsonl")
    assert [(row["part"], row["end"]) for row in rows] == [(part, "left out") for part in gpu.LIMITS]
