"""The compiled convolutions against torch's, in double precision and in the types that they have."""
import platform

import pytest
import torch
import torchvision
from torch import nn

from recover.engines import make_fast_engine
from recover.objective import Weights
from recover.views import View
from sre2l.kernels import compiled
from sre2l.kernels.cpu import convs
from sre2l.kernels.cpu.convs import FirstConv, Kernels, Winograd, host_kernels, ours
from tests.nets import calibrated

SETS = {"this machine's": (), "AVX2": ("-march=x86-64-v3",), "SSE2": ("-march=x86-64",)}
HALF = 2 ** -8  # one rounding of bfloat16, relative


@pytest.fixture(params=SETS)
def flags(request):
    if request.param != "this machine's" and platform.machine() != "x86_64":
        pytest.skip("not an x86 processor")
    capability = torch.backends.cpu.get_cpu_capability()
    if request.param == "AVX2" and "AVX2" not in capability and "AVX512" not in capability:
        pytest.skip("no AVX2")
    return SETS[request.param]


def kernels_of(dtype, *flags):
    found, line = host_kernels(dtype)
    if found is None:
        pytest.skip(line)
    return Kernels(dtype, *flags) if flags else found


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def both_kinds(outputs=32):
    """Yield (ours in float32, the frozen convolution that it replaces) for each of the two kinds."""
    kernels = kernels_of(torch.float32)
    for kind, inputs in ((Winograd, 32), (FirstConv, 3)):
        conv = nn.Conv2d(inputs, outputs, 3, padding=1).requires_grad_(False)
        yield kind(conv, kernels), conv


def types_of(dtype):
    """What kernels of this type read and write."""
    return (dtype, torch.bfloat16) if dtype == torch.float32 else (dtype,)


def both_directions(module, x, g):
    x = x.clone().requires_grad_()
    y = module(x)
    assert y.dtype == x.dtype
    return y.detach(), torch.autograd.grad(y, x, g.to(y.dtype))[0]


def check(kind, conv, size, kernels, types):
    """Forward and input gradient of conv on 3 images against torch in float64, read and
    written in each of the types: the root mean square of the error grows with that of the
    number of channels (torch's is about half of it), and the largest is not far from it."""
    conv = conv.double().requires_grad_(False)
    conv.weight.data = conv.weight.to(torch.bfloat16).double()  # the same in all types
    x = draw(3, conv.in_channels, *size).to(torch.bfloat16).double()
    g = draw(*conv(x).shape, seed=1).to(torch.bfloat16).double()
    wanted = both_directions(conv, x, g)
    conv = conv.to(kernels.dtype)
    assert kind.fits(conv, kernels)
    for dtype in types:
        for found, want in zip(both_directions(kind(conv, kernels).to(dtype), x.to(dtype), g), wanted):
            assert found.shape == want.shape
            off = (found.double() - want).abs()
            limit = 2 * torch.finfo(kernels.dtype).eps * max(conv.weight.shape[:2]) ** 0.5 * want.std()
            if dtype == torch.bfloat16:
                assert (off <= HALF * want.abs() + 20 * limit).all()
            else:
                assert off.max() <= 20 * limit and off.square().mean().sqrt() <= limit


@pytest.mark.parametrize("shared", (True, False))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("channels, size, bias", (((32, 32), (4, 4), False), ((64, 32), (7, 9), True),
                                                  ((32, 96), (1, 13), False), ((64, 160), (22, 3), True)))
def test_winograd_is_the_convolution(flags, monkeypatch, shared, dtype, channels, size, bias):
    """Tiles over the edge, blocks that are not full, both ways of the weights, several instruction sets."""
    monkeypatch.setattr(convs, "SHARED", 0 if shared else 2 ** 40)
    conv = nn.Conv2d(*channels, 3, padding=1, bias=bias)
    check(Winograd, conv, size, kernels_of(dtype, *flags), types_of(dtype))


def test_winograd_with_many_channels_and_tiles():
    """More than one block a thread, in each of the three sizes that blocks have."""
    for channels, size in ((64, 40), (288, 30), (512, 45)):
        conv = nn.Conv2d(channels, channels, 3, padding=1)
        check(Winograd, conv, (size, size), kernels_of(torch.float32), (torch.float32,))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("geometry, size", (((3, 64, 7, 2, 3), (33, 20)), ((3, 32, 3, 1, 1), (8, 8)),
                                            ((1, 96, 11, 4, 2), (35, 47)), ((4, 32, 2, 2, 0), (6, 10)),
                                            ((3, 32, (3, 5), (1, 2), (0, 2)), (9, 17)),
                                            ((3, 32, 1, 3, 0), (7, 8)), ((2, 32, 5, 1, 6), (5, 4))))
def test_the_first_convolutions_gradient(flags, dtype, geometry, size):
    """Pixels that no kernel sees, kernels that reach over both edges, geometry that differs by axis."""
    check(FirstConv, nn.Conv2d(*geometry, bias=False), size, kernels_of(dtype, *flags), types_of(dtype))


def test_the_number_of_threads_changes_no_bit():
    kernels = kernels_of(torch.float32)
    before = torch.get_num_threads()
    found = []
    winograd = Winograd(nn.Conv2d(64, 64, 3, padding=1).requires_grad_(False), kernels)
    first = FirstConv(nn.Conv2d(3, 64, 3, padding=1).requires_grad_(False), kernels)
    x, g = draw(5, 64, 30, 30).float(), draw(5, 64, 30, 30, seed=1).float()
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found.append((*both_directions(winograd, x, g), first.gradient(g, (5, 3, 30, 30))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(found[0], others))


def test_other_types_are_taken():
    """float16 is computed in float32, and comes back as float16."""
    for module, conv in both_kinds():
        x, g = draw(2, conv.in_channels, 9, 9).half(), draw(2, 32, 9, 9, seed=1).half()
        wanted = both_directions(conv, x.float(), g)
        for found, want in zip(both_directions(module.half(), x, g), wanted):
            assert found.dtype == torch.float16
            assert (found.float() - want).abs().max() <= 2 ** -9 * want.abs().max()


def test_other_layouts_are_taken():
    for module, conv in both_kinds():
        x = draw(2, conv.in_channels, 9, 9).float()
        g = draw(2, 32, 9, 9, seed=1).float()
        last = [v.contiguous(memory_format=torch.channels_last) for v in (x, g)]
        pairs = zip(both_directions(module, x, g), both_directions(module, *last))
        assert all(torch.allclose(a, b, rtol=0, atol=1e-5) for a, b in pairs)
        y, gradient = both_directions(module, x[:, :, ::2, 1:], g[:, :, ::2, 1:])
        assert torch.allclose(y, conv(x[:, :, ::2, 1:]), rtol=1e-4, atol=1e-5)
        assert gradient.shape == x[:, :, ::2, 1:].shape


def test_a_second_derivative_is_refused():
    """It would be taken for 0, without a word, beside what else the gradient depends on."""
    for module, conv in both_kinds():
        x = draw(1, conv.in_channels, 9, 9).float().requires_grad_()
        y = module(x)
        gradient, = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            (gradient * x).sum().backward()


def test_an_empty_batch_is_taken():
    for module, conv in both_kinds(64):
        x, g = torch.zeros(0, conv.in_channels, 9, 9), torch.zeros(0, 64, 9, 9)
        y, gradient = both_directions(module, x, g)
        assert y.shape == g.shape and gradient.shape == x.shape


@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
def test_what_is_not_finite_shows(bad):
    for module, conv in both_kinds():
        x, g = draw(1, conv.in_channels, 12, 12).float(), draw(1, 32, 12, 12, seed=1).float()
        x[0, 1, 5, 5] = g[0, 7, 3, 3] = bad
        y, gradient = both_directions(module, x, g)
        assert not y[:, :, 4:7, 4:7].isfinite().any() and not gradient[:, :, 2:5, 2:5].isfinite().any()


def test_what_does_not_fit_stays_torchs(flags):
    kernels = kernels_of(torch.float32, *flags)
    hooked, parametrised = (nn.Conv2d(32, 32, 3, padding=1) for _ in range(2))
    hooked.register_forward_pre_hook(lambda module, inputs: None)
    nn.utils.parametrizations.weight_norm(parametrised)
    for conv in (hooked, parametrised, nn.Conv2d(32, 32, 3), nn.Conv2d(32, 32, 3, 2, 1),
                 nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 32, 5, padding=2),
                 nn.Conv2d(32, 32, 3, padding="same"), nn.Conv2d(32, 32, 3, padding=2, dilation=2),
                 nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect"),
                 nn.Conv2d(20, 32, 3, padding=1), nn.Conv2d(32, 20, 3, padding=1), nn.Conv2d(3, 20, 3),
                 nn.Conv2d(3, 32, 3, padding="same"), nn.Conv2d(3, 32, 3, padding=1, padding_mode="circular"),
                 nn.Conv2d(3, 33, 3, groups=3), nn.Conv2d(3, 32, 3, dilation=2)):
        assert ours(conv, kernels) is None
    assert ours(nn.Linear(32, 32), kernels) is None
    assert isinstance(ours(nn.Conv2d(32, 64, 3, padding=1), kernels), Winograd)
    assert isinstance(ours(nn.Conv2d(3, 64, 7), kernels), FirstConv)


def test_small_results_stay_torchs():
    """Tiles far over the edge cost more than they save: on the 2x2 results of a ResNet-18 at 64 pixels."""
    kernels_of(torch.float32)
    paying = [size for size in range(1, 15) if convs.winograd_pays((1, 1, size, size))]
    assert paying == [3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    network = torchvision.models.resnet18(num_classes=5).eval().requires_grad_(False)
    for size, count in ((64, 10), (128, 13)):
        engine = make_fast_engine(network, Weights(0.01, 10.0, 0, 0), size)
        assert sum(isinstance(module, Winograd) for module in engine.network.modules()) == count
        line = convs.describe_convolutions(engine.network, torch.float32)
        assert line == f"{count} of 20 convolutions by Winograd's algorithm"


def gradient_of(network, dtype, with_ours, monkeypatch):
    with monkeypatch.context() as patch:
        if not with_ours:
            patch.setattr("sre2l.kernels.cpu.host.replace_convolutions", lambda *_: None)
        engine = make_fast_engine(network.to(dtype), Weights(0.01, 10.0, 0, 0), 64)
    found = sum(isinstance(module, (Winograd, FirstConv)) for module in engine.network.modules())
    assert found == (11 if with_ours else 0)
    images = draw(1, 4, 3, 64, 64, seed=4).to(dtype)
    _, gradient = engine.loss_and_gradient(images, torch.tensor([[0, 1, 2, 3]]), [View(None, False, (0, 0))])
    return gradient.double() / gradient.double().norm()


def test_the_engines_gradient_is_near_double_precision(monkeypatch):
    """ResNet-18 has 10 convolutions that fit at this size and a first one:
    in float64 they change nothing, in float32 they are of torch's order.

    Without ReLU and max pool: where rounding makes one of them choose
    otherwise, the gradient moves by up to a hundredth, torch's as well."""
    kernels_of(torch.float32)
    network = torchvision.models.resnet18(num_classes=5)
    network.maxpool = nn.AvgPool2d(3, 2, 1)
    for module in list(network.modules()):
        if hasattr(module, "relu"):
            module.relu = nn.Softplus()
    network = calibrated(network, 64, 3)
    exact = gradient_of(network, torch.float64, False, monkeypatch)
    assert (gradient_of(network, torch.float64, True, monkeypatch) - exact).norm() < 1e-11
    gradients = [gradient_of(network, torch.float32, with_ours, monkeypatch) for with_ours in (False, True)]
    torchs, found = ((gradient - exact).norm() for gradient in gradients)
    assert found <= max(6 * torchs, 1e-6)


def test_triton_needs_a_compiler_too(monkeypatch):
    """Without one its kernels would fail in the middle of a run."""
    why = compiled.why_no_triton.__wrapped__
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    assert "without Triton" in why()
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert "C compiler" in why()
    monkeypatch.setenv("CC", "gcc")
    assert why() is None


def test_the_kernels_are_checked_wherever_they_are_first_asked_for():
    """Also between two draws of torch's generator, which are the same without it."""
    kernels_of(torch.float32)
    before = torch.get_rng_state()
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert host_kernels.__wrapped__(torch.float32)[0]
    assert torch.equal(torch.get_rng_state(), before)
