"""One step of recover: Adam, the first convolution's input gradient, what a Stepper carries over."""
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from recover.engines import make_fast_engine
from recover.step import Stepper
from sre2l.kernels.adam import adam_rates, adam_step
from sre2l.kernels.triton import stem
from tests.parity import ALL, draw_case, network_of

LOW = torch.tensor([-1.5, -2.0, -1.0]).view(3, 1, 1).double()
HIGH = torch.tensor([2.0, 1.0, 1.5]).view(3, 1, 1).double()


def test_adams_step_is_torchs():
    """Betas (0.5, 0.9), eps 1e-8, a rate of its own at every step; gradients of all magnitudes."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, 3, 5, 5, dtype=torch.float64, generator=g)
    rates = [0.25 * (1 + math.cos(math.pi * t / 30)) / 2 for t in range(30)]
    theirs = x.clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], betas=(0.5, 0.9), eps=1e-8)
    first = torch.zeros_like(x)
    second = torch.zeros_like(x)
    far = torch.full((3, 1, 1), 1e9, dtype=torch.float64)
    for rate, lr in zip(adam_rates(rates), rates):
        gradient = torch.randn(x.shape, dtype=torch.float64, generator=g)
        gradient *= 10 ** (-10 * torch.rand(x.shape, dtype=torch.float64, generator=g))
        theirs.grad, optimizer.param_groups[0]["lr"] = gradient.clone(), lr
        optimizer.step()
        adam_step(x, first, second, gradient, rate, -far, far)
        assert (x - theirs).abs().max() < 1e-12


def test_the_step_ends_with_the_clamp_of_each_channel_and_keeps_what_is_not_a_number():
    x = torch.randn(1, 2, 3, 4, 4, dtype=torch.float64)
    first, second, gradient = torch.zeros_like(x), torch.zeros_like(x), torch.randn_like(x)
    gradient[0, 0, 1, 2, 3] = float("nan")
    gradient[0, 1, 0, 0, 0] = float("inf")
    adam_step(x, first, second, gradient, adam_rates([9.0])[0], LOW, HIGH)
    assert torch.isnan(x).sum() == 2 and torch.isnan(x[0, 0, 1, 2, 3]) and torch.isnan(x[0, 1, 0, 0, 0])
    assert ((x == LOW) | (x == HIGH) | torch.isnan(x)).all()


@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.parametrize("kernel", (3, 5, 7))
def test_the_first_convolutions_input_gradient_is_autograds(kernel, stride):
    """Three channels padded to four; even sizes, and odd ones where the stride allows."""
    torch.manual_seed(kernel)
    for size in (8, 14, 22) + (9, 15) * (stride == 1):
        conv = nn.Conv2d(3, 5, kernel, stride, (kernel - 1) // 2, bias=size == 8)
        conv = conv.double().requires_grad_(False)
        assert stem.fits(conv, size)
        x = torch.randn(2, 3, size, size, dtype=torch.float64, requires_grad=True)
        wide = F.pad(x.detach(), (0, 0, 0, 0, 0, 1), value=7.0).requires_grad_()  # whatever is in the fourth
        y, wanted = stem.Stem(conv)(wide), conv(x)
        assert (y - wanted).abs().max() < 1e-12
        g = torch.randn_like(y)
        gradient, = torch.autograd.grad(y, wide, g)
        wanted_gradient, = torch.autograd.grad(wanted, x, g)
        assert (gradient[:, :3] - wanted_gradient).abs().max() < 1e-12 and gradient[:, 3].abs().max() == 0


def test_other_first_convolutions_stay_as_they_are():
    others = [dict(kernel_size=4, padding=1), dict(kernel_size=3, stride=3, padding=1), dict(kernel_size=3),
              dict(kernel_size=3, padding=2, dilation=2), dict(kernel_size=(3, 5), padding=(1, 2)),
              dict(kernel_size=1), dict(kernel_size=3, padding=1, padding_mode="reflect"),
              dict(kernel_size=3, padding=1, groups=3), dict(kernel_size=3, padding="same"),
              dict(kernel_size=3, stride=(1, 2), padding=1)]
    assert not any(stem.fits(nn.Conv2d(3, 6, **options), 8) for options in others)
    assert not stem.fits(nn.Conv2d(3, 6, 3, 2, 1), 9)
    assert not stem.fits(nn.Conv2d(4, 6, 3, 1, 1), 8)
    assert not stem.fits(nn.Linear(3, 6), 8)


def run_steps(stepper, seed, batch=2, groups=2, steps=4, size=20):
    """-> (the last iterate, the terms of every step)."""
    images, targets, _ = draw_case(size, groups, batch, seed)
    views = [draw_case(size, groups, batch, 10 * seed + t)[2] for t in range(steps)]
    stepper.start(images, targets, views, [0.25 - 0.05 * t for t in range(steps)])
    terms = [stepper.step(t) for t in range(steps)]
    return stepper.images.clone(), [term.bn for term in terms]


def test_a_stepper_starts_anew_with_every_batch():
    """The second batch, one of another shape, and the first again are those of a fresh Stepper and engine."""
    def fresh():
        return Stepper(make_fast_engine(network_of("small", 20), ALL, 20), LOW, HIGH)

    used = fresh()
    for seed, batch, groups in ((1, 2, 2), (2, 2, 2), (3, 1, 2), (4, 3, 1), (1, 2, 2)):
        images, terms = run_steps(used, seed, batch, groups)
        wanted, wanted_terms = run_steps(fresh(), seed, batch, groups)
        assert torch.equal(images, wanted) and all(torch.equal(a, b) for a, b in zip(terms, wanted_terms))
        assert (images >= LOW).all() and (images <= HIGH).all()


def test_terms_are_those_before_the_step():
    stepper = Stepper(make_fast_engine(network_of("small", 20), ALL, 20), LOW, HIGH)
    images, targets, views = draw_case(20, 2, 2)
    wanted, _ = stepper.engine.loss_and_gradient(images, targets, views)
    stepper.start(images, targets, [views], [0.1])
    assert torch.equal(stepper.step(0).bn, wanted.bn) and not torch.equal(stepper.images, images)
