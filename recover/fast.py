"""The fast engine: the objective of objective.py, to rounding, with the work laid out for the hardware.

One pass per BatchNorm layer for affine, sum, clamp and statistics, and one backward, in a network rewritten for it (sre2l/fused); activations
NHWC and in half precision where asked for; G batches in one forward pass, each with statistics of its own; on a GPU the view as a table,
so that nothing but the contents of tensors differs between iterations (step.py captures one as a CUDA graph).
"""
import os

import torch
import torch.nn.functional as F

from recover.objective import Terms, total_variation
from sre2l.kernels.adam import adam_step
from recover.views import apply_view, tabulate
from sre2l.kernels import norms as formulas
from sre2l.kernels.fuse import fuse
from sre2l.kernels.cpu.host import use_host_kernels

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}  # of weights and activations; else those of the images
LOSS_SCALE = {"fp16": 2.0 ** 8}  # static, so that an overflow shows as a NaN in the images; why this one: README.md


def coefficients(network, weights, loss_scale=1.0):
    """Of each BatchNorm layer: (the coefficient of its term in what is differentiated, its weight in the BatchNorm term)."""
    layers = formulas.statistics_layers(network)
    multipliers = [weights.first_bn_multiplier] + [1.0] * len(layers)
    return {layer: (weights.r_bn * weight * loss_scale, weight) for layer, weight in zip(layers, multipliers)}


class Unscale(torch.autograd.Function):
    """The identity; takes the loss scale out of the gradient, which is no longer in half precision here."""

    @staticmethod
    def forward(ctx, x, loss_scale):
        ctx.loss_scale = loss_scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient / ctx.loss_scale, None


class FastEngine:
    """Loss and gradient of G stacked batches. Statistics, loss, images and their gradient are float32 (float64 where the network is).

    size: of the images, pixels; own_convolutions: on a CPU, else torch's. Raises what torch.fx raises for a network it cannot trace."""

    name = "fast"

    def __init__(self, network, weights, size, precision="fp32", own_convolutions=True):
        some = next(network.parameters())
        self.device, self.captures = some.device, some.is_cuda
        self.weights, self.size, self.exact = weights, size, some.dtype
        self.dtype, self.loss_scale = DTYPES.get(precision, some.dtype), LOSS_SCALE.get(precision, 1.0)
        self.on_gpu = some.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"  # the tests run the kernels without a GPU
        network, norms = fuse(network, coefficients(network, weights, self.loss_scale), size, self.on_gpu)
        self.channels, self.adam_step, self.finish = 3, adam_step, formulas.finish
        if self.on_gpu:
            self.use_kernels(network, norms)
        else:
            use_host_kernels(network, norms, some.dtype if own_convolutions else None, half=self.dtype == torch.bfloat16)
        self.network = network.to(self.dtype).to(memory_format=torch.channels_last)
        self.norms = [norm for norm in norms if norm.coefficient]
        self.all_norms = norms

    def use_kernels(self, network, norms):
        """Triton comes with torch's CUDA builds alone, so it is imported here."""
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()  # shapes never change
        from sre2l.kernels.triton import view as look, moments, stem
        from sre2l.kernels.triton import norms as kernels
        self.channels, self.adam_step = stem.replace_stem(network, self.size), look.adam_step
        self.look_at, self.finish = look.Look.apply, moments.Finisher([norm for norm in norms if norm.coefficient]).finish
        for norm in norms:
            norm.passes = kernels.Passes

    def tabulate(self, views):
        """What loss_and_gradient takes as the view of iteration t, at [t]. views: T lists of G View -> (T, G, 10, S) on a GPU."""
        if not self.on_gpu:
            return views
        table = tabulate([view for group in views for view in group], self.size)
        return table.to(self.exact).view(len(views), len(views[0]), *table.shape[1:]).to(self.device)

    def look(self, images, view):
        """(G, B, 3, S, S) -> what the network sees, (G B, 3 or more, S, S) in its type, NHWC."""
        if self.on_gpu:
            return self.look_at(images, view, self.channels, self.dtype, 1 / self.loss_scale)
        seen = torch.cat([apply_view(batch, one) for batch, one in zip(images, view)])
        if self.loss_scale != 1:
            seen = Unscale.apply(seen, self.loss_scale)
        return seen.to(self.dtype, memory_format=torch.channels_last)

    def priors(self, seen, groups):
        """TV and L2 of each batch, (G,); not computed where the coefficient is 0."""
        none, batches = seen.new_zeros(groups, dtype=self.exact), None
        if self.weights.tv_l2 or self.weights.l2_scale:
            batches = seen[:, :3].to(self.exact).chunk(groups)
        tv = torch.stack([total_variation(batch) for batch in batches]) if self.weights.tv_l2 else none
        l2 = torch.stack([torch.linalg.vector_norm(b.flatten(1), dim=1).mean() for b in batches]) if self.weights.l2_scale else none
        return tv, l2

    def loss_and_gradient(self, images, targets, view):
        """images (G, B, 3, S, S), targets (G, B), view: an entry of tabulate's -> (Terms, gradient like images). No host sync."""
        images, groups = images.detach().requires_grad_(), len(images)
        for norm in self.all_norms:
            norm.groups = groups
        seen = self.look(images, view)
        logits = self.network(seen).to(self.exact)
        ce = F.cross_entropy(logits, targets.flatten(), reduction="none").view(groups, -1).mean(1)
        bn = self.finish(self.norms) if self.norms else ce.new_zeros(groups)
        tv, l2 = self.priors(seen, groups)
        loss = (ce + self.weights.tv_l2 * tv + self.weights.l2_scale * l2).sum()  # the BatchNorm term's gradient joins inside the norms
        gradient, = torch.autograd.grad(loss * self.loss_scale, images)
        return Terms(ce.detach(), bn, tv.detach(), l2.detach()), gradient
