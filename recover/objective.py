"""The recover objective and its gradient, as the formula reads: the plain engine, the reference of the fast one in recover/fast.py.

    loss = CE(f(y), class) + r_bn * sum_l w_l (|mean_l - running_mean_l|_2 + |var_l - running_var_l|_2) + tv_l2 TV(y) + l2_scale mean_b |y_b|_2

An engine is anything with `tabulate(views)` and `loss_and_gradient(images, targets, view)` of G independent batches; step.py knows nothing else of it.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sre2l.kernels.adam import adam_step
from recover.views import apply_view
from sre2l.run.errors import UserError
from sre2l.kernels.norms import statistics_layers


def check_statistics(teacher):
    """Raise UserError for a network without statistics to match."""
    if not statistics_layers(teacher.network):
        raise UserError(f"{teacher.arch} has no BatchNorm layer with running statistics, so there is nothing to match; "
                        f"choose a teacher with BatchNorm, such as resnet18")


@dataclass(frozen=True)
class Terms:
    """The terms of the objective, (G,) each; bn, tv and l2 before their coefficients (a prior with coefficient 0 is not computed)."""
    ce: torch.Tensor
    bn: torch.Tensor
    tv: torch.Tensor
    l2: torch.Tensor


@dataclass(frozen=True)
class Weights:
    """The coefficients of the objective."""
    r_bn: float
    first_bn_multiplier: float
    tv_l2: float
    l2_scale: float


def total_variation(images):
    """Four Frobenius norms over the whole batch: differences to the right, lower, lower-left and lower-right neighbours."""
    x = images
    differences = (x[:, :, :, :-1] - x[:, :, :, 1:], x[:, :, :-1] - x[:, :, 1:],
                   x[:, :, 1:, :-1] - x[:, :, :-1, 1:], x[:, :, :-1, :-1] - x[:, :, 1:, 1:])
    return sum(torch.linalg.vector_norm(difference) for difference in differences)


def statistics_distance(features, layer):
    """|mean - running_mean|_2 + |var - running_var|_2 of one BatchNorm input (N, C, ...), over all but C, biased variance."""
    var, mean = torch.var_mean(features, [d for d in range(features.ndim) if d != 1], correction=0)
    return torch.linalg.vector_norm(mean - layer.running_mean) + torch.linalg.vector_norm(var - layer.running_var)


class PlainEngine:
    """Loss and gradient by autograd, one hook per BatchNorm layer; the readable reference. A layer that does not run adds nothing."""

    name, captures, adam_step = "plain", False, staticmethod(adam_step)

    def __init__(self, network, weights):
        self.network, self.weights = network, weights
        self.distances = []  # of the forward pass under way, filled by the hooks
        for index, layer in enumerate(statistics_layers(network) if weights.r_bn else ()):
            layer.register_forward_pre_hook(self.make_hook(weights.first_bn_multiplier if index == 0 else 1.0))

    def make_hook(self, multiplier):
        return lambda layer, inputs: self.distances.append(multiplier * statistics_distance(inputs[0], layer))

    def tabulate(self, views):
        """What loss_and_gradient takes as the view of iteration t, at [t]. views: T lists of G View."""
        return views

    def terms(self, images, targets, view):
        """images (B, 3, S, S) normalised, targets (B,) int64 -> Terms of one batch, scalars."""
        y = apply_view(images, view)
        self.distances.clear()
        ce = F.cross_entropy(self.network(y), targets)
        zero = ce.new_zeros(())
        tv = total_variation(y) if self.weights.tv_l2 else zero
        l2 = torch.linalg.vector_norm(y.flatten(1), dim=1).mean() if self.weights.l2_scale else zero
        return Terms(ce, sum(self.distances, zero), tv, l2)

    def batch_loss_and_gradient(self, images, targets, view):
        """One batch -> (its four terms, detached, the gradient of its loss with respect to images)."""
        images = images.detach().requires_grad_()
        terms = self.terms(images, targets, view)
        w = self.weights
        loss = terms.ce + w.r_bn * terms.bn + w.tv_l2 * terms.tv + w.l2_scale * terms.l2
        gradient, = torch.autograd.grad(loss, images)
        return [t.detach() for t in (terms.ce, terms.bn, terms.tv, terms.l2)], gradient

    def loss_and_gradient(self, images, targets, view):
        """G batches one after the other: images (G, B, 3, S, S), targets (G, B), G views -> (Terms, gradient like images). No host sync."""
        terms, gradients = zip(*(self.batch_loss_and_gradient(*batch) for batch in zip(images, targets, view)))
        return Terms(*(torch.stack(values) for values in zip(*terms))), torch.stack(gradients)
