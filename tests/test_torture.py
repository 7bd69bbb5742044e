"""Killed at random instants, each stage's command, run again, ends with what an undisturbed run writes. The long form: sh tests/torture.sh."""
import os
import subprocess
import sys

from sre2l.runtime import ROOT

def run(*words, tmp_path):
    """A script of this folder in a process of its own, which forks only where no other thread runs -> its output."""
    done = subprocess.run([sys.executable, "-m", *map(str, words)], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout

def test_three_kills_in_each_stage_change_nothing(tmp_path):
    out = run("tests.torture", "--kills", 3, tmp_path=tmp_path)
    last = out.splitlines()[-1]
    assert int(last.split()[0]) >= 12 and ", 0 wrong results" in last
    assert not list(tmp_path.glob("torture.*"))
