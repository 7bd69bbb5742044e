"""Killed at random instants and run again, each stage's command ends with what an undisturbed run writes.

The long form: sh stress/torture.sh."""
import os
import subprocess
import sys

import torch

from sre2l.run.paths import ROOT
from stress.compare import differences
from stress.torture_runs import WRITING


def test_a_kill_in_each_stage_changes_nothing(tmp_path):
    """In a process of its own, which forks where no other thread runs. This seed starts few runs."""
    done = subprocess.run([sys.executable, "-m", "stress.torture", "--kills", "1", "--seed", "27"],
                          env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
                          capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    last = done.stdout.splitlines()[-1]
    assert int(last.split()[0]) >= 4 and ", 0 wrong results" in last
    assert not list(tmp_path.glob("torture.*"))


def test_each_module_before_whose_lines_a_run_can_die_is_there():
    folders = ("sre2l", "squeeze", "recover", "relabel", "validate")
    assert WRITING <= {path.stem for folder in folders for path in (ROOT / folder).rglob("*.py")}


def test_every_difference_is_named(tmp_path):
    """What the torture compares by: names, bytes, the values of a checkpoint; not its logs."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, text in ((one, "a"), (other, "b")):
        (folder / "labels").mkdir(parents=True)
        for name in ("labels/batch_0.tar", "images.log.txt", "metrics.rank1.jsonl", f"only_{text}"):
            (folder / name).write_text(text)
        # The name of a checkpoint's file goes into its bytes.
        torch.save({"model": torch.zeros(2), "history": [{"top1": 1.0}]}, folder / f"{text}.pth")
        (folder / f"{text}.pth").rename(folder / "same.pth")
        torch.save({"model": torch.tensor([1.0, ord(text)])}, folder / "changed.pth")
    assert (one / "same.pth").read_bytes() != (other / "same.pth").read_bytes()
    assert differences(one, other) == [
        "missing: only_a", "left over: only_b", "other contents: changed.pth",
        "other contents: labels/batch_0.tar"]
    two_differ = ("changed.pth", "labels/batch_0.tar")
    assert differences(one, other, may_differ=two_differ) == ["missing: only_a", "left over: only_b"]
