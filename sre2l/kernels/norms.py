"""BatchNorm, residual sum and clamp in one step, with the statistics that recover matches.

For a layer with input x, N values of a channel in a batch, and the term  c (|mean - m|_2 + |var - v|_2)
towards a target (m, v):

    d term / d x = alpha + beta x
    beta = 2 c / N (var - v) / |var - v|      alpha = c / N (mean - m) / |mean - m| - beta mean

so a layer saves x alone. With several targets alpha and beta are sums over them. The backward pass is one
elementwise pass: gradient of the output, clamp, affine and this, together. This file has the formulas in
plain torch (CPU, any type) and the autograd node. cpu/host.py and triton/norms.py have the same two passes
for a CPU and for a GPU."""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

INF = float("inf")


def statistics_layers(network):
    """The BatchNorm layers with running statistics, in module order."""
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@dataclass
class Target:
    """Statistics that those of a batch are to match: (C,), or (G, C) where each batch has its own."""
    weight: float        # of the target within the layer's term; those of all targets add up to 1
    mean: torch.Tensor
    var: torch.Tensor


@dataclass
class NormFacts:
    """What one run of a BatchNorm layer in eval mode is: y = clamp(scale x + shift [+ other], low, high).

    fuse.py fills in what it finds around the layer. Tensors are (C,), or (G, C) where each of the batches
    that are computed together has its own, float32 or float64."""
    mean: torch.Tensor   # that the layer subtracts; sums over x are taken of x - mean
    scale: torch.Tensor
    shift: torch.Tensor
    targets: list        # the Targets; one, of the running statistics, where nothing else is asked for
    coefficient: float   # c of the layer's term in what is differentiated; 0: its statistics are not taken
    weight: float        # of the layer within the BatchNorm term
    low: float = -INF
    high: float = INF
    copies: int = 1         # 2: y goes two ways, and the two gradients meet within the backward pass
    thins: bool = False     # on a GPU: the second copy is what a 1x1 stride-2 convolution reads of y
    pool: bool = False      # on a GPU: the 3x3 stride-2 max pool that follows is part of it
    in_place: bool = False  # on a CPU: y may take the memory of x, which nothing else reads

    @property
    def clamps(self):
        return self.low > -INF or self.high < INF

    @property
    def step(self):
        """How far apart the numbers of two batches are in mean, scale and shift: 0 where all share them."""
        return self.mean.shape[1] if self.mean.ndim == 2 else 0


def put(tensor, values):
    """The values, in the memory of a tensor of their shape where it is one: a CUDA graph reads them there."""
    return tensor.copy_(values) if tensor.shape == values.shape else values.to(tensor, copy=True)


@dataclass
class NormRun:
    """What one forward pass leaves behind, for `finish` and for the backward pass."""
    groups: int = 1             # G, the batches that are computed together; set before the pass
    num_values: int = 0         # N, of a channel in one batch
    moments: tuple | None = None           # (mean, var) of x, (G, C) each
    alpha: torch.Tensor | None = None      # (G, C), from `finish`
    beta: torch.Tensor | None = None       # (G, C), from `finish`
    # A GPU has these in their place. Their memory is kept from one pass to the next.
    partial: torch.Tensor | None = None       # sums of x - m and its square, (G, parts, 2, C)
    coefficients: torch.Tensor | None = None  # alpha and beta, (G, 2, C), from moments.Finisher


class Norm(nn.Module):
    """A BatchNorm layer in the rewritten network, with what fuse.py put into the same pass.

    layer_name: of the layer in the network as it was."""

    def __init__(self, layer, coefficient, weight, layer_name=None):
        super().__init__()
        self.layer_name = layer_name
        exact = torch.promote_types(layer.running_var.dtype, torch.float32)
        mean = layer.running_mean.to(exact)
        var = layer.running_var.to(exact)
        self.gain = layer.weight.detach().to(exact) if layer.affine else torch.ones_like(mean)
        self.bias = layer.bias.detach().to(exact) if layer.affine else 0
        self.eps = layer.eps
        scale, shift = self.affine_of(mean, var)
        self.facts = NormFacts(mean, scale, shift, [Target(1.0, mean, var)], coefficient, weight)
        self.run = NormRun()
        self.passes = Passes  # or those of triton/norms.py or cpu/host.py

    def affine_of(self, mean, var):
        """The scale and the shift of a layer that normalises by these statistics."""
        scale = self.gain / (var + self.eps).sqrt()
        return scale, self.bias - mean * scale

    def normalise_by(self, mean, var):
        """Let each batch be normalised by statistics of its own, (G, C) each, and match these."""
        facts = self.facts
        facts.mean = put(facts.mean, mean)
        scale, shift = self.affine_of(mean.to(facts.mean), var.to(facts.mean))
        facts.scale = put(facts.scale, scale)
        facts.shift = put(facts.shift, shift)
        self.match(0, mean, var)

    def match(self, index, mean, var):
        """Let this one of the targets be of each batch's own, (G, C) each."""
        target = self.facts.targets[index]
        target.mean = put(target.mean, mean)
        target.var = put(target.var, var)

    def forward(self, x, other=None):
        y = Normalise.apply(x, other, self)
        return y if self.facts.copies > 1 else y[0]


class Normalise(torch.autograd.Function):
    """The autograd node of Norm. The gradient of the layer's BatchNorm term joins in its backward pass."""

    @staticmethod
    def forward(ctx, x, other, norm):
        results, saved = norm.passes.forward(x, other, norm.facts, norm.run)
        ctx.save_for_backward(*saved)
        ctx.norm = norm
        ctx.has_other = other is not None
        return tuple(y if i == 0 or y is not results[0] else y.view_as(y) for i, y in enumerate(results))

    @staticmethod
    def backward(ctx, *gradients):
        norm = ctx.norm
        saved = ctx.saved_tensors
        gradient, for_other = norm.passes.backward(gradients, saved, norm.facts, norm.run, ctx.has_other)
        return gradient, for_other, None


def affine(x, scale, shift):
    """scale x + shift per channel in one pass, rounded once. (G, C): of each of G batches in x its own."""
    if scale.ndim == 2:
        parts = [affine(*part) for part in zip(x.chunk(len(scale)), scale, shift)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    zero = torch.zeros_like(scale)
    one = torch.ones_like(scale)
    eps = 1e-30  # torch 2.11 wants one above 0; 1 + 1e-30 is 1
    return F.batch_norm(x, zero, one, scale, shift, False, 0.0, eps)


class Passes:
    """The two passes over an activation in plain torch."""

    @staticmethod
    def forward(x, other, facts, run):
        """-> ([y] or [y, its copy], the tensors that the backward pass needs). Fills the moments in run."""
        if facts.coefficient:
            parts = [torch.batch_norm_update_stats(part, None, None, 0.0) for part in x.chunk(run.groups)]
            run.moments = tuple(torch.stack(values) for values in zip(*parts))
            run.num_values = x.numel() // x.shape[1] // run.groups
        y = affine(x, facts.scale, facts.shift)
        if other is not None:
            y += other
        if facts.clamps:
            y.clamp_(facts.low, facts.high)
        return [y] * facts.copies, (x, y) if facts.clamps else (x,)

    @staticmethod
    def backward(gradients, saved, facts, run, has_other):
        """The gradients of the results -> (gradient of x, gradient of other or None). After `finish`."""
        x, *clamped = saved
        g = gradients[0] if len(gradients) == 1 else gradients[0] + gradients[1]
        if facts.clamps and facts.high == INF:
            g = torch.ops.aten.threshold_backward(g, clamped[0], facts.low)
        elif facts.clamps:
            g = torch.ops.aten.hardtanh_backward(g, clamped[0], facts.low, facts.high)
        for_other = g if has_other else None

        scale = facts.scale.to(x.dtype).view((-1, x.shape[1]) + (1,) * (x.ndim - 2))
        if len(scale) > 1:
            scale = scale.repeat_interleave(len(x) // len(scale), 0)
        if not facts.coefficient:
            return g * scale, for_other
        return affine(x, run.beta, run.alpha).addcmul_(g, scale), for_other


def over_norm(values):
    """v / |v|_2 per row, 0 where the norm is 0 (as autograd has it) -> (unit vectors, norms)."""
    norms = torch.linalg.vector_norm(values, dim=1)
    return values / torch.where(norms == 0, 1, norms)[:, None], norms


def finish(norms):
    """Set alpha and beta of each layer from its moments -> the BatchNorm term, (G,): the sum over layers and
    their targets of w (|mean - m| + |var - v|)."""
    total = 0
    for norm in norms:
        facts = norm.facts
        run = norm.run
        mean, var = run.moments
        run.alpha = 0
        run.beta = 0
        for target in facts.targets:
            mean_unit, mean_norm = over_norm(mean - target.mean)
            var_unit, var_norm = over_norm(var - target.var)
            per_value = target.weight * facts.coefficient / run.num_values
            beta = 2 * per_value * var_unit
            run.beta = run.beta + beta
            run.alpha = run.alpha + (per_value * mean_unit - beta * mean)
            total = total + target.weight * facts.weight * (mean_norm + var_norm)
    return total
