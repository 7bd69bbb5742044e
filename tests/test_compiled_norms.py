"""The compiled passes over an activation against the formulas in torch, in single and double precision."""
import itertools

import pytest
import torch
import torchvision

from recover.engines import make_fast_engine
from recover.fast import CpuEngine
from recover.objective import Weights
from recover.views import View
from sre2l.kernels import norms as formulas
from sre2l.kernels.cpu.host import host_passes
from tests.nets import calibrated

CLAMPS = {"none": (-formulas.INF, formulas.INF), "relu": (0.0, formulas.INF), "relu6": (0.0, 6.0)}


@pytest.fixture
def passes():
    """The compiled passes, or the test is skipped: a machine without a compiler uses torch."""
    found, line = host_passes()
    if found is formulas.Passes:
        pytest.skip(line)
    return found


def make_norm(channels, dtype, clamp, copies, groups, coefficient):
    g = torch.Generator().manual_seed(channels)
    layer = torch.nn.BatchNorm2d(channels)
    for values in (layer.running_mean, layer.running_var, layer.weight.data, layer.bias.data):
        values.copy_(0.5 + torch.rand(channels, generator=g))
    norm = formulas.Norm(layer.to(dtype), coefficient, 1.0)
    norm.facts.low, norm.facts.high = CLAMPS[clamp]
    norm.facts.copies = copies
    norm.run.groups = groups
    return norm


def draw(shape, dtype, num=4):
    """num tensors, NHWC in memory."""
    g = torch.Generator().manual_seed(1)
    values = 3 * torch.randn((num, shape[0], *shape[2:], shape[1]), dtype=torch.float64, generator=g)
    return list(values.movedim(-1, 2).to(dtype))


def both_passes(passes, norm, x, other, gradients):
    """-> (y, mean, var, gradient of x, of other), what is not there left out."""
    facts = norm.facts
    run = norm.run
    results, saved = passes.forward(x, other, facts, run)
    moments = ()
    if facts.coefficient:
        formulas.finish([norm])
        moments = run.moments
    found = passes.backward(gradients[:facts.copies], saved, facts, run, other is not None)
    return [results[0], *moments, *(g for g in found if g is not None)]


@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("shape", ((6, 3, 5, 7), (3, 24, 9, 40), (3, 513, 3, 3), (3, 16, 1, 1), (300, 65)))
def test_compiled_passes_equal_the_formulas(passes, shape, clamp):
    """float32 within its rounding of torch and of float64; bfloat16 within one rounding of float64."""
    cases = itertools.product((False, True), (1, 2), (1, 3), (0.0, 0.5))
    kinds = ((torch.float64, formulas.Passes), (torch.float32, formulas.Passes), (torch.float32, passes),
             (torch.bfloat16, passes))
    for with_other, copies, groups, coefficient in cases:
        exact = draw(shape, torch.bfloat16)
        case = (clamp, copies, groups, coefficient)
        found = {}
        for dtype, one in kinds:
            x, other, *gradients = (values.to(dtype) for values in exact)
            norm = make_norm(shape[1], torch.float64 if dtype == torch.float64 else torch.float32, *case)
            found[dtype, one] = both_passes(one, norm, x, other if with_other else None, gradients)
        for want, plain, got, bf16 in zip(*found.values()):
            scale = want.abs().max().clamp(min=1)  # the variance of equal values is what rounding leaves
            assert (got - want).abs().max() <= 1e-5 * scale and (got - plain).abs().max() <= 1e-5 * scale
            if bf16.dtype == torch.bfloat16:
                # Where y is kept, a value may be masked that rounding took to the clamp's end.
                off = (bf16 - want).abs() > want.abs() * 2 ** -8 + 1e-5 * scale
                assert off.double().mean() <= (0.002 if clamp == "relu6" and with_other else 0)
            else:
                assert torch.allclose(bf16.double(), want, rtol=1e-5, atol=1e-5 * scale.item())


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("bad", (float("nan"), float("inf"), -float("inf")))
def test_what_is_not_finite_passes_as_in_torch(passes, dtype, bad):
    for clamp, with_other, coefficient in itertools.product(CLAMPS, (False, True), (0.0, 0.5)):
        x, other, *gradients = draw((3, 33, 5, 5), dtype)
        x[1, 7, 2, 2], gradients[0][2, 3, 1, 1] = bad, bad
        norms = [make_norm(33, torch.float32, clamp, 1, 1, coefficient) for _ in range(2)]
        found = [both_passes(one, norm, x, other if with_other else None, gradients)
                 for one, norm in zip((formulas.Passes, passes), norms)]
        for want, got in zip(*found):
            assert torch.equal(want.isnan(), got.isnan()) and torch.equal(want.isinf(), got.isinf())
            assert torch.equal(want[want.isinf()], got[got.isinf()])


def test_the_results_are_the_same_in_every_run(passes):
    x, other, *gradients = draw((4, 64, 32, 32), torch.float32)
    norms = [make_norm(64, torch.float32, "relu", 2, 1, 0.5) for _ in range(2)]
    first, again = (both_passes(passes, norm, x, other, gradients) for norm in norms)
    assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_what_the_kernel_does_not_take_goes_to_torch(passes):
    cases = ((torch.float64, torch.clone), (torch.float16, torch.clone),
             (torch.float32, torch.Tensor.contiguous))
    for dtype, change in cases:
        x, _, *gradients = (change(values) for values in draw((3, 24, 5, 5), dtype))
        exact = torch.promote_types(dtype, torch.float32)
        norms = [make_norm(24, exact, "relu", 1, 1, 0.5) for _ in range(2)]
        kinds = zip((formulas.Passes, passes), norms)
        found = [both_passes(one, norm, x, None, gradients) for one, norm in kinds]
        assert all(torch.equal(a, b) for a, b in zip(*found))


def test_gradients_in_another_layout_are_taken(passes):
    x, _, gradient, _ = draw((3, 24, 5, 5), torch.float32)
    norm = make_norm(24, torch.float32, "relu", 1, 1, 0.5)
    found = [both_passes(passes, norm, x, None, [one]) for one in (gradient, gradient.contiguous())]
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_an_engine_has_the_compiled_passes_and_its_gradient_is_as_near_to_double_precision(passes):
    network = calibrated(torchvision.models.resnet18(num_classes=5), 64, 3)
    g = torch.Generator().manual_seed(4)
    images = torch.randn(1, 4, 3, 64, 64, dtype=torch.float64, generator=g)
    targets = torch.tensor([[0, 1, 2, 3]])
    gradients = {}
    cases = (("exact", torch.float64, formulas.Passes), ("torch", torch.float32, formulas.Passes),
             ("compiled", torch.float32, passes))
    for name, dtype, one in cases:
        engine = make_fast_engine(network.to(dtype), Weights(0.01, 10.0, 0, 0), 64)
        assert isinstance(engine, CpuEngine)
        if dtype == torch.float32:
            assert all(norm.passes is passes for norm in engine.norms)
        for norm in engine.norms:
            norm.passes = one
        terms, gradient = engine.loss_and_gradient(images.to(dtype), targets, [View(None, False, (0, 0))])
        gradient = gradient.double().flatten()
        gradients[name] = torch.cat((gradient / gradient.norm(), terms.bn.double() / 1e6))
    off = {name: (gradients[name] - gradients["exact"]).norm() for name in ("torch", "compiled")}
    assert off["compiled"] <= max(2 * off["torch"], 1e-6)
