"""Frozen convolutions whose input gradient is not autograd's: what convs.py builds on, and one that torch alone computes."""
import functools
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

clock = time.perf_counter
CACHED = 2 ** 20  # values of a spread gradient that are worked on at a time


class Frozen(torch.autograd.Function):
    """module.compute(x), with module.gradient as its input gradient."""

    @staticmethod
    def forward(ctx, x, module):
        ctx.module, ctx.shape, ctx.dtype = module, x.shape, x.dtype
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
    """A depthwise convolution with a stride, in bfloat16: torch's, with the input gradient as a convolution of stride 1 over g with zeros between
    its values. On a processor with AVX512-BF16 oneDNN's own takes ten to eighty times as long, half of a MobileNetV2's time."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    @staticmethod
    def fits(conv):
        plain = conv.groups == conv.in_channels == conv.out_channels and conv.dilation == (1, 1) and conv.padding_mode == "zeros" and max(conv.stride) > 1
        return plain and not isinstance(conv.padding, str) and all(padding < kernel for padding, kernel in zip(conv.padding, conv.kernel_size))

    def compute(self, x):
        return self.conv(x)

    def gradient(self, g, shape):
        conv = self.conv
        height, width = (size + 2 * padding - kernel + 1 for size, padding, kernel in zip(shape[2:], conv.padding, conv.kernel_size))
        padding = [kernel - 1 - padding for kernel, padding in zip(conv.kernel_size, conv.padding)]
        images = max(1, CACHED // (shape[1] * height * width))
        spread = torch.zeros((images, height, width, shape[1]), dtype=g.dtype).permute(0, 3, 1, 2)  # between them the zeros stay
        gx, weight = torch.empty(shape, dtype=g.dtype, memory_format=torch.channels_last), conv.weight.flip(2, 3)
        for some, result in zip(g.split(images), gx.split(images)):
            spread[:len(some), :, ::conv.stride[0], ::conv.stride[1]] = some
            result.copy_(F.conv2d(spread[:len(some)], weight, padding=padding, groups=conv.groups))
        return gx


@functools.cache
@torch.inference_mode(False)
@torch.no_grad()
def strided_pays():
    """Is StridedDepthwise what torch computes, and twice as fast, on this machine? Not where bfloat16 has no instructions of its own. Takes 10 ms."""
    conv = nn.Conv2d(64, 64, 3, 2, 1, groups=64, bias=False, dtype=torch.bfloat16)
    conv.weight.copy_(torch.arange(576).view(64, 1, 3, 3).remainder(7) - 3)
    shape, ours = (4, 64, 28, 28), StridedDepthwise(conv)
    g = torch.arange(4 * 64 * 14 * 14).remainder(11).sub(5).to(torch.bfloat16).view(4, 14, 14, 64).permute(0, 3, 1, 2)

    def torchs():
        return torch.nn.grad.conv2d_input(shape, conv.weight, g, conv.stride, conv.padding, groups=conv.groups)

    def seconds(function):
        times = []
        for _ in range(3):
            start = clock()
            function()
            times.append(clock() - start)
        return min(times)
    return torch.equal(ours.gradient(g, shape), torchs()) and 2 * seconds(lambda: ours.gradient(g, shape)) < seconds(torchs)
