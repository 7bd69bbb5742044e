"""Recover's loss and gradient against spec section 2, written out in fp64."""
import numpy as np
import pytest
import torch
import torchvision

from recover.objective import PlainEngine, Weights
from recover.views import View, draw_view
from tests.nets import build
from tests.test_views import matrices

SIZE = 20
VIEWS = {"all": View((3, 1, 11, 13), True, (5, -2)), "crop": View((0, 9, 20, 11), False, (0, 0)),
         "roll": View(None, False, (0, 3))}
WEIGHTS = {"published": Weights(0.01, 10.0, 0.0, 0.0), "priors": Weights(0.7, 3.0, 0.02, 0.05),
           "tv": Weights(0.3, 0.5, 0.1, 0.0)}


def priors(y):
    """TV(y): Frobenius norms of differences to four neighbours over the batch; the images' mean L2 norm."""
    rows, columns = y.shape[2:]
    tv = 0
    for down, right in ((0, 1), (1, 0), (1, -1), (1, 1)):
        from_column, to_column = max(0, -right), columns - max(0, right)
        here = y[:, :, :rows - down, from_column:to_column]
        there = y[:, :, down:, from_column + right:to_column + right]
        tv = tv + ((there - here) ** 2).sum().sqrt()
    return tv, sum((image ** 2).sum().sqrt() for image in y) / len(y)


def reference(forward, x, targets, view, w):
    """The formula of spec section 2 -> (loss, its gradient, {term: value})."""
    x = x.clone().requires_grad_()
    rows, columns = matrices(SIZE, view)
    y = rows @ x @ columns.T
    logits, norms = forward(y)
    ce = (logits.exp().sum(1).log() - logits[range(len(x)), targets.tolist()]).mean()
    bn = sum((w.first_bn_multiplier if name == "bn1" else 1) * norm for name, norm in norms.items())
    tv, l2 = priors(y)
    loss = ce + w.r_bn * bn + w.tv_l2 * tv + w.l2_scale * l2
    return loss.item(), torch.autograd.grad(loss, x)[0], {"ce": ce, "bn": bn, "tv": tv, "l2": l2}


def noise(batch, seed=3):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, SIZE, SIZE, dtype=torch.float64, generator=g)


def plain(engine, x, targets, view):
    """One batch: x (B, 3, S, S), targets (B,) -> (Terms of one group, gradient like x)."""
    terms, gradient = engine.loss_and_gradient(x[None], targets[None], [view])
    assert terms.ce.shape == terms.bn.shape == terms.tv.shape == terms.l2.shape == (1,)
    return terms, gradient[0]


def total(terms, w):
    return (terms.ce + w.r_bn * terms.bn + w.tv_l2 * terms.tv + w.l2_scale * terms.l2).item()


def check_formula(network, w, targets, view):
    """The plain engine's terms and gradient for a batch of noise are those of the formula."""
    teacher, forward = build(network)
    x = noise(len(targets))
    terms, gradient = plain(PlainEngine(teacher, w), x, targets, view)
    loss, wanted, parts = reference(forward, x, targets, view, w)
    assert total(terms, w) == pytest.approx(loss, rel=1e-12)
    for key, coefficient in (("ce", 1), ("bn", w.r_bn), ("tv", w.tv_l2), ("l2", w.l2_scale)):
        assert getattr(terms, key).item() == pytest.approx(parts[key].item() if coefficient else 0, rel=1e-12)
    assert (gradient - wanted).norm() / wanted.norm() < 1e-10


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("network", ("conv", "head", "idle", "resnet18"))
def test_loss_and_gradient_equal_the_formula(network, weights, view):
    """Also with a BatchNorm layer that never runs: it adds nothing."""
    check_formula(network, WEIGHTS[weights], torch.tensor([4, 0, 0, 2]), VIEWS[view])


@pytest.mark.parametrize("network", ("conv", "head"))
def test_a_block_of_one_image_equals_the_formula(network):
    """The last block of an IPC index may hold a single image; its variance over one row is 0, not NaN."""
    check_formula(network, WEIGHTS["priors"], torch.tensor([3]), VIEWS["all"])


def test_batches_at_a_time_are_computed_as_if_alone():
    """Three batches, each with a view of its own, against the formula of each."""
    teacher, forward = build("head")
    w, views = WEIGHTS["priors"], [VIEWS["crop"], VIEWS["all"], VIEWS["roll"]]
    x = torch.stack([noise(4, seed) for seed in range(3)])
    targets = torch.tensor([[4, 0, 0, 2], [1, 1, 2, 3], [0, 1, 2, 3]])
    terms, gradient = PlainEngine(teacher, w).loss_and_gradient(x, targets, views)
    for group in range(3):
        loss, wanted, parts = reference(forward, x[group], targets[group], views[group], w)
        found = [getattr(terms, key)[group].item() for key in parts]
        assert found == pytest.approx([value.item() for value in parts.values()], rel=1e-12)
        assert (gradient[group] - wanted).norm() / wanted.norm() < 1e-10


@pytest.mark.parametrize("jitter, signed", ((4, False), (4, True), (0, False), (0, True)))
def test_roll_is_uniform_from_0_or_from_minus_jitter_to_jitter_inclusive(jitter, signed):
    rng = np.random.default_rng(0)
    rolls = [draw_view(SIZE, jitter, signed, False, rng) for _ in range(3000)]
    values = list(range(-jitter if signed else 0, jitter + 1))
    for axis in (0, 1):
        counts = [sum(view.roll[axis] == v for view in rolls) for v in values]
        assert sum(counts) == 3000
        assert min(counts) > 0.75 * 3000 / len(values)
    pairs = {view.roll for view in rolls}
    assert len(pairs) == len(values) ** 2  # rows and columns independent
    assert all(view.window is None and not view.flip for view in rolls)


def test_windows_are_distributed_like_torchvisions():
    """Mean and quartiles of area, aspect and place against RandomResizedCrop.get_params."""
    rng, size, count = np.random.default_rng(2), 96, 4000
    torch.manual_seed(0)
    image = torch.zeros(3, size, size)
    get_params = torchvision.transforms.RandomResizedCrop.get_params
    theirs = np.array([get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(count)], float)
    views = [draw_view(size, 0, False, True, rng) for _ in range(count)]
    assert 0.45 < np.mean([view.flip for view in views]) < 0.55
    ours = np.array([view.window for view in views], float)
    for feature in (lambda w: w[:, 2] * w[:, 3] / size ** 2, lambda w: np.log(w[:, 3] / w[:, 2]),
                    lambda w: w[:, 0] / size, lambda w: w[:, 1] / size):
        a, b = feature(ours), feature(theirs)
        assert abs(a.mean() - b.mean()) < 5 * np.sqrt((a.var() + b.var()) / count)
        assert np.abs(np.quantile(a, (0.25, 0.5, 0.75)) - np.quantile(b, (0.25, 0.5, 0.75))).max() < 0.04
