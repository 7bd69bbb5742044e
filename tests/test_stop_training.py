"""Training that a signal stops or a kill ends: the same command continues after the last saved epoch and
gives the network of a run in peace, which has dropout."""
import signal

import pytest
import torch

from squeeze import squeeze
from sre2l.nets import parallel, training
from tests.helpers import SMALL, noise_folder, refused, run_main
from tests.test_continue import interrupt
from tests.test_interrupts import handlers, interrupted  # noqa: F401 (handlers: a fixture)
from tests.worlds import NAMES, labelled_images
from validate import train

NUM_BATCHES = 3  # of an epoch
STAGES = (squeeze, train)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """-> (root, {stage: its flags but for the folder}). The last of three batches is a short one."""
    root = tmp_path_factory.mktemp("stopped")
    common = ("--device", "cpu", "--eval-every", 1, "--epochs", 2, "-j", 0)
    student = labelled_images(root, "mixup", "--device", "cpu")
    noise_folder(root / "small" / "train", NAMES, 2)
    noise_folder(root / "small" / "val", NAMES, 1)
    teacher = ("--dataset", "cifar10", "--real-data", root / "small", "--arch", "mobilenet_v3_small", "-b", 7)
    return root, {squeeze: (*teacher, *common), train: (*student, *common, "--model", "mobilenet_v3_small")}


def folder_flag(stage, folder):
    return ("--name" if stage is squeeze else "--output-dir"), folder


def results_of(stage, folder):
    """What a run has left of its network: the bytes of teacher.pth, or the student's weights and history."""
    path = folder / ("teacher/teacher.pth" if stage is squeeze else "seed0/checkpoint.pth")
    if not path.exists() or stage is squeeze:
        return path.exists() and path.read_bytes()
    checkpoint = torch.load(path)
    weights = {key: value.numpy().tobytes() for key, value in checkpoint["model"].items()}
    return {"history": checkpoint["history"], "is_last": "optimizer" not in checkpoint, **weights}


def checkpoint_of(stage, folder):
    return folder / ("teacher" if stage is squeeze else "seed0") / "checkpoint.pth"


@pytest.fixture(scope="module")
def in_peace(labelled):
    """-> {stage: what a run in peace leaves of its network}."""
    root, flags = labelled
    found = {}
    for stage in STAGES:
        run_main(stage, *flags[stage], *folder_flag(stage, root / f"peace_{stage.__name__}"))
        found[stage] = results_of(stage, root / f"peace_{stage.__name__}")
    return found


def count_batches(monkeypatch, stage):
    steps, original = [], parallel.sum_gradients
    monkeypatch.setattr(parallel, "sum_gradients", lambda network: steps.append(1) or original(network))
    return steps


# 3: in the last batch of the first epoch, which is then measured and saved.
@pytest.mark.parametrize("stage, at, checkpoint_sec, left", [
    (squeeze, 3, 30, 3), (squeeze, 5, 0, 3), (train, 3, 30, 3), (train, 5, 30, 6)])
def test_a_signal_ends_training_after_the_batch(
        stage, at, checkpoint_sec, left, labelled, in_peace, tmp_path, monkeypatch):
    """The next run does the epoch again, and those since the last checkpoint."""
    monkeypatch.setattr(training, "CHECKPOINT_SEC", checkpoint_sec)
    flags = (stage, *labelled[1][stage], *folder_flag(stage, tmp_path))
    sent = signal.SIGINT if at == 3 else signal.SIGTERM
    assert interrupted(monkeypatch, parallel, "sum_gradients", at, flags, sent) == at
    assert results_of(stage, tmp_path) != in_peace[stage]
    steps = count_batches(monkeypatch, stage)
    run_main(*flags)
    assert len(steps) == left and results_of(stage, tmp_path) == in_peace[stage]


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_dies_in_an_evaluation_is_continued(stage, labelled, in_peace, tmp_path, monkeypatch):
    """As by kill -9: the epoch that was being measured is trained again, the one before is not."""
    flags = (stage, *labelled[1][stage], *folder_flag(stage, tmp_path))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, stage, 2)
        run_main(*flags)
    steps = count_batches(monkeypatch, stage)
    run_main(*flags)
    assert len(steps) == NUM_BATCHES and results_of(stage, tmp_path) == in_peace[stage]


@pytest.mark.parametrize("stage", STAGES)
def test_a_finished_stage_trains_nothing_and_leaves_the_same_bytes(stage, labelled, in_peace, monkeypatch):
    root, flags = labelled
    steps = count_batches(monkeypatch, stage)
    run_main(stage, *flags[stage], *folder_flag(stage, root / f"peace_{stage.__name__}"))
    assert steps == [] and results_of(stage, root / f"peace_{stage.__name__}") == in_peace[stage]


def test_a_teachers_file_that_is_missing_is_written_from_the_checkpoint(labelled, in_peace, monkeypatch):
    """As after a kill between the two."""
    root, flags = labelled
    folder = root / f"peace_{squeeze.__name__}"
    (folder / "teacher" / "teacher.pth").unlink()
    steps = count_batches(monkeypatch, squeeze)
    run_main(squeeze, *flags[squeeze], *folder_flag(squeeze, folder))
    assert steps == [] and results_of(squeeze, folder) == in_peace[squeeze]


def as_older_versions_wrote(path, batches):
    """Turn a checkpoint into one of the versions that saved within an epoch as well."""
    checkpoint = torch.load(path)
    torch.save({**checkpoint, "batches": batches, "loss_sum": torch.tensor(float(batches))}, path)


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_of_older_versions_continue_but_those_within_an_epoch(
        stage, labelled, in_peace, tmp_path, monkeypatch):
    """The latter are named in a sentence, and nothing is trained."""
    monkeypatch.setattr(training, "CHECKPOINT_SEC", 0)
    flags = (stage, *labelled[1][stage], *folder_flag(stage, tmp_path))
    interrupted(monkeypatch, parallel, "sum_gradients", NUM_BATCHES + 1, flags)
    path = checkpoint_of(stage, tmp_path)
    before = path.read_bytes()
    as_older_versions_wrote(path, batches=2)
    message = refused(*flags)
    assert "took this checkpoint within epoch 2" in message and "delete the file" in message
    path.write_bytes(before)
    as_older_versions_wrote(path, batches=0)
    steps = count_batches(monkeypatch, stage)
    run_main(*flags)
    assert len(steps) == NUM_BATCHES and results_of(stage, tmp_path) == in_peace[stage]


@pytest.mark.parametrize("stage, change", [
    (squeeze, ("--batch-size", 8)), (train, ("--adamw-lr", 0.01)), (train, ("--seeds", 1))])
def test_another_runs_checkpoint_is_refused(stage, change, labelled, tmp_path):
    """The file of a run with other settings or another seed, copied in."""
    flags = labelled[1]
    for name, more in (("one", ()), ("other", change)):
        run_main(stage, *flags[stage], "--epochs", 1, *more, *folder_flag(stage, tmp_path / name))
    theirs, = (tmp_path / "other").rglob("checkpoint.pth")
    checkpoint_of(stage, tmp_path / "one").write_bytes(theirs.read_bytes())
    message = refused(stage, *flags[stage], "--epochs", 1, *folder_flag(stage, tmp_path / "one"))
    assert "another run's checkpoint" in message


@pytest.mark.parametrize("stage", STAGES)
def test_the_time_between_checkpoints_is_no_flag_any_more(stage, capsys):
    assert not hasattr(stage.get_args(["--save-every-sec", "5"]), "save_every_sec")
    assert "warning: --save-every-sec has no effect" in capsys.readouterr().err


@pytest.mark.parametrize("checkpoint_sec, epochs", [(30, [2]), (0, [1, 2])])
def test_checkpoints_are_30_seconds_apart(checkpoint_sec, epochs, labelled, tmp_path, monkeypatch):
    """The last epoch has one in any case."""
    monkeypatch.setattr(training, "CHECKPOINT_SEC", checkpoint_sec)
    saved, save = [], train.save_student

    def count(student, *rest):
        saved.append(len(student.history))
        save(student, *rest)
    monkeypatch.setattr(train, "save_student", count)
    run_main(train, *labelled[1][train], "--model", SMALL, "--output-dir", tmp_path)
    assert saved == epochs
