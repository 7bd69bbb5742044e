"""The fast engine against the plain one, for the tests on CPU, in Triton's interpreter and on a GPU."""
import copy

import numpy as np
import torch
from torch import nn

from recover.batches import BatchGroup, ImageBatch
from recover.engines import make_fast_engine
from recover.objective import TERMS, PlainEngine, Weights
from recover.targets import BnTarget
from recover.views import View, draw_view
from sre2l.kernels.norms import statistics_layers
from sre2l.nets.models import get_network
from sre2l.nets.statistics import Statistics
from tests.nets import SmallNet, calibrated

ALL = Weights(0.1, 10.0, 0.02, 0.05)
PARTS = {"published": Weights(0.01, 10.0, 0.0, 0.0), "tv": Weights(0.3, 0.5, 0.1, 0.0),
         "l2": Weights(0.3, 1.0, 0.0, 0.1),
         "no statistics": Weights(0.0, 10.0, 0.02, 0.05), "cross-entropy alone": Weights(0.0, 10.0, 0.0, 0.0),
         "first layer off": Weights(0.1, 0.0, 0.02, 0.05),
         "statistics above all": Weights(1e3, 1.0, 0.0, 0.0)}
KINDS = {  # of --bn-target: W, and whether the statistics normalise
    "class:0": (0.0, False), "class:0.3": (0.3, False), "class:1": (1.0, False), "group": (1.0, True)}


def network_of(arch, size):
    """A torchvision network, or 'small', with five classes and statistics near those of noise; fp64."""
    torch.manual_seed(1)
    options = {"aux_logits": True, "init_weights": True} if arch in ("inception_v3", "googlenet") else {}
    network = SmallNet(head_norm=True) if arch == "small" else get_network(arch, num_classes=5, **options)
    if arch.startswith("vgg"):
        network.classifier = nn.Linear(512 * 7 * 7, 5)  # its own has 120 million weights and no BatchNorm
    return calibrated(network, size, 2)


def draw_case(size, groups, batch, seed=0):
    """-> images (G, B, 3, S, S) fp64, targets (G, B), G views, all different."""
    rng = np.random.default_rng(seed)
    g = torch.Generator().manual_seed(seed)
    images = torch.randn(groups, batch, 3, size, size, dtype=torch.float64, generator=g)
    views = [draw_view(size, size // 4, True, True, rng) for _ in range(groups)]
    if seed % 2:
        views[-1] = View(None, False, (size // 3, -1))
    return images, torch.randint(0, 5, (groups, batch), generator=g), views


def total(terms, w):
    """The loss."""
    return terms.ce + w.r_bn * terms.bn + w.tv_l2 * terms.tv + w.l2_scale * terms.l2


def differences(found, wanted, weights):
    """The largest relative differences of (Terms, gradient) over all groups -> (loss, any term, gradient)."""
    (terms, gradient), (plain_terms, plain_gradient) = found, wanted
    pairs = [(total(terms, weights), total(plain_terms, weights))]
    pairs += [(getattr(terms, key), getattr(plain_terms, key)) for key in TERMS]
    assert all(a.shape == b.shape == plain_gradient.shape[:1] for a, b in pairs)
    assert gradient.shape == plain_gradient.shape
    loss, *each = (((a - b).abs() / b.abs().clamp(min=1e-30)).max().item() for a, b in pairs)
    off = (gradient - plain_gradient).flatten(1).norm(dim=1) / plain_gradient.flatten(1).norm(dim=1)
    return loss, max(each), off.max().item()


def check_parity(network, size, groups=1, batch=2, weights=ALL, engine=None, seed=0, times=1):
    """Each group's terms and gradient are the plain engine's for it alone, to 1e-10 -> the fast engine."""
    device = next(network.parameters()).device
    images, targets, views = draw_case(size, groups, batch, seed)
    images, targets = images.to(device), targets.to(device)
    engine = engine or make_fast_engine(network, weights, size)
    plain = PlainEngine(copy.deepcopy(network), weights)
    slices = [slice(i, i + 1) for i in range(groups)]
    one_by_one = [plain.loss_and_gradient(images[i], targets[i], views[i]) for i in slices]
    terms = type(one_by_one[0][0])(*(torch.cat([getattr(t, key) for t, _ in one_by_one]) for key in TERMS))
    wanted = terms, torch.cat([gradient for _, gradient in one_by_one])
    for _ in range(times):  # again, with what the engine keeps between iterations
        found = engine.loss_and_gradient(images, targets, engine.tabulate([views])[0])
        loss, term, gradient = differences(found, wanted, weights)
        assert loss < 1e-12 and gradient < 1e-10, (loss, gradient)
        assert term < 1e-11, term  # one term may be small, and the loss large
    return engine


def draw_statistics(network, number=5, seed=0):
    """Statistics of `number` classes or groups, near the running ones and all different; fp64."""
    g = torch.Generator().manual_seed(seed)
    layers = statistics_layers(network)

    def rand(layer):
        return torch.rand(number, layer.num_features, dtype=torch.float64, generator=g)

    return Statistics([layer.running_mean.cpu() + 0.6 * (rand(layer) - 0.5) for layer in layers],
                      [layer.running_var.cpu() * (0.5 + rand(layer)) for layer in layers])


def target_of(kind, network, seed=0):
    return BnTarget(*KINDS[kind], draw_statistics(network, seed=seed))


def group_of(targets, first_ipc=0):
    """Class numbers (G, B) -> a BatchGroup. Its batches have the ipc indices first_ipc, first_ipc + 1, ..."""
    return BatchGroup(tuple(ImageBatch(i, tuple((first_ipc + i, label) for label in labels))
                            for i, labels in enumerate(torch.as_tensor(targets).tolist())))


def check_target_parity(network, size, target, shapes):
    """One fast engine for batches of these shapes (G, B) in turn finds what a fresh plain one finds."""
    device = next(network.parameters()).device
    engine = make_fast_engine(network, ALL, size, target=target)
    for seed, (groups, batch) in enumerate(shapes):
        images, targets, views = draw_case(size, groups, batch, seed)
        images, targets = images.to(device), targets.to(device)
        found = []
        for one in (engine, PlainEngine(copy.deepcopy(network), ALL, target=target)):
            one.take_up(group_of(targets, first_ipc=seed % 2))
            found.append(one.loss_and_gradient(images, targets, one.tabulate([views])[0]))
        loss, term, gradient = differences(*found, ALL)
        assert loss < 1e-12 and term < 1e-11 and gradient < 1e-10, (loss, term, gradient)
    return engine
