"""Several teachers: one after another (cycle), or all in every iteration (sum); and an r_bn for each."""
import copy
from dataclasses import replace

import torch

from recover.objective import TERMS, PlainEngine, Terms, Weights
from recover.views import WHOLE_IMAGE
from sre2l.data.augment import unit_rng
from sre2l.run.errors import UserError
from sre2l.run.flags import number

R_BN = 0.01      # the published one: the first teacher's, where `auto` comes without a number
MOST_NOISE = 32  # images of noise by which `auto` scales the others'
DIGITS = 4       # of what `auto` finds: rounding elsewhere then seldom gives another number


# -- an r_bn for each teacher

def r_bn_type(text):
    """An argparse type: '0.01' -> 0.01 of all teachers, '0.01,0.1' -> [0.01, 0.1], one each; 'auto' ->
    'auto:0.01', any 'auto:R' as it is."""
    kind, _, first = text.partition(":")
    if kind == "auto":
        return f"auto:{number(float, above=0)(first) if first else R_BN:g}"
    values = [number(float, 0)(part) for part in text.split(",")]
    return values if len(values) > 1 else values[0]


def recorded_r_bn(r_bn, settings):
    """What an earlier run has found where r_bn is 'auto:R'; else r_bn. settings: recorded ones, or None."""
    found = (settings or {}).get("r_bn")
    is_of_auto = isinstance(r_bn, str) and isinstance(found, list) and r_bn == f"auto:{found[0]:g}"
    return found if is_of_auto else r_bn


def noise_distances(networks, multiplier, images):
    """The BatchNorm term of each network on whole images (B, 3, S, S); 0 for one without BatchNorm layers."""
    distances = []
    targets = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    for network in networks:
        engine = PlainEngine(copy.deepcopy(network), Weights(1.0, multiplier, 0.0, 0.0))
        with torch.no_grad():
            distances.append(engine.batch_terms(images, targets, WHOLE_IMAGE).bn.item())
    return distances


def choose_r_bn(r_bn, networks, multiplier, batch_size, size, seed):
    """-> the r_bn of each network. r_bn: as r_bn_type gives it; multiplier: of the first BatchNorm layer.

    'auto:R' gives the first R and each of the others that with which its term weighs as much on a batch of
    noise, the same whenever the seed is. One without BatchNorm has no term to scale."""
    if isinstance(r_bn, list):
        if len(r_bn) != len(networks):
            raise UserError(f"--r-bn: {len(r_bn)} numbers for {len(networks)} "
                            f"teacher{'s' * (len(networks) > 1)}; give one for each, or a single one for all")
        return r_bn
    if not isinstance(r_bn, str):
        return [r_bn] * len(networks)

    first = float(r_bn.partition(":")[2])
    shape = min(batch_size, MOST_NOISE), 3, size, size
    noise = torch.from_numpy(unit_rng(seed).standard_normal(shape, dtype="float32"))
    distances = noise_distances(networks, multiplier, noise.to(next(networks[0].parameters())))
    reference = next(distance for distance in distances if distance)
    return [first if distance in (0, reference) else float(f"{first * reference / distance:.{DIGITS}g}")
            for distance in distances]


def check_shares(shares, rule, num_teachers):
    """-> the weight of each teacher in a sum; None where they take turns. shares: of --teacher-weights."""
    if rule == "cycle":
        if shares:
            raise UserError("--teacher-weights: teachers that take turns have no weights; add --teachers sum")
        return None
    if num_teachers == 1:
        raise UserError("--teachers sum: there is one teacher; name several, as in --teacher a.pth,b.pth")
    if shares and len(shares) != num_teachers:
        raise UserError(f"--teacher-weights: {len(shares)} for {num_teachers} teachers; give one for each")
    return shares or [1.0] * num_teachers


def common_weights(weights):
    """The Weights of a log over several teachers: the unit of BN is the largest r_bn."""
    return replace(weights[0], r_bn=max(one.r_bn for one in weights))


# -- the engines

def average_terms(found, shares, r_bn):
    """What the log shows of several teachers: the weighted mean of each term, BN in units of r_bn.

    found: a pair (Terms, Weights) of each; r_bn * bn is then the mean of each teacher's own product."""
    units = [weights.r_bn / r_bn if r_bn else 1.0 for _, weights in found]
    parts = [share / sum(shares) for share in shares]

    def mean(name):
        values = [getattr(terms, name) for terms, _ in found]
        if name == "bn":
            values = [unit * value for unit, value in zip(units, values)]
        return sum(part * value for part, value in zip(parts, values))

    return Terms(**{name: mean(name) for name in TERMS})


class Several:
    """What the engines of several teachers share. engines: of one class, one for each teacher."""

    def __init__(self, engines):
        first = engines[0]
        self.engines = engines
        self.name = first.name
        self.precision = first.precision
        self.captures = first.captures
        self.tabulate = first.tabulate
        self.adam_step = first.adam_step

    def take_up(self, group):
        for engine in self.engines:
            engine.take_up(group)


class CycleEngine(Several):
    """One teacher an iteration, in turn. The first one's is iteration 0 of every batch (FADRM+)."""

    def __init__(self, engines):
        super().__init__(engines)
        self.period = len(engines)

    def at(self, iteration):
        return self.engines[iteration % self.period]


class SumEngine(Several):
    """All teachers in every iteration (CV-DD): loss = sum_i w_i (CE_i + r_bn_i BN_i) + priors.

    shares: w_i; weights: of the sum, whose r_bn is the unit of the BN that is reported. Each engine has the
    priors over the sum of w_i, so that they count once. The Terms are weighted means."""

    period = 1

    def __init__(self, engines, shares, weights):
        super().__init__(engines)
        self.shares = shares
        self.weights = weights

    def at(self, iteration):
        return self

    def loss_and_gradient(self, images, targets, view):
        found = []
        total = 0
        for engine, share in zip(self.engines, self.shares):
            terms, gradient = engine.loss_and_gradient(images, targets, view)
            found.append((terms, engine.weights))
            total = total + share * gradient
        return average_terms(found, self.shares, self.weights.r_bn), total
