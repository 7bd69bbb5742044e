"""Several teachers: one after another (cycle), or all in every iteration (sum)."""
from dataclasses import replace

from recover.objective import TERMS, Engine, Terms


def common_weights(weights):
    """The Weights of a log over several teachers: the unit of BN is the largest r_bn."""
    return replace(weights[0], r_bn=max(one.r_bn for one in weights))


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


class Several(Engine):
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

    def __init__(self, engines, shares, weights):
        super().__init__(engines)
        self.shares = shares
        self.weights = weights

    def loss_and_gradient(self, images, targets, view):
        found = []
        total = 0
        for engine, share in zip(self.engines, self.shares):
            terms, gradient = engine.loss_and_gradient(images, targets, view)
            found.append((terms, engine.weights))
            total = total + share * gradient
        return average_terms(found, self.shares, self.weights.r_bn), total
