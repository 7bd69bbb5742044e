"""The recover objective and its gradient as the formula reads: the plain engine, the fast one's reference.

    loss = CE(f(y), class) + r_bn * sum_l w_l (|mean_l - running_mean_l|_2 + |var_l - running_var_l|_2)
           + tv_l2 TV(y) + l2_scale mean_b |y_b|_2

y: what the network sees of the images, one view for the whole batch (views.py). w_l: first_bn_multiplier for
the first BatchNorm layer, 1 for the others."""
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from recover.views import apply_view
from sre2l.kernels.adam import adam_step
from sre2l.kernels.norms import statistics_layers
from sre2l.run.errors import UserError


@dataclass(frozen=True)
class Terms:
    """The terms of the objective, (G,) each, before their coefficients. A prior without one is 0."""
    ce: torch.Tensor  # cross-entropy
    bn: torch.Tensor  # distance of the BatchNorm statistics
    tv: torch.Tensor  # total variation
    l2: torch.Tensor  # mean L2 norm of the images


@dataclass(frozen=True)
class Weights:
    """The coefficients of the objective; each is a flag of recover.py under the same name."""
    r_bn: float
    first_bn_multiplier: float
    tv_l2: float
    l2_scale: float

    def by_term(self):
        """-> {term: its coefficient in the loss}."""
        return {"ce": 1.0, "bn": self.r_bn, "tv": self.tv_l2, "l2": self.l2_scale}


TERMS = tuple(field.name for field in fields(Terms))
WEIGHTS = tuple(field.name for field in fields(Weights))


def weighted_sum(values, weights):
    """Each term times its coefficient, summed: the loss, where values {term: value} has all terms."""
    coefficients = weights.by_term()
    return sum(coefficients[name] * value for name, value in values.items())


def statistics_distance(features, layer):
    """|mean - running_mean|_2 + |var - running_var|_2 of an input (N, C, ...), biased variance."""
    var, mean = torch.var_mean(features, [d for d in range(features.ndim) if d != 1], correction=0)
    mean_distance = torch.linalg.vector_norm(mean - layer.running_mean)
    var_distance = torch.linalg.vector_norm(var - layer.running_var)
    return mean_distance + var_distance


def total_variation(images):
    """Four Frobenius norms over the batch: differences to the right, below, lower left, lower right."""
    x = images
    differences = (x[:, :, :, :-1] - x[:, :, :, 1:], x[:, :, :-1] - x[:, :, 1:],
                   x[:, :, 1:, :-1] - x[:, :, :-1, 1:], x[:, :, :-1, :-1] - x[:, :, 1:, 1:])
    return sum(torch.linalg.vector_norm(difference) for difference in differences)


def mean_norm(images):
    """The L2 norm of an image, averaged over the batch."""
    return torch.linalg.vector_norm(images.flatten(1), dim=1).mean()


PRIORS = {"tv": total_variation, "l2": mean_norm}  # the terms that depend on the images alone


def prior_terms(y, weights):
    """The priors of one batch y (B, 3, S, S) as scalars, {term: value}; 0 where the coefficient is 0."""
    coefficients = weights.by_term()
    return {name: prior(y) if coefficients[name] else y.new_zeros(()) for name, prior in PRIORS.items()}


class PlainEngine:
    """Loss and gradient by autograd, a hook on each BatchNorm layer. One that does not run adds nothing."""

    name = "plain"
    captures = False
    adam_step = staticmethod(adam_step)

    def __init__(self, network, weights, precision="fp32"):
        self.network = network
        self.weights = weights
        self.precision = precision
        self.distances = []  # of the forward pass under way, one for each BatchNorm layer that has run
        for index, layer in enumerate(statistics_layers(network) if weights.r_bn else ()):
            multiplier = weights.first_bn_multiplier if index == 0 else 1.0
            layer.register_forward_pre_hook(self.make_hook(multiplier))

    def make_hook(self, multiplier):
        return lambda layer, inputs: self.distances.append(multiplier * statistics_distance(inputs[0], layer))

    def at(self, iteration):
        return self

    def tabulate(self, views):
        return views

    def batch_terms(self, images, targets, view):
        """images (B, 3, S, S) normalised, targets (B,) int64 -> Terms of one batch, scalars."""
        y = apply_view(images, view)  # one crop, flip and roll for the whole batch
        self.distances.clear()
        ce = F.cross_entropy(self.network(y), targets)  # the hooks fill self.distances here
        bn = sum(self.distances, ce.new_zeros(()))
        return Terms(ce, bn, **prior_terms(y, self.weights))

    def batch_loss_and_gradient(self, images, targets, view):
        """One batch -> (its Terms, detached, the gradient of its loss with respect to images)."""
        images = images.detach().requires_grad_()
        terms = self.batch_terms(images, targets, view)
        gradient, = torch.autograd.grad(weighted_sum(vars(terms), self.weights), images)
        return Terms(**{name: term.detach() for name, term in vars(terms).items()}), gradient

    def loss_and_gradient(self, images, targets, view):
        found = [self.batch_loss_and_gradient(*batch) for batch in zip(images, targets, view)]
        terms = {name: torch.stack([getattr(batch, name) for batch, _ in found]) for name in TERMS}
        return Terms(**terms), torch.stack([gradient for _, gradient in found])


def check_statistics(network, arch):
    """Raise UserError for a network without statistics to match. arch: its name."""
    if not statistics_layers(network):
        raise UserError(f"{arch} has no BatchNorm layer with running statistics, so there is nothing "
                        f"to match; choose a teacher with BatchNorm, such as resnet18, mobilenet_v2, "
                        f"densenet121 or convnet3 (relabel and validate take any network)")
