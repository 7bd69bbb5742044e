"""Several processes end as one does: one sentence, the same exit codes; machines meet in a shared folder."""
import os
import signal
import subprocess
import sys
import time

import pytest

from sre2l.run.signals import WORDS
from sre2l.run.paths import ROOT

ENGINE = (sys.executable, "-m", "sre2l.run.launch")
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


def begin(*command):
    return subprocess.Popen([*ENGINE, *command], env=ENV, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how, code, words", [
    ("mistake", 2, "error: the last process has a complaint\n"), ("disagree", 2, "error: the processes disagree\n"),
    ("killed", 137, "error: process 1 ended with exit code 137; the same command continues\n")])
def test_one_sentence_says_why_all_ended(how, code, words):
    process = begin("--standalone", "--nproc_per_node=2", "-m", "tests.worker", how)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (code, "2 processes\n", words)


def test_a_bug_shows_one_traceback():
    process = begin("--standalone", "--nproc_per_node=2", "-m", "tests.worker", "bug")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and stderr.count("Traceback") == 1 and "LookupError: of the last process" in stderr


@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_processes_that_wait_for_each_other(sent, code, tmp_path):
    """The first process waits inside gloo, the last in C, where no Python runs. Neither leaves its claim, which would keep another machine out."""
    process = begin("--standalone", "--nproc_per_node=2", "-m", "tests.worker", "wait", str(tmp_path / "images"))
    assert [process.stdout.readline() for _ in range(2)] == ["2 processes\n", "waiting\n"]
    time.sleep(0.2)  # from here to C's wait
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=25)  # torchrun itself would wait for 30 s
    assert (process.returncode, stderr) == (code, f"{WORDS[sent]}; the same command continues\n")
    assert not list(tmp_path.iterdir())


def test_two_machines_meet_in_a_shared_folder(tmp_path):
    """torchrun's rendezvous through a file; a second start under the same name is told what to do."""
    flags = ("--nnodes", "2", "--nproc_per_node=1", "--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file",
             "--rdzv-endpoint", str(tmp_path / "meeting"), "--rdzv-id", "1", "-m", "tests.worker", "well")
    machines = [begin(*flags) for _ in range(2)]
    outputs = sorted(machine.communicate(timeout=90)[0] for machine in machines)
    assert [machine.returncode for machine in machines] == [0, 0] and outputs == ["", "2 processes\nsum 3\n"]
    late = begin(*flags)
    _, stderr = late.communicate(timeout=60)
    assert late.returncode == 2 and stderr.count("\n") == 1 and "give each start a new --rdzv-id" in stderr
