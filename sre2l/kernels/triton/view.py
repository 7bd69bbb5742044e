"""Triton kernels: the view of a batch and its gradient, from
a table of fixed shape (views.tabulate), and Adam's step."""
import torch
import triton
import triton.language as tl

from sre2l.kernels.adam import BETAS, EPS
from sre2l.kernels.triton.norms import accumulator


@triton.jit
def view_forward(images, table, seen, per_group, S,
                 CHANNELS: tl.constexpr, W: tl.constexpr, ACC: tl.constexpr):
    """One output row of one image: (n, 3, S, S) -> (n, S, S, CHANNELS), channels after the third 0."""
    n = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1)
    table += (n // per_group) * 10 * S
    j = tl.arange(0, W)
    real = j < S
    row = tl.load(table + i).to(tl.int32)
    down = tl.load(table + S + i).to(ACC)
    column = tl.load(table + 5 * S + j, real, 0).to(tl.int32)
    right = tl.load(table + 6 * S + j, real, 0).to(ACC)
    next_row = tl.minimum(row + 1, S - 1)
    next_column = tl.minimum(column + 1, S - 1)
    out = seen + ((n * S + i) * S + j) * CHANNELS
    for channel in tl.static_range(CHANNELS):
        if channel < 3:
            plane = images + (n * 3 + channel) * S * S
            upper_left = tl.load(plane + row * S + column, real, 0)
            upper_right = tl.load(plane + row * S + next_column, real, 0)
            lower_left = tl.load(plane + next_row * S + column, real, 0)
            lower_right = tl.load(plane + next_row * S + next_column, real, 0)
            upper = (1 - right) * upper_left + right * upper_right
            lower = (1 - right) * lower_left + right * lower_right
            tl.store(out + channel, (1 - down) * upper + down * lower, real)
        else:
            tl.store(out + channel, tl.zeros([W], ACC), real)


@triton.jit
def wrapped(place, S):
    return tl.where(place >= S, place - S, place)


@triton.jit
def view_backward(gradient, table, out, per_group, S, factor, CHANNELS: tl.constexpr, C: tl.constexpr,
                  W: tl.constexpr, ACC: tl.constexpr):
    """One stored row of one image: the sum over the output pixels
    that read it. gradient (n, S, S, CHANNELS) -> (n, 3, S, S).

    C: the power of two from CHANNELS on; factor: of the result."""
    n = tl.program_id(0).to(tl.int64)
    r = tl.program_id(1)
    table += (n // per_group) * 10 * S
    gradient += n * S * S * CHANNELS
    q = tl.arange(0, W)
    c = tl.arange(0, C)
    real = q < S

    # The table names the places before flip and roll that read this row, and each column: a range, so no
    # other program adds to it and nothing is atomic.
    top = tl.load(table + 2 * S + r).to(tl.int32)
    bottom = tl.load(table + 3 * S + r).to(tl.int32)
    left = tl.load(table + 7 * S + q, real, 0).to(tl.int32)
    stop = tl.load(table + 8 * S + q, real, 0).to(tl.int32)
    row_roll = tl.load(table + 4 * S).to(tl.int32)
    column_roll = tl.load(table + 9 * S).to(tl.int32)
    flip = tl.load(table + 9 * S + 1) > 0
    total = tl.zeros([W, C], ACC)
    for k in range(tl.max(stop - left, 0) * (bottom > top)):
        place = left + k
        mask = real & (place < stop)
        j = wrapped(tl.where(flip, S - 1 - place, place) + column_roll, S)
        # A place reads two columns: this is the left one with weight 1 - w, or the right one with w.
        right = tl.load(table + 6 * S + j, mask, 0).to(ACC)
        is_left = tl.load(table + 5 * S + j, mask, 0).to(tl.int32) == q
        right = tl.where(mask, tl.where(is_left, 1 - right, right), 0)
        for p in range(top, bottom):
            i = wrapped(p + row_roll, S)
            lower = tl.load(table + S + i).to(ACC)
            down = tl.where(tl.load(table + i).to(tl.int32) == r, 1 - lower, lower)
            at = gradient + (i * S + j)[:, None] * CHANNELS + c[None, :]
            total += (right * down)[:, None] * tl.load(at, mask[:, None] & (c < CHANNELS)[None, :], 0).to(ACC)

    # The network sees channels last, the image has them first; channels after the third are padding.
    at = out + n * 3 * S * S + r * S + q[:, None] + c[None, :] * S * S
    tl.store(at, total * factor, real[:, None] & (c < 3)[None, :])


class ApplyView(torch.autograd.Function):
    """roll(flip(crop(x))) of G batches: images (G, B, 3, S, S),
    table (G, 10, S) -> (G B, channels, S, S), NHWC, in dtype.

    factor: of the gradient, which takes a loss scale out again."""

    @staticmethod
    def forward(ctx, images, table, channels, dtype, factor):
        groups, per_group, _, _, size = images.shape
        shape = (groups * per_group, channels, size, size)
        seen = torch.empty(shape, device=images.device, dtype=dtype, memory_format=torch.channels_last)
        view_forward[(len(seen), size)](images, table, seen, per_group, size,
                                        channels, triton.next_power_of_2(size), accumulator(images))
        ctx.save_for_backward(table)
        ctx.shape = images.shape
        ctx.dtype = images.dtype
        ctx.factor = factor
        return seen

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        table, = ctx.saved_tensors
        out = torch.empty(ctx.shape, device=gradient.device, dtype=ctx.dtype)
        channels = gradient.shape[1]
        _, per_group, _, _, size = ctx.shape
        widths = triton.next_power_of_2(channels), triton.next_power_of_2(size)
        view_backward[(len(gradient), size)](gradient, table, out, per_group, size, ctx.factor,
                                             channels, *widths, accumulator(out))
        return out, None, None, None, None


@triton.jit
def adam(images, first, second, gradient, rate, low, high, count, plane,
         beta1: tl.constexpr, beta2: tl.constexpr, eps: tl.constexpr, N: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    mask = at < count
    channel = (at // plane) % 3
    g = tl.load(gradient + at, mask, 0)
    m = tl.load(first + at, mask, 0)
    m += (g - m) * (1 - beta1)
    v = tl.load(second + at, mask, 0) * beta2 + (1 - beta2) * g * g
    x = tl.load(images + at, mask, 0) - tl.load(rate) * m / (tl.sqrt(v) / tl.load(rate + 1) + eps)
    bottom = tl.load(low + channel, mask, 0)
    top = tl.load(high + channel, mask, 0)
    tl.store(first + at, m, mask)
    tl.store(second + at, v, mask)
    x = tl.where(x < bottom, bottom, tl.where(x > top, top, x))  # a NaN stays one, so that an overflow shows
    tl.store(images + at, x, mask)


def adam_step(images, first, second, gradient, rate, low, high):
    """adam.adam_step in one kernel."""
    count = images.numel()
    block = 1024
    plane = images.shape[-1] ** 2
    adam[(triton.cdiv(count, block),)](images, first, second, gradient, rate, low, high, count, plane,
                                       *BETAS, EPS, block)
