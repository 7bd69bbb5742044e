"""--tensorboard: event files hold what metrics.jsonl holds, also over a run that was stopped."""
import sys
import time

import pytest

from relabel import check
from sre2l.run.log import Scalars, read_metrics
from tests.helpers import refused, run_main
from tests.worlds import common, recover_flags, squeeze_flags, train_flags


def scalars_of(folder):
    """{name: {step: value}} as TensorBoard shows a folder of event files; each step once."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    events = {tag: found.Scalars(tag) for tag in found.Tags()["scalars"]}
    assert all(len({event.step for event in of_tag}) == len(of_tag) for of_tag in events.values())
    return {tag: {event.step: event.value for event in of_tag} for tag, of_tag in events.items()}


def scalars_in(lines, step, *others):
    """The same from lines of metrics.jsonl."""
    names = {name for line in lines for name in line} - {step, *others, "seconds"}
    found = {}
    for name in names:
        found[name] = {line[step]: pytest.approx(line[name], rel=1e-6) for line in lines if name in line}
    return found


def test_events_are_the_metrics_of_each_stage(world):
    """A folder for each batch of recover and each seed of validate; squeeze has one curve."""
    pytest.importorskip("tensorboard")
    run_main(*squeeze_flags(world, "--tensorboard", "--epochs", 3, "--eval-every", 2, name="board"))
    teacher = world / "board" / "teacher"
    lines = read_metrics(teacher / "metrics.jsonl")
    assert len(lines) == 3 and scalars_of(teacher / "tensorboard") == scalars_in(lines, "epoch")
    run_main(*recover_flags(world, "--tensorboard", "--iteration", 4, "--ipc-end", 2, "--groups", 2,
                            "--print-period", 1, name="board"))
    lines = [line for line in read_metrics(world / "board" / "images.metrics.jsonl") if "iteration" in line]
    assert len(lines) == 8
    for unit in (0, 1):
        own = [line for line in lines if line["unit"] == unit]
        found = scalars_of(world / "board" / "images.tensorboard" / f"unit{unit}")
        assert found == scalars_in(own, "iteration", "unit")
    student = world / "board" / "student"
    run_main(*train_flags(world, "--tensorboard", "--epochs", 2, "--eval-every", 1, "--seeds", "0-1",
                          "--output-dir", student))
    for seed in (0, 1):
        own = [line for line in read_metrics(student / "metrics.jsonl") if line["seed"] == seed]
        assert len(own) == 2
        assert scalars_of(student / "tensorboard" / f"seed{seed}") == scalars_in(own, "epoch", "seed")


def test_steps_that_are_done_once_more_count_once(tmp_path):
    """After kill -9 a run goes on from what it saved last: what it had written of later steps gives way."""
    pytest.importorskip("tensorboard")
    for first, end in ((0, 6), (3, 9)):
        scalars = Scalars(tmp_path)
        for iteration in range(first, end):
            scalars.add({"unit": 7, "iteration": iteration, "ce": 10.0 * first + iteration})
        scalars.add({"unit": 7, "images": 10, "precision": "fp32"})  # the last line of a unit
        assert not scalars.writers
        time.sleep(1.1)  # TensorBoard reads files by name, which has the second
    second = {iteration: 30 + iteration for iteration in range(3, 9)}
    assert scalars_of(tmp_path / "unit7") == {"ce": {0: 0, 1: 1, 2: 2, **second}}


def test_without_the_package_the_flag_is_refused_before_any_work(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for flags in (squeeze_flags(world, name="none"), recover_flags(world, name="none"),
                  train_flags(world, "--output-dir", world / "none" / "student")):
        assert "pip install tensorboard" in refused(*flags, "--tensorboard")
    assert not (world / "none").exists()


def test_event_files_are_a_runs_own(world, capsys):
    """A run continues beside them, check and --overwrite know them; a stranger's file is nobody's."""
    pytest.importorskip("tensorboard")
    folder, student = world / "own", world / "own" / "student"
    for flags, events in ((squeeze_flags(world, name="own"), folder / "teacher" / "tensorboard"),
                          (recover_flags(world, name="own"), folder / "images.tensorboard"),
                          (train_flags(world, "--output-dir", student), student / "tensorboard")):
        run_main(*flags, "--tensorboard")
        first = {path for path in events.rglob("*") if path.is_file()}
        run_main(*flags, "--tensorboard")
        # nothing was left to do
        assert first and first == {path for path in events.rglob("*") if path.is_file()}
        run_main(*flags, "--tensorboard", "--overwrite")
        assert "--overwrite: deleting" in capsys.readouterr().out
        second = {path for path in events.rglob("*") if path.is_file()}
        assert len(second) == len(first) and not second & first
    run_main(check, *common(world, "own")[:4])
    (student / "tensorboard" / "seed0" / "notes.txt").touch()
    assert "notes.txt: no file of a run" in refused(*train_flags(world, "--output-dir", student,
                                                                 "--tensorboard", "--overwrite"))
    assert second <= {path for path in events.rglob("*") if path.is_file()}
