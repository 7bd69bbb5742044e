"""The fast engine's loss and gradient against the plain engine's in fp64."""
import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from recover import engines
from recover.engines import Matched, make_engine, make_fast_engine
from recover.fast import FastEngine, coefficients
from recover.objective import PlainEngine, Weights, statistics_layers
from recover.views import View
from sre2l.kernels.fuse import fuse
from sre2l.run.errors import UserError
from tests.oddnets import PATTERNS, SIZE, odd_network
from tests.parity import ALL, PARTS, check_parity, draw_case, network_of

# What each brings: a stem with a pool, ReLU6, shuffled channels, concatenation, grouped convolutions with
# squeeze and excitation, no residuals, branches with an auxiliary head, hardswish, a BatchNorm1d in the head.
FAMILIES = {"resnet18": 32, "mobilenet_v2": 32, "shufflenet_v2_x0_5": 33, "densenet121": 32,
            "regnet_y_400mf": 32, "vgg11_bn": 32, "inception_v3": 75, "mobilenet_v3_small": 40, "small": 20}
UNTRACEABLE = ("class of its own", "decides")  # for torch.fx
UNSAFE = ("changed under another name", "changed without a name", "sum under another name", "ignored",
          "looked away", "without statistics")  # what a rewritten graph or stacked batches would change


def terms_of(engine, case):
    images, targets, views = case
    return engine.loss_and_gradient(images, targets, engine.tabulate([views])[0])


@pytest.mark.parametrize("arch", FAMILIES)
def test_loss_and_gradient_equal_the_plain_engines(arch):
    """Three batches at a time, the same again, then one at a time with the same engine."""
    size = FAMILIES[arch]
    network = network_of(arch, size)
    engine = check_parity(network, size, 3, times=2)
    check_parity(network, size, 1, engine=engine)
    every_one_recognised = not any(isinstance(module, _BatchNorm) for module in engine.network.modules())
    assert every_one_recognised


@pytest.mark.parametrize("weights", PARTS)
@pytest.mark.parametrize("arch", ("resnet18", "small"))
def test_every_prior_on_and_off(arch, weights):
    network = network_of(arch, 20)
    engine = check_parity(network, 20, 3, weights=PARTS[weights], seed=1)
    check_parity(network, 20, 1, weights=PARTS[weights], engine=engine, seed=1)


@pytest.mark.parametrize("batch", (1, 5))
def test_a_batch_of_one_image_and_of_an_odd_number(batch):
    check_parity(network_of("resnet18", 48), 48, 2, batch)


@pytest.mark.parametrize("pattern", [name for name in PATTERNS if name not in UNTRACEABLE + UNSAFE])
def test_what_a_network_does_with_a_norms_result_is_kept(pattern):
    network = odd_network(pattern)
    for groups in (1, 3):
        check_parity(network, SIZE, groups)


@pytest.mark.parametrize("pattern", UNTRACEABLE + UNSAFE)
def test_a_network_that_cannot_be_rewritten_gets_the_plain_engine_and_a_line(pattern):
    network = odd_network(pattern)
    case = draw_case(SIZE, 3, 2)
    engine, note = make_engine("fast", [Matched(network, ALL)], None, SIZE, "fp32")
    terms, gradient = terms_of(engine, case)
    wanted, wanted_gradient = PlainEngine(copy.deepcopy(network), ALL).loss_and_gradient(*case)
    assert torch.equal(terms.bn, wanted.bn) and torch.equal(gradient, wanted_gradient)
    assert "plain engine" in note and "\n" not in note
    with pytest.raises(UserError, match="--precision bf16 needs the fast engine"):
        make_engine("fast", [Matched(network, ALL)], None, SIZE, "bf16")


def test_a_term_that_the_fast_engine_does_not_have_is_named(monkeypatch):
    """Where it counts; what else differs is laid to the network."""
    monkeypatch.setattr(FastEngine, "priors", lambda self, seen, groups: {})
    network = network_of("small", 20)
    for part, wanted in (("l2", "plain engine: the fast engine does not have the term l2"),
                         ("published", "fast engine")):
        engine, note = make_engine("fast", [Matched(network, PARTS[part])], None, 20, "fp32")
        assert note.startswith(wanted)
    why = engines.why_not_fast(odd_network("looked away"), PARTS["published"], SIZE)
    assert why == "traced by torch.fx, this network computes something else"


def test_without_a_precision_the_plain_engine_gets_one_that_it_has(monkeypatch):
    """Also where the fast engine would take half precision."""
    monkeypatch.setattr(engines, "default_precision", lambda fast, device: "fp16" if fast else "fp32")
    engine, _ = make_engine("fast", [Matched(odd_network("decides"), ALL)], None, SIZE, None)
    assert (engine.name, engine.precision) == ("plain", "fp32")
    engine, _ = make_engine("fast", [Matched(network_of("small", 20), ALL)], None, 20, None)
    assert (engine.name, engine.precision) == ("fast", "fp16")


def test_the_plain_engine_where_it_is_asked_for():
    network = network_of("small", 20)
    engine, note = make_engine("plain", [Matched(network, ALL)], None, 20, "fp32")
    assert isinstance(engine, PlainEngine) and note == "plain engine"
    with pytest.raises(UserError, match="--precision fp16 needs the fast engine"):
        make_engine("plain", [Matched(network, ALL)], None, 20, "fp16")
    engine, note = make_engine("fast", [Matched(network, ALL)], None, 20, "fp32")
    assert isinstance(engine, FastEngine) and note.startswith("fast engine")


def fused(pattern, on_gpu=False):
    """-> (operations that are left beside the Norms and those of every pattern, the Norms)."""
    network = odd_network(pattern)
    traced, norms = fuse(network, coefficients(network, ALL), SIZE, on_gpu=on_gpu)
    targets = [str(getattr(node.target, "__name__", node.target)) for node in traced.graph.nodes]
    operations = ("add", "relu", "relu6", "clamp", "hardtanh", "pool")
    return [target for target in targets if target in operations], norms


def test_what_is_recognised_runs_within_the_norm():
    """Of each pattern what is left of sums, clamps and pools, and (low, high, copies) of each Norm."""
    inf = float("inf")
    relu, none = (0, inf, 1), (-inf, inf, 1)
    for pattern, left, norms in (
            ("relu", [], [relu, relu]), ("relu6", [], [(0, 6, 1), relu]),
            ("hardtanh", [], [(-1, 2, 1), relu]), ("nothing", [], [none, relu]),
            ("residual", [], [(0, inf, 2), relu]), ("residual in place", [], [(0, inf, 2), relu]),
            ("residual without relu", [], [(-inf, inf, 2), none]), ("three ways", ["add"], [relu, relu]),
            ("two norms", [], [(-inf, inf, 2), relu, none]), ("a number", ["add", "relu"], [none, relu]),
            ("broadcast over images", ["add", "relu"], [none, relu]),
            ("itself", ["add", "relu"], [none, relu]),
            ("times alpha", ["add", "relu"], [(-inf, inf, 2), relu]), ("pool", ["pool"], [relu, relu]),
            ("layer twice", [], [relu, relu, relu]), ("with its activation", [], [relu, relu])):
        remaining, found = fused(pattern)
        assert remaining == left, pattern
        facts = [norm.facts for norm in found]
        assert sorted((one.low, one.high, one.copies) for one in facts) == sorted(norms), pattern


def test_on_a_gpu_the_stem_pool_and_the_shortcuts_stride_are_within_the_norm():
    for pattern, left, pools, thins in (
            ("pool", [], 1, 0), ("pool of relu6", [], 1, 0), ("pool, two ways", [], 1, 0),
            ("pool and not", ["pool", "add"], 0, 0), ("pool without relu", ["pool"], 0, 0),
            ("pool after a sum", ["pool"], 0, 0), ("shortcut", [], 0, 1), ("thin twice", None, 0, 0),
            ("thin alone", [], 0, 0)):
        remaining, norms = fused(pattern, on_gpu=True)
        assert left is None or remaining == left, pattern
        found = sum(norm.facts.pool for norm in norms), sum(norm.facts.thins for norm in norms)
        assert found == (pools, thins), pattern


def test_a_layer_that_is_not_the_first_keeps_weight_one_and_the_first_its_multiplier():
    """In module order, not in the order of running; of every run of a layer that runs twice."""
    network = odd_network("first layer twice")
    _, norms = fuse(network, coefficients(network, Weights(0.5, 7.0, 0, 0)), SIZE)
    assert [(norm.facts.weight, norm.facts.coefficient) for norm in norms] == [(7.0, 3.5), (7.0, 3.5)]
    network = network_of("resnet18", 32)
    _, norms = fuse(network, coefficients(network, Weights(0.5, 7.0, 0, 0)), 32)
    assert [norm.facts.weight for norm in norms] == [7.0] + [1.0] * (len(statistics_layers(network)) - 1)


def test_the_teacher_is_left_as_it_was():
    network = network_of("resnet18", 32)
    before = copy.deepcopy(network.state_dict())
    strides = [m.stride for m in network.modules() if isinstance(m, nn.Conv2d)]
    plain, _ = make_engine("plain", [Matched(network, ALL)], None, 32, "fp32")
    for engine in (make_fast_engine(network, ALL, 32), plain):
        x, targets, views = draw_case(32, 2, 2)
        for _ in range(2):
            _, gradient = engine.loss_and_gradient(x, targets, engine.tabulate([views])[0])
            x = x - 0.1 * gradient
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]) and value.dtype == before[key].dtype
    assert [m.stride for m in network.modules() if isinstance(m, nn.Conv2d)] == strides
    assert all(m.inplace for m in network.modules() if isinstance(m, nn.ReLU))
    assert not any(m._forward_pre_hooks for m in network.modules())
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    assert not x.requires_grad


def test_the_images_are_left_to_adam():
    """Neither engine writes into the images or keeps them; a view as drawn is seen, whatever came before."""
    network = network_of("small", 20)
    images, targets, views = draw_case(20, 2, 3)
    for engine in (PlainEngine(copy.deepcopy(network), ALL), make_fast_engine(network, ALL, 20)):
        before = images.clone()
        first = terms_of(engine, (images, targets, views))
        terms_of(engine, (images.roll(2, 4), targets, [View(None, True, (1, 1))] * 2))
        again = terms_of(engine, (images, targets, views))
        assert torch.equal(images, before)
        assert torch.equal(first[1], again[1]) and torch.equal(first[0].bn, again[0].bn)
