"""The queue of results/: order, side by side, an end in time, failures, kills, packing, its list of jobs.

Each test has a small copy of the project, whose jobs are lines of sh."""
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from report import jobs, queue
from sre2l.run.paths import ROOT
from tests.helpers import launch
from tests.test_launchers import with_python

# Saves at SIGTERM as a stage does, and has nothing left to do where it has saved.
SAVER = """[ ! -e $1.saved ] || exit 0
trap 'sleep 0.3; touch $1.saved; exit 143' TERM
touch $1.begun
for i in 1 2 3 4 5 6 7 8 9 10; do sleep 100 & wait $!; done
"""
NVIDIA_SMI = "#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-0)'\n"


@pytest.fixture
def make(tmp_path):
    """-> make(name, jobs): a project with this list of jobs -> its folder."""
    def project(name="project", listed=()):
        root = tmp_path / name
        for folder in ("report", "results"):
            (root / folder).mkdir(parents=True)
        shutil.copytree(ROOT / "sre2l" / "run", root / "sre2l" / "run",
                        ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("sre2l/__init__.py", "report/__init__.py", "report/jobs.py", "report/queue.py",
                     "report/packing.py", "results/queue.sh", "requirements.txt"):
            shutil.copy(ROOT / file, root / file)
        (root / "results" / "queue.json").write_text(json.dumps({"jobs": [*listed]}))
        (root / "saver.sh").write_text(SAVER)
        return root
    return project


def job(name, *commands, minutes=0.01, **others):
    return {"name": name, "commands": commands, "minutes": {"cpu": minutes}, **others}


def run(root, *flags, **env):
    """-> (exit code, what the queue said without the time of the day)."""
    done = launch("results/queue.sh", *flags, cwd=root, **{"CUDA_VISIBLE_DEVICES": "", **env})
    return done.returncode, re.sub(r"^\d\d:\d\d:\d\d  ", "", done.stdout + done.stderr, flags=re.M)


def wait_for(*paths):
    deadline = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, f"{paths} did not come"
        time.sleep(0.02)


def unpack(folder, root):
    """As the queue says it."""
    subprocess.run(f"cat {folder}/queue_??? | tar xz --keep-newer-files", shell=True, cwd=root, check=True)


def states(root):
    found = [json.loads(path.read_text()) for path in (root / "runs" / "queue").glob("*.json")]
    return {state["job"]: state["state"] for state in found}


def test_jobs_run_in_their_order_and_once(make):
    write = "echo {} $OMP_NUM_THREADS >> order"
    root = make(listed=[job("first", write.format("first"), "pwd > where"),
                        job("third", write.format("third"), after=["first"], minutes=2),
                        job("second", write.format("second"), minutes=1)])
    code, said = run(root, OMP_NUM_THREADS="")
    assert code == 0 and said.count("start ") == said.count("done ") == 3
    cores = len(os.sched_getaffinity(0))
    assert (root / "order").read_text() == f"first {cores}\nthird {cores}\nsecond {cores}\n"
    assert (root / "where").read_text() == f"{root}\n"
    assert "3 of 3 jobs are done" in said

    code, said = run(root)  # nothing is left
    assert code == 0 and "start" not in said
    (root / "results" / "queue.json").write_text(json.dumps({"jobs": [job("first", "touch edited")]}))
    assert run(root)[0] == 0 and (root / "edited").exists()  # other commands are another job


def test_jobs_run_side_by_side_and_wait_for_those_that_they_come_after(make):
    """Each of two waits until the other is there, which one after the other would never be."""
    meet = "touch {0}; for i in $(seq 300); do [ -e {1} ] && exit; sleep 0.1; done; exit 1"
    root = make(listed=[job("a", meet.format("a", "b")), job("b", meet.format("b", "a")),
                        job("c", "touch c", after=["a", "b"]), job("d", "[ -e c ]", after=["c"])])
    code, said = run(root, "--jobs", 2)
    assert code == 0 and states(root) == dict.fromkeys("abcd", "done")
    assert said.index("start    c") > max(said.index("done     a"), said.index("done     b"))


def test_it_ends_in_time_and_goes_on(make):
    """What fits runs first; what does not is begun, saves at the end, and goes on by the same command. One
    that does not save is killed."""
    root = make(listed=[job("long", "sh saver.sh long", "touch finished", minutes=100),
                        job("stubborn", "trap '' TERM; touch stubborn; sleep 60", minutes=100),
                        job("short", "[ ! -e long.begun ]", minutes=0.001)])
    begin = time.monotonic()
    code, said = run(root, "--minutes", 0.1, "--jobs", 2)
    assert time.monotonic() - begin < 30 and code == 0
    assert states(root) == {"long": "stopped", "stubborn": "stopped", "short": "done"}
    assert (root / "long.saved").exists() and not (root / "finished").exists()
    assert (root / "stubborn").exists() and "the same command goes on" in said

    assert run(root, "--only", "long")[0] == 0
    assert (root / "finished").exists() and states(root)["long"] == "done"


def test_a_failed_job_says_why_and_what_comes_after_it_is_left_out(make):
    root = make(listed=[job("bad", "echo no such image; [ -e mended ]", "touch bad"),
                        job("after", "touch after", after=["bad"]),
                        job("later", "touch later", after=["after"]), job("other", "touch other")])
    code, said = run(root)
    assert code == 1 and "exit code 1: no such image  (runs/queue/bad.log)" in said
    assert "waiting  after  (for 'bad', which failed)" in said and "waiting  later  (for 'after')" in said
    assert states(root) == {"bad": "failed", "other": "done"} and not (root / "after").exists()
    (root / "mended").touch()
    assert run(root)[0] == 0 and (root / "later").exists()


@pytest.mark.parametrize("number", (signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
def test_when_the_queue_is_killed_its_jobs_save_and_the_next_call_goes_on(number, make):
    root = make(listed=[job(name, f"sh saver.sh {name}", f"touch {name}.done") for name in "ab"])
    command = [sys.executable, "-m", "report.queue", "--jobs", "2"]
    env = {**os.environ, "PYTHONPATH": str(root), "PYTHONSAFEPATH": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.DEVNULL,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    wait_for(root / "a.begun", root / "b.begun")
    process.send_signal(number)
    assert process.wait(30) == (-9 if number == signal.SIGKILL else 128 + number)
    wait_for(root / "a.saved", root / "b.saved")
    assert not (root / "a.done").exists() and set(states(root).values()) <= {"stopped", "running"}
    assert run(root)[0] == 0 and (root / "a.done").exists() and (root / "b.done").exists()


def test_a_second_queue_is_refused(make, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "STATE", make() / "runs" / "queue")
    monkeypatch.setattr(queue, "STATE", jobs.STATE)
    monkeypatch.setattr(queue, "SAVE_SEC", 0.3)
    held = queue.take_lock()
    with pytest.raises(queue.UserError, match="another queue of this project is running"):
        queue.take_lock()
    assert capsys.readouterr().out.count("waiting for another queue") == 1
    os.close(held)


def test_a_job_that_needs_a_gpu_or_data_waits_for_it(make, tmp_path):
    root = make(listed=[job("g", "touch g", needs="gpu", minutes=0) | {"minutes": {"gpu": 2}},
                        job("h", "touch h", after=["g"]), job("d", "touch d", data=["mine/val"]),
                        job("c", "touch c")])
    code, said = run(root)
    assert code == 0 and states(root) == {"c": "done"}
    for line in ("waiting  g  (for a GPU)", "waiting  h  (for 'g')",
                 "waiting  d  (for data/mine, which is not there: docs/data-sets.md)"):
        assert line in said
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(NVIDIA_SMI)
    (tools / "nvidia-smi").chmod(0o755)
    (root / "data" / "mine").mkdir(parents=True)
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
                   "PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run([sys.executable, "-m", "report.queue"], cwd=root, env=environment,
                          capture_output=True, text=True, check=True)
    assert "8 side by side" in done.stdout and set(states(root).values()) == {"done"}


def test_a_dry_run_prints_the_order_hours_and_bytes(make):
    listed = [job("done", "mkdir -p runs/x/labels", minutes=600, uses=["x/"]),
              job("both", "exit 1", data=["set"], uses=["x/labels"], minutes=120) | {
                  "minutes": {"cpu": 120, "gpu": 30}},
              job("card", "exit 1", data=["set"], needs="gpu", after=["both"]) | {"minutes": {"gpu": 60}}]
    root = make(listed=listed)
    assert run(root, "--only", "done")[0] == 0
    for file, size in (("data/set/train/a.png", 1_000_000), ("runs/x/labels/b.tar", 300_000),
                       ("runs/x/labels.json", 200_000), ("runs/x/other.pth", 5_000_000)):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(bytes(size))
    code, said = run(root, "--dry-run")
    lines = [re.sub(" +", " ", line) for line in said.splitlines()]
    assert code == 0 and lines[1:4] == [
        "done 600 - 0.0 done", "to run 120 30 1.5 both", "waiting - 60 1.0 card (waits for a GPU)"]
    assert "2 of 3 jobs are not done; one after the other: 2.0 h of one CPU core for the 1 that need no " \
           "GPU, 1.5 h of a GPU for all" in said
    assert "they read 1.5 MB" in said and states(root) == {"done": "done"}


def test_what_was_made_is_packed_under_the_limit_and_goes_on_elsewhere(make, tmp_path):
    """The second job needs the labels, the third a network; of the first one's only results come along."""
    listed = [job("labels", "mkdir -p runs/x/labels", "cp -r ../made/. runs/x/", uses=["x/labels", "x/big"]),
              job("student", "cat runs/x/labels/0.tar runs/x/results.json > runs/x/out", after=["labels"],
                  uses=["x/labels"]),
              job("other", "cp runs/x/net.pth runs/x/copy", after=["student"], uses=["x/net"])]
    made = tmp_path / "made"
    (made / "labels").mkdir(parents=True)
    sizes = {"labels/0.tar": 400_000, "labels/1.tar": 400_000, "labels/2.tar": 400_000, "net.pth": 2_500_000,
             "big.pth": 300_000, "results.json": 1000, "image.png": 900_000}
    for name, size in sizes.items():
        (made / name).write_bytes(random.Random(name).randbytes(size))
    one = make("one", listed)
    assert run(one, "--only", "labels")[0] == 0

    folder = tmp_path / "out"
    assert run(one, "--pack", folder, "--dry-run")[0] == 0 and not folder.exists()
    folder.mkdir()
    (folder / "queue_notes.txt").touch()  # of the user
    (folder / "new_queue_zzz").touch()  # of a call that was killed
    code, said = run(one, "--pack", folder, "--limit", 1)
    assert code == 0 and f"cat {folder}/queue_??? | tar xz --keep-newer-files" in said
    (folder / "queue_notes.txt").unlink()
    parts = sorted(folder.iterdir())
    assert len(parts) >= 5 and max(path.stat().st_size for path in parts) <= 2 ** 20
    two = make("two", listed)
    unpack(folder, two)
    for name in sizes.keys() - {"big.pth"}:
        assert (two / "runs" / "x" / name).read_bytes() == (made / name).read_bytes()
    assert not (two / "runs" / "x" / "big.pth").exists()
    shutil.rmtree(made)
    code, said = run(two)
    assert code == 0 and "start    labels" not in said and states(two) == states(two) | {"labels": "done"}
    assert (two / "runs" / "x" / "copy").stat().st_size == sizes["net.pth"]

    code, said = run(one, "--pack", folder, "--limit", 1, "--total", 2)  # replaces the pieces
    assert "left out: runs/x/net.pth (2.5 MB)" in said
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2 * 2 ** 20
    assert run(two, "--pack", folder)[0] == 0  # all is done: nothing needs labels and networks any more
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000 + 2_500_000

    (tmp_path / "bin").mkdir()  # as where the disk is full
    (tmp_path / "bin" / "split").write_text("#!/bin/sh\nhead -c 100000 > /dev/null; exit 1\n")
    (tmp_path / "bin" / "split").chmod(0o755)
    earlier = {path: path.read_bytes() for path in folder.iterdir()}
    code, said = run(one, "--pack", folder, PATH=f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert code == 2 and "not all pieces could be written" in said and "Traceback" not in said
    assert {path: path.read_bytes() for path in folder.iterdir()} == earlier


def test_an_archive_takes_nothing_back_and_has_only_the_states_of_its_jobs(make, tmp_path):
    """Two machines have jobs of their own, and each brings the other what it made."""
    listed = [job("labels", "mkdir -p runs/x", "ln -s ../../far runs/x/results.json", uses=["x/"]),
              job("student", "cat runs/x/results.json", "echo 1 >> runs/x/seeds",
                  uses=["x/"], after=["labels"]),
              job("other", "exit 1", uses=["y/"])]
    one, two = make("one", listed), make("two", listed)
    (one / "far").write_text("here")
    assert run(one, "--only", "labels")[0] == 0 and run(one, "--only", "other")[0] == 1
    assert run(one, "--pack", tmp_path / "to", "--only", "student")[0] == 0
    unpack(tmp_path / "to", two)
    assert states(two) == {"labels": "done"}
    assert (two / "runs" / "x" / "results.json").read_text() == "here"  # a link comes as what it leads to
    time.sleep(1.1)  # tar knows seconds
    assert run(two, "--only", "student")[0] == 0
    unpack(tmp_path / "to", two)  # the older state, and older files
    assert run(one, "--pack", tmp_path / "to")[0] == 0
    unpack(tmp_path / "to", two)
    assert states(two) == {"labels": "done", "student": "done", "other": "failed"}
    assert run(two, "--pack", tmp_path / "fro", "--only", "student")[0] == 0
    unpack(tmp_path / "fro", one)
    assert states(one) == states(two) and (one / "runs" / "x" / "seeds").read_text() == "1\n"


@pytest.mark.parametrize("listed, message", [
    ([], "names no jobs"),
    ([job("a", "true"), job("a", "true")], "'a' is there twice"),
    ([job("a", "true", after=["b"]), job("b", "true")], "comes after 'b', which does not stand before it"),
    ([job("a", "true", needs="tpu")], "needs 'tpu'; write cpu or gpu"),
    ([job("a", "true", needs="gpu")], "needs a gpu; say how many minutes"),
    ([job("a", "true", colour="red")], "unexpected keyword argument 'colour'; a job has name, commands"),
    ([job("a") | {"commands": "true"}], "write 'commands' as a list"),
    ([job("a", "true") | {"minutes": 3}], "write 'minutes' as a table"),
    ([job("a", "true") | {"minutes": {"cpu": "3"}}], "write 'minutes' as a table of numbers"),
    ([job("a", "true", uses="x")], "write 'uses' as a list of texts"),
    ([job("a", "true", data=[3])], "write 'data' as a list of texts"),
    ([job("a", "true", uses=["x/../../y"])], "'x/../../y' leads out of data/ or runs/"),
    ([job(3, "true")], "write its name in quotes"),
    (["a"], "write 'jobs' as a list of tables"),
    (3, "write 'jobs' as a list of tables"),
    ([job("a")], "has no commands")])
def test_a_list_that_cannot_be_meant_is_refused(listed, message, tmp_path):
    (tmp_path / "list.json").write_text(json.dumps({"jobs": listed}))
    with pytest.raises(queue.UserError, match=message):
        jobs.read_jobs(tmp_path / "list.json")


def test_a_mistake_of_the_user_is_one_sentence_and_exit_code_2(make):
    root = make(listed=[job("a", "true")])
    assert run(root, "--only", "b")[0] == run(root, "--file", "nowhere.json")[0] == 2
    assert run(root, "--only", "b")[1].startswith("error: --only b: no job of ")


def test_the_queue_itself_needs_no_torch():
    code = "import sys, report.queue; print({'torch', 'numpy', 'PIL'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "set()\n"


def test_the_jobs_of_the_list_start_stages_that_know_their_flags(tmp_path, monkeypatch):
    """Each command through its launcher to the stage's own parser; what a job reads is of a run that it or an
    earlier job names."""
    monkeypatch.setattr("sre2l.run.flags.check_folders", lambda *paths: None)  # of the user's data
    path = with_python(tmp_path / "bin", 'printf "%s\\n" "$@"')
    listed = jobs.read_jobs(ROOT / "results" / "queue.json")
    script = "set -e\n" + "\n".join(command for one in listed for command in one.commands)
    done = subprocess.run(["sh", "-c", script], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "PATH": path}, check=True)
    starts = re.split(r"^-m\n", done.stdout, flags=re.M)[1:]
    assert len(starts) >= sum(len(one.commands) for one in listed)  # a script of results/ has several
    for words in starts:
        module, *flags = words.partition("\n-\n")[0].splitlines()  # behind it is what held_out.sh starts
        importlib.import_module(module).get_args(flags)
    runs = set()
    for one in listed:
        scripts = re.findall(r"sh (results/\S+)", "\n".join(one.commands))
        text = "\n".join([*one.commands, *((ROOT / script).read_text() for script in scripts)])
        runs.update(re.findall(r"(?:--name |^name=)(\S+)", text, re.M))
        assert one.uses and {use.partition("/")[0] for use in one.uses} <= runs, one.name
