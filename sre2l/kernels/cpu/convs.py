"""Convolutions of a frozen network on a CPU, most of them by C functions.

A 3x3 convolution takes a quarter of the multiplications. The input gradient of a first
convolution takes as long as its forward pass; oneDNN computes it at a fifth of that speed.

Winograd's F(4x4, 3x3) (Lavin and Gray, 2016), with B, G and A of the points 0, +-sqrt(1/2), +-sqrt(2) and
infinity: y = A' [(G w G') (B' x B)] A for each tile of 4x4 outputs, summed over the channels between the
brackets. In float32 its result is off by 7e-7 (64 channels) to 2e-6 (512) of its spread; torch's is off by
half as much in NHWC, by 2e-7 in NCHW. float64 has kernels of its own. bfloat16 is what is read and written,
everything between is float32. Weights have no gradient."""
import ctypes
import functools
import math
import subprocess

import torch
import torch.nn.functional as F
from torch import nn

from sre2l.kernels.compiled import load_threaded_kernel
from sre2l.kernels.cpu.gradients import FrozenConv, StridedDepthwise, strided_pays
from sre2l.kernels.fuse import shape_of
from sre2l.run.errors import first_line

POINTS = math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2), -math.sqrt(2)
G = torch.tensor([[1, 0, 0], *([1 / p, 1, p] for p in POINTS), [0, 0, 1]], dtype=torch.float64)

# Tiles that a thread has in hand: up to WIDE channels in and out together, above that, with shared weights.
FEW, MANY, TURNED, WIDE = 24, 48, 144, 512
SHARED = 2 ** 17  # inputs times outputs from which on both directions share their weights, to save memory
TRANSFORMS = 1.3  # what the transforms cost, as a factor

TYPES = {torch.float32: ("-DREAL=float", "-DINTEGER=int32_t"),
         torch.float64: ("-DREAL=double", "-DINTEGER=int64_t")}
POINTERS = ("x", "y", "u", "bias", "scratch")
FIELDS = ("images", "height", "width", "in", "out_height", "out_width", "out", "block", "bf16", "turned",
          "kernel_height", "kernel_width", "stride_height", "stride_width", "padding_height", "padding_width",
          "columns", "values")


class Job(ctypes.Structure):
    """What products.h calls by this name."""
    _fields_ = [*((name, ctypes.c_void_p) for name in POINTERS), *((name, ctypes.c_int64) for name in FIELDS)]


def round_up(value, multiple):
    return -(-value // multiple) * multiple


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


class Kernels:
    """winograd.c and first_gradient.c, compiled for one type; flags: more of them for the compiler.

    panel, rows: the columns and rows of the products in them."""

    def __init__(self, dtype, *flags):
        flags = (*TYPES[dtype], *flags)
        winograd = load_threaded_kernel("winograd.c", *flags)
        first = load_threaded_kernel("first_gradient.c", *flags)
        winograd.panel.restype = winograd.rows.restype = ctypes.c_int64
        self.dtype = dtype
        self.panel = winograd.panel()
        self.rows = winograd.rows()
        self.winograd = winograd.winograd
        self.first_gradient = first.first_gradient
        for function in (self.winograd, self.first_gradient):
            function.argtypes = [ctypes.c_void_p, ctypes.c_uint]
            function.restype = None

    def readable(self, x):
        """The same values in NHWC, in the kernels' type or, where that is float32, in bfloat16."""
        bf16 = x.dtype == torch.bfloat16 and self.dtype == torch.float32
        return channels_last(x if bf16 else x.to(self.dtype))

    def call(self, function, x, y, u, bias=None, values=0, **sizes):
        """Run a kernel with so many values of scratch for each thread -> y."""
        threads = torch.get_num_threads()
        scratch = torch.empty(threads * values, dtype=self.dtype)
        pointers = {"x": x.data_ptr(), "y": y.data_ptr(), "u": u.data_ptr(), "scratch": scratch.data_ptr(),
                    "bias": None if bias is None else bias.data_ptr()}
        shapes = {"images": len(x), "height": x.shape[2], "width": x.shape[3], "in": x.shape[1],
                  "out_height": y.shape[2], "out_width": y.shape[3], "out": y.shape[1]}
        job = Job(**pointers, **shapes, bf16=x.dtype == torch.bfloat16, values=values, **sizes)
        function(ctypes.byref(job), threads)
        return y


class Winograd(FrozenConv):
    """A 3x3 convolution of stride 1 and padding 1, forward and backward.

    share: no weights for the backward pass alone, which is a fifth slower then."""

    def __init__(self, conv, kernels, share=False):
        super().__init__()
        weight = conv.weight.detach()
        self.kernels = kernels
        self.bias = None if conv.bias is None else conv.bias.detach().to(kernels.dtype)
        self.forward_weights = self.transform(weight)
        self.backward_weights = None
        if weight[..., 0, 0].numel() < SHARED and not share:
            self.backward_weights = self.transform(weight.flip(2, 3).transpose(0, 1))

    @staticmethod
    def fits(conv, kernels):
        geometry = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
        if geometry != ((3, 3), (1, 1), (1, 1), (1, 1), 1) or conv.padding_mode != "zeros":
            return False
        return conv.in_channels % kernels.panel == conv.out_channels % kernels.panel == 0

    def transform(self, weight):
        """(out, in, 3, 3) -> (36, out / panel, in, panel), as products read it."""
        outputs, inputs = weight.shape[:2]
        panel = self.kernels.panel
        u = torch.empty(36, outputs // panel, inputs, panel, dtype=self.kernels.dtype)
        for i, part in enumerate(weight.double().split(panel)):
            u[:, i] = torch.einsum("ai,ocij,bj->abco", G, part, G).flatten(0, 1)
        return u

    def convolve(self, x, u, bias=None, turned=False):
        """turned: u has the weights of the opposite direction."""
        kernels = self.kernels
        x = kernels.readable(x)
        inputs = x.shape[1]
        outputs = u.numel() // 36 // inputs
        y = torch.empty((len(x), outputs, *x.shape[2:]), dtype=x.dtype, memory_format=torch.channels_last)

        # Each thread has its share of the tiles in blocks of one size, and scratch for one block.
        tiles = len(x) * round_up(x.shape[2], 4) * round_up(x.shape[3], 4) // 16 or 1  # a batch may be empty
        each = round_up(-(-tiles // torch.get_num_threads()), kernels.rows)
        if turned:
            most = TURNED
        elif inputs + outputs <= WIDE:
            most = FEW
        else:
            most = MANY
        block = round_up(-(-each // -(-each // most)), kernels.rows)
        values = 36 * block * (inputs + outputs) + turned * inputs * kernels.panel
        return kernels.call(kernels.winograd, x, y, u, bias, values, block=block, turned=turned)

    def compute(self, x):
        return self.convolve(x, self.forward_weights, self.bias)

    def gradient(self, g, _):
        if self.backward_weights is None:
            return self.convolve(g, self.forward_weights, turned=True)
        return self.convolve(g, self.backward_weights)


class FirstConv(FrozenConv):
    """A convolution over the image: torch's, with an input gradient of our own."""

    def __init__(self, conv, kernels):
        super().__init__()
        self.kernels = kernels
        self.conv = conv
        taps = conv.weight.detach().to(kernels.dtype).permute(0, 2, 3, 1).flatten(1)
        columns = round_up(taps.shape[1], kernels.panel)
        taps = F.pad(taps, (0, columns - taps.shape[1]))  # (out, kh kw in), the columns of its products
        self.taps = taps.unflatten(1, (-1, kernels.panel)).transpose(0, 1).contiguous()

    @staticmethod
    def fits(conv, kernels):
        plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
        if not plain or isinstance(conv.padding, str):
            return False
        return conv.in_channels <= 4 and conv.out_channels % kernels.panel == 0

    def compute(self, x):
        return self.conv(x)

    def gradient(self, g, shape):
        kernels = self.kernels
        g = kernels.readable(g)
        y = torch.empty(shape, dtype=kernels.dtype, memory_format=torch.channels_last)
        columns = self.taps.shape[0] * kernels.panel
        sizes = {}
        for name in ("kernel_size", "stride", "padding"):
            field = name.removesuffix("_size")
            sizes[f"{field}_height"], sizes[f"{field}_width"] = getattr(self.conv, name)
        values = round_up(g.shape[3], kernels.rows) * (g.shape[1] + columns)
        return kernels.call(kernels.first_gradient, g, y, self.taps, values=values, columns=columns, **sizes)


@torch.inference_mode(False)
@torch.enable_grad()
@torch.random.fork_rng(devices=())
def agrees_with_torch(kernels):
    """Both kernels on odd sizes, forward and backward, must give what torch gives, to rounding."""
    torch.default_generator.manual_seed(0)
    cases = ((Winograd, nn.Conv2d(64, 64, 3, padding=1), 9), (Winograd, nn.Conv2d(256, 512, 3, padding=1), 5),
             (FirstConv, nn.Conv2d(3, 64, 7, 2, 3, bias=False), 21))
    for kind, conv, size in cases:
        conv = conv.to(kernels.dtype).requires_grad_(False)
        x = torch.randn(3, conv.in_channels, size, size, dtype=kernels.dtype).requires_grad_()
        found = kind(conv, kernels)(x)
        wanted = conv(x)
        g = torch.randn(wanted.shape, dtype=kernels.dtype)
        gradients = torch.autograd.grad(found, x, g)[0], torch.autograd.grad(wanted, x, g)[0]
        if not all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in ((found, wanted), gradients)):
            return False
    return True


@functools.cache
def host_kernels(dtype):
    """-> (Kernels for networks of this type, None), or (None, why torch computes all convolutions)."""
    try:
        kernels = Kernels(dtype)
    except (OSError, subprocess.CalledProcessError) as error:
        return None, f"convolutions by torch ({first_line(error)})"
    if not agrees_with_torch(kernels):
        return None, "convolutions by torch (the compiled kernel does not agree with it)"
    return kernels, None


def winograd_pays(shape):
    """Does Winograd's algorithm save enough, for results of this shape (n, c, h, w)?

    It has 36 products a tile; torch's convolution skips those with the padding."""
    height, width = shape[2:]
    return TRANSFORMS * 36 * -(-height // 4) * -(-width // 4) < (3 * height - 2) * (3 * width - 2)


def ours(conv, kernels, shapes=(), forward_only=False, bf16=False):
    """What takes the place of this module, or None. shapes:
    of its results; bf16: it will have weights in bfloat16."""
    has_hooks = conv._forward_pre_hooks or conv._forward_hooks  # these may make the weights
    if type(conv) is not nn.Conv2d or has_hooks:
        return None
    if bf16 and StridedDepthwise.fits(conv):
        return StridedDepthwise(conv) if strided_pays() else None
    if kernels is None:
        return None
    if Winograd.fits(conv, kernels):
        return Winograd(conv, kernels, share=forward_only) if all(map(winograd_pays, shapes)) else None
    return FirstConv(conv, kernels) if FirstConv.fits(conv, kernels) and not forward_only else None


def replace_convolutions(network, dtype, forward_only, bf16):
    """Put ours in the place of each convolution that they fit, in a frozen network as fuse.py traced it.

    dtype: float32 or float64, of its weights; forward_only: as fuse.py has it; bf16: it will be converted to
    bfloat16 afterwards."""
    kernels, _ = host_kernels(dtype)
    shapes = {}
    for node in network.graph.nodes:
        if node.op == "call_module":
            shapes.setdefault(node.target, []).append(shape_of(node))
    for name in shapes:
        found = ours(network.get_submodule(name), kernels, shapes[name], forward_only, bf16)
        if found:
            network.set_submodule(name, found)


def describe_convolutions(network, dtype):
    """A line for the log about a network that replace_convolutions has been through."""
    kernels, why = host_kernels(dtype)
    if kernels is None:
        return why
    kinds = [type(layer) for layer in network.modules() if isinstance(layer, (Winograd, nn.Conv2d))]
    return f"{kinds.count(Winograd)} of {len(kinds)} convolutions by Winograd's algorithm"
