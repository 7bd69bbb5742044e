"""The engines' protocol: both have its members, and recover uses nothing else."""
import inspect

import pytest
import torch

from recover import recover
from recover.engines import Engine, make_engine
from recover.objective import TERMS, WEIGHTS, Terms, Weights, weighted_sum
from tests.helpers import bare_checkpoint, run_main
from tests.parity import ALL, network_of
from tests.worlds import common, teacher

MEMBERS = {name for name in (*vars(Engine), *Engine.__annotations__) if not name.startswith("_")}
METHODS = {name for name in MEMBERS if callable(getattr(Engine, name, None))}


class ThroughTheProtocol:
    """An engine of which one can use what the protocol names, and nothing else."""

    def __init__(self, engine):
        self._engine = engine

    def __getattr__(self, name):
        assert name in MEMBERS, f"the protocol has no {name}"
        return getattr(self._engine, name)


@pytest.mark.parametrize("name", ("fast", "plain"))
def test_both_engines_have_the_protocols_members_with_their_parameters(name):
    engine, _ = make_engine(name, network_of("small", 20), ALL, 20, "fp32")
    assert isinstance(engine, Engine)
    assert (engine.name, engine.precision, engine.captures) == (name, "fp32", False)
    assert METHODS == {"tabulate", "loss_and_gradient", "adam_step"}
    for method in METHODS:
        _, *wanted = inspect.signature(getattr(Engine, method)).parameters
        assert list(inspect.signature(getattr(engine, method)).parameters) == wanted


@pytest.mark.parametrize("name", ("fast", "plain"))
def test_recover_uses_nothing_but_the_protocol(name, tmp_path, monkeypatch):
    bare_checkpoint(tmp_path / "teacher.pth")

    def make(*args):
        engine, note = make_engine(*args)
        return ThroughTheProtocol(engine), note
    monkeypatch.setattr(recover, "make_engine", make)
    run_main(recover, *common(tmp_path, "new"), *teacher(tmp_path), "--engine", name, "--iteration", 2,
             "--ipc-end", 1, "--jitter", 4)
    assert len(list((tmp_path / "new" / "images").rglob("*.jpg"))) == 10


def test_every_term_has_a_coefficient_and_every_coefficient_is_a_flag():
    assert tuple(ALL.by_term()) == TERMS
    flags = vars(recover.get_args(["--dataset", "cifar10"]))
    assert set(WEIGHTS) <= set(flags)


def test_the_loss_is_the_sum_of_the_terms_times_their_coefficients():
    terms = Terms(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(5.0), torch.tensor(7.0))
    assert weighted_sum(vars(terms), Weights(0.5, 10.0, 0.25, 2.0)) == 2 + 0.5 * 3 + 0.25 * 5 + 2 * 7
