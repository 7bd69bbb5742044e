"""On a GPU: the first convolution of a network, three channels padded to four, with its input gradient as a plain convolution.

cuDNN takes 12.5 us an image for the input gradient of a 7x7 stride-2 convolution at 224 in fp16 (H200), as much as a quarter of the whole of
ResNet-18. The same gradient is a stride-1 convolution over the output's gradient: of stride 2, one for each of the four phases of the input,
as four times the channels.
"""
import torch
import torch.nn.functional as F
from torch import nn

CHANNELS = 4


def phase_weights(weight, stride):
    """(O, I, k, k) of a convolution with padding (k - 1) / 2 -> weights (I s s, O, m, m) of the convolution that gives its input gradient,
    output channels ordered as pixel_shuffle wants them, and that convolution's padding at the start of each axis."""
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
        ctx.conv, ctx.size = conv, x.shape[2:]
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)

    @staticmethod
    def backward(ctx, g):
        conv, stride, (height, width) = ctx.conv, ctx.conv.stride[0], ctx.size
        after = [size // stride - out + conv.taps.shape[2] - 1 - conv.before for size, out in zip((height, width), g.shape[2:])]
        most = max(conv.before, *after)
        gradient = F.conv2d(g, conv.taps, padding=most)[:, :, most - conv.before:, most - conv.before:][:, :, :height // stride, :width // stride]
        if stride > 1:
            n, c = gradient.shape[0], gradient.shape[1] // stride ** 2
            gradient = gradient.unflatten(1, (c, stride, stride)).permute(0, 4, 2, 5, 3, 1).reshape(n, height, width, c).permute(0, 3, 1, 2)
        return gradient.contiguous(memory_format=torch.channels_last), None


class Stem(nn.Module):
    """A first convolution over CHANNELS channels, the last of them empty."""

    def __init__(self, conv):
        super().__init__()
        self.stride, self.padding = conv.stride, conv.padding
        self.weight = nn.Parameter(F.pad(conv.weight.detach(), (0, 0, 0, 0, 0, CHANNELS - 3)).contiguous(memory_format=torch.channels_last), False)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach(), False)
        taps, self.before = phase_weights(self.weight, self.stride[0])
        self.register_buffer("taps", taps)

    def forward(self, x):
        return InputGradient.apply(x, self)


def fits(conv, size):
    """Is it an odd square convolution of three channels, stride 1 or 2, that keeps the phases of the image whole?"""
    if not isinstance(conv, nn.Conv2d) or conv.in_channels != 3 or conv.groups != 1 or conv.padding_mode != "zeros" or conv.dilation != (1, 1):
        return False
    k, s = conv.kernel_size[0], conv.stride[0]
    square = conv.kernel_size == (k, k) and conv.stride == (s, s) and conv.padding == ((k - 1) // 2,) * 2
    return square and k % 2 == 1 and s in (1, 2) and k > s and size % s == 0


def replace_stem(traced, size):
    """Where the image feeds one fitting convolution, put a Stem in its place, in the traced network -> channels that it wants."""
    image = next(node for node in traced.graph.nodes if node.op == "placeholder")
    users = list(image.users)
    if len(users) != 1 or users[0].op != "call_module" or users[0].kwargs or not fits(traced.get_submodule(users[0].target), size):
        return 3
    parent, _, name = users[0].target.rpartition(".")
    setattr(traced.get_submodule(parent), name, Stem(traced.get_submodule(users[0].target)))
    return CHANNELS


