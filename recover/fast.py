"""The fast engine: the objective of objective.py, to rounding, with the work laid out for the hardware.

- One pass forward, one backward for affine, sum, clamp and statistics of a BatchNorm layer (sre2l/kernels).
- Activations in NHWC, and in fp16 or bf16 where asked for.
- G batches in one forward pass, each with statistics of its own, and if need be with its own to match.

recover/engines.py chooses between CpuEngine and, where Triton's kernels run, TritonEngine (triton_engine.py).
"""
from dataclasses import replace

import torch
import torch.nn.functional as F

from recover.objective import PRIORS, TERMS, Engine, Terms, prior_terms, weighted_sum
from recover.views import apply_view
from sre2l.kernels import norms as formulas
from sre2l.kernels.cpu.host import use_host_kernels
from sre2l.kernels.fuse import fuse
from sre2l.nets.precision import HALF

# Static: an overflow shows as a NaN in the images. Why this one: docs/speed.md.
LOSS_SCALE = {"fp16": 2.0 ** 8}


def coefficients(network, weights, loss_scale=1.0):
    """Of each BatchNorm layer: (the factor of its distance in the scaled loss, which the layer's own backward
    pass differentiates; the factor of its distance in the term bn, which is reported)."""
    layers = formulas.statistics_layers(network)
    multipliers = [weights.first_bn_multiplier] + [1.0] * len(layers)
    return {layer: (weights.r_bn * weight * loss_scale, weight) for layer, weight in zip(layers, multipliers)}


class FastEngine(Engine):
    """What the two fast engines share: loss and gradient of G batches in one forward and one backward pass.

    Images, statistics, loss and gradient are float32, float64 where the network is. A subclass rewrites the
    network (self.network, self.norms), has `see` and `finish`, and takes loss_scale out of the gradient."""

    name = "fast"

    def __init__(self, network, weights, size, precision, target=None):
        parameter = next(network.parameters())
        self.weights = weights
        self.target = target  # a targets.BnTarget
        self.size = size  # of the images, pixels
        self.precision = precision
        self.device = parameter.device
        self.captures = parameter.is_cuda
        self.exact = parameter.dtype
        self.dtype = HALF.get(precision, parameter.dtype)  # of weights and activations
        self.loss_scale = LOSS_SCALE.get(precision, 1.0)

    def rewrite(self, network, for_triton):
        """-> a copy of the network with a Norm for each BatchNorm layer. Raises what torch.fx raises."""
        layers = coefficients(network, self.weights, self.loss_scale)
        traced, self.norms = fuse(network, layers, self.size, for_triton)
        self.matched_norms = [norm for norm in self.norms if norm.facts.coefficient]
        order = list(layers)
        self.places = {name: order.index(layer) for name, layer in network.named_modules() if layer in layers}

        # Both targets of class:W begin as the running statistics; the second one changes with the batches.
        if self.target and not self.target.normalises:
            for norm in self.norms:
                running, = norm.facts.targets
                running.weight = 1 - self.target.weight
                norm.facts.targets.append(replace(running, weight=self.target.weight))
        return traced

    def take_up(self, group):
        if self.target is None:
            return
        for norm in self.norms:
            mean, var = self.target.of(group, self.places[norm.layer_name], norm.facts.mean)
            if self.target.normalises:
                norm.normalise_by(mean, var)
            else:
                norm.match(1, mean, var)

    def converted(self, traced):
        """The rewritten network in the type and the layout that it computes in."""
        return traced.to(self.dtype).to(memory_format=torch.channels_last)

    def priors(self, seen, groups):
        """The priors of each batch, {term: (G,)}."""
        coefficients = self.weights.by_term()
        if not any(coefficients[name] for name in PRIORS):
            return dict.fromkeys(PRIORS, seen.new_zeros(groups, dtype=self.exact))
        each = [prior_terms(batch, self.weights) for batch in seen[:, :3].to(self.exact).chunk(groups)]
        return {name: torch.stack([batch[name] for batch in each]) for name in PRIORS}

    def loss_and_gradient(self, images, targets, view):
        images = images.detach().requires_grad_()
        groups = len(images)
        for norm in self.norms:
            norm.run.groups = groups

        seen = self.see(images, view)
        logits = self.network(seen).to(self.exact)
        ce = F.cross_entropy(logits, targets.flatten(), reduction="none").view(groups, -1).mean(1)
        bn = self.finish() if self.matched_norms else ce.new_zeros(groups)
        # A term that is not written here is 0: engines.py finds where that is not the plain engine's.
        zeros = dict.fromkeys(TERMS, ce.new_zeros(groups))
        terms = {**zeros, "ce": ce, "bn": bn, **self.priors(seen, groups)}

        # bn is a number without a history here: its gradient joins inside the norms, in their backward pass.
        loss = weighted_sum(terms, self.weights).sum()
        gradient, = torch.autograd.grad(loss * self.loss_scale, images)
        return Terms(**{name: term.detach() for name, term in terms.items()}), gradient


class CpuEngine(FastEngine):
    """The fast engine on a CPU. own_convolutions: those of sre2l/kernels/cpu, else torch's."""

    def __init__(self, network, weights, size, precision, own_convolutions, target=None):
        super().__init__(network, weights, size, precision, target)
        traced = self.rewrite(network, for_triton=False)
        dtype = self.exact if own_convolutions else None
        use_host_kernels(traced, self.norms, dtype, bf16=self.dtype == torch.bfloat16)
        self.network = self.converted(traced)

    def see(self, images, view):
        """(G, B, 3, S, S) -> what the network sees of them, (G B, 3, S, S) in its type, NHWC."""
        seen = torch.cat([apply_view(batch, one) for batch, one in zip(images, view)])
        return seen.to(self.dtype, memory_format=torch.channels_last)

    def loss_and_gradient(self, images, targets, view):
        terms, gradient = super().loss_and_gradient(images, targets, view)
        return terms, gradient if self.loss_scale == 1 else gradient / self.loss_scale

    def finish(self):
        """After a forward pass: the BatchNorm term of each batch, (G,), and what backward passes need."""
        return formulas.finish(self.matched_norms)
