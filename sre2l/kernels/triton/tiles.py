"""What the Triton kernels over tiles of M rows and N channels share."""
import triton
import triton.language as tl


@triton.jit
def clamped(v, low, high):
    return tl.where(v < low, low, tl.where(v > high, high, v))  # a NaN stays one


@triton.jit
def per_channel(values, cols, real, ACC: tl.constexpr):
    """One number for each channel of the tile, (1, N)."""
    return tl.load(values + cols, real, 0).to(ACC)[None, :]


@triton.jit
def own_tile(rows, C, across, M: tl.constexpr, N: tl.constexpr):
    """The tile of a backward program. Axis 0 counts tiles, `across` of
    them next to each other along the channels; axis 1 counts groups.

    -> (group, the rows (M,), the channels (N,), which channels
    there are, which elements, where the group begins)."""
    group = tl.program_id(1)
    row = tl.program_id(0) // across * M + tl.arange(0, M)
    cols = tl.program_id(0) % across * N + tl.arange(0, N)
    real = cols < C
    return group, row, cols, real, (row < rows)[:, None] & real[None, :], group.to(tl.int64) * rows * C


@triton.jit
def store_sums(partial, total, square, part, group, cols, real, C):
    """A forward program's sums over its rows: (G, parts, 2, C). Programs along the rows are axis 0."""
    at = (group * tl.num_programs(0) + part) * 2 * C + cols
    tl.store(partial + at, tl.sum(total, 0), real)
    tl.store(partial + at + C, tl.sum(square, 0), real)


@triton.jit
def add_statistics_gradient(g, v, coefficients, group, cols, real, C, ACC: tl.constexpr):
    """g + alpha + beta v, with the coefficients of the group: (G, 2, C)."""
    line = coefficients + group * 2 * C
    return g + per_channel(line, cols, real, ACC) + per_channel(line + C, cols, real, ACC) * v
