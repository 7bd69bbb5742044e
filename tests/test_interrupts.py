"""Signals and kills within a batch: the same command goes on from there, to the results of a run in peace."""
import json
import os
import signal
import time
from types import SimpleNamespace

import pytest

from recover import recover, state
from recover.batches import group_batches, plan_batches
from recover.state import StateKeeper, state_path
from recover.step import Stepper
from relabel import relabel
from sre2l.run import signals
from tests.helpers import bare_checkpoint, before_call, run_main, synthetic_folder
from tests.test_continue import files_of
from tests.worlds import common, relabel_flags, teacher


@pytest.fixture(autouse=True)
def handlers():
    """Our handlers in this process, for one test."""
    before = {number: signal.getsignal(number) for number in signals.WORDS}
    for number in before:  # pytest may run as the background job of a shell, which ignores Ctrl-C
        signal.signal(number, signal.SIG_DFL)
    signals.install()
    yield
    signals.Pending.signal = None
    signals.Pending.ending = False
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupted(monkeypatch, owner, name, at, flags, sent=signal.SIGTERM):
    """Run a stage to which a signal comes at the `at`-th call of owner.name; it ends with that code."""
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        calls = before_call(patch, owner, name, at, lambda: os.kill(os.getpid(), sent))
        run_main(*flags)
    assert caught.value.code == 128 + sent
    return len(calls)


@pytest.fixture(scope="module")
def unit(tmp_path_factory):
    """-> (root, flags of recover but for the name, the files of a run in peace): two batches of six steps."""
    root = tmp_path_factory.mktemp("unit")
    bare_checkpoint(root / "teacher.pth")
    flags = (recover, *common(root, "whole"), *teacher(root), "--iteration", 6, "--batch-size", 10,
             "--ipc-end", 2, "--print-period", 1)
    run_main(*flags)
    return root, flags, files_of(root / "whole" / "images")


def count_steps(monkeypatch):
    """-> the iterations that are computed from now on, a list that grows."""
    steps = []
    original = Stepper.step

    def step(self, iteration):
        steps.append(iteration)
        return original(self, iteration)
    monkeypatch.setattr(Stepper, "step", step)
    return steps


def test_recover_saves_the_step_under_way_and_goes_on_from_it(unit, tmp_path, monkeypatch, capsys):
    """After Ctrl-C. The other tests send SIGTERM."""
    _, flags, whole = unit
    flags = (*flags, "--name", tmp_path / "run")
    ninth = 9  # the third of the second batch
    assert interrupted(monkeypatch, Stepper, "step", ninth, flags, signal.SIGINT) == ninth
    assert "the same command continues" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("run/*.state")] == ["images.unit1.state"]
    assert len(files_of(tmp_path / "run" / "images")) == 10
    steps = count_steps(monkeypatch)
    run_main(*flags)
    assert steps == [3, 4, 5] and files_of(tmp_path / "run" / "images") == whole
    assert "unit 1: continues after iteration 3" in capsys.readouterr().out
    assert not list(tmp_path.glob("run/*.state")) and not list(tmp_path.glob("run/*.tmp"))


def test_recover_keeps_a_state_now_and_then(unit, tmp_path, monkeypatch):
    """A run that dies without a word, as by kill -9, has lost what came after its last state."""
    _, flags, whole = unit
    flags = (*flags, "--name", tmp_path / "run", "--save-every-sec", 0)
    original = Stepper.step

    def die(self, iteration):
        if iteration == 4:
            raise MemoryError
        deadline = time.monotonic() + 10
        while iteration == 3 and not list(tmp_path.glob("run/*.state")) and time.monotonic() < deadline:
            time.sleep(0.01)
        return original(self, iteration)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Stepper, "step", die)
        run_main(*flags)
    steps = count_steps(monkeypatch)
    run_main(*flags)
    assert 0 < steps[0] <= 4 and len(steps) == 12 - steps[0]
    assert files_of(tmp_path / "run" / "images") == whole


def flip_a_bit(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 8]) + data[middle + 1:]


SPOILED = {"cut": lambda data: data[:len(data) // 2], "a bit": flip_a_bit,
           "of another seed": lambda data: data}


@pytest.mark.parametrize("how", SPOILED)
def test_a_state_that_is_broken_or_foreign_is_passed_over(unit, how, tmp_path, monkeypatch):
    _, flags, whole = unit
    seed = ("--seed", 1) if how == "of another seed" else ()
    interrupted(monkeypatch, Stepper, "step", 3, (*flags, "--name", tmp_path / "cut", *seed))
    path = tmp_path / "run" / "images.unit0.state"
    path.parent.mkdir()
    path.write_bytes(SPOILED[how]((tmp_path / "cut" / path.name).read_bytes()))
    steps = count_steps(monkeypatch)
    run_main(*flags, "--name", tmp_path / "run")
    assert len(steps) == 12 and files_of(tmp_path / "run" / "images") == whole and not path.exists()


def test_ranges_that_share_a_batch_have_states_of_their_own(tmp_path):
    batches = plan_batches([0, 1, 2], 4, 0, 3)
    places = ((0, 0), (1, 1), (1, 2), (2, 2))
    paths = [state_path(tmp_path / "images", batches[at], ipc_start) for at, ipc_start in places]
    names = ["images.unit0.state", "images.unit1.state", "images.unit1.ipc2.state", "images.unit2.state"]
    assert [path.name for path in paths] == names
    for path in paths:
        path.touch()
    keeper = StateKeeper(tmp_path / "images", {}, ipc_start=2, every_sec=1, writer=None, log=None)
    keeper.forget(batches[1:])  # unit1.state is that of the range before
    assert sorted(path.name for path in tmp_path.iterdir()) == names[:2]


def test_the_identity_of_a_state_is_that_of_older_runs(tmp_path):
    """They did not record a setting that was off; every other value counts, 0 and False included."""
    group, = group_batches(plan_batches([0, 1, 2], 4, 0, 3), 3)

    def identity(**settings):
        return StateKeeper(tmp_path, settings, 0, 1, None, None).identity(group)[:16]
    old = "837b470bfbf4cdac"
    assert identity(seed=0, lossless=None) == identity(seed=0, lossless=False) == old
    assert len({old, identity(seed=0, lossless=True), identity(seed=1), identity(seed=0, r_bn=0.0)}) == 4


def test_a_state_left_by_a_kill_after_its_units_last_file_goes(unit, tmp_path, monkeypatch):
    _, flags, whole = unit
    flags = (*flags, "--name", tmp_path / "run")
    left = tmp_path / "run" / "images.unit1.state"
    interrupted(monkeypatch, Stepper, "step", 9, flags)
    late = left.read_bytes()
    for _ in range(2):
        run_main(*flags)
        assert not list(tmp_path.glob("run/*.state")) and files_of(tmp_path / "run" / "images") == whole
        left.write_bytes(late)


def test_relabel_stops_between_files(unit, tmp_path, monkeypatch, capsys):
    root, _, _ = unit
    synthetic_folder(tmp_path / "images")
    flags = relabel_flags(root, "--epochs", 4, "-b", 8, "--data", tmp_path / "images")
    whole = tmp_path / "whole"
    cut = tmp_path / "cut"
    run_main(*flags, "--name", whole)
    interrupted(monkeypatch, relabel, "mean_logits", 5, (*flags, "--name", cut))
    there = len(files_of(cut / "labels"))
    lines = (cut / "labels.metrics.jsonl").read_text().splitlines()
    assert 0 < there < 12 and json.loads(lines[-1])["files"] == there
    assert f"stopped after {there} of 12 files" in capsys.readouterr().out
    assert not [path for path in cut.iterdir() if path.suffix in (".tmp", ".pth")]
    run_main(*flags, "--name", cut)
    assert files_of(cut / "labels") == files_of(whole / "labels")
    assert (cut / "labels.sha256").read_bytes() == (whole / "labels.sha256").read_bytes()


def test_a_second_signal_ends_at_once_but_not_an_echo(capfd, monkeypatch):
    """A scheduler signals the launcher and its processes; the launcher passes it on: that is one signal."""
    monkeypatch.setattr(signals, "REPEAT_SEC", 60)
    with signals.finishing_steps():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signals.stop_requested()
        monkeypatch.setattr(signals, "REPEAT_SEC", 0)
        with pytest.raises(SystemExit) as caught:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert caught.value.code == 130 and capfd.readouterr().err.count("once more: stop at once") == 1


def test_a_signal_after_a_loops_last_look_stops_the_next_loop():
    """One in the evaluation after a seed's last epoch, say, is not forgotten when the next seed begins."""
    with signals.finishing_steps():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
    with signals.finishing_steps():
        assert signals.stop_requested()
        with pytest.raises(SystemExit) as caught:
            signals.leave()
    assert caught.value.code == 130 and not signals.stop_requested()


def test_outside_of_steps_a_signal_ends_at_once():
    with pytest.raises(SystemExit) as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert caught.value.code == 143


def test_the_first_saves_come_early(tmp_path, monkeypatch):
    """15, 30, 60, then 120 s apart, so that a run that never lives for two minutes gets on.

    A finished batch starts the clock anew."""
    now = [0.0]
    monkeypatch.setattr(state.time, "monotonic", lambda: now[0])
    group, = group_batches(plan_batches([0, 1, 2], 4, 0, 3), 3)
    writer = SimpleNamespace(submit=lambda *_: SimpleNamespace(done=lambda: True))
    keeper, saves = StateKeeper(tmp_path / "images", {}, 0, 120, writer, None), []
    while now[0] < 700:
        now[0] += 1
        if now[0] == 400:
            keeper.forget(group.batches)
        if keeper.is_due():
            keeper.save(group, 1, [])
            saves.append(now[0])
    assert saves == [15, 45, 105, 225, 345, 520, 640]
