"""The benchmark compares like with like, measures what it says, and runs."""
import json
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from bench.measure import Side, forward_gflop, peak_memory, peak_tb_s, peak_tflops, resident, spread, table, time_pairs
from bench.sides import our_label_batches, our_stream, plain_dataset
from bench.world import SPEC, World, write_images, write_labels
from tests.helpers import SMALL, launch
from tests.nets import build
from bench.plain import Look, PlainBatch, PlainObjective, train_batch
from torchvision.transforms import RandomResizedCrop

from recover.objective import PlainEngine, Weights
from recover.views import View
from sre2l.data.augment import apply_mix, normalise
from sre2l.nets.precision import PRECISIONS
from validate.losses import backward_in_micro_batches, distillation_loss, soft_targets
from validate.shares import share_of

SIZE, CPU = 20, torch.device("cpu")


def seen(view, monkeypatch):
    """The plain formulation's Look, its draws fixed to those of a view."""
    look = Look(SIZE, (0, 4), crop_flip=view.window is not None)
    monkeypatch.setattr(RandomResizedCrop, "get_params", lambda *_: view.window)
    look.flip.p = float(view.flip)
    monkeypatch.setattr(torch, "randint", lambda *_: torch.tensor(view.roll))
    return look


@pytest.mark.parametrize("weights", (Weights(0.01, 10.0, 0.0, 0.0), Weights(0.7, 3.0, 0.02, 0.05)))
@pytest.mark.parametrize("view", (View((3, 1, 11, 13), True, (5, -2)), View((0, 9, 20, 11), False, (0, 0)), View(None, False, (0, 3))))
@pytest.mark.parametrize("network", ("conv", "resnet18"))
def test_plain_formulation_equals_the_plain_engine(network, view, weights, monkeypatch):
    """Loss and gradient in fp64, with the same draws: the two sides of the benchmark differ in how they compute alone."""
    x = torch.randn(4, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    targets = torch.tensor([4, 0, 0, 2])
    terms, (wanted,) = PlainEngine(build(network)[0], weights).loss_and_gradient(x[None], targets[None], [view])
    total = terms.ce + weights.r_bn * terms.bn + weights.tv_l2 * terms.tv + weights.l2_scale * terms.l2
    x.requires_grad_()
    loss = PlainObjective(build(network)[0], weights, seen(view, monkeypatch)).loss(x, targets)
    gradient, = torch.autograd.grad(loss, x)
    assert loss.item() == pytest.approx(total.item(), rel=1e-12)
    assert (gradient - wanted).norm() <= 1e-12 * wanted.norm()


def test_plain_step_is_one_step_of_adam_and_a_clamp(monkeypatch):
    """The first step of Adam moves each pixel by the learning rate against its gradient's sign, up to eps; then the bounds hold."""
    view, weights = View((3, 1, 11, 13), True, (5, -2)), Weights(0.01, 10.0, 0.0, 0.0)
    x, targets = torch.randn(4, 3, SIZE, SIZE, dtype=torch.float64), torch.tensor([4, 0, 0, 2])
    low, high = [-1.0, -1.1, -1.2], [1.0, 1.1, 1.2]
    gradient = PlainEngine(build("conv")[0], weights).loss_and_gradient(x[None], targets[None], [view])[1][0]
    batch = PlainBatch(PlainObjective(build("conv")[0], weights, seen(view, monkeypatch)), x.clone(), targets, low, high)
    batch.step(0.1)
    wanted = x - 0.1 * gradient / (gradient.abs() + 1e-8)
    for channel in range(3):
        torch.testing.assert_close(batch.images[:, channel].detach(), wanted[:, channel].clamp(low[channel], high[channel]), rtol=0, atol=1e-9)
    assert torch.equal(batch.best, batch.images)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("bench"), num_images=20, size=40, batch=12, epochs=1, device=CPU, workers=0)
    write_images(world)
    write_labels(world)
    return world


def test_both_students_see_the_same_batches_and_loss(world):
    """Pixels after normalisation, and the loss of a step from the label files; the short last batch too."""
    dataset, loss_of = plain_dataset("validate", world), partial(distillation_loss, temperature=20.0)
    for batch, pixels, sheet in our_stream(world, world.images, 0, our_label_batches("validate", world)):
        samples, fields = dataset[batch]
        ours = normalise(pixels, SPEC.mean, SPEC.std)
        torch.testing.assert_close(ours, samples[0], rtol=0, atol=1e-5)
        losses = []
        for plain in (False, True):
            torch.manual_seed(0)
            network = torchvision.models.get_model(SMALL).train()
            if plain:
                losses.append(train_batch(network, torch.optim.SGD(network.parameters(), 0), samples, fields, CPU, 6, 20.0)[0])
            else:
                mixed, targets = apply_mix(ours, sheet.mix), soft_targets(sheet.logits, 20.0)
                share = share_of(len(batch.rows), sheet.mix, 6, 0, 1)
                losses.append(backward_in_micro_batches(network, loss_of, mixed, targets, share).item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_sides_take_turns_after_both_are_warm():
    calls = []
    sides = [Side(lambda name=name: calls.append(f"build {name}") or partial(calls.append, name)) for name in "ab"]
    assert len(time_pairs(sides, CPU, 3, 0)) == 3
    assert calls == ["build a", "a", "a", "a", "build b", "b", "b", "b"] + ["a", "b"] * 3


def hold(megabytes):
    """A side that holds so much memory from its first run on, and twice that while it runs."""
    kept = []

    def run():
        kept[:] = [np.ones(megabytes << 20, np.uint8)]
        np.ones(megabytes << 20, np.uint8)
    return run


@pytest.mark.skipif(resident("VmHWM:") is None, reason="resident memory is read as Linux tells it")
def test_peak_memory_is_of_the_side_alone():
    """Whatever this process has held before, and however small the side."""
    ballast = np.ones(300 << 20, np.uint8)
    for megabytes in (64, 16):
        assert peak_memory(Side(partial(hold, megabytes)), CPU, calls=1) / (2 * megabytes << 20) == pytest.approx(1, abs=0.15)
    assert ballast[-1] == 1


def test_flops_are_twice_the_published_multiply_adds():
    published = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["_ops"]
    assert forward_gflop("resnet18", SPEC, 224) == pytest.approx(2 * published, rel=1e-3)


def test_peak_is_measured_in_every_precision():
    """Small: that it runs and puts torch's switches back."""
    before = torch.backends.cuda.matmul.allow_tf32
    assert all(peak_tflops(CPU, precision, size=32) > 0 for precision in PRECISIONS) and peak_tb_s(CPU, 1 << 16) > 0
    assert torch.backends.cuda.matmul.allow_tf32 == before


def test_spread_and_table():
    assert spread([3, 1.23456, 2]) == {"median": 2.0, "min": 1.235, "max": 3.0}
    rows = [{"a": "x", "b": spread([1.0, 2.0, 4.0]), "c": None}, {"a": "longer", "b": 3, "c": None}]
    assert table(rows, {"a": "A", "b": "B", "c": "C"}) == "A       B\nx       2 (1-4)\nlonger  3"


def test_benchmark_prints_a_json_line_for_every_row_and_tables():
    done = launch("bench/bench.sh", "--quick", "--device", "cpu", "--precision", "fp32", "--pairs", 1, "--network", SMALL, "--dataset", "imagenet1k",
                  "--batch", 4, "--images", 10, "--size", 32, "--iterations", 1)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    assert [row["section"] for row in rows] == ["recover"] + ["relabel"] * 4 + ["validate"] * 4 + ["growth"] * 4
    for row in rows[:9]:
        assert row.keys() >= {"device", "torch", "date", "pairs", "precision", "size", "batch", "unit"}
        ratio = row["ours"]["median"] / row["plain"]["median"] if row["unit"] == "images/s" else row["plain"]["median"] / row["ours"]["median"]
        assert row["ratio"]["median"] == pytest.approx(ratio, rel=0.02)  # one pair: up to rounding
    assert all(row["equals_pillow"] for row in rows if "equals_pillow" in row)
    assert [line for line in lines if line in ("recover", "relabel", "validate", "growth")] == ["recover", "relabel", "validate", "growth"]


def test_benchmark_refuses_an_unknown_section():
    done = launch("bench/bench.sh", "relable")
    assert (done.returncode, done.stdout) == (2, "") and "'relable' is none of the sections recover, relabel" in done.stderr
