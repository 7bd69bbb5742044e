"""The two passes of norms.py where a 3x3 stride-2 max pool follows.

The large activation before the pool is read once and never written. In torch the pool of
ResNet-18 at 224 alone takes 3.3 us forward and 7.6 us backward an image (fp16, H200).
"""
import triton
import triton.language as tl

from sre2l.kernels.triton.tiles import add_statistics_gradient, clamped, own_tile, per_channel, store_sums


@triton.jit
def pool_forward(x, y, winner, partial, mean, scale, shift, step, rows, C, OH, OW, tiles, low, high,
                 STATS: tl.constexpr, ACC: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """As norm_forward, with a 3x3 stride-2 max pool after the clamp.

    rows: pooled positions of a group; winner: which of the nine pixels was the largest, int8."""
    part = tl.program_id(0)
    group = tl.program_id(2)
    cols = tl.program_id(1) * N + tl.arange(0, N)
    real = cols < C
    begin = group.to(tl.int64) * rows * C
    x += 4 * begin
    y += begin
    winner += begin

    # As in norm_forward: sums of x - m, and several tiles a program.
    m = per_channel(mean + group * step, cols, real, ACC)
    a = per_channel(scale + group * step, cols, real, ACC)
    b = per_channel(shift + group * step, cols, real, ACC)
    total = tl.zeros([M, N], ACC)
    square = tl.zeros([M, N], ACC)
    for tile in range(tiles):
        row = (part * tiles + tile) * M + tl.arange(0, M)
        mask = (row < rows)[:, None] & real[None, :]
        ow = row % OW
        oh = (row // OW) % OH
        n = row // (OW * OH)

        # The first of equal pixels wins, as in torch. The border has no pixel there, which never wins.
        best = tl.full([M, N], float("-inf"), ACC)
        which = tl.zeros([M, N], tl.int8)
        for tap in tl.static_range(9):
            h = 2 * oh + (tap // 3 - 1)
            w = 2 * ow + (tap % 3 - 1)
            inside = mask & ((h >= 0) & (w >= 0))[:, None]
            v = tl.load(x + ((n * 2 * OH + h) * 2 * OW + w)[:, None] * C + cols[None, :], inside, 0).to(ACC)
            if STATS and tap // 3 > 0 and tap % 3 > 0:  # each pixel belongs to one pooled position
                s = tl.where(mask, v - m, 0)
                total += s
                square += s * s
            # The clamp can wait for the largest: it keeps the order.
            v = tl.where(inside, v * a + b, float("-inf"))
            # A NaN wins, so that it shows.
            better = (v > best) | (v != v)
            best = tl.where(better, v, best)
            which = tl.where(better, tap, which)
        at = row[:, None] * C + cols[None, :]
        tl.store(y + at, clamped(best, low, high), mask)
        tl.store(winner + at, which, mask)
    if STATS:
        store_sums(partial, total, square, part, group, cols, real, C)


@triton.jit
def pool_backward(g1, g2, x, winner, gx, coefficients, scale, shift, step, rows, C, OH, OW, across, low, high,
                  TWO: tl.constexpr, STATS: tl.constexpr, ACC: tl.constexpr,
                  M: tl.constexpr, N: tl.constexpr):
    """The gradient of the four pixels that belong to each pooled
    position: from the four windows that may have chosen them."""
    group, row, cols, real, mask, begin = own_tile(rows, C, across, M, N)
    g1 += begin
    g2 += begin
    x += 4 * begin
    winner += begin
    gx += 4 * begin

    # Each program owns the 2x2 pixels of its positions: no two add to one pixel, so nothing is atomic.
    ow = row % OW
    oh = (row // OW) % OH
    n = row // (OW * OH)
    a = per_channel(scale + group * step, cols, real, ACC)
    b = per_channel(shift + group * step, cols, real, ACC)
    for pixel in tl.static_range(4):
        down = pixel // 2
        right = pixel % 2
        at = ((n * 2 * OH + 2 * oh + down) * 2 * OW + 2 * ow + right)[:, None] * C + cols[None, :]
        v = tl.load(x + at, mask, 0).to(ACC)
        g = tl.zeros([M, N], ACC)
        # A pixel lies in up to four windows: its own, and those to the right and below.
        for window in tl.static_range(4):
            dh = window // 2
            dw = window % 2
            if dh <= down and dw <= right:
                there = mask & ((oh + dh < OH) & (ow + dw < OW))[:, None]
                source = (row + dh * OW + dw)[:, None] * C + cols[None, :]
                value = tl.load(g1 + source, there, 0).to(ACC)
                if TWO:
                    value += tl.load(g2 + source, there, 0).to(ACC)
                tap = (down - 2 * dh + 1) * 3 + (right - 2 * dw + 1)
                g += tl.where(tl.load(winner + source, there, 9) == tap, value, 0)
        # The clamp came before the pool, and its result was never stored: it is computed anew.
        out = v * a + b
        g = tl.where((out > low) & (out < high), g, 0) * a
        if STATS:
            g = add_statistics_gradient(g, v, coefficients, group, cols, real, C, ACC)
        tl.store(gx + at, g, mask)
