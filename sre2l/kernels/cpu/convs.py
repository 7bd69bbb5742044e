"""Convolutions of a frozen network on a CPU, most by C functions: a 3x3 convolution takes a quarter of the multiplications, and the
input gradient of a first convolution, which oneDNN computes at a fifth of its speed, as long as its forward pass.

Winograd's F(4x4, 3x3) (Lavin and Gray, 2016): with B, G and A of the points 0, +-sqrt(1/2), +-sqrt(2) and infinity,  y = A' [(G w G') (B' x B)] A
for each tile of 4x4 outputs, summed over the channels between the brackets. In float32 its result is off by 7e-7 (64 channels) to 2e-6 (512) of
its spread, torch's in NHWC by half as much (in NCHW by 2e-7); float64 has kernels of its own. bfloat16 is what is read and written, all between
is float32. Weights have no gradient.
"""
import ctypes
import functools
import math
import subprocess

import torch
import torch.nn.functional as F
from torch import nn

from sre2l.kernels.compiled import load_threaded_kernel
from sre2l.run.errors import first_line
from sre2l.kernels.fuse import shape_of
from sre2l.kernels.cpu.gradients import FrozenConv, StridedDepthwise, strided_pays

POINTS = math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2), -math.sqrt(2)
G = torch.tensor([[1, 0, 0], *([1 / p, 1, p] for p in POINTS), [0, 0, 1]], dtype=torch.float64)
FEW, MANY, TURNED, WIDE = 24, 48, 144, 512  # tiles that a thread has in hand: up to WIDE channels in and out together, above, with shared weights
SHARED = 2 ** 17  # inputs times outputs from which on both directions share their weights, since they are what fills the memory
TRANSFORMS = 1.3  # what the transforms cost, as a factor
TYPES = {torch.float32: ("-DREAL=float", "-DINTEGER=int32_t"), torch.float64: ("-DREAL=double", "-DINTEGER=int64_t")}
FIELDS = ("images", "height", "width", "in", "out_height", "out_width", "out", "block", "half", "turned", "kernel_height", "kernel_width", "stride_height",
          "stride_width", "padding_height", "padding_width", "columns", "values")


class Job(ctypes.Structure):
    """What products.h calls by this name."""
    _fields_ = [*((name, ctypes.c_void_p) for name in ("x", "y", "u", "bias", "scratch")), *((name, ctypes.c_int64) for name in FIELDS)]


def up(value, multiple):
    return -(-value // multiple) * multiple


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


class Kernels:
    """The two compiled for one type, with more flags for the compiler where a test has some. panel, rows: columns and rows of its products."""

    def __init__(self, dtype, *flags):
        winograd, first = (load_threaded_kernel(name, *TYPES[dtype], *flags) for name in ("winograd.c", "first_gradient.c"))
        winograd.panel.restype = winograd.rows.restype = ctypes.c_int64
        self.dtype, self.panel, self.rows = dtype, winograd.panel(), winograd.rows()
        self.winograd, self.first_gradient = winograd.winograd, first.first_gradient
        for function in (self.winograd, self.first_gradient):
            function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_uint], None

    def takes(self, x):
        """The same values as it reads them: NHWC, in its type or, where that is float32, in bfloat16."""
        half = x.dtype == torch.bfloat16 and self.dtype == torch.float32
        return channels_last(x if half else x.to(self.dtype))

    def run(self, function, x, y, u, bias=None, values=0, **sizes):
        """Call it with so many values of scratch for each thread."""
        threads = torch.get_num_threads()
        scratch = torch.empty(threads * values, dtype=self.dtype)
        shapes = {"images": len(x), "height": x.shape[2], "width": x.shape[3], "in": x.shape[1],
                  "out_height": y.shape[2], "out_width": y.shape[3], "out": y.shape[1], "half": x.dtype == torch.bfloat16}
        job = Job(x.data_ptr(), y.data_ptr(), u.data_ptr(), None if bias is None else bias.data_ptr(), scratch.data_ptr(), values=values, **shapes, **sizes)
        function(ctypes.byref(job), threads)
        return y


class Winograd(FrozenConv):
    """A 3x3 convolution of stride 1 and padding 1, forward and backward. share: no weights for the backward pass alone, which is a fifth slower then."""

    def __init__(self, conv, kernels, share=False):
        super().__init__()
        weight = conv.weight.detach()
        self.kernels, self.bias = kernels, None if conv.bias is None else conv.bias.detach().to(kernels.dtype)
        self.forth = self.transform(weight)
        self.back = self.transform(weight.flip(2, 3).transpose(0, 1)) if weight[..., 0, 0].numel() < SHARED and not share else None

    @staticmethod
    def fits(conv, kernels):
        plain = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups) == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
        return plain and conv.padding_mode == "zeros" and conv.in_channels % kernels.panel == conv.out_channels % kernels.panel == 0

    def transform(self, weight):
        """(out, in, 3, 3) -> (36, out / panel, in, panel), as products read it."""
        outputs, inputs, panel = *weight.shape[:2], self.kernels.panel
        u = torch.empty(36, outputs // panel, inputs, panel, dtype=self.kernels.dtype)
        for i, part in enumerate(weight.double().split(panel)):
            u[:, i] = torch.einsum("ai,ocij,bj->abco", G, part, G).flatten(0, 1)
        return u

    def convolve(self, x, u, bias=None, turned=False):
        """turned: u has the weights of the opposite direction."""
        x, kernels = self.kernels.takes(x), self.kernels
        inputs, outputs = x.shape[1], u.numel() // 36 // x.shape[1]
        y = torch.empty((len(x), outputs, *x.shape[2:]), dtype=x.dtype, memory_format=torch.channels_last)
        tiles = len(x) * up(x.shape[2], 4) * up(x.shape[3], 4) // 16 or 1  # a batch may be empty
        each = up(-(-tiles // torch.get_num_threads()), kernels.rows)
        most = TURNED if turned else FEW if inputs + outputs <= WIDE else MANY
        block = up(-(-each // -(-each // most)), kernels.rows)
        values = 36 * block * (inputs + outputs) + turned * inputs * kernels.panel
        return kernels.run(kernels.winograd, x, y, u, bias, values, block=block, turned=turned)

    def compute(self, x):
        return self.convolve(x, self.forth, self.bias)

    def gradient(self, g, _):
        return self.convolve(g, self.forth, turned=True) if self.back is None else self.convolve(g, self.back)


class FirstConv(FrozenConv):
    """A convolution over the image: torch's, with an input gradient of our own."""

    def __init__(self, conv, kernels):
        super().__init__()
        self.kernels, self.conv = kernels, conv
        taps = conv.weight.detach().to(kernels.dtype).permute(0, 2, 3, 1).flatten(1)
        taps = F.pad(taps, (0, up(taps.shape[1], kernels.panel) - taps.shape[1]))  # (out, kh kw in), the columns of its products
        self.taps = taps.unflatten(1, (-1, kernels.panel)).transpose(0, 1).contiguous()

    @staticmethod
    def fits(conv, kernels):
        plain = conv.in_channels <= 4 and conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
        return plain and not isinstance(conv.padding, str) and conv.out_channels % kernels.panel == 0

    def compute(self, x):
        return self.conv(x)

    def gradient(self, g, shape):
        g, kernels, columns = self.kernels.takes(g), self.kernels, self.taps.shape[0] * self.kernels.panel
        y = torch.empty(shape, dtype=kernels.dtype, memory_format=torch.channels_last)
        sizes = {f"{name}_{axis}": value for name, pair in (("kernel", self.conv.kernel_size), ("stride", self.conv.stride), ("padding", self.conv.padding))
                 for axis, value in zip(("height", "width"), pair)}
        return kernels.run(kernels.first_gradient, g, y, self.taps, values=up(g.shape[3], kernels.rows) * (g.shape[1] + columns), columns=columns, **sizes)


@torch.inference_mode(False)
@torch.enable_grad()
@torch.random.fork_rng(devices=())
def agrees_with_torch(kernels):
    """Both on odd sizes, forward and backward: what the kernels give must be what torch gives, to rounding. Leaves torch's generator as it was."""
    torch.default_generator.manual_seed(0)
    for kind, conv, size in ((Winograd, nn.Conv2d(64, 64, 3, padding=1), 9), (Winograd, nn.Conv2d(256, 512, 3, padding=1), 5),
                             (FirstConv, nn.Conv2d(3, 64, 7, 2, 3, bias=False), 21)):
        conv = conv.to(kernels.dtype).requires_grad_(False)
        x = torch.randn(3, conv.in_channels, size, size, dtype=kernels.dtype).requires_grad_()
        found, wanted = kind(conv, kernels)(x), conv(x)
        g = torch.randn(wanted.shape, dtype=kernels.dtype)
        pairs = (found, wanted), (torch.autograd.grad(found, x, g)[0], torch.autograd.grad(wanted, x, g)[0])
        if not all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in pairs):
            return False
    return True


@functools.cache
def host_kernels(dtype):
    """-> (Kernels for networks of this type on a CPU, None), or (None, a line that says why torch computes all convolutions)."""
    try:
        kernels = Kernels(dtype)
    except (OSError, subprocess.CalledProcessError) as error:
        return None, f"convolutions by torch ({first_line(error)})"
    if not agrees_with_torch(kernels):
        return None, "convolutions by torch (the compiled kernel does not agree with it)"
    return kernels, None


def pays(shape):
    """Does Winograd's algorithm save enough, for results of this shape (n, c, h, w)? It has 36 products a tile; torch's skips those with the padding."""
    height, width = shape[2:]
    return TRANSFORMS * 36 * -(-height // 4) * -(-width // 4) < (3 * height - 2) * (3 * width - 2)


def ours(conv, kernels, shapes=(), forward_only=False, half=False):
    """What takes the place of this module, or None. shapes: of its results; half: it will have weights in bfloat16."""
    if type(conv) is not nn.Conv2d or conv._forward_pre_hooks or conv._forward_hooks:  # hooks may make the weights
        return None
    if half and StridedDepthwise.fits(conv):
        return StridedDepthwise(conv) if strided_pays() else None
    if kernels and Winograd.fits(conv, kernels):
        return Winograd(conv, kernels, share=forward_only) if all(map(pays, shapes)) else None
    return FirstConv(conv, kernels) if kernels and FirstConv.fits(conv, kernels) and not forward_only else None


def replace_convolutions(network, dtype, forward_only=False, half=False):
    """Put ours in the place of each convolution of a frozen network that they fit, in the network as fuse.py traced it. dtype: float32 or float64,
    of its weights; forward_only: as fuse.py has it; half: it will go on in bfloat16."""
    kernels, shapes = host_kernels(dtype)[0], {}
    for node in network.graph.nodes:
        if node.op == "call_module":
            shapes.setdefault(node.target, []).append(shape_of(node))
    for name in shapes:
        if found := ours(network.get_submodule(name), kernels, shapes[name], forward_only, half):
            network.set_submodule(name, found)


def describe_convolutions(network, dtype):
    """A line for the log about a network that replace_convolutions has been through."""
    kernels, why = host_kernels(dtype)
    kinds = [type(layer) for layer in network.modules() if isinstance(layer, (Winograd, nn.Conv2d))]
    return f"{kinds.count(Winograd)} of {len(kinds)} convolutions by Winograd's algorithm" if kernels else why
