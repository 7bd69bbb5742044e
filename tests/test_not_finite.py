"""A loss that is not finite: recover, squeeze and validate name it, and write nothing of it."""
import contextlib
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from recover import health, recover
from recover.batches import ImageBatch, draw_batch
from recover.blocks import Block, Course
from recover.engines import make_fast_engine
from recover.fast import FastEngine
from recover.objective import TERMS, Terms, Weights
from recover.step import Stepper
from recover.views import draw_view
from sre2l.kernels.adam import adam_step
from sre2l.nets.training import check_finite
from sre2l.run.errors import UserError
from tests.helpers import bare_checkpoint, refused
from tests.nets import SmallNet
from tests.worlds import recover_flags, squeeze_flags, train_flags

NAN, INF = float("nan"), float("inf")


class Scripted:
    """Terms of two batches as `script` says of (iteration, batch, term), else 1; a gradient of 0."""
    adam_step = staticmethod(adam_step)

    def __init__(self, script, captures=False):
        self.script, self.captures, self.calls = script, captures, 0

    def at(self, iteration):
        return self

    def tabulate(self, views):
        return torch.arange(len(views))

    def loss_and_gradient(self, images, targets, view):
        self.calls += 1
        values = {}
        for key in TERMS:
            scripted = [self.script.get((int(view), batch, key), 1.0) for batch in range(len(images))]
            values[key] = torch.tensor(scripted)
        return Terms(**values), torch.zeros_like(images)


def started(engine, steps=6):
    stepper = Stepper(engine, torch.full((3, 1, 1), -1.0), torch.full((3, 1, 1), 1.0))
    targets = torch.zeros(2, 1, dtype=torch.int64)
    stepper.start(torch.zeros(2, 1, 3, 4, 4), targets, [None] * steps, [0.1] * steps)
    return stepper


def test_the_first_iteration_of_each_batch_and_term_that_is_not_finite():
    script = {(2, 1, "bn"): NAN, (3, 1, "ce"): INF, (4, 0, "tv"): -INF, (4, 0, "l2"): NAN, (5, 0, "ce"): NAN}
    stepper = started(Scripted(script))
    found = []
    for iteration in range(6):
        stepper.step(iteration)
        found.append(stepper.nonfinite_terms())
    assert found[:2] == [[None, None]] * 2 and found[3] == [None, (2, ["bn"])]
    assert found[5] == [(4, ["tv", "l2"]), (2, ["bn"])]


@pytest.mark.parametrize("done", (0, 2, 3))
def test_a_group_begins_without_what_an_earlier_one_has_met(done):
    """Also one that an earlier run has left in its second block; a block within a group keeps it."""
    engine = Scripted({(1, 0, "ce"): NAN})
    stepper = started(engine)
    course = Course(stepper, {4: engine}, [Block(0, 2, 4), Block(2, 6, 4)], [0.1] * 6, 0.0)
    images = torch.zeros(2, 1, 3, 4, 4)
    group = images, [None] * 6, None, torch.zeros(2, 1, dtype=torch.int64)
    course.start(*group)
    for iteration in range(3):
        course.step(iteration)
    assert stepper.nonfinite_terms() == [(1, ["ce"]), None]
    course.start(*group, done, [images] * 3 if done else None)
    assert stepper.nonfinite_terms() == [None, None]


def test_capturing_leaves_no_trace_of_a_term_that_was_not_finite(monkeypatch):
    """A graph is made, with a warm-up, before the first replay. Here its capture also runs, and fails."""
    engine = Scripted({(0, 0, "ce"): NAN}, captures=True)
    stepper = started(engine)

    def replay():
        before = engine.calls
        engine.script = {(4, 1, "bn"): NAN}
        captured = stepper.space.graphs[engine]
        stepper.iterate(engine, captured.view, captured.rate)
        assert engine.calls == before + 1
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: contextlib.nullcontext())
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: SimpleNamespace(wait_stream=lambda _: None))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=replay))
    stepper.step(0)
    assert engine.calls == 4 and stepper.nonfinite_terms() == [None, None]
    stepper.step(4)
    assert stepper.nonfinite_terms() == [None, (4, ["bn"])]


@pytest.mark.gpu
def test_on_a_gpu_the_graph_keeps_the_first_iteration():
    """A weight that is not finite from the third iteration on, changed in place under the captured graph."""
    network = SmallNet().cuda().eval().requires_grad_(False)
    engine = make_fast_engine(network, Weights(0.1, 10.0, 0.0, 0.0), 32)
    stepper = Stepper(engine, *(torch.full((3, 1, 1), edge, device="cuda") for edge in (-2.0, 2.0)))
    _, views = draw_batch(ImageBatch(0, ((0, 0),)), 0, 32, [partial(draw_view, 32, 4, False, True)] * 6)
    noise = torch.randn(1, 4, 3, 32, 32, device="cuda")
    targets = torch.zeros(1, 4, dtype=torch.int64, device="cuda")
    stepper.start(noise, targets, [[view] for view in views], [0.1] * 6)
    for iteration in range(6):
        if iteration == 3:
            engine.network.get_parameter("fc2.weight").fill_(NAN)
        stepper.step(iteration)
    assert stepper.nonfinite_terms() == [(3, ["ce"])]


def test_the_sentence_names_unit_iteration_and_term():
    names, terms = ["unit 3", "unit 4"], ["ce", "bn"]
    assert health.describe_fault([None, None], names, terms, "fp32") is None
    found = health.describe_fault([None, (37, ["ce"])], names, terms, "fp32")
    assert found.startswith("unit 4: ce is not finite from iteration 37 on; nothing of it is written: "
                            "a smaller --lr")
    found = health.describe_fault([(37, ["ce", "bn"]), (40, ["bn"])], names, terms, "fp16")
    assert found.startswith("unit 3: the images are not finite after iteration 36, or the network overflowed "
                            "on them: ce and bn are not finite from iteration 37 on (and 1 more")
    assert "--precision bf16" in found
    found = health.describe_fault([(0, ["ce", "bn"]), None], names, terms, "fp32")
    assert "images" not in found.partition(";")[0]  # the noise is finite


@pytest.mark.parametrize("broken, wanted", [
    ("ce", "unit 1: ce is not finite from iteration 3 on"),
    ("gradient", "unit 1: the images are not finite after iteration 3;")])
def test_recover_stops_where_a_loss_is_not_finite_and_writes_no_image(broken, wanted, tmp_path, monkeypatch):
    """The second of two units; the first is written."""
    calls, original = [], FastEngine.loss_and_gradient

    def loss_and_gradient(self, images, targets, view):
        terms, gradient = original(self, images, targets, view)
        calls.append(len(images[0]))
        if len(calls) == 5 + 4:
            if broken == "gradient":
                gradient[0, 0, 0, 0, 0] = NAN
            else:
                getattr(terms, broken).fill_(INF)
        return terms, gradient
    bare_checkpoint(tmp_path / "teacher.pth")
    with monkeypatch.context() as patch:
        patch.setattr("recover.engines.why_not_fast", lambda *_: None)
        patch.setattr(FastEngine, "loss_and_gradient", loss_and_gradient)
        flags = (*recover_flags(tmp_path)[1:], "--iteration", 5, "--ipc-end", 2, "--print-period", 5)
        message = refused(recover, *flags)
    assert message.startswith(wanted) and "nothing of it is written" in message
    names = sorted(path.name for path in (tmp_path / "new" / "images").rglob("*.jpg"))
    assert names == [f"class{label:03d}_id000.jpg" for label in range(10)]


def test_training_stops_where_loss_weight_or_statistic_is_not_finite():
    network = nn.BatchNorm2d(3)
    check_finite(1.0, network, 1, "--lr", "fp32")
    with pytest.raises(UserError, match="epoch 7: the loss, inf, is not finite; no checkpoint of it is "
                                        "written.* smaller --lr or --precision bf16$"):
        check_finite(INF, network, 7, "--lr", "fp16")
    for tensor in (network.weight, network.running_var):
        with torch.no_grad():
            tensor[1] = NAN
        with pytest.raises(UserError, match="epoch 7: a weight or a running statistic of the network is not "
                                            "finite.* smaller --lr$"):
            check_finite(1.0, network, 7, "--lr", "fp32")
        with torch.no_grad():
            tensor[1] = 1.0


def test_training_writes_no_checkpoint_of_an_epoch_that_is_not_finite(world, tmp_path):
    teacher = squeeze_flags(world, "-b", 4, name=tmp_path)
    student = train_flags(world, "--output-dir", tmp_path / "student", "--sgd")
    for flags, rate in ((teacher, "--lr"), (student, "-lr")):
        message = refused(*flags, rate, 1e30)
        assert message.startswith("epoch 1: the loss, nan, is not finite") and f"smaller {rate}" in message
    assert not list(tmp_path.rglob("*.pth"))
