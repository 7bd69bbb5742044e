"""The recover objective and its gradient as the formula reads: the plain engine, the fast one's reference.

    loss = CE(f(y), class) + r_bn * sum_l w_l (|mean_l - running_mean_l|_2 + |var_l - running_var_l|_2)
           + tv_l2 TV(y) + l2_scale mean_b |y_b|_2

y: what the network sees of the images, one view for the whole batch (views.py). w_l: first_bn_multiplier for
the first BatchNorm layer, 1 for the others. The statistics to match may be others: targets.py. Several
teachers: several.py."""
from dataclasses import MISSING, dataclass, fields, replace

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
    """The coefficients of the objective; each is a flag of recover.py under the same name.

    One that older runs did not have stands at the end, with the default 0.0."""
    r_bn: float
    first_bn_multiplier: float
    tv_l2: float
    l2_scale: float

    def by_term(self):
        """-> {term: its coefficient in the loss}."""
        return {"ce": 1.0, "bn": self.r_bn, "tv": self.tv_l2, "l2": self.l2_scale}

    def with_priors_over(self, number):
        """The same with the coefficients of the priors divided by a number."""
        return replace(self, tv_l2=self.tv_l2 / number, l2_scale=self.l2_scale / number)


TERMS = tuple(field.name for field in fields(Terms))
WEIGHTS = tuple(field.name for field in fields(Weights) if field.default is MISSING)
LATER_WEIGHTS = tuple(field.name for field in fields(Weights) if field.default is not MISSING)


def weighted_sum(values, weights):
    """Each term times its coefficient, summed: the loss, where values {term: value} has all terms."""
    coefficients = weights.by_term()
    return sum(coefficients[name] * value for name, value in values.items())


class Engine:
    """All that step.py and recover.py use of an engine. It computes G independent batches at a time.

    Where several teachers take turns, loss_and_gradient and weights are those of what `at` gives."""

    # Each engine has besides a `name`, one of engines.ENGINES, and the `precision` of its network.
    captures = False  # whether a CUDA graph can replay an iteration
    period = 1        # how many iterations it takes until `at` gives the same again
    adam_step = staticmethod(adam_step)

    def at(self, iteration):
        """-> the Engine that computes this iteration of every batch, counted from 0."""
        return self

    def take_up(self, group):
        """Take up a BatchGroup: what its batches are to match. Before their first iteration."""

    def tabulate(self, views):
        """views: T lists of G View -> what loss_and_gradient takes as the view of iteration t, at [t]."""
        return views

    def loss_and_gradient(self, images, targets, view):
        """images (G, B, 3, S, S), targets (G, B), view: of tabulate's -> (Terms, gradient like images).

        Neither writes into the images nor waits for the GPU."""
        raise NotImplementedError


def statistics_distance(features, target_mean, target_var):
    """|mean - target_mean|_2 + |var - target_var|_2 of an input (N, C, ...), biased variance."""
    var, mean = torch.var_mean(features, [d for d in range(features.ndim) if d != 1], correction=0)
    mean_distance = torch.linalg.vector_norm(mean - target_mean)
    var_distance = torch.linalg.vector_norm(var - target_var)
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


class PlainEngine(Engine):
    """Loss and gradient by autograd, a hook on each BatchNorm layer. One that does not run adds nothing."""

    name = "plain"

    def __init__(self, network, weights, precision="fp32", target=None):
        self.network = network
        self.weights = weights
        self.precision = precision
        self.target = target  # a targets.BnTarget; that of groups writes the network's running statistics
        self.wanted = None    # of it: for each BatchNorm layer (mean, var) of each batch, (G, C) both
        self.pairs = None     # those of the batch under way
        self.layers = statistics_layers(network)
        self.distances = []   # of the forward pass under way, one for each BatchNorm layer that has run
        for index, layer in enumerate(self.layers if weights.r_bn else ()):
            layer.register_forward_pre_hook(self.make_hook(index))

    def make_hook(self, index):
        multiplier = self.weights.first_bn_multiplier if index == 0 else 1.0

        def hook(layer, inputs):
            distance = statistics_distance(inputs[0], layer.running_mean, layer.running_var)
            if self.pairs and not self.target.normalises:
                share = self.target.weight
                distance = (1 - share) * distance + share * statistics_distance(inputs[0], *self.pairs[index])
            self.distances.append(multiplier * distance)
        return hook

    def take_up(self, group):
        if self.target:
            self.wanted = [self.target.of(group, index, layer.running_mean)
                           for index, layer in enumerate(self.layers)]

    def use_target(self, index):
        """Let the next forward pass be of this one of the batches taken up."""
        if self.wanted is None:
            return
        self.pairs = [(mean[index], var[index]) for mean, var in self.wanted]
        if self.target.normalises:
            for layer, (mean, var) in zip(self.layers, self.pairs):
                layer.running_mean.copy_(mean)
                layer.running_var.copy_(var)

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
        found = []
        for index, batch in enumerate(zip(images, targets, view)):
            self.use_target(index)
            found.append(self.batch_loss_and_gradient(*batch))
        terms = {name: torch.stack([getattr(batch, name) for batch, _ in found]) for name in TERMS}
        return Terms(**terms), torch.stack([gradient for _, gradient in found])


def check_statistics(networks, arch):
    """Raise UserError where none of the networks has statistics to match. arch: the first one's name.

    Of several teachers one without them, such as AlexNet, gives the cross-entropy alone."""
    if not any(statistics_layers(network) for network in networks):
        raise UserError(f"{arch} has no BatchNorm layer with running statistics, so there is nothing "
                        f"to match; choose a teacher with BatchNorm, such as resnet18, mobilenet_v2, "
                        f"densenet121 or convnet3 (relabel and validate take any network)")
