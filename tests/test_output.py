"""An output folder: one writer, its settings, what --overwrite deletes, what a kill leaves."""
import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from relabel import relabel
from sre2l.run import lock, output
from sre2l.run.errors import UserError
from sre2l.run.hashes import read_hash_file
from sre2l.run.output import OutputFolder, read_record
from tests.helpers import refused, release_locks, run_main
from tests.test_continue import files_of
from tests.worlds import common, recover_flags, squeeze_flags, teacher, train_flags

NAMES = [f"new00{label}/class00{label}_id000.jpg" for label in range(3)]
HOLD = """
import fcntl, json, os, sys, time
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
first, stop = json.loads(sys.argv[2])
fcntl.lockf(handle, fcntl.LOCK_EX, stop - first, 1 + first)
line = {"host": "here", "pid": os.getpid(), "since": "noon", "ranges": [[first, stop]]}
os.write(handle, (json.dumps(line) + "\\n").encode())
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def no_locks_left(monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE_SEC", 0.1)
    yield
    release_locks()


@pytest.fixture
def hold():
    """-> hold(root, first, stop): another process locks these indices without our code -> the process."""
    processes = []

    def start(root, first=0, stop=lock.END):
        command = [sys.executable, "-c", HOLD, f"{root}.lock", json.dumps([first, stop])]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "held\n"
        return processes[-1]
    yield start
    for process in processes:
        process.kill()
        process.wait()


def images_of(folder, **options):
    return OutputFolder(folder / "images", "images", **options)


def images_in(folder):
    """An OutputFolder of images, begun and with three files that are recorded -> it."""
    images = images_of(folder)
    images.begin({})
    images.write({name: name.encode() for name in NAMES})
    return images


# -- one writer

def test_a_second_writer_is_told_who_the_first_is_until_that_one_is_dead(tmp_path, hold):
    other = hold(tmp_path / "images")
    images = images_of(tmp_path)
    said = f"images: process {other.pid} on here has been writing to it since noon"
    with pytest.raises(UserError, match=said):
        images.begin({})
    assert [path.name for path in tmp_path.iterdir()] == ["images.lock"]
    other.kill()
    other.wait()
    images.begin({})


@pytest.mark.parametrize("mine, theirs, is_free", (
    ((0, 5), (5, 10), True), ((5, 10), (0, 5), True), ((0, 5), (4, 10), False), ((3, 4), (0, 9), False),
    (None, (0, 5), False), ((0, 5), (0, lock.END), False)))
def test_ranges_that_share_no_image_may_share_a_folder(tmp_path, hold, mine, theirs, is_free):
    hold(tmp_path / "images", *theirs)
    hold(tmp_path / "images.more")  # a lock on its neighbours is none on it
    hold(tmp_path / "image")
    images = images_of(tmp_path)
    if is_free:
        images.begin({}, part=mine and [mine])
    else:
        with pytest.raises(UserError, match="has been writing to it since noon"):
            images.begin({}, part=mine and [mine])


def test_overwrite_wants_the_folder_for_itself(tmp_path, hold):
    images_in(tmp_path).finish(NAMES)
    release_locks()
    hold(tmp_path / "images", 7, 8)
    with pytest.raises(UserError, match="has been writing to it"):
        images_of(tmp_path, overwrite=True).begin({}, part=[(0, 3)])
    assert len(files_of(tmp_path / "images")) == 3


def test_the_second_of_two_runs_is_told_so_in_every_stage(world, tmp_path, hold):
    labels = tmp_path / "labels"
    student = tmp_path / "student"
    runs = {
        world / "claimed" / "images": recover_flags(world, name="claimed"),
        labels: (relabel, *common(world), *teacher(world), "--epochs", 1, "-b", 8, "--fkd-path", labels),
        student: train_flags(world, "--output-dir", student)}
    (world / "claimed").mkdir()
    for root, flags in runs.items():
        other = hold(root)
        assert f"process {other.pid} on" in refused(*flags)
        assert not root.exists()


def test_where_a_file_system_has_no_locks_one_line_says_so(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    monkeypatch.setattr(fcntl, "lockf", fail)
    images_in(tmp_path).finish(NAMES)
    assert capsys.readouterr().out.count("this file system has no locks") == 1


# -- settings

def test_a_setting_that_a_folder_does_not_record_counts_as_its_default(tmp_path):
    """A folder of before the setting goes on. It is refused where the setting is not at its default."""
    images_of(tmp_path).begin({"lr": 1, "lossless": None})
    defaults = {"new": 0.0, "lossless": False}
    for settings in ({"lr": 1, "new": 0.5, "lossless": False}, {"lr": 1, "new": 0.0, "lossless": True}):
        with pytest.raises(UserError, match="other settings"):
            images_of(tmp_path, defaults=defaults).begin(settings)
    for settings in ({"lr": 1, "new": 0.0, "lossless": False}, {"lr": 1}):
        images_of(tmp_path, defaults=defaults).begin(settings)


def test_free_settings_take_the_later_value_and_chosen_ones_the_first(tmp_path):
    def begin(settings, **chosen):
        return images_of(tmp_path, free=("precision",)).begin(settings, chosen=chosen)
    assert begin({"precision": "fp32", "groups": None}, groups=3) == {"precision": "fp32", "groups": 3}
    assert begin({"precision": None, "groups": None}, groups=5) == {"precision": "fp32", "groups": 3}
    assert begin({"precision": "bf16", "groups": None}, groups=5) == {"precision": "bf16", "groups": 3}
    with pytest.raises(UserError, match="groups: there 3, here 4"):
        begin({"precision": "bf16", "groups": 4})


def test_a_refusal_names_what_differs_and_no_more(tmp_path):
    teacher = {"arch": "resnet18", "sha256": "1" * 64, "size": 32}
    images_of(tmp_path).begin({"teacher": teacher, "epochs": 3})
    with pytest.raises(UserError) as caught:
        images_of(tmp_path).begin({"teacher": {**teacher, "sha256": "2" * 64}, "epochs": 5})
    message = str(caught.value)
    assert "(epochs: there 3, here 5; teacher.sha256: there '11111111...', here '22222222...')" in message
    assert "The learning rate falls over all epochs" in message
    assert "resnet18" not in message


# -- --overwrite

def test_overwrite_deletes_what_a_run_left_and_says_so(world, capsys):
    """It makes the set anew, and only it."""
    run = world / "afresh"
    flags = recover_flags(world, name="afresh")
    run_main(*flags)
    first = files_of(run / "images")
    (run / "images.notes.txt").write_text("mine")
    (run / "images.snapshots").mkdir()
    (run / "images.snapshots" / "iteration_000000.png").write_bytes(b"")
    run_main(*flags, "--lr", 0.5, "--overwrite")
    assert not (run / "images.snapshots").exists()  # nothing is left in it
    said = f"--overwrite: deleting {run / 'images'}: 10 files in it and 7 beside it"
    assert said in capsys.readouterr().out
    second = files_of(run / "images")
    assert second.keys() == first.keys() and second != first
    assert (run / "images.notes.txt").read_text() == "mine"
    run_main(*flags, "--lr", 0.5)
    assert files_of(run / "images") == second
    assert set(read_record(run / "images.manifest.json")) == {"settings", "hashes", "sha256"}


def test_processes_of_one_launch_overwrite_once(tmp_path, monkeypatch):
    """Whichever comes first deletes; the others, and the first itself, then continue what it has begun."""
    images_in(tmp_path).finish(NAMES)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    for number in ("1", "0"):
        monkeypatch.setenv("RANK", number)
        images_of(tmp_path, overwrite=True).begin({"lr": 2}, part=[(int(number), int(number) + 1)])
        assert len(files_of(tmp_path / "images")) == (number == "0")
        (tmp_path / "images" / "new000").mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / NAMES[0]).touch()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "two")
    images_of(tmp_path, overwrite=True).begin({"lr": 2}, part=[])  # who writes nothing deletes nothing
    assert files_of(tmp_path / "images")
    images_of(tmp_path, overwrite=True).begin({"lr": 2}, part=[(0, 2)])
    assert not files_of(tmp_path / "images")


def test_a_launch_without_an_id_is_known_by_its_torchrun(tmp_path, monkeypatch):
    """Plain --master-port gives every launch the same id. On several machines nothing tells two apart."""
    images_in(tmp_path).finish(NAMES)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for parent in (100, 101):
        monkeypatch.setattr("os.getppid", lambda parent=parent: parent)
        for local_world_size, deletes in (("2", True), ("1", False)):
            monkeypatch.setenv("LOCAL_WORLD_SIZE", local_world_size)
            images = images_of(tmp_path, overwrite=True)
            if deletes:
                images.begin({}, part=[(0, 3)])
                images.write({name: b"whole" for name in NAMES})
                assert images.finish(NAMES)
                continue
            with pytest.raises(UserError, match="add --rdzv-id NAME to TORCHRUN"):
                images.begin({}, part=[(0, 3)])
        release_locks()


def test_overwrite_deletes_nothing_where_a_file_is_not_a_runs(tmp_path):
    root = tmp_path / "images"
    (root / "new000").mkdir(parents=True)
    for name in ("new000/class000_id000.jpg", "new000/notes.txt"):
        (root / name).touch()
    with pytest.raises(UserError, match="no manifest stands beside it"):
        OutputFolder(root, "images", overwrite=True).begin({})
    output.write_record(tmp_path / "images.manifest.json", {"settings": {}})
    with pytest.raises(UserError, match="notes.txt: no file of a run"):
        OutputFolder(root, "images", overwrite=True).begin({})
    assert len(files_of(root)) == 2


@pytest.mark.parametrize("owner, name", ((Path, "unlink"), (os, "rmdir")))
@pytest.mark.parametrize("kind", ("images", "teacher"))
def test_overwrite_that_was_killed_goes_on(kind, owner, name, tmp_path, monkeypatch):
    """At each call that deletes something: the same command then deletes the rest."""
    root = tmp_path / kind
    inside = [root / "teacher.pth"] if kind == "teacher" else [root / name for name in NAMES]
    original = getattr(owner, name)
    for at in range(4):
        OutputFolder(root, kind).begin({})
        for path in inside:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        left = [at]

        def die(path, left=left, **options):
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt
            return original(path, **options)
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(owner, name, die)
            OutputFolder(root, kind, overwrite=True).begin({})
        OutputFolder(root, kind, overwrite=True).begin({})
        assert {path.name for path in files_of(tmp_path)} <= {
            f"{kind}.lock", "images.manifest.json", "settings.json"}


def test_overwrite_keeps_links_to_folders(tmp_path):
    """An output folder may be a link to a larger disk; a link inside one is nobody's output."""
    (tmp_path / "disk" / "new000").mkdir(parents=True)
    root = tmp_path / "images"
    root.symlink_to(tmp_path / "disk")
    (root / NAMES[0]).touch()
    output.write_record(tmp_path / "images.manifest.json", {"settings": {}})
    (root / "new001").symlink_to(tmp_path)
    with pytest.raises(UserError, match="new001: no file of a run"):
        OutputFolder(root, "images", overwrite=True).begin({})
    assert files_of(root)
    (root / "new001").unlink()
    OutputFolder(root, "images", overwrite=True).begin({})
    assert root.is_symlink() and not list(root.iterdir())


def planned(capsys, *flags):
    """The plan of a stage's --dry-run."""
    capsys.readouterr()
    run_main(*flags, "--dry-run")
    return json.loads(capsys.readouterr().out)


def stage_flags(stage, world, tmp_path):
    """A command that makes the folder tmp_path / stage."""
    if stage == "teacher":
        return squeeze_flags(world, name=tmp_path)
    if stage == "images":
        return recover_flags(world, "--syn-data-path", tmp_path, name=tmp_path)
    if stage == "labels":
        labels = ("--fkd-path", tmp_path / "labels")
        return relabel, *common(world), *teacher(world), "--epochs", 1, "-b", 8, "-j", 0, *labels
    return train_flags(world, "--output-dir", tmp_path / "student")


@pytest.mark.parametrize("stage, change", (
    ("teacher", ("--lr", 0.7)), ("images", ("--lr", 0.7)), ("labels", ("--mix-type", "none")),
    ("student", ("-T", 7))))
def test_a_dry_run_says_what_overwrite_would_delete_and_deletes_nothing(
        stage, change, world, tmp_path, capsys):
    """What the run then deletes; nothing where nothing is yet; a refusal where a file is no run's."""
    flags = stage_flags(stage, world, tmp_path)
    root = tmp_path / stage
    assert planned(capsys, *flags)["deletes"] is None
    nothing = {"folder": str(root), "files": 0, "beside": [], "bytes": 0}
    assert planned(capsys, *flags, "--overwrite")["deletes"] == nothing

    run_main(*flags)
    before = files_of(tmp_path)
    assert planned(capsys, *flags)["deletes"] is None
    for more in ((), ("--dry-run",)):
        assert "this output belongs to a run with other settings" in refused(*flags, *change, *more)
    plan = planned(capsys, *flags, "--overwrite")["deletes"]
    assert files_of(tmp_path) == before and plan["files"] == len(files_of(root)) > 0
    records = sorted(path.name for path in tmp_path.iterdir() if path.is_file() and path.suffix != ".lock")
    assert plan["beside"] == records

    run_main(*flags, *change, "--overwrite")
    after = files_of(tmp_path)
    assert after.keys() == before.keys() and after != before
    said = f"{plan['files']} files in it and {len(records)} beside it, {plan['bytes'] / 1e6:.1f} MB"
    assert f"deleting {root}: {said}" in capsys.readouterr().out
    (root / "notes.txt").touch()
    message = refused(*flags, *change, "--overwrite", "--dry-run")
    assert "notes.txt: no file of a run, so --overwrite deletes nothing" in message


# -- files and hashes

def test_what_is_recorded_and_as_it_was_is_kept_and_the_rest_is_missing(tmp_path):
    images = images_in(tmp_path)
    assert images.missing(NAMES) == []
    (images.root / NAMES[0]).write_bytes(b"another")
    (images.root / NAMES[2]).unlink()
    assert images.missing(NAMES) == [NAMES[0], NAMES[2]]
    (images.root / NAMES[2]).symlink_to(images.root / NAMES[1])
    assert NAMES[2] in images.missing(NAMES)
    images.path("sha256").unlink()
    with pytest.raises(UserError, match="the hashes of the images in .* are gone"):
        images.missing(NAMES)


def test_a_run_that_is_refused_for_its_hashes_leaves_the_record_that_tells_of_them(tmp_path):
    images = images_in(tmp_path)
    assert images.finish(NAMES)
    record = images.record_path.read_bytes()
    assert b'"hashes"' in record
    images.path("sha256").unlink()
    with pytest.raises(UserError, match="the hashes of the images in .* are gone"):
        images_of(tmp_path).begin({})
    assert images.record_path.read_bytes() == record


def test_a_hash_is_recorded_before_its_file_appears(tmp_path, monkeypatch):
    images = images_in(tmp_path)
    name = "new003/class003_id000.jpg"

    def die(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(output, "write_bytes", die)
    with pytest.raises(KeyboardInterrupt):
        images.write({name: b"x"})
    assert name in read_hash_file(images.path("sha256")) and images.missing([name]) == [name]


def test_the_last_writer_ties_the_record_to_the_hashes(tmp_path, hold):
    """A range that ends while another one is written leaves that to the other."""
    images = images_in(tmp_path)
    release_locks()
    images_of(tmp_path).begin({}, part=[(0, 3)])
    other = hold(tmp_path / "images", 3, 6)
    assert images.finish(NAMES) and "hashes" not in read_record(images.record_path)
    other.kill()
    other.wait()
    assert images.finish(NAMES) and "hashes" in read_record(images.record_path)
    images.begin({})
    assert "hashes" not in read_record(images.record_path)  # until this run is done


def test_the_last_of_a_launch_waits_for_one_that_has_not_begun(tmp_path, monkeypatch):
    """Process 1 ends before process 0, part of whose files are damaged, has looked at anything."""
    before = images_in(tmp_path)
    before.finish(NAMES)
    (before.root / NAMES[0]).write_bytes(b"damaged")
    release_locks()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for number, is_complete in ((1, False), (0, True)):
        monkeypatch.setenv("RANK", str(number))
        images = images_of(tmp_path)
        images.begin({}, part=[(number, number + 1)])
        images.write({name: b"whole" for name in images.missing(NAMES[number::2])})
        assert images.finish(NAMES) == is_complete
        assert ("hashes" in read_record(images.record_path)) == is_complete
        release_locks()


def test_a_process_without_work_does_not_finish_what_the_others_have_yet_to_delete(tmp_path, monkeypatch):
    images_in(tmp_path).finish(NAMES)
    release_locks()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    images = images_of(tmp_path, overwrite=True)
    images.begin({}, part=[])
    assert not images.finish(NAMES)


def test_a_run_that_is_just_ending_is_waited_for(tmp_path, hold, monkeypatch):
    """It needs the lock's moment to end, so nobody waits within one."""
    monkeypatch.setattr(lock, "PATIENCE_SEC", 20)
    images_in(tmp_path)
    release_locks()
    other = hold(tmp_path / "images")
    threading.Timer(0.5, other.kill).start()
    images_of(tmp_path).begin({})


def test_files_that_vanish_are_missed_at_the_end(tmp_path):
    images = images_in(tmp_path)
    (images.root / NAMES[1]).unlink()
    with pytest.raises(UserError, match="1 of its files are not there any more"):
        images.finish(NAMES)


def test_what_older_versions_and_kills_left_is_taken_over_or_removed(tmp_path):
    """Hashes in a file a process are taken over; temporary files and claims go, files of others stay."""
    images = images_in(tmp_path)
    main = images.path("sha256")
    lines = main.read_text().splitlines(keepends=True)
    main.write_text(lines[0])
    (tmp_path / "images.sha256.host.12.34").write_text("".join(lines[1:]) + "torn")
    gone = ("images.0123456789ab.tmp", "images.manifest.json.0123456789ab.tmp", "images.host.12.34.claim")
    others = ("images.r50.0123456789ab.tmp", "images.more.tmp", "imagesque.0123456789ab.tmp", "mine.tmp")
    for name in gone + others:
        (tmp_path / name).touch()
    release_locks()
    images = images_of(tmp_path)
    images.begin({})
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"images", "images.lock", "images.manifest.json", "images.sha256", *others}
    assert images.missing(NAMES) == []


def test_temporary_files_of_a_living_range_stay(tmp_path, hold):
    images_in(tmp_path)
    release_locks()
    hold(tmp_path / "images", 3, 6)
    (tmp_path / "images.0123456789ab.tmp").touch()
    images_of(tmp_path).begin({}, part=[(0, 3)])
    assert (tmp_path / "images.0123456789ab.tmp").exists()


def test_temporary_files_beside_the_target_of_a_link_go_by_the_targets_name(tmp_path):
    (tmp_path / "disk" / "stored").mkdir(parents=True)
    (tmp_path / "images").symlink_to(tmp_path / "disk" / "stored")
    for name in ("stored.0123456789ab.tmp", "images.0123456789ab.tmp"):
        (tmp_path / "disk" / name).touch()
    images_of(tmp_path).begin({})
    left = sorted(path.name for path in (tmp_path / "disk").iterdir())
    assert left == ["images.0123456789ab.tmp", "stored"]
