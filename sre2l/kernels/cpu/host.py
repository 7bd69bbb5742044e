"""A rewritten network on a CPU: the convolutions of convs.py, and the two passes of norms.py by norms.c.

norms.c reads each value once and writes it once. It takes float32 and bfloat16 in NHWC. The formulas in torch
do the rest, and all of it where nothing compiles."""
import ctypes
import functools
import subprocess

import torch

from sre2l.kernels import norms as formulas
from sre2l.kernels.compiled import load_threaded_kernel
from sre2l.kernels.cpu.convs import host_kernels, replace_convolutions
from sre2l.kernels.fuse import fuse
from sre2l.run.errors import first_line

BF16, STATS, SUM, CLAMPS, OTHER = 1, 2, 4, 8, 16  # flags of Job.kind, as in norms.c
SMALL = 2 ** 14  # values that one thread has done before a second has begun
TENSORS = ("x", "other", "g1", "g2", "y", "gx", "gother",
           "mean", "scale", "shift", "alpha", "beta", "partial")
COUNTS = ("rows", "channels", "groups", "kind", "step")


class Job(ctypes.Structure):
    """What norms.c calls by this name."""
    _fields_ = [*((name, ctypes.c_void_p) for name in TENSORS), *((name, ctypes.c_int64) for name in COUNTS),
                ("low", ctypes.c_float), ("high", ctypes.c_float)]


def row_format(x):
    """The memory format in which x is rows of channels."""
    return torch.channels_last if x.ndim == 4 else torch.contiguous_format


def fits(x, facts):
    """Is it what norms.c takes: rows of C channels, one after the other, in a type that it has?"""
    has_rows = x.ndim in (2, 4) and x.is_contiguous(memory_format=row_format(x))
    has_type = x.dtype in (torch.float32, torch.bfloat16) and facts.mean.dtype == torch.float32
    return has_rows and has_type and x.numel() > 0


def as_rows(values, x):
    """The same values in x's type and layout; no copy where they are."""
    return values.to(x.dtype).contiguous(memory_format=row_format(x))


def kind_of(x, facts, has_other):
    """The part of Job.kind that both passes share."""
    return BF16 * (x.dtype == torch.bfloat16) + STATS * bool(facts.coefficient) + OTHER * has_other


def threads_for(x):
    return 1 if x.numel() < SMALL else torch.get_num_threads()


class Passes:
    """norms.Passes by norms.c; kernel: its run_job."""

    def __init__(self, kernel):
        self.kernel = kernel

    def call(self, facts, run, x, kind, **tensors):
        """Run the kernel. tensors: fields of Job, each a tensor or None."""
        tensors = {"x": x, "mean": facts.mean, "scale": facts.scale, "shift": facts.shift, **tensors}
        addresses = {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None}
        channels = x.shape[1]
        rows = x.numel() // channels // run.groups
        counts = {"rows": rows, "channels": channels, "groups": run.groups, "kind": kind, "step": facts.step}
        job = Job(**addresses, **counts, low=facts.low, high=facts.high)
        if not self.kernel(ctypes.byref(job), threads_for(x)):
            raise RuntimeError(f"norms.c has no pass of kind {kind}")

    def forward(self, x, other, facts, run):
        if not fits(x, facts):
            return formulas.Passes.forward(x, other, facts, run)
        other = None if other is None else as_rows(other, x)
        y = x if facts.in_place else torch.empty_like(x)
        partial = None
        if facts.coefficient:
            partial = torch.zeros((threads_for(x), run.groups, 2, x.shape[1]), dtype=torch.float64)
        self.call(facts, run, x, kind_of(x, facts, other is not None), other=other, y=y, partial=partial)

        if facts.coefficient:
            run.num_values = x.numel() // x.shape[1] // run.groups
            offset, square = (partial.sum(0) / run.num_values).unbind(1)  # means of x - m and of its square
            exact = facts.mean.dtype
            run.moments = (facts.mean + offset).to(exact), (square - offset ** 2).to(exact)
        needs_y = facts.clamps and other is not None
        return [y] * facts.copies, (x, y) if needs_y else (x,)

    def backward(self, gradients, saved, facts, run, has_other):
        x, *clamped = saved
        if not fits(x, facts):
            return formulas.Passes.backward(gradients, saved, facts, run, has_other)
        g1, *more = [as_rows(g, x) for g in gradients]
        g2 = more[0] if more else None
        gx = torch.empty_like(x)
        changes = g2 is not None or facts.clamps  # else the gradient of other is g1 itself
        gother = torch.empty_like(x) if has_other and changes else g1
        kind = kind_of(x, facts, has_other) + SUM * (g2 is not None) + CLAMPS * facts.clamps
        self.call(facts, run, x, kind, g1=g1, g2=g2, y=clamped[0] if clamped else None, gx=gx, gother=gother,
                  alpha=run.alpha, beta=run.beta)
        return gx, gother if has_other else None


def agrees_with_formulas(passes):
    """A clamped sum with statistics and two gradients: the kernel must give what the formulas give."""
    generator = torch.Generator().manual_seed(0)
    x, other, g1, g2 = torch.randn((4, 4, 6, 6, 24), generator=generator).movedim(-1, 2)
    found = []
    for one in (passes, formulas.Passes):
        norm = formulas.Norm(torch.nn.BatchNorm2d(24), 1.0, 1.0)
        norm.facts.low = 0.0
        norm.facts.copies = 2
        (y, _), saved = one.forward(x, other, norm.facts, norm.run)
        formulas.finish([norm])
        found.append((y, *norm.run.moments, *one.backward((g1, g2), saved, norm.facts, norm.run, True)))
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*found))


@functools.cache
def host_passes():
    """-> (the passes for a CPU, the line that says which they are)."""
    try:
        kernel = load_threaded_kernel("norms.c").run_job
    except (OSError, subprocess.CalledProcessError) as error:
        return formulas.Passes, f"BatchNorm on the CPU by torch ({first_line(error)})"
    kernel.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    kernel.restype = ctypes.c_int
    if not agrees_with_formulas(Passes(kernel)):
        return formulas.Passes, "BatchNorm on the CPU by torch (the compiled kernel does not agree with it)"
    return Passes(kernel), "BatchNorm on the CPU by the compiled kernel"


def use_host_kernels(network, norms, dtype, forward_only=False, bf16=False):
    """Let a network that fuse.py has rewritten compute by the C functions, in place.

    dtype: of its weights, None for torch's convolutions; forward_only: no memory for a backward pass;
    bf16: it will be converted to bfloat16 afterwards."""
    if dtype:
        replace_convolutions(network, dtype, forward_only, bf16)
    for norm in norms:
        norm.passes = host_passes()[0]


def host_network(network, size):
    """A frozen float32 network -> its forward pass by the C functions, a copy. size: of the images, pixels.

    Raises anything where torch.fx cannot trace it or nothing compiles. A network that writes in place under
    another name comes out wrong: compare the two."""
    kernels, why = host_kernels(torch.float32)
    if kernels is None:
        raise OSError(why)
    layers = dict.fromkeys(formulas.statistics_layers(network), (0.0, 0.0))
    traced, norms = fuse(network, layers, size, forward_only=True)
    use_host_kernels(traced, norms, torch.float32, forward_only=True)
    return traced.to(memory_format=torch.channels_last)
