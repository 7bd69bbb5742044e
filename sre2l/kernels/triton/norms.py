"""The two passes of norms.py over an activation, as Triton kernels for the GPU: each value is read once and written once.

Activations are rows of C channels (NHWC). The forward kernel leaves partial sums of x - m and its square; when the network has run, two small
kernels turn those of all layers at once into alpha, beta and distances (moments.py). Accumulation is float32, float64 for float64 activations.
"""
import torch
import triton
import triton.language as tl

from sre2l.kernels.triton.pool import pool_backward, pool_forward
from sre2l.kernels.triton.tiles import add_statistics_gradient, clamped, own_tile, per_channel, store_sums
from sre2l.run.errors import UserError

PROGRAMS = 1056  # that a forward pass is cut into where it is long enough: 8 for each multiprocessor of an H100 or H200
TILE = 1024      # values of a tile; both measured on an H200: 2,112 and 2,048 take up to 38 % longer


@triton.jit
def thinned(row, H, W):
    """Is this position (row of n H W) in an even line and column, and which is it among those?"""
    w, h, n = row % W, (row // W) % H, row // (H * W)
    return (w % 2 == 0) & (h % 2 == 0), (n * ((H + 1) // 2) + h // 2) * ((W + 1) // 2) + w // 2


@triton.jit
def norm_forward(x, other, y, thin, partial, mean, scale, shift, rows, C, H, W, tiles, low, high, HAS_OTHER: tl.constexpr,
                 THIN: tl.constexpr, STATS: tl.constexpr, ACC: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    part, group = tl.program_id(0), tl.program_id(2)
    cols = tl.program_id(1) * N + tl.arange(0, N)
    real = cols < C
    begin = group.to(tl.int64) * rows * C  # offsets within a group fit into 32 bits
    x, other, y, thin = x + begin, other + begin, y + begin, thin + begin // (H * W) * ((H + 1) // 2 * ((W + 1) // 2))
    m, a, b = per_channel(mean, cols, real, ACC), per_channel(scale, cols, real, ACC), per_channel(shift, cols, real, ACC)
    total, square = tl.zeros([M, N], ACC), tl.zeros([M, N], ACC)
    for tile in range(tiles):
        row = (part * tiles + tile) * M + tl.arange(0, M)
        mask = (row < rows)[:, None] & real[None, :]
        at = row[:, None] * C + cols[None, :]
        v = tl.load(x + at, mask, 0).to(ACC)
        if STATS:
            s = tl.where(mask, v - m, 0)
            total += s
            square += s * s
        v = v * a + b
        if HAS_OTHER:
            v += tl.load(other + at, mask, 0).to(ACC)
        v = clamped(v, low, high)
        tl.store(y + at, v, mask)
        if THIN:
            kept, there = thinned(row, H, W)
            tl.store(thin + there[:, None] * C + cols[None, :], v, mask & kept[:, None])
    if STATS:
        store_sums(partial, total, square, part, group, cols, real, C)


@triton.jit
def norm_backward(g1, g2, x, y, gx, gother, coefficients, scale, shift, rows, C, H, W, across, low, high, TWO: tl.constexpr, THIN: tl.constexpr,
                  HAS_OTHER: tl.constexpr, CLAMPS: tl.constexpr, STATS: tl.constexpr, WRITE_OTHER: tl.constexpr, ACC: tl.constexpr,
                  M: tl.constexpr, N: tl.constexpr):
    group, row, cols, real, mask, begin = own_tile(rows, C, across, M, N)
    g1, x, y, gx, gother = g1 + begin, x + begin, y + begin, gx + begin, gother + begin
    at = row[:, None] * C + cols[None, :]
    a = per_channel(scale, cols, real, ACC)
    g = tl.load(g1 + at, mask, 0).to(ACC)
    if THIN:
        kept, there = thinned(row, H, W)
        g2 += begin // (H * W) * ((H + 1) // 2 * ((W + 1) // 2))
        g += tl.load(g2 + there[:, None] * C + cols[None, :], mask & kept[:, None], 0).to(ACC)
    elif TWO:
        g += tl.load(g2 + begin + at, mask, 0).to(ACC)
    if STATS or (CLAMPS and not HAS_OTHER):
        v = tl.load(x + at, mask, 0).to(ACC)
    if CLAMPS:
        if HAS_OTHER:
            out = tl.load(y + at, mask, 0).to(ACC)
        else:
            out = v * a + per_channel(shift, cols, real, ACC)
        g = tl.where((out > low) & (out < high), g, 0)
    if WRITE_OTHER:
        tl.store(gother + at, g, mask)
    g *= a
    if STATS:
        g = add_statistics_gradient(g, v, coefficients, group, cols, real, C, ACC)
    tl.store(gx + at, g, mask)


def accumulator(x):
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def as_rows(x):
    """The same values NHWC in memory; no copy where they are."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.movedim(1, -1).contiguous().movedim(-1, 1)


def tile_width(channels):
    """Channels of a tile: a power of two that leaves few lanes idle, 64 where several are as good."""
    return min((64, 32, 16), key=lambda n: triton.cdiv(channels, n) * n)


def layout(rows, channels, groups):
    """-> (rows a tile, channels a tile, tiles a program, programs along the rows, along the channels)."""
    n = tile_width(channels)
    m = TILE // n
    across, tiles = triton.cdiv(channels, n), triton.cdiv(rows, m)
    parts = min(tiles, max(1, PROGRAMS // (across * groups)))
    each = triton.cdiv(tiles, parts)
    return m, n, each, triton.cdiv(tiles, each), across


def check_reach(x, groups):
    """The kernels count within a group in 32 bits."""
    if x.numel() // groups >= 2 ** 31:
        raise UserError(f"an activation of {x.numel() // groups:,} values for one batch is too much for the GPU kernels; use a smaller --batch-size")


def partial_sums(norm, parts, channels, like):
    """Where the forward pass leaves its sums, (G, parts, 2, C); kept from one iteration to the next."""
    shape = (norm.groups, parts, 2, channels)
    if norm.partial is None or norm.partial.shape != shape:
        norm.partial = torch.empty(shape, device=like.device, dtype=norm.mean.dtype)
        norm.coefficients = None
    return norm.partial


def empty_rows(x, height, width, dtype=None):
    """(n, C, height, width), NHWC, uninitialised."""
    shape = (len(x), x.shape[1], height, width)
    return torch.empty(shape, device=x.device, dtype=dtype or x.dtype, memory_format=torch.channels_last)


class Passes:
    """norms.Passes on a GPU."""

    @staticmethod
    def forward(x, other, norm):
        x, other = as_rows(x), None if other is None else as_rows(other)
        check_reach(x, norm.groups)
        channels, stats = x.shape[1], bool(norm.coefficient)
        height, width = x.shape[2:] if x.ndim == 4 else (1, 1)
        num_values = x.numel() // channels // norm.groups
        if num_values != norm.num_values:  # another batch size: the Finisher's tables are of no use
            norm.num_values, norm.partial = num_values, None
        rows = norm.num_values // 4 if norm.pool else norm.num_values
        m, n, tiles, parts, across = layout(rows, channels, norm.groups)
        partial = partial_sums(norm, parts, channels, x) if stats else x
        grid, blocks = (parts, across, norm.groups), {"STATS": stats, "ACC": accumulator(x), "M": m, "N": n}
        if norm.pool:
            y = empty_rows(x, height // 2, width // 2)
            winner = torch.empty_like(y, dtype=torch.int8)
            pool_forward[grid](x, y, winner, partial, norm.mean, norm.scale, norm.shift, rows, channels, height // 2, width // 2, tiles,
                               norm.low, norm.high, **blocks)
            return [y] * norm.copies, (x, winner)
        y = torch.empty_like(x)
        thin = empty_rows(x, (height + 1) // 2, (width + 1) // 2) if norm.thins else y
        norm_forward[grid](x, other if other is not None else x, y, thin, partial, norm.mean, norm.scale, norm.shift, rows, channels, height,
                           width, tiles, norm.low, norm.high, HAS_OTHER=other is not None, THIN=norm.thins, **blocks)
        return [y, thin][:norm.copies], (x, y) if norm.clamps and other is not None else (x,)

    @staticmethod
    def backward(gradients, saved, norm, has_other):
        gradients, x, stats = [as_rows(g) for g in gradients], saved[0], bool(norm.coefficient)
        g1, g2, two = gradients[0], gradients[-1], len(gradients) == 2
        channels, gx = x.shape[1], torch.empty_like(x)
        height, width = x.shape[2:] if x.ndim == 4 else (1, 1)
        rows = norm.num_values // 4 if norm.pool else norm.num_values
        m, n, _, _, across = layout(rows, channels, norm.groups)
        coefficients = norm.coefficients if stats else x
        grid, blocks = (across * triton.cdiv(rows, m), norm.groups), {"TWO": two, "STATS": stats, "ACC": accumulator(x), "M": m, "N": n}
        if norm.pool:
            pool_backward[grid](g1, g2, x, saved[1], gx, coefficients, norm.scale, norm.shift, rows, channels, height // 2, width // 2,
                                across, norm.low, norm.high, **blocks)
            return gx, None
        writes = has_other and (norm.clamps or two)
        gother = torch.empty_like(x) if writes else g1
        norm_backward[grid](g1, g2, x, saved[-1], gx, gother, coefficients, norm.scale, norm.shift, rows, channels, height, width, across,
                            norm.low, norm.high, THIN=norm.thins, HAS_OTHER=has_other, CLAMPS=norm.clamps, WRITE_OTHER=writes, **blocks)
        return gx, gother if has_other else None
