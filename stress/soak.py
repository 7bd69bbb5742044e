"""Recover and relabel digits through their launchers, again and again, under a process that kills them.

The files must come out right. The demo's settings are the launchers' own.
Run: python -m stress.soak [--minutes 60] [--kill-every 20 90]      (or sh stress/torture.sh soak ...)
Time: the minutes asked for, and three more for the teacher, the runs in peace, and the last pair of runs.
Result: runs, kills, completions, wrong results; exit code 1 for a wrong one.
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

from sre2l.data.augment import unit_rng
from sre2l.run.paths import ROOT
from stress.compare import differences

STAGES = ("recover", "relabel")
MAX_STARTS = 1000


class Killer:
    """Kills the process group that runs at random instants, whatever it does. counts: kills of each stage."""

    def __init__(self, every, rng):
        self.every = every
        self.rng = rng
        self.counts = Counter()
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
    return subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=errors,
                            start_new_session=True, env={**os.environ, "PATH": path})


def run_once(name, run, flags, visit):
    """Start a stage; visit(process) may kill it -> (its exit code, what it said)."""
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
        return process.returncode, errors.read().decode()


def run_until_done(name, run, flags, visit):
    """Start a stage until it is done -> how often it was started. Ends this script if one ends by itself."""
    for starts in range(1, MAX_STARTS):
        code, words = run_once(name, run, flags, visit)
        if code == 0:
            return starts
        if code != -signal.SIGKILL:
            sys.exit(f"{name} ended by itself with {code}: {words[-2000:]}")
    sys.exit(f"{name} is not done after {MAX_STARTS} starts")


def make_pair(run, teacher, flags, visit):
    """Images and labels in a new run folder, with a teacher that is there -> starts of each stage."""
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(teacher, run / "teacher")
    return [run_until_done(name, run, flags[name], lambda process, name=name: visit(name, process))
            for name in STAGES]


def main(args):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same bytes again are promised on a CPU
    os.environ["GIT_DIR"] = os.devnull  # a commit beside this script would show in the manifests' versions
    base = Path(tempfile.mkdtemp(prefix="soak."))
    begin = time.monotonic()
    flags = {"recover": ("--save-every-sec", args.save_every_sec, *shlex.split(args.recover)),
             "relabel": shlex.split(args.relabel)}

    # In peace: the teacher, and the pair to compare with, under the same --name, which stands in some files.
    run = base / "run"
    teacher = base / "squeezed" / "teacher"
    run_until_done("squeeze", base / "squeezed", shlex.split(args.squeeze), lambda process: None)
    make_pair(run, teacher, flags, lambda *_: None)
    reference = run.rename(base / "reference")
    print(f"the runs in peace are done after {time.monotonic() - begin:.0f} s", flush=True)

    # Under fire, until the time is up; the last pair then ends in peace.
    end = time.monotonic() + 60 * args.minutes
    killer = Killer(args.kill_every, unit_rng(args.seed))
    starts = Counter()
    pairs = 0
    wrong = 0
    while time.monotonic() < end:
        found = make_pair(run, teacher, flags, lambda *what: time.monotonic() < end and killer.visit(*what))
        starts.update(dict(zip(STAGES, found)))
        faults = differences(reference, run)
        pairs += 1
        wrong += bool(faults)
        verdict = "WRONG: " + "; ".join(faults[:8]) if faults else "as in peace"
        print(f"{(time.monotonic() - begin) / 60:5.1f} min  pair {pairs}: {found[0]} starts of recover, "
              f"{found[1]} of relabel, {verdict}", flush=True)
        if faults:
            run.rename(base / f"wrong{pairs}")

    kills = " and ".join(f"{killer.counts[name]} of {name}" for name in STAGES)
    kept = f"; kept in {base}" if wrong else ""
    print(f"runs {starts.total()}, kills {killer.counts.total()} ({kills}), completions {2 * pairs}, "
          f"wrong {wrong}, {(time.monotonic() - begin) / 60:.1f} minutes{kept}")
    if wrong:
        sys.exit(1)
    shutil.rmtree(base)


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--minutes", type=float, default=60, help="of kills, after the runs in peace")
    add("--kill-every", type=float, nargs=2, default=(20, 90), metavar=("LEAST", "MOST"),
        help="seconds between kills")
    add("--save-every-sec", default="5", help="of recover")
    add("--seed", type=int, default=0, help="of the instants")
    add("--squeeze", default="", metavar="FLAGS", help="flags beyond the launcher's own, as one word")
    add("--recover", default="--snapshot-every 5", metavar="FLAGS", help="the same (default: the demo's)")
    add("--relabel", default="", metavar="FLAGS", help="the same")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(get_args())
