"""Frozen convolutions whose input gradient is not autograd's:
what convs.py builds on, and one of torch alone."""
import functools

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from sre2l.kernels.compiled import cpu_name

CACHED = 2 ** 20  # values of a spread gradient that are worked on at a time


class Frozen(torch.autograd.Function):
    """module.compute(x), with module.gradient as its input gradient."""

    @staticmethod
    def forward(ctx, x, module):
        ctx.module = module
        ctx.shape = x.shape
        ctx.dtype = x.dtype
        return module.compute(x).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return ctx.module.gradient(g, ctx.shape).to(ctx.dtype), None


class FrozenConv(nn.Module):
    """A subclass has compute(x), and gradient(g, shape of x), the gradient of x."""

    def forward(self, x):
        return Frozen.apply(x, self)


class StridedDepthwise(FrozenConv):
    """A depthwise convolution with a stride, in bfloat16: torch's, with an input gradient of its own.

    The gradient is a convolution of stride 1 over g with zeros between its values. On a processor
    with AVX512-BF16 oneDNN's own takes ten to eighty times as long, half of a MobileNetV2's time."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    @staticmethod
    def fits(conv):
        depthwise = conv.groups == conv.in_channels == conv.out_channels
        plain = conv.dilation == (1, 1) and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
        if not depthwise or not plain or max(conv.stride) == 1:
            return False
        return all(padding < kernel for padding, kernel in zip(conv.padding, conv.kernel_size))

    def compute(self, x):
        return self.conv(x)

    def gradient(self, g, shape):
        conv = self.conv
        weight = conv.weight.flip(2, 3)
        axes = list(zip(shape[2:], conv.padding, conv.kernel_size))

        # Height and width are what the convolution would give with a stride of 1.
        height, width = (size + 2 * padding - kernel + 1 for size, padding, kernel in axes)
        padding = [kernel - 1 - padding for _, padding, kernel in axes]

        # A few images at a time, in memory that has g at every stride and keeps its zeros between.
        images = max(1, CACHED // (shape[1] * height * width))
        spread = torch.zeros((images, height, width, shape[1]), dtype=g.dtype).permute(0, 3, 1, 2)
        gx = torch.empty(shape, dtype=g.dtype, memory_format=torch.channels_last)
        for some, result in zip(g.split(images), gx.split(images)):
            spread[:len(some), :, ::conv.stride[0], ::conv.stride[1]] = some
            result.copy_(F.conv2d(spread[:len(some)], weight, padding=padding, groups=conv.groups))
        return gx


@functools.cache
@torch.inference_mode(False)
@torch.no_grad()
def strided_pays():
    """Is StridedDepthwise what torch computes, on a CPU with instructions for bfloat16?

    There it is more than twice as fast. No clock decides: a repeated run takes the same gradient."""
    if not {"avx512_bf16", "amx_bf16"} & set(cpu_name().split()):
        return False
    conv = nn.Conv2d(64, 64, 3, 2, 1, groups=64, bias=False, dtype=torch.bfloat16)
    conv.weight.copy_(torch.arange(576).view(64, 1, 3, 3).remainder(7) - 3)
    g = torch.arange(4 * 64 * 14 * 14).remainder(11).sub(5).to(torch.bfloat16)
    g = g.view(4, 14, 14, 64).permute(0, 3, 1, 2)
    shape = (4, 64, 28, 28)
    wanted = nn.grad.conv2d_input(shape, conv.weight, g, conv.stride, conv.padding, groups=conv.groups)
    return torch.equal(StridedDepthwise(conv).gradient(g, shape), wanted)
