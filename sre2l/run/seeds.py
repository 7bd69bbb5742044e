"""Random generators that depend on a seed and a unit of work alone."""
import numpy as np


def unit_rng(seed, *unit):
    """A CPU generator that depends on (seed, unit of work) and on nothing that ran before."""
    return np.random.default_rng([seed, *unit])
