"""Two minutes of recover and relabel under a process that kills them every 5 to 20 seconds. The long form: sh stress/torture.sh soak."""
import re

from tests.test_torture import run


def test_killed_again_and_again_the_files_come_out_right(tmp_path):
    """A small digits: 20 images of 150 iterations, a teacher with a quick stem. The time is mostly that of Python's start, of which every kill costs one."""
    out = run("stress.soak", "--minutes", 1.2, "--kill-every", 5, 20, "--save-every-sec", 2, "--squeeze", "--stem torchvision --epochs 2",
              "--recover", "--iteration 150 --ipc-end 2 --batch-size 20 --snapshot-every 5", "--relabel", "--epochs 20", tmp_path=tmp_path)
    runs, kills, done, wrong = map(int, re.search(r"runs (\d+), kills (\d+) .*, completions (\d+), wrong (\d+)", out).groups())
    assert wrong == 0 and done >= 2 and runs == kills + done >= 5
