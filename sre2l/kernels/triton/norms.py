"""The two passes of norms.py over an activation as Triton kernels: each value is read once and written once.

Activations are rows of C channels (NHWC). The forward kernel leaves partial sums of x - m and
its square. When the network has run, two small kernels turn those of all layers at once into
alpha, beta and distances (moments.py). Accumulation is float32, float64 for float64 activations.
"""
import torch
import triton
import triton.language as tl

from sre2l.kernels.triton.pool import pool_backward, pool_forward
from sre2l.kernels.triton.tiles import add_statistics_gradient, clamped, own_tile, per_channel, store_sums
from sre2l.run.errors import UserError

PROGRAMS = 1056  # that a long forward pass is cut into: 8 for each multiprocessor of an H100 or H200
TILE = 1024      # values of a tile; both measured on an H200: 2,112 and 2,048 take up to 38 % longer


@triton.jit
def thinned(row, H, W):
    """Is this position (row of n H W) in an even line and column, and which is it among those?"""
    w, h, n = row % W, (row // W) % H, row // (H * W)
    return (w % 2 == 0) & (h % 2 == 0), (n * ((H + 1) // 2) + h // 2) * ((W + 1) // 2) + w // 2


@triton.jit
def norm_forward(x, other, y, thin, partial, mean, scale, shift, step, rows, C, H, W, tiles, low, high,
                 HAS_OTHER: tl.constexpr, THIN: tl.constexpr, STATS: tl.constexpr, ACC: tl.constexpr,
                 M: tl.constexpr, N: tl.constexpr):
    part = tl.program_id(0)
    group = tl.program_id(2)
    cols = tl.program_id(1) * N + tl.arange(0, N)
    real = cols < C
    begin = group.to(tl.int64) * rows * C  # offsets within a group fit into 32 bits
    x += begin
    other += begin
    y += begin
    thin += begin // (H * W) * ((H + 1) // 2 * ((W + 1) // 2))

    # Sums are of x - m: with m near the mean they lose no digits to cancellation.
    m = per_channel(mean + group * step, cols, real, ACC)
    a = per_channel(scale + group * step, cols, real, ACC)
    b = per_channel(shift + group * step, cols, real, ACC)
    total = tl.zeros([M, N], ACC)
    square = tl.zeros([M, N], ACC)
    # Several tiles a program: fewer partial sums are written, and each vector is loaded once.
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
        # A 1x1 convolution of stride 2 reads every other pixel only: it gets them closely packed.
        if THIN:
            kept, there = thinned(row, H, W)
            tl.store(thin + there[:, None] * C + cols[None, :], v, mask & kept[:, None])
    if STATS:
        store_sums(partial, total, square, part, group, cols, real, C)


@triton.jit
def norm_backward(g1, g2, x, y, gx, gother, coefficients, scale, shift, step, rows, C, H, W, across,
                  low, high, TWO: tl.constexpr, THIN: tl.constexpr, HAS_OTHER: tl.constexpr,
                  CLAMPS: tl.constexpr, STATS: tl.constexpr, WRITE_OTHER: tl.constexpr, ACC: tl.constexpr,
                  M: tl.constexpr, N: tl.constexpr):
    group, row, cols, real, mask, begin = own_tile(rows, C, across, M, N)
    g1 += begin
    x += begin
    y += begin
    gx += begin
    gother += begin
    at = row[:, None] * C + cols[None, :]
    a = per_channel(scale + group * step, cols, real, ACC)

    # Where the activation has two readers, their gradients are added here and not in a pass of its own.
    g = tl.load(g1 + at, mask, 0).to(ACC)
    if THIN:
        kept, there = thinned(row, H, W)
        g2 += begin // (H * W) * ((H + 1) // 2 * ((W + 1) // 2))
        g += tl.load(g2 + there[:, None] * C + cols[None, :], mask & kept[:, None], 0).to(ACC)
    elif TWO:
        g += tl.load(g2 + begin + at, mask, 0).to(ACC)

    # The clamp lets a gradient through where its result was within. Without a sum that result is computed
    # anew from x, which has to be read in any case.
    if STATS or (CLAMPS and not HAS_OTHER):
        v = tl.load(x + at, mask, 0).to(ACC)
    if CLAMPS:
        if HAS_OTHER:
            out = tl.load(y + at, mask, 0).to(ACC)
        else:
            out = v * a + per_channel(shift + group * step, cols, real, ACC)
        g = tl.where((out > low) & (out < high), g, 0)
    # What was added before the clamp gets the gradient before this norm's scale.
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
    if x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def tile_width(channels):
    """Channels of a tile: a power of two that leaves few lanes idle, 64 where several are as good."""
    return min((64, 32, 16), key=lambda n: triton.cdiv(channels, n) * n)


def layout(rows, channels, groups):
    """-> (rows a tile, channels a tile, tiles a program, programs along the rows, along the channels)."""
    n = tile_width(channels)
    m = TILE // n
    across = triton.cdiv(channels, n)
    tiles = triton.cdiv(rows, m)
    parts = min(tiles, max(1, PROGRAMS // (across * groups)))
    each = triton.cdiv(tiles, parts)
    return m, n, each, triton.cdiv(tiles, each), across


def check_reach(x, groups):
    """The kernels count within a group in 32 bits."""
    if x.numel() // groups >= 2 ** 31:
        raise UserError(f"an activation of {x.numel() // groups:,} values for one batch is too much for the "
                        f"GPU kernels; use a smaller --batch-size")


def partial_sums(run, parts, facts):
    """Where the forward pass leaves its sums, (G, parts, 2, C); kept from one iteration to the next."""
    shape = (run.groups, parts, 2, facts.mean.shape[-1])
    if run.partial is None or run.partial.shape != shape:
        run.partial = torch.empty(shape, device=facts.mean.device, dtype=facts.mean.dtype)
        run.coefficients = None
    return run.partial


def empty_rows(x, height, width):
    """(n, C, height, width), NHWC, uninitialised."""
    shape = (len(x), x.shape[1], height, width)
    return torch.empty(shape, device=x.device, dtype=x.dtype, memory_format=torch.channels_last)


def height_and_width(x):
    return x.shape[2:] if x.ndim == 4 else (1, 1)


class Passes:
    """norms.Passes on a GPU."""

    @staticmethod
    def forward(x, other, facts, run):
        # A program's offsets are 32 bits wide and assume NHWC.
        x = as_rows(x)
        check_reach(x, run.groups)
        channels = x.shape[1]
        height, width = height_and_width(x)
        num_values = x.numel() // channels // run.groups
        if num_values != run.num_values:  # another batch size: the Finisher's tables are of no use
            run.num_values = num_values
            run.partial = None

        # What both kernels take: one program for some tiles of rows, a tile of channels, and a group.
        rows = num_values // 4 if facts.pool else num_values
        m, n, tiles, parts, across = layout(rows, channels, run.groups)
        stats = bool(facts.coefficient)
        partial = partial_sums(run, parts, facts) if stats else x  # never written without STATS
        vectors = partial, facts.mean, facts.scale, facts.shift, facts.step
        grid = (parts, across, run.groups)
        blocks = {"STATS": stats, "ACC": accumulator(x), "M": m, "N": n}

        if facts.pool:
            y = empty_rows(x, height // 2, width // 2)
            winner = torch.empty_like(y, dtype=torch.int8)
            pool_forward[grid](x, y, winner, *vectors, rows, channels, height // 2, width // 2, tiles,
                               facts.low, facts.high, **blocks)
            return [y] * facts.copies, (x, winner)

        has_other = other is not None
        other = as_rows(other) if has_other else x  # never read without HAS_OTHER
        y = torch.empty_like(x)
        thin = empty_rows(x, (height + 1) // 2, (width + 1) // 2) if facts.thins else y
        norm_forward[grid](x, other, y, thin, *vectors, rows, channels, height, width, tiles,
                           facts.low, facts.high, HAS_OTHER=has_other, THIN=facts.thins, **blocks)
        return [y, thin][:facts.copies], (x, y) if facts.clamps and has_other else (x,)

    @staticmethod
    def backward(gradients, saved, facts, run, has_other):
        # Cut as in the forward pass, except that a program has one tile: here are no sums to keep few.
        gradients = [as_rows(g) for g in gradients]
        g1 = gradients[0]
        g2 = gradients[-1]  # never read where there is one
        two = len(gradients) == 2
        x = saved[0]
        gx = torch.empty_like(x)
        channels = x.shape[1]
        height, width = height_and_width(x)

        rows = run.num_values // 4 if facts.pool else run.num_values
        m, n, _, _, across = layout(rows, channels, run.groups)
        stats = bool(facts.coefficient)
        coefficients = run.coefficients if stats else x  # never read without STATS
        vectors = coefficients, facts.scale, facts.shift, facts.step
        grid = (across * triton.cdiv(rows, m), run.groups)
        blocks = {"TWO": two, "STATS": stats, "ACC": accumulator(x), "M": m, "N": n}

        # Where a pool follows, the forward pass has saved which pixel won in place of its result.
        if facts.pool:
            pool_backward[grid](g1, g2, x, saved[1], gx, *vectors, rows, channels, height // 2, width // 2,
                                across, facts.low, facts.high, **blocks)
            return gx, None

        writes = has_other and (facts.clamps or two)  # else the gradient of other is g1 itself
        gother = torch.empty_like(x) if writes else g1
        norm_backward[grid](g1, g2, x, saved[-1], gx, gother, *vectors, rows, channels, height, width, across,
                            facts.low, facts.high, THIN=facts.thins, HAS_OTHER=has_other, CLAMPS=facts.clamps,
                            WRITE_OTHER=writes, **blocks)
        return gx, gother if has_other else None
