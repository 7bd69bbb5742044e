"""Signals and kills within a unit: the step is finished and saved, the same command goes on from there, and the results are those of a run in peace."""
import json
import os
import signal
import time

import pytest
import torch

from recover import recover, state
from recover.step import Stepper
from relabel import relabel
from sre2l.run import signals
from squeeze import squeeze
from tests.helpers import SMALL, bare_checkpoint, noise_folder, run_main, synthetic_folder
from tests.test_continue import NAMES, files_of
from validate import train


@pytest.fixture(autouse=True)
def handlers():
    """Our handlers in this process, for one test."""
    before = {number: signal.getsignal(number) for number in signals.WORDS}
    for number in before:  # pytest itself may have been started by a shell that has background jobs ignore Ctrl-C
        signal.signal(number, signal.SIG_DFL)
    signals.install()
    yield
    signals.Pending.signal = signals.Pending.reason = None
    signals.Pending.ending = False
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupted(monkeypatch, owner, name, at, flags, sent=signal.SIGTERM):
    """Run a stage to which a signal comes at the `at`-th call of owner.name; it must end with the signal's exit code."""
    calls, original = [], getattr(owner, name)

    def call(*args, **options):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), sent)
        return original(*args, **options)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(owner, name, call)
        run_main(*flags)
    assert caught.value.code == 128 + sent
    return len(calls)


@pytest.fixture(scope="module")
def unit(tmp_path_factory):
    """-> (root, flags of recover but for the name, the files of a run in peace): two batches of ten images, six iterations."""
    root = tmp_path_factory.mktemp("unit")
    flags = (recover, "--dataset", "cifar10", "--teacher", bare_checkpoint(root / "t.pth"), "--arch", SMALL, "--device", "cpu",
             "--iteration", 6, "--batch-size", 10, "--ipc-end", 2, "--print-period", 1)
    run_main(*flags, "--name", root / "whole")
    return root, flags, files_of(root / "whole" / "images")


def count_steps(monkeypatch):
    steps, original = [], Stepper.step
    monkeypatch.setattr(Stepper, "step", lambda self, iteration: steps.append(iteration) or original(self, iteration))
    return steps


@pytest.mark.parametrize("sent", (signal.SIGINT, signal.SIGTERM))
def test_recover_saves_the_step_under_way_and_goes_on_from_it(unit, sent, tmp_path, monkeypatch, capsys):
    _, flags, whole = unit
    flags = (*flags, "--name", tmp_path / "run")
    assert interrupted(monkeypatch, Stepper, "step", 9, flags, sent) == 9  # in the third iteration of the second unit
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
    flags, original = (*flags, "--name", tmp_path / "run", "--save-every-sec", 0), Stepper.step

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
    assert 0 < steps[0] <= 4 and len(steps) == 12 - steps[0] and files_of(tmp_path / "run" / "images") == whole


def spoil(path, how):
    data = bytearray(path.read_bytes())
    if how == "cut":
        data = data[:len(data) // 2]
    elif how == "a bit":
        data[len(data) // 2] ^= 8
    elif how == "nothing":
        data = b""
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("how", ("cut", "a bit", "nothing", "of another seed"))
def test_a_state_that_is_broken_or_foreign_is_passed_over(unit, how, tmp_path, monkeypatch):
    _, flags, whole = unit
    seed = ("--seed", 1) if how == "of another seed" else ()
    interrupted(monkeypatch, Stepper, "step", 3, (*flags, "--name", tmp_path / "cut", *seed))
    path = tmp_path / "run" / "images.unit0.state"
    path.parent.mkdir()
    path.write_bytes((tmp_path / "cut" / "images.unit0.state").read_bytes())
    spoil(path, how)
    steps = count_steps(monkeypatch)
    run_main(*flags, "--name", tmp_path / "run")
    assert len(steps) == 12 and files_of(tmp_path / "run" / "images") == whole and not path.exists()


def test_ranges_that_share_a_unit_have_states_of_their_own(unit, tmp_path):
    units = recover.make_units([0, 1, 2], 4, 0, 3)
    names = [state.state_path(tmp_path / "images", units[at:], start).name for at, start in ((0, 0), (1, 1), (1, 2), (2, 2))]
    assert names == ["images.unit0.state", "images.unit1.state", "images.unit1.ipc2.state", "images.unit2.state"]
    for name in names:
        (tmp_path / name).touch()
    state.Keeper(tmp_path / "images", {}, 2, 1, None, None).forget(units[1:])  # the range from 2 on; unit1.state is that of the range before
    assert sorted(path.name for path in tmp_path.iterdir()) == names[:2]


def test_a_state_left_by_a_kill_after_its_units_last_file_goes(unit, tmp_path, monkeypatch):
    _, flags, whole = unit
    flags, left = (*flags, "--name", tmp_path / "run"), tmp_path / "run" / "images.unit1.state"
    interrupted(monkeypatch, Stepper, "step", 9, flags)
    late = left.read_bytes()
    for _ in range(2):
        run_main(*flags)
        assert not list(tmp_path.glob("run/*.state")) and files_of(tmp_path / "run" / "images") == whole
        left.write_bytes(late)


def test_relabel_stops_between_files(unit, tmp_path, monkeypatch, capsys):
    root, _, _ = unit
    synthetic_folder(tmp_path / "images")
    flags = (relabel, "--dataset", "cifar10", "--teacher", root / "t.pth", "--arch", SMALL, "--device", "cpu", "--epochs", 4, "-b", 8, "-j", 0,
             "--data", tmp_path / "images")
    run_main(*flags, "--name", tmp_path / "whole")
    interrupted(monkeypatch, relabel, "teacher_logits", 5, (*flags, "--name", tmp_path / "cut"))
    there, lines = len(files_of(tmp_path / "cut" / "labels")), (tmp_path / "cut" / "labels.metrics.jsonl").read_text().splitlines()
    assert 0 < there < 12 and json.loads(lines[-1])["files"] == there and f"stopped after {there} of 12 files" in capsys.readouterr().out
    assert not [path for path in (tmp_path / "cut").iterdir() if path.suffix in (".tmp", ".pth")]
    run_main(*flags, "--name", tmp_path / "cut")
    assert files_of(tmp_path / "cut" / "labels") == files_of(tmp_path / "whole" / "labels")
    assert (tmp_path / "cut" / "labels.sha256").read_bytes() == (tmp_path / "whole" / "labels.sha256").read_bytes()


@pytest.mark.parametrize("at", (1, 2, 3, 5))  # 3: the last batch of the first epoch
def test_squeeze_goes_on_within_an_epoch(at, tmp_path, monkeypatch, capsys):
    """The same bytes of teacher.pth, of a network with dropout."""
    noise_folder(tmp_path / "train", NAMES, 2)
    noise_folder(tmp_path / "val", NAMES, 1)
    flags = (squeeze, "--dataset", "cifar10", "--real-data", tmp_path, "--arch", "mobilenet_v3_small", "--epochs", 2, "-b", 7, "-j", 0,
             "--eval-every", 1, "--device", "cpu")
    run_main(*flags, "--name", tmp_path / "whole")
    assert interrupted(monkeypatch, squeeze, "set_lr", at, (*flags, "--name", tmp_path / "cut")) == at
    assert not (tmp_path / "cut" / "teacher" / "teacher.pth").exists()
    run_main(*flags, "--name", tmp_path / "cut")
    assert at == 3 or f"continues after batch {at if at < 3 else at - 3} of epoch {1 + at // 3}" in capsys.readouterr().out
    assert (tmp_path / "cut" / "teacher" / "teacher.pth").read_bytes() == (tmp_path / "whole" / "teacher" / "teacher.pth").read_bytes()


@pytest.mark.parametrize("at", (1, 3, 4))  # 3: the last batch of the first epoch
def test_validate_goes_on_within_an_epoch(at, unit, tmp_path, monkeypatch):
    root, _, _ = unit
    synthetic_folder(tmp_path / "run" / "images")
    noise_folder(tmp_path / "val", NAMES, 1)
    common = ("--dataset", "cifar10", "--name", tmp_path / "run", "--device", "cpu", "-j", 0, "--epochs", 2)
    run_main(relabel, *common, "--teacher", root / "t.pth", "--arch", SMALL, "-b", 8)
    flags = (train, *common, "--val-dir", tmp_path, "--model", "mobilenet_v3_small", "--eval-every", 1)
    run_main(*flags, "--output-dir", tmp_path / "whole")
    assert interrupted(monkeypatch, train, "mixed_and_targets", at, (*flags, "--output-dir", tmp_path / "cut")) == at
    run_main(*flags, "--output-dir", tmp_path / "cut")
    whole, cut = (torch.load(tmp_path / name / "seed0" / "checkpoint.pth") for name in ("whole", "cut"))
    assert cut["history"] == whole["history"] and len(cut["history"]) == 2
    assert all(torch.equal(cut["model"][key], value) for key, value in whole["model"].items())
    assert len(list(map(json.loads, open(tmp_path / "cut" / "metrics.jsonl")))) == 2


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
    """One in the evaluation after the last epoch of a seed, say, shall not be forgotten when the next seed begins."""
    with signals.finishing_steps():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
    with signals.finishing_steps():
        assert signals.stop_requested()
        with pytest.raises(SystemExit) as caught:
            signals.leave()
    assert caught.value.code == 130 and not signals.stop_requested()


def test_a_process_that_leaves_with_one_that_was_signalled_ends_as_it_does():
    """All processes of a training run leave when one was asked to, some before the signal has reached them."""
    with pytest.raises(SystemExit) as caught, signals.finishing_steps():
        signals.leave()
    assert caught.value.code == 143


def test_outside_of_steps_a_signal_ends_at_once():
    with pytest.raises(SystemExit) as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert caught.value.code == 143


def test_the_first_saves_come_early(monkeypatch):
    """15, 30, 60, then 120 s apart: also a run that never lives for two minutes gets on. A finished unit starts the clock anew."""
    now = [0.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    timer, saves = signals.SaveTimer(120), []
    while now[0] < 700:
        now[0] += 1
        if now[0] == 400:
            timer.restart()
        if timer.is_due():
            timer.saved()
            saves.append(now[0])
    assert saves == [15, 45, 105, 225, 345, 520, 640]


def test_checkpoints_within_an_epoch_change_nothing(unit, tmp_path):
    """--save-every-sec 0: a checkpoint after every batch, of the teacher and of the student, and the same bytes in the end."""
    noise_folder(tmp_path / "train", NAMES, 2)
    noise_folder(tmp_path / "val", NAMES, 1)
    flags = (squeeze, "--dataset", "cifar10", "--real-data", tmp_path, "--arch", SMALL, "--epochs", 2, "-b", 7, "-j", 0, "--device", "cpu")
    for name, every in (("whole", 120), ("often", 0)):
        run_main(*flags, "--name", tmp_path / name, "--save-every-sec", every)
    assert (tmp_path / "often" / "teacher" / "teacher.pth").read_bytes() == (tmp_path / "whole" / "teacher" / "teacher.pth").read_bytes()
