"""BatchNorm, residual sum and clamp in one step with the statistics that recover matches, and their analytic gradient.

For one layer with input x, over the N values of a channel in one batch, with the layer's term  c (|mean - m|_2 + |var - v|_2):

    d term / d x = alpha + beta x     beta = 2 c / N (var - v) / |var - v|     alpha = c / N (mean - m) / |mean - m| - beta mean

so a layer saves x alone, and its backward pass is one elementwise pass: gradient of the output, clamp, affine and this, together.
This file has the formulas in plain torch (CPU, any type) and the autograd node; kernels.py has the same two passes for the GPU.
"""
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

INF = float("inf")


def statistics_layers(network):
    """The BatchNorm layers with running statistics, in module order."""
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


class Norm(nn.Module):
    """One run of a BatchNorm layer in eval mode within the network: y = clamp(scale x + shift [+ other], low, high).

    coefficient: c of the layer's term in what is differentiated, 0 = its statistics are not taken. copies: 2 where y goes two ways, so that
    the two gradients meet in the backward pass and not in a pass of their own; thins: the second copy is every second row and column, for
    a 1x1 stride-2 convolution. pool: the 3x3 stride-2 max pool after it is part of it. (thins and pool: on a GPU alone.)
    in_place: y may take the memory of x, which nothing else reads (norms.c does so).
    After the network has run, `moments` are (mean, var) of x, (G, C) each; `finish` turns them into alpha and beta."""

    def __init__(self, layer, coefficient, weight):
        super().__init__()
        self.coefficient, self.weight = coefficient, weight
        self.low, self.high, self.copies, self.groups = -INF, INF, 1, 1
        self.thins = self.pool = self.in_place = False
        exact = torch.promote_types(layer.running_var.dtype, torch.float32)
        self.mean, self.var = layer.running_mean.to(exact), layer.running_var.to(exact)
        gain = layer.weight.detach().to(exact) if layer.affine else torch.ones_like(self.mean)
        self.scale = gain / (self.var + layer.eps).sqrt()
        self.shift = (layer.bias.detach().to(exact) if layer.affine else 0) - self.mean * self.scale
        self.zero, self.one = torch.zeros_like(self.mean), torch.ones_like(self.mean)
        self.passes = Passes  # or those of kernels.py, host.py
        self.moments = self.alpha = self.beta = None
        self.partial = self.coefficients = None  # what kernels.py has instead of these three
        self.num_values = 0  # of a channel in one batch

    @property
    def clamps(self):
        return self.low > -INF or self.high < INF

    def affine(self, x, scale, shift):
        """scale x + shift per channel in one pass, rounded once."""
        return F.batch_norm(x, self.zero, self.one, scale, shift, False, 0.0, 1e-30)  # torch 2.11 wants an eps above 0; 1 + 1e-30 is 1

    def forward(self, x, other=None):
        y = Normalise.apply(x, other, self)
        return y if self.copies > 1 else y[0]


class Normalise(torch.autograd.Function):
    """The autograd node of Norm. The gradient of the layer's BatchNorm term joins in the backward pass, without a node of its own."""

    @staticmethod
    def forward(ctx, x, other, norm):
        results, saved = norm.passes.forward(x, other, norm)
        ctx.save_for_backward(*saved)
        ctx.norm, ctx.has_other = norm, other is not None
        return tuple(y if i == 0 or y is not results[0] else y.view_as(y) for i, y in enumerate(results))

    @staticmethod
    def backward(ctx, *gradients):
        gradient, for_other = ctx.norm.passes.backward(gradients, ctx.saved_tensors, ctx.norm, ctx.has_other)
        return gradient, for_other, None


class Passes:
    """The two passes over an activation in plain torch."""

    @staticmethod
    def forward(x, other, norm):
        if norm.coefficient:
            parts = [torch.batch_norm_update_stats(part, None, None, 0.0) for part in x.chunk(norm.groups)]
            norm.moments = tuple(torch.stack(values) for values in zip(*parts))
            norm.num_values = x.numel() // x.shape[1] // norm.groups
        y = norm.affine(x, norm.scale, norm.shift)
        if other is not None:
            y += other
        if norm.clamps:
            y.clamp_(norm.low, norm.high)
        return [y] * norm.copies, (x, y) if norm.clamps else (x,)

    @staticmethod
    def backward(gradients, saved, norm, has_other):
        (x, *y), g = saved, gradients[0] if len(gradients) == 1 else gradients[0] + gradients[1]
        if norm.clamps and norm.high == INF:
            g = torch.ops.aten.threshold_backward(g, y[0], norm.low)
        elif norm.clamps:
            g = torch.ops.aten.hardtanh_backward(g, y[0], norm.low, norm.high)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        scale = norm.scale.to(x.dtype).view(shape)
        if not norm.coefficient:
            return g * scale, g if has_other else None
        parts = [norm.affine(part, beta, alpha) for part, alpha, beta in zip(x.chunk(norm.groups), norm.alpha, norm.beta)]
        gx = parts[0] if len(parts) == 1 else torch.cat(parts)
        return gx.addcmul_(g, scale), g if has_other else None


def over_norm(values):
    """v / |v|_2 per row, 0 where the norm is 0 (as autograd has it) -> (unit vectors, norms)."""
    norms = torch.linalg.vector_norm(values, dim=1)
    return values / torch.where(norms == 0, 1, norms)[:, None], norms


def finish(norms):
    """From the moments of each layer that ran, the coefficients of its gradient -> sum over the layers of w (|mean - m| + |var - v|), (G,)."""
    total = 0
    for norm in norms:
        mean, var = norm.moments
        mean_unit, mean_norm = over_norm(mean - norm.mean)
        var_unit, var_norm = over_norm(var - norm.var)
        per_value = norm.coefficient / norm.num_values
        norm.beta = 2 * per_value * var_unit
        norm.alpha = per_value * mean_unit - norm.beta * mean
        total = total + norm.weight * (mean_norm + var_norm)
    return total
