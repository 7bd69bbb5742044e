"""Recover and relabel digits through their launchers, again and again, under a process that kills them: the files must come out right.

Run: python -m stress.soak [--minutes 60] [--kill-every 20 90] [--recover FLAGS] [--relabel FLAGS]      (or sh stress/torture.sh soak ...)
Time: the minutes asked for, and about three more for the teacher, for the runs in peace, and for the last pair of runs to be done.
Result: runs, kills, completions, wrong results; exit code 1 for a wrong one. The demo's settings are the launchers' own.
"""
import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from sre2l.run.paths import ROOT
from sre2l.run.seeds import unit_rng
from stress.compare import differences

STAGES = ("recover", "relabel")


class Killer:
    """Kills the process group that runs at random instants, whatever it is doing. counts: kills of each stage and of nothing."""

    def __init__(self, every, rng):
        self.every, self.rng, self.counts = every, rng, Counter()
        self.next = self.draw()

    def draw(self):
        return time.monotonic() + self.rng.uniform(*self.every)

    def visit(self, name, process):
        """Kill the process if it is time."""
        if time.monotonic() >= self.next:
            os.killpg(process.pid, signal.SIGKILL)
            self.counts[name] += process.wait() == -signal.SIGKILL  # it may have just ended
            self.next = self.draw()


def start(name, run, flags, errors):
    """A launcher in a process group of its own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["sh", ROOT / name / f"{name}.sh", "digits", "--name", run, *flags]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True, env={**os.environ, "PATH": path})


def run_until_done(name, run, flags, visit):
    """Start a stage until it is done; visit(process) may kill it -> how often it was started. Ends the script where it ends by itself."""
    for starts in range(1, 1000):
        with tempfile.TemporaryFile() as errors:
            process = start(name, run, flags, errors)
            try:
                while process.poll() is None:
                    time.sleep(0.05)
                    visit(process)
            finally:  # also where this script is interrupted: a group of its own does not hear of Ctrl-C
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
            errors.seek(0)
            if process.returncode == 0:
                return starts
            if process.returncode != -signal.SIGKILL:
                sys.exit(f"{name} ended by itself with {process.returncode}: {errors.read().decode()[-2000:]}")
    sys.exit(f"{name} is not done after {starts} starts")


def make_pair(run, teacher, flags, visit):
    """Images and labels in a new run folder, with a teacher that is there -> starts of each stage."""
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(teacher, run / "teacher")
    return [run_until_done(name, run, flags[name], lambda process: visit(name, process)) for name in STAGES]


def main(args):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same bytes again are promised on a CPU
    os.environ["GIT_DIR"] = os.devnull  # a commit beside this script would show in the manifests' versions
    base, begin = Path(tempfile.mkdtemp(prefix="soak.")), time.monotonic()
    flags = {"recover": ("--save-every-sec", args.save_every_sec, *shlex.split(args.recover)), "relabel": shlex.split(args.relabel)}
    run, reference, teacher = base / "run", base / "reference", base / "squeezed" / "teacher"
    run_until_done("squeeze", base / "squeezed", shlex.split(args.squeeze), lambda process: None)
    make_pair(run, teacher, flags, lambda *_: None)
    run.rename(reference)  # the same --name for every pair: it stands in some files
    end = time.monotonic() + 60 * args.minutes
    print(f"the runs in peace are done after {time.monotonic() - begin:.0f} s", flush=True)
    killer, starts, pairs, wrong = Killer(args.kill_every, unit_rng(args.seed)), [0, 0], 0, 0
    while time.monotonic() < end:
        found = make_pair(run, teacher, flags, lambda *what: time.monotonic() < end and killer.visit(*what))
        starts = [total + more for total, more in zip(starts, found)]
        faults = differences(reference, run)
        pairs, wrong = pairs + 1, wrong + bool(faults)
        print(f"{(time.monotonic() - begin) / 60:5.1f} min  pair {pairs}: {found[0]} starts of recover, {found[1]} of relabel, "
              f"{'as in peace' if not faults else 'WRONG: ' + '; '.join(faults[:8])}", flush=True)
        if faults:
            run.rename(base / f"wrong{pairs}")
    kills = " and ".join(f"{killer.counts[name]} of {name}" for name in STAGES)
    print(f"runs {sum(starts)}, kills {killer.counts.total()} ({kills}), completions {2 * pairs}, wrong {wrong}, "
          f"{(time.monotonic() - begin) / 60:.1f} minutes" + (f"; kept in {base}" if wrong else ""))
    if wrong:
        sys.exit(1)
    shutil.rmtree(base)


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--minutes", type=float, default=60, help="of kills, after the runs in peace")
    add("--kill-every", type=float, nargs=2, default=(20, 90), metavar=("LEAST", "MOST"), help="seconds between kills")
    add("--save-every-sec", default="5", help="of recover")
    add("--seed", type=int, default=0, help="of the instants")
    add("--squeeze", default="", metavar="FLAGS", help="flags beyond the launcher's own, as one word")
    add("--recover", default="--snapshot-every 5", metavar="FLAGS", help="the same (default: the demo's)")
    add("--relabel", default="", metavar="FLAGS", help="the same")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(get_args())
