"""On a GPU, in two kernels: the partial sums of all layers -> alpha and beta of each layer, the BatchNorm
term of each group. A second target costs a launch more."""
import torch
import triton
import triton.language as tl

WIDTH = 16  # channels that one program sums


@triton.jit
def sum_parts(partial, means, moments, table, width, P: tl.constexpr, WIDTH: tl.constexpr, ACC: tl.constexpr):
    """One tile of channels and one group. means (G, width): m; moments (G, 3, width): mean - m, var, mean.

    table, a line for each tile: where its parts begin, how many there are, C, the first channel of its layer
    among all layers, of the tile within the layer, number of values."""
    tile = tl.program_id(0)
    group = tl.program_id(1)
    line = table + tile * 6
    begin = tl.load(line)
    parts = tl.load(line + 1)
    C = tl.load(line + 2)
    layer = tl.load(line + 3)
    first = tl.load(line + 4)
    values = tl.load(line + 5)

    # P lanes add the partial sums, and are added up last: a fixed order, so the same bits in every run.
    cols = first + tl.arange(0, WIDTH)
    real = cols < C
    total = tl.zeros([P, WIDTH], ACC)
    square = tl.zeros([P, WIDTH], ACC)
    for start in range(0, parts, P):
        part = start + tl.arange(0, P)
        mask = (part < parts)[:, None] & real[None, :]
        at = begin + (group * parts + part)[:, None] * 2 * C + cols[None, :]
        total += tl.load(partial + at, mask, 0)
        square += tl.load(partial + at + C, mask, 0)

    # The sums are of x - m, m being the mean that normalises: E[s^2] - E[s]^2 then cancels little.
    offset = tl.sum(total, 0) / values.to(ACC)
    out = moments + group * 3 * width + layer + cols
    tl.store(out, offset, real)
    var = tl.sum(square, 0) / values.to(ACC) - offset * offset
    tl.store(out + width, var, real)
    tl.store(out + 2 * width, offset + tl.load(means + group * width + layer + cols, real, 0), real)


@triton.jit
def coefficients_of(moments, shifts, variances, coefficients, distances, table, factors, width,
                    ADD: tl.constexpr, N: tl.constexpr, ACC: tl.constexpr):
    """One layer, group and target: norms over its channels, then alpha and beta (G, 2, C).

    shifts, variances (G, width): of the target, its mean - m and its var. table, a line for each layer: C,
    first channel, number of values; factors: weight and coefficient of each layer. ADD: to what is there, of
    the target before."""
    layer = tl.program_id(0)
    group = tl.program_id(1)
    C = tl.load(table + layer * 3)
    first = tl.load(table + layer * 3 + 1)
    values = tl.load(table + layer * 3 + 2)

    # The norms first: every channel's gradient is divided by them.
    line = moments + group * 3 * width + first
    shifts += group * width + first
    variances += group * width + first
    mean_square = tl.zeros([N], ACC)
    var_square = tl.zeros([N], ACC)
    for start in range(0, C, N):
        cols = start + tl.arange(0, N)
        d = tl.load(line + cols, cols < C, 0) - tl.load(shifts + cols, cols < C, 0)
        v = tl.load(line + width + cols, cols < C, 0) - tl.load(variances + cols, cols < C, 0)
        mean_square += d * d
        var_square += v * v

    # The term is w (|mean - m|_2 + |var - v|_2).
    mean_norm = tl.sqrt(tl.sum(mean_square, 0))
    var_norm = tl.sqrt(tl.sum(var_square, 0))
    distance = tl.load(factors + layer * 2) * (mean_norm + var_norm)
    distances += group * tl.num_programs(0) + layer
    if ADD:
        distance += tl.load(distances)
    tl.store(distances, distance)

    # Its gradient by a value x of channel c is alpha_c + beta_c x. A norm of 0 has no direction, so its part
    # of the gradient is 0, as in torch.
    per_value = tl.load(factors + layer * 2 + 1) / values.to(ACC)
    out = coefficients + first * 2 * tl.num_programs(1) + group * 2 * C
    for start in range(0, C, N):
        cols = start + tl.arange(0, N)
        d = tl.load(line + cols, cols < C, 0) - tl.load(shifts + cols, cols < C, 0)
        v = tl.load(line + width + cols, cols < C, 0) - tl.load(variances + cols, cols < C, 0)
        mean = tl.load(line + 2 * width + cols, cols < C, 0)
        beta = 2 * per_value * v / tl.where(var_norm == 0, 1, var_norm)
        alpha = per_value * d / tl.where(mean_norm == 0, 1, mean_norm) - beta * mean
        if ADD:
            beta += tl.load(out + C + cols, cols < C, 0)
            alpha += tl.load(out + cols, cols < C, 0)
        tl.store(out + C + cols, beta, cols < C)
        tl.store(out + cols, alpha, cols < C)


class Finisher:
    """norms.finish on a GPU. Memory and tables are laid out once for a batch shape, so that a kernel finds
    all layers in one place."""

    def __init__(self, norms):
        self.norms = norms
        self.groups = None  # G, that the memory is laid out for

    def lay_out(self):
        """One buffer for the partial sums of all layers, one for alpha and beta, and the tables of the two
        kernels. Syncs the GPU."""
        facts = [norm.facts for norm in self.norms]
        runs = [norm.run for norm in self.norms]
        like = {"device": facts[0].mean.device, "dtype": facts[0].mean.dtype}
        self.groups = runs[0].groups
        self.width = sum(one.mean.shape[-1] for one in facts)
        self.partial = torch.cat([run.partial.flatten() for run in runs])
        self.coefficients = torch.empty(2 * self.groups * self.width, **like)

        # Each layer gets its part of the two buffers, and its lines in the tables.
        tiles = []
        layers = []
        begin = 0
        first = 0
        for one, run in zip(facts, runs):
            channels = one.mean.shape[-1]
            parts = run.partial.shape[1]
            size = run.partial.numel()
            run.partial = self.partial[begin:begin + size].view(run.partial.shape)
            run.coefficients = self.coefficients[2 * self.groups * first:2 * self.groups * (first + channels)]
            tiles += [(begin, parts, channels, first, at, run.num_values) for at in range(0, channels, WIDTH)]
            layers.append((channels, first, run.num_values))
            begin += size
            first += channels
        self.tiles = torch.tensor(tiles, device=like["device"])
        self.layers = torch.tensor(layers, device=like["device"])

        # What no iteration changes lies on the device as well. The kernels overwrite the last two.
        targets = list(zip(*(one.targets for one in facts)))  # for each target a tuple over the layers
        shares = [[target.weight for target in layers] for layers in targets]
        self.factors = [torch.tensor([(share * one.weight, share * one.coefficient)
                                      for share, one in zip(layers, facts)], **like) for layers in shares]
        self.means = torch.empty((self.groups, self.width), **like)
        self.shifts = torch.empty((len(targets), self.groups, self.width), **like)
        self.variances = torch.empty_like(self.shifts)
        self.read_targets()
        self.moments = torch.empty((self.groups, 3, self.width), **like)
        self.distances = torch.empty((self.groups, len(facts)), **like)

    def read_targets(self):
        """Take over what the norms have as means and targets now, into the same memory."""
        facts = [norm.facts for norm in self.norms]

        def rows(values):
            return torch.cat([value.expand(self.groups, -1) for value in values], 1)

        self.means.copy_(rows(one.mean for one in facts))
        for i in range(len(self.shifts)):
            self.shifts[i] = rows(one.targets[i].mean - one.mean for one in facts)
            self.variances[i] = rows(one.targets[i].var for one in facts)

    def finish(self):
        """-> sum over the layers and targets of w (|mean - m|_2 + |var - v|_2), (G,); every norm's
        coefficients are filled."""
        if any(norm.run.coefficients is None for norm in self.norms):
            self.lay_out()
        acc = tl.float64 if self.moments.dtype == torch.float64 else tl.float32
        sum_parts[(len(self.tiles), self.groups)](
            self.partial, self.means, self.moments, self.tiles, self.width, P=64, WIDTH=WIDTH, ACC=acc)
        for i, factors in enumerate(self.factors):
            coefficients_of[(len(self.layers), self.groups)](
                self.moments, self.shifts[i], self.variances[i], self.coefficients, self.distances,
                self.layers, factors, self.width, ADD=i > 0, N=1024, ACC=acc)
        return self.distances.sum(1)
