"""On a GPU: the view of a batch and its gradient from a table of fixed shape (views.tabulate), and Adam's step, as Triton kernels."""
import torch
import triton
import triton.language as tl

from sre2l.kernels.adam import BETAS, EPS
from sre2l.kernels.triton.norms import accumulator


@triton.jit
def look_forward(images, table, seen, per_group, S, CHANNELS: tl.constexpr, W: tl.constexpr, ACC: tl.constexpr):
    """One output row of one image: (n, 3, S, S) -> (n, S, S, CHANNELS), channels after the third 0."""
    n, i = tl.program_id(0).to(tl.int64), tl.program_id(1)
    table += (n // per_group) * 10 * S
    j = tl.arange(0, W)
    real = j < S
    row, down = tl.load(table + i).to(tl.int32), tl.load(table + S + i).to(ACC)
    column, right = tl.load(table + 5 * S + j, real, 0).to(tl.int32), tl.load(table + 6 * S + j, real, 0).to(ACC)
    below, beside = tl.minimum(row + 1, S - 1), tl.minimum(column + 1, S - 1)
    out = seen + ((n * S + i) * S + j) * CHANNELS
    for channel in tl.static_range(CHANNELS):
        if channel < 3:
            plane = images + (n * 3 + channel) * S * S
            upper = (1 - right) * tl.load(plane + row * S + column, real, 0) + right * tl.load(plane + row * S + beside, real, 0)
            lower = (1 - right) * tl.load(plane + below * S + column, real, 0) + right * tl.load(plane + below * S + beside, real, 0)
            tl.store(out + channel, (1 - down) * upper + down * lower, real)
        else:
            tl.store(out + channel, tl.zeros([W], ACC), real)


@triton.jit
def wrapped(place, S):
    return tl.where(place >= S, place - S, place)


@triton.jit
def look_backward(gradient, table, out, per_group, S, factor, CHANNELS: tl.constexpr, C: tl.constexpr, W: tl.constexpr, ACC: tl.constexpr):
    """One stored row of one image: the sum over the output pixels that looked at it. gradient (n, S, S, CHANNELS) -> (n, 3, S, S).

    C: the power of two from CHANNELS; factor: of the result."""
    n, r = tl.program_id(0).to(tl.int64), tl.program_id(1)
    table += (n // per_group) * 10 * S
    gradient += n * S * S * CHANNELS
    q, c = tl.arange(0, W), tl.arange(0, C)
    real = q < S
    top, bottom = tl.load(table + 2 * S + r).to(tl.int32), tl.load(table + 3 * S + r).to(tl.int32)
    left, stop = tl.load(table + 7 * S + q, real, 0).to(tl.int32), tl.load(table + 8 * S + q, real, 0).to(tl.int32)
    row_roll, column_roll = tl.load(table + 4 * S).to(tl.int32), tl.load(table + 9 * S).to(tl.int32)
    flip = tl.load(table + 9 * S + 1) > 0
    total = tl.zeros([W, C], ACC)
    for k in range(tl.max(stop - left, 0) * (bottom > top)):
        place = left + k
        mask = real & (place < stop)
        j = wrapped(tl.where(flip, S - 1 - place, place) + column_roll, S)
        right = tl.load(table + 6 * S + j, mask, 0).to(ACC)
        right = tl.where(mask, tl.where(tl.load(table + 5 * S + j, mask, 0).to(tl.int32) == q, 1 - right, right), 0)
        for p in range(top, bottom):
            i = wrapped(p + row_roll, S)
            lower = tl.load(table + S + i).to(ACC)
            down = tl.where(tl.load(table + i).to(tl.int32) == r, 1 - lower, lower)
            at = gradient + (i * S + j)[:, None] * CHANNELS + c[None, :]
            total += (right * down)[:, None] * tl.load(at, mask[:, None] & (c < CHANNELS)[None, :], 0).to(ACC)
    at = out + n * 3 * S * S + r * S + q[:, None] + c[None, :] * S * S
    tl.store(at, total * factor, real[:, None] & (c < 3)[None, :])


class Look(torch.autograd.Function):
    """roll(flip(crop(x))) of G batches: images (G, B, 3, S, S), table (G, 10, S) -> (G B, channels, S, S), NHWC, in dtype.

    factor: of the gradient, which takes a loss scale out again."""

    @staticmethod
    def forward(ctx, images, table, channels, dtype, factor):
        count, size = images.shape[0] * images.shape[1], images.shape[-1]
        seen = torch.empty((count, channels, size, size), device=images.device, dtype=dtype, memory_format=torch.channels_last)
        look_forward[(count, size)](images, table, seen, images.shape[1], size, channels, triton.next_power_of_2(size), accumulator(images))
        ctx.save_for_backward(table)
        ctx.shape, ctx.dtype, ctx.factor = images.shape, images.dtype, factor
        return seen

    @staticmethod
    def backward(ctx, gradient):
        gradient, size = gradient.contiguous(memory_format=torch.channels_last), ctx.shape[-1]
        out = torch.empty(ctx.shape, device=gradient.device, dtype=ctx.dtype)
        channels = gradient.shape[1]
        look_backward[(len(gradient), size)](gradient, *ctx.saved_tensors, out, ctx.shape[1], size, ctx.factor, channels,
                                             triton.next_power_of_2(channels), triton.next_power_of_2(size), accumulator(out))
        return out, None, None, None, None


@triton.jit
def adam(images, first, second, gradient, rate, low, high, count, plane, beta1: tl.constexpr, beta2: tl.constexpr, eps: tl.constexpr,
         N: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    mask = at < count
    channel = (at // plane) % 3
    g = tl.load(gradient + at, mask, 0)
    m = tl.load(first + at, mask, 0)
    m += (g - m) * (1 - beta1)
    v = tl.load(second + at, mask, 0) * beta2 + (1 - beta2) * g * g
    x = tl.load(images + at, mask, 0) - tl.load(rate) * m / (tl.sqrt(v) / tl.load(rate + 1) + eps)
    bottom, top = tl.load(low + channel, mask, 0), tl.load(high + channel, mask, 0)
    tl.store(first + at, m, mask)
    tl.store(second + at, v, mask)
    tl.store(images + at, tl.where(x < bottom, bottom, tl.where(x > top, top, x)), mask)  # a NaN stays one, so that an overflow shows


def adam_step(images, first, second, gradient, rate, low, high):
    """adam.adam_step in one kernel."""
    count, block = images.numel(), 1024
    adam[(triton.cdiv(count, block),)](images, first, second, gradient, rate, low, high, count, images.shape[-1] ** 2,
                                       BETAS[0], BETAS[1], EPS, block)
