"""On a GPU: the first convolution of a network, three channels
padded to four, with its input gradient as a plain convolution.

cuDNN takes 12.5 us an image for the input gradient of a 7x7 stride-2 convolution at 224 in fp16 (H200), a
quarter of the time of the whole ResNet-18. The same gradient is a stride-1 convolution over the output's
gradient. With a stride of 2 it has four times the channels, one set for each of the four phases of the input.
"""
import torch
import torch.nn.functional as F
from torch import nn

CHANNELS = 4


def phase_weights(weight, stride):
    """(O, I, k, k) of a convolution with padding (k - 1) / 2 -> weights (I s s, O, m, m)
    of the convolution that gives its input gradient, output channels ordered as
    pixel_shuffle wants them, and that convolution's padding at the start of each axis."""
    k = weight.shape[2]
    lead = (k - 1) // 2 % stride  # zero taps in front, so that a window starts at a multiple of the stride
    m = -(-(k + lead) // stride)
    taps = F.pad(weight, (lead, m * stride - k - lead) * 2)
    taps = taps.unflatten(3, (m, stride)).unflatten(2, (m, stride))  # (O, I, m, a, m, b)
    taps = taps.permute(1, 3, 5, 0, 2, 4).flatten(0, 2).flip(2, 3)  # (I a b, O, m, m)
    return taps.contiguous(memory_format=torch.channels_last), m - 1 - ((k - 1) // 2 + lead) // stride


class InputGradient(torch.autograd.Function):
    """conv(x), whose input gradient is a convolution and whose weights have none."""

    @staticmethod
    def forward(ctx, x, conv):
        ctx.conv = conv
        ctx.size = x.shape[2:]
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)

    @staticmethod
    def backward(ctx, g):
        conv = ctx.conv
        stride = conv.stride[0]
        height, width = ctx.size

        # The padding differs before and after: pad with the most on all sides, and cut off what is too much.
        reach = conv.taps.shape[2] - 1 - conv.before
        after = [size // stride - out + reach for size, out in zip(ctx.size, g.shape[2:])]
        most = max(conv.before, *after)
        cut = most - conv.before
        gradient = F.conv2d(g, conv.taps, padding=most)[:, :, cut:, cut:]
        gradient = gradient[:, :, :height // stride, :width // stride]

        # The channels of the phases become pixels.
        if stride > 1:
            n = len(gradient)
            c = gradient.shape[1] // stride ** 2
            gradient = gradient.unflatten(1, (c, stride, stride)).permute(0, 4, 2, 5, 3, 1)
            gradient = gradient.reshape(n, height, width, c).permute(0, 3, 1, 2)
        return gradient.contiguous(memory_format=torch.channels_last), None


class Stem(nn.Module):
    """A first convolution over CHANNELS channels, the last of them empty."""

    def __init__(self, conv):
        super().__init__()
        self.stride = conv.stride
        self.padding = conv.padding
        weight = F.pad(conv.weight.detach(), (0, 0, 0, 0, 0, CHANNELS - 3))
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), False)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach(), False)
        taps, self.before = phase_weights(self.weight, self.stride[0])
        self.register_buffer("taps", taps)

    def forward(self, x):
        return InputGradient.apply(x, self)


def fits(conv, size):
    """Is it an odd square convolution of three channels,
    stride 1 or 2, that keeps the phases of the image whole?"""
    if not isinstance(conv, nn.Conv2d) or conv.in_channels != 3 or conv.groups != 1:
        return False
    if conv.padding_mode != "zeros" or conv.dilation != (1, 1):
        return False
    k = conv.kernel_size[0]
    s = conv.stride[0]
    square = conv.kernel_size == (k, k) and conv.stride == (s, s) and conv.padding == ((k - 1) // 2,) * 2
    return square and k % 2 == 1 and s in (1, 2) and k > s and size % s == 0


def replace_stem(traced, size):
    """Where the image feeds one fitting convolution, put a Stem in
    its place, in the traced network -> channels that it wants."""
    image = next(node for node in traced.graph.nodes if node.op == "placeholder")
    users = list(image.users)
    if len(users) != 1 or users[0].op != "call_module" or users[0].kwargs:
        return 3
    conv = traced.get_submodule(users[0].target)
    if not fits(conv, size):
        return 3
    parent, _, name = users[0].target.rpartition(".")
    setattr(traced.get_submodule(parent), name, Stem(conv))
    return CHANNELS
