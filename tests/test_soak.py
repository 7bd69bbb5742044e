"""Recover and relabel under a process that kills them every 5 to 9 s. Long: sh stress/torture.sh soak."""
import re

from tests.test_torture import run


def test_killed_again_and_again_the_files_come_out_right(tmp_path):
    """A small digits: 20 images of 100 iterations, a teacher with a quick stem.

    Most of the time is that of Python's start, of which every kill costs one."""
    out = run("stress.soak", "--minutes", 0.5, "--kill-every", 5, 9, "--save-every-sec", 2,
              "--squeeze", "--stem torchvision --epochs 2",
              "--recover", "--iteration 100 --ipc-end 2 --batch-size 20 --snapshot-every 5",
              "--relabel", "--epochs 12", tmp_path=tmp_path)
    found = re.search(r"runs (\d+), kills (\d+) .*, completions (\d+), wrong (\d+)", out).groups()
    runs, kills, completions, wrong = map(int, found)
    assert wrong == 0
    assert completions >= 2
    assert runs == kills + completions >= 5
