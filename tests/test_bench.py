"""The benchmark compares like with like, and prints what it says."""
import pytest
import torch
from tests.nets import build
from tests.plain import Look, PlainBatch, PlainObjective
from torchvision.transforms import RandomResizedCrop

from recover.objective import PlainEngine, View, Weights

SIZE = 20


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
    terms, wanted = PlainEngine(build(network)[0], weights).loss_and_gradient(x, targets, view)
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
    gradient = PlainEngine(build("conv")[0], weights).loss_and_gradient(x, targets, view)[1]
    batch = PlainBatch(PlainObjective(build("conv")[0], weights, seen(view, monkeypatch)), x.clone(), targets, low, high)
    batch.step(0.1)
    wanted = x - 0.1 * gradient / (gradient.abs() + 1e-8)
    for channel in range(3):
        torch.testing.assert_close(batch.images[:, channel].detach(), wanted[:, channel].clamp(low[channel], high[channel]), rtol=0, atol=1e-9)
    assert torch.equal(batch.best, batch.images)
