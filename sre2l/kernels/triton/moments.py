"""On a GPU: the partial sums of all layers at once -> alpha and beta of each layer, and the BatchNorm term of each group, in two kernels."""
import torch
import triton
import triton.language as tl

WIDTH = 16  # channels that one program sums


@triton.jit
def sum_parts(partial, means, variances, moments, table, width, P: tl.constexpr, WIDTH: tl.constexpr, ACC: tl.constexpr):
    """moments (G, 3, width): mean - m, var - v, mean. table, a line for each tile: where its parts begin, how many, C, first channel of its
    layer, of the tile within the layer, number of values."""
    tile, group = tl.program_id(0), tl.program_id(1)
    line = table + tile * 6
    begin, parts, C, layer, first, values = (tl.load(line), tl.load(line + 1), tl.load(line + 2), tl.load(line + 3), tl.load(line + 4),
                                             tl.load(line + 5))
    cols = first + tl.arange(0, WIDTH)
    real = cols < C
    total, square = tl.zeros([P, WIDTH], ACC), tl.zeros([P, WIDTH], ACC)
    for start in range(0, parts, P):
        part = start + tl.arange(0, P)
        mask = (part < parts)[:, None] & real[None, :]
        at = begin + (group * parts + part)[:, None] * 2 * C + cols[None, :]
        total += tl.load(partial + at, mask, 0)
        square += tl.load(partial + at + C, mask, 0)
    offset = tl.sum(total, 0) / values.to(ACC)
    out = moments + group * 3 * width + layer + cols
    at = layer + cols
    tl.store(out, offset, real)
    tl.store(out + width, tl.sum(square, 0) / values.to(ACC) - offset * offset - tl.load(variances + at, real, 0), real)
    tl.store(out + 2 * width, offset + tl.load(means + at, real, 0), real)


@triton.jit
def coefficients_of(moments, coefficients, distances, table, factors, width, N: tl.constexpr, ACC: tl.constexpr):
    """One layer and group: norms over its channels, then alpha and beta (G, 2, C). table, a line for each layer: C, first channel, values."""
    layer, group = tl.program_id(0), tl.program_id(1)
    C, first, values = tl.load(table + layer * 3), tl.load(table + layer * 3 + 1), tl.load(table + layer * 3 + 2)
    line = moments + group * 3 * width + first
    mean_square, var_square = tl.zeros([N], ACC), tl.zeros([N], ACC)
    for start in range(0, C, N):
        cols = start + tl.arange(0, N)
        d, v = tl.load(line + cols, cols < C, 0), tl.load(line + width + cols, cols < C, 0)
        mean_square += d * d
        var_square += v * v
    mean_norm, var_norm = tl.sqrt(tl.sum(mean_square, 0)), tl.sqrt(tl.sum(var_square, 0))
    tl.store(distances + group * tl.num_programs(0) + layer, tl.load(factors + layer * 2) * (mean_norm + var_norm))
    per_value = tl.load(factors + layer * 2 + 1) / values.to(ACC)
    out = coefficients + first * 2 * tl.num_programs(1) + group * 2 * C
    for start in range(0, C, N):
        cols = start + tl.arange(0, N)
        d, v, mean = (tl.load(line + cols, cols < C, 0), tl.load(line + width + cols, cols < C, 0), tl.load(line + 2 * width + cols, cols < C, 0))
        beta = 2 * per_value * v / tl.where(var_norm == 0, 1, var_norm)
        tl.store(out + C + cols, beta, cols < C)
        tl.store(out + cols, per_value * d / tl.where(mean_norm == 0, 1, mean_norm) - beta * mean, cols < C)


class Finisher:
    """norms.finish on a GPU: memory and tables are laid out once for a batch shape, so that the kernels find everything in one place."""

    def __init__(self, norms):
        self.norms, self.partial = norms, None

    def lay_out(self):
        """One buffer for the partial sums of all layers, one for alpha and beta, and the tables of the two kernels. Syncs the GPU."""
        norms, groups = self.norms, self.norms[0].groups
        device, exact = norms[0].mean.device, norms[0].mean.dtype
        self.partial = torch.cat([norm.partial.flatten() for norm in norms])
        self.width, self.groups = sum(len(norm.mean) for norm in norms), groups
        self.coefficients = torch.empty(2 * groups * self.width, device=device, dtype=exact)
        tiles, layers, begin, first = [], [], 0, 0
        for norm in norms:
            channels, parts, size = len(norm.mean), norm.partial.shape[1], norm.partial.numel()
            norm.partial = self.partial[begin:begin + size].view(norm.partial.shape)
            norm.coefficients = self.coefficients[2 * groups * first:2 * groups * (first + channels)]
            tiles += [(begin, parts, channels, first, at, norm.num_values) for at in range(0, channels, WIDTH)]
            layers.append((channels, first, norm.num_values))
            begin, first = begin + size, first + channels
        self.tiles, self.layers = torch.tensor(tiles, device=device), torch.tensor(layers, device=device)
        self.factors = torch.tensor([(norm.weight, norm.coefficient) for norm in norms], device=device, dtype=exact)
        self.means, self.variances = torch.cat([norm.mean for norm in norms]), torch.cat([norm.var for norm in norms])
        self.moments = torch.empty((groups, 3, self.width), device=device, dtype=exact)
        self.distances = torch.empty((groups, len(norms)), device=device, dtype=exact)

    def finish(self, norms):
        """-> sum over the layers of w (|mean - m|_2 + |var - v|_2), (G,); every norm's coefficients are filled."""
        if any(norm.coefficients is None for norm in norms):
            self.lay_out()
        acc = tl.float64 if self.moments.dtype == torch.float64 else tl.float32
        sum_parts[(len(self.tiles), self.groups)](self.partial, self.means, self.variances, self.moments, self.tiles, self.width,
                                                  P=64, WIDTH=WIDTH, ACC=acc)
        coefficients_of[(len(self.layers), self.groups)](self.moments, self.coefficients, self.distances, self.layers, self.factors,
                                                         self.width, N=1024, ACC=acc)
        return self.distances.sum(1)
