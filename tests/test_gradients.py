"""Input gradients of frozen convolutions that are not autograd's."""
import pytest
import torch
import torchvision
from torch import nn

from recover.engines import make_fast_engine
from recover.objective import Weights
from recover.views import View
from sre2l.kernels.cpu import convs, gradients
from sre2l.kernels.cpu.gradients import StridedDepthwise, strided_pays
from tests.nets import calibrated


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


SHAPES = (((3, 3), (2, 2), (1, 1), (14, 14)), ((3, 3), (2, 2), (1, 1), (7, 9)),
          ((5, 5), (2, 2), (2, 2), (15, 12)), ((3, 3), (2, 2), (0, 0), (11, 8)),
          ((5, 3), (2, 3), (1, 2), (13, 17)), ((7, 7), (4, 4), (3, 3), (30, 31)),
          ((2, 2), (2, 2), (0, 0), (9, 8)), ((3, 3), (1, 2), (1, 1), (6, 7)))


@pytest.mark.parametrize("cached", (1, 2 ** 20))
@pytest.mark.parametrize("kernel, stride, padding, size", SHAPES)
def test_a_strided_depthwise_gradient_is_autograds(kernel, stride, padding, size, cached, monkeypatch):
    """In float64 to rounding, whatever the stride leaves out and however many at a time; so in bfloat16."""
    monkeypatch.setattr(gradients, "CACHED", cached)
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(24, 24, kernel, stride, padding, groups=24).double().requires_grad_(False)
    assert StridedDepthwise.fits(conv)
    x = torch.randn(3, 24, *size, dtype=torch.float64, generator=generator).requires_grad_()
    wanted = conv(x)
    g = torch.randn(wanted.shape, dtype=torch.float64, generator=generator)
    gradient, = torch.autograd.grad(wanted, x, g)
    found = StridedDepthwise(conv)(x)
    assert torch.equal(found, wanted)
    assert relative(torch.autograd.grad(found, x, g)[0], gradient) < 1e-14
    bf16 = x.detach().bfloat16().requires_grad_()
    found, = torch.autograd.grad(StridedDepthwise(conv.bfloat16())(bf16), bf16, g.bfloat16())
    assert found.dtype == torch.bfloat16 and relative(found, gradient) < 0.01


@pytest.mark.parametrize("change", ({"groups": 12}, {"stride": 1}, {"dilation": 2}, {"padding": 3},
                                    {"padding_mode": "circular"}, {"groups": 1}, {"padding": "valid"},
                                    {"out_channels": 48}))
def test_it_fits_no_other_convolution(change):
    plain = {"in_channels": 24, "out_channels": 24, "kernel_size": 3, "stride": 2, "padding": 1, "groups": 24}
    assert StridedDepthwise.fits(nn.Conv2d(**plain))
    assert not StridedDepthwise.fits(nn.Conv2d(**{**plain, **change}))


@pytest.mark.parametrize("flags, is_right, pays", [
    ("flags: avx2 amx_bf16", True, True), ("flags: avx2", True, False), ("flags: avx512_bf16", False, False)])
def test_it_is_used_where_it_is_right_and_the_cpu_knows_bfloat16(flags, is_right, pays, monkeypatch):
    """No clock decides: another gradient has other bits."""
    found = StridedDepthwise.gradient
    monkeypatch.setattr(StridedDepthwise, "gradient", lambda *args: found(*args) + (not is_right))
    monkeypatch.setattr(gradients, "cpu_name", lambda: flags)
    assert strided_pays.__wrapped__() is pays


def test_a_network_has_them_in_bfloat16_alone_and_its_gradient_is_as_near_to_float64s(monkeypatch):
    """MobileNetV2 has four. Without ReLU6, where rounding would make it choose otherwise."""
    monkeypatch.setattr(convs, "strided_pays", lambda: True)
    network = torchvision.models.mobilenet_v2(num_classes=5)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, nn.Softplus())
    network = calibrated(network, 32, 3)
    images = torch.randn(1, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = {}
    cases = (("exact", "fp32", 0), ("fp32", "fp32", 0), ("bf16", "bf16", 4), ("torch's bf16", "bf16", 0))
    for name, precision, count in cases:
        exact = name == "exact"
        if name.startswith("torch's"):
            monkeypatch.setattr(StridedDepthwise, "fits", lambda conv: False)
        dtype = torch.float64 if exact else torch.float32
        engine = make_fast_engine(network.to(dtype), Weights(0.01, 10.0, 0, 0), 32, precision, not exact)
        assert sum(isinstance(module, StridedDepthwise) for module in engine.network.modules()) == count
        targets = torch.tensor([[0, 1, 2, 3]])
        _, found[name] = engine.loss_and_gradient(images.to(dtype), targets, [View(None, False, (0, 0))])
    errors = {name: relative(gradient, found["exact"]) for name, gradient in found.items()}
    assert errors["fp32"] < 1e-4 and errors["bf16"] < 1.2 * errors["torch's bf16"] < 0.5, errors
