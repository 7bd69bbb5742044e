"""A rewritten network on a CPU: the convolutions of convs.py, and the two passes of norms.py by norms.c, each value read once and written once.

They take float32 and bfloat16, NHWC; the formulas in torch do the rest, and all of it where nothing compiles.
"""
import ctypes
import functools
import subprocess

import torch

from sre2l.kernels.compiled import load_threaded_kernel
from sre2l.run.errors import first_line
from sre2l.kernels import norms as formulas
from sre2l.kernels.cpu.convs import host_kernels, replace_convolutions
from sre2l.kernels.fuse import fuse

HALF, STATS, SUM, CLAMPS, OTHER = 1, 2, 4, 8, 16  # of kind, as in norms.c
SMALL = 2 ** 14  # values that one thread has done before a second has begun


class Job(ctypes.Structure):
    """What norms.c calls by this name."""
    _fields_ = [*((name, ctypes.c_void_p) for name in ("x", "other", "g1", "g2", "y", "gx", "gother", "mean", "scale", "shift", "alpha", "beta", "partial")),
                *((name, ctypes.c_int64) for name in ("rows", "channels", "groups", "kind")), ("low", ctypes.c_float), ("high", ctypes.c_float)]


def fits(x, norm):
    """Is it what norms.c takes: rows of C channels, one after the other, in a type that it has?"""
    rows = x.is_contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.ndim == 2 and x.is_contiguous()
    return rows and x.dtype in (torch.float32, torch.bfloat16) and norm.mean.dtype == torch.float32 and x.numel() > 0


def as_rows(values, x):
    """The same values in x's type and layout; no copy where they are."""
    return values.to(x.dtype).contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.contiguous_format)


def kind_of(x, norm, has_other):
    """The part of kind that both passes share."""
    return HALF * (x.dtype == torch.bfloat16) + STATS * bool(norm.coefficient) + OTHER * has_other


def run(kernel, norm, x, kind, threads, **tensors):
    """Call norms.c. tensors: fields of Job, each a tensor or None."""
    tensors = {"x": x, "mean": norm.mean, "scale": norm.scale, "shift": norm.shift, **tensors}
    addresses = {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None}
    channels = x.shape[1]
    rows = x.numel() // channels // norm.groups
    kernel(ctypes.byref(Job(**addresses, rows=rows, channels=channels, groups=norm.groups, kind=kind, low=norm.low, high=norm.high)), threads)


class Passes:
    """norms.Passes by norms.c; kernel: its run_job."""

    def __init__(self, kernel):
        self.kernel = kernel

    def forward(self, x, other, norm):
        if not fits(x, norm):
            return formulas.Passes.forward(x, other, norm)
        threads, y, partial = threads_for(x), x if norm.in_place else torch.empty_like(x), None
        other = None if other is None else as_rows(other, x)
        if norm.coefficient:
            partial = torch.zeros((threads, norm.groups, 2, x.shape[1]), dtype=torch.float64)
        run(self.kernel, norm, x, kind_of(x, norm, other is not None), threads, other=other, y=y, partial=partial)
        if norm.coefficient:
            norm.num_values = x.numel() // x.shape[1] // norm.groups
            offset, square = (partial.sum(0) / norm.num_values).unbind(1)  # of x - m
            norm.moments = (norm.mean + offset).to(norm.mean.dtype), (square - offset ** 2).to(norm.mean.dtype)
        return [y] * norm.copies, (x, y) if norm.clamps and other is not None else (x,)

    def backward(self, gradients, saved, norm, has_other):
        x = saved[0]
        if not fits(x, norm):
            return formulas.Passes.backward(gradients, saved, norm, has_other)
        gradients, gx = [as_rows(g, x) for g in gradients], torch.empty_like(x)
        g1, g2, y = gradients[0], *gradients[1:], *[None] * (2 - len(gradients)), saved[1] if len(saved) > 1 else None
        changes = g2 is not None or norm.clamps
        gother = torch.empty_like(x) if has_other and changes else g1
        kind = kind_of(x, norm, has_other) + SUM * (g2 is not None) + CLAMPS * norm.clamps
        run(self.kernel, norm, x, kind, threads_for(x), g1=g1, g2=g2, y=y, gx=gx, gother=gother, alpha=norm.alpha, beta=norm.beta)
        return gx, gother if has_other else None


def threads_for(x):
    return 1 if x.numel() < SMALL else torch.get_num_threads()


def agrees_with_formulas(passes):
    """One clamped sum with statistics and two gradients: the kernel must give what the formulas give, to rounding."""
    generator = torch.Generator().manual_seed(0)
    x, other, g1, g2 = torch.randn((4, 4, 6, 6, 24), generator=generator).movedim(-1, 2)
    found = []
    for one in (passes, formulas.Passes):
        norm = formulas.Norm(torch.nn.BatchNorm2d(24), 1.0, 1.0)
        norm.low, norm.copies = 0.0, 2
        (y, _), saved = one.forward(x, other, norm)
        formulas.finish([norm])
        found.append((y, *norm.moments, *one.backward((g1, g2), saved, norm, True)))
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*found))


@functools.cache
def host_passes():
    """-> (the passes for a CPU, the line that says which they are)."""
    try:
        kernel = load_threaded_kernel("norms.c").run_job
        kernel.argtypes, kernel.restype = [ctypes.c_void_p, ctypes.c_uint], None
    except (OSError, subprocess.CalledProcessError) as error:
        return formulas.Passes, f"BatchNorm on the CPU by torch ({first_line(error)})"
    if not agrees_with_formulas(Passes(kernel)):
        return formulas.Passes, "BatchNorm on the CPU by torch (the compiled kernel does not agree with it)"
    return Passes(kernel), "BatchNorm on the CPU by the compiled kernel"


def use_host_kernels(network, norms, dtype, forward_only=False, half=False):
    """Let a network that fuse.py has rewritten compute by the C functions, in place. norms: its Norms; dtype: of its weights, None for torch's
    convolutions; forward_only: no memory for a backward pass; half: it will go on in bfloat16."""
    if dtype:
        replace_convolutions(network, dtype, forward_only, half)
    for norm in norms:
        norm.passes = host_passes()[0]


def host_network(network, size):
    """A frozen float32 network on a CPU -> its forward pass by the C functions, a copy. size: of the images, pixels. Raises anything where torch.fx
    cannot trace it or nothing compiles; a network that writes in place under another name comes out wrong, so compare the two."""
    kernels, why = host_kernels(torch.float32)
    if kernels is None:
        raise OSError(why)
    traced, norms = fuse(network, dict.fromkeys(formulas.statistics_layers(network), (0.0, 0.0)), size, forward_only=True)
    use_host_kernels(traced, norms, torch.float32, forward_only=True)
    return traced.to(memory_format=torch.channels_last)
