"""The jobs of the queue: the list that a user edits, what is done of it, what waits for what, and bytes.

It imports nothing that takes seconds: on a busy machine torch takes half a minute.
"""
import contextlib
import functools
import glob
import os
import re
import subprocess
from dataclasses import dataclass, field

from sre2l.run.errors import UserError
from sre2l.run.files import read_json, write_json
from sre2l.run.paths import ROOT

RUNS = ROOT / "runs"
DATA = ROOT / "data"
STATE = RUNS / "queue"
LEAST_PART = 0.1  # of its estimate, that a job which has run before is still thought to take
TEMPORARY = (".tmp", ".lock")


@dataclass(frozen=True)
class Job:
    """A piece of a row.

    commands: lines of sh, run in order from the project's root, each of which continues when it is given
    again. needs: 'cpu' (anything will do) or 'gpu'. minutes: {'cpu': on one core, 'gpu': on an H200},
    estimates. data: folders of data/. uses: beginnings of paths in runs/, of what it reads and what it goes
    on with. after: the jobs that have to be done before."""
    name: str
    commands: list
    minutes: dict
    needs: str = "cpu"
    data: list = field(default_factory=list)
    uses: list = field(default_factory=list)
    after: list = field(default_factory=list)

    def path(self, kind):
        """The job's 'json' (its state) or 'log'."""
        return STATE / f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', self.name)}.{kind}"

    def state(self):
        """{state, seconds, commands} as the last start left them; {} where there was none, and where the
        commands have been edited since."""
        found = read_json(self.path("json")) if self.path("json").exists() else {}
        return found if found.get("commands") == self.commands else {}

    def write_state(self, state, seconds):
        """state: 'running', 'done', 'failed' or 'stopped'; seconds: of all its starts."""
        write_json(self.path("json"), {"job": self.name, "state": state, "seconds": round(seconds, 1),
                                       "commands": self.commands})

    @property
    def is_done(self):
        return self.state().get("state") == "done"

    def seconds_left(self, has_gpu):
        """What is left of the estimate; more than nothing, since an estimate may be too low."""
        estimate = 60 * self.minutes["gpu" if has_gpu and "gpu" in self.minutes else self.needs]
        return max(estimate - self.state().get("seconds", 0), LEAST_PART * estimate)


def check_job(job, earlier, path):
    """Raise UserError for a job that cannot be meant so. earlier: {name: job} of those before it."""
    where = f"{path}: job '{job.name}'"
    if not isinstance(job.name, str):
        raise UserError(f"{where}: write its name in quotes")
    if job.path("json") in {other.path("json") for other in earlier.values()}:
        raise UserError(f"{where} is there twice, or its name differs from another one in signs alone")
    for key in ("commands", "data", "uses", "after"):
        values = getattr(job, key)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise UserError(f"{where}: write '{key}' as a list of texts")
    if not isinstance(job.minutes, dict) or not all(isinstance(value, int | float)
                                                    for value in job.minutes.values()):
        raise UserError(f"{where}: write 'minutes' as a table of numbers")
    for place in (*job.data, *job.uses):
        if place.startswith("/") or ".." in place.split("/"):
            raise UserError(f"{where}: '{place}' leads out of data/ or runs/")
    for name in job.after:
        if name not in earlier:
            raise UserError(f"{where} comes after '{name}', which does not stand before it in the list")
    if job.needs not in ("cpu", "gpu"):
        raise UserError(f"{where} needs '{job.needs}'; write cpu or gpu")
    if job.needs not in job.minutes:
        raise UserError(f"{where} needs a {job.needs}; say how many minutes of one it takes, under 'minutes'")
    if not job.commands:
        raise UserError(f"{where} has no commands")


def read_jobs(path):
    """The jobs of a list, in its order. Raises UserError for what is wrong with it."""
    jobs = {}
    listed = read_json(path).get("jobs", [])
    if not isinstance(listed, list) or not all(isinstance(values, dict) for values in listed):
        raise UserError(f"{path}: write 'jobs' as a list of tables")
    for values in listed:
        try:
            job = Job(**values)
        except TypeError as error:
            wrong = str(error).partition("() ")[2]
            raise UserError(f"{path}: job '{values.get('name')}': {wrong}; a job has "
                            f"{', '.join(Job.__annotations__)}") from None
        check_job(job, jobs, path)
        jobs[job.name] = job
    if not jobs:
        raise UserError(f"{path}: names no jobs")
    return list(jobs.values())


def has_gpu():
    """Is there an NVIDIA GPU that a job may see?"""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return listed.returncode == 0 and listed.stdout.startswith("GPU ")


def why_waiting(job, jobs, gpu, failed=()):
    """What a job waits for that this call cannot give, '' where nothing keeps it from running in its turn.

    jobs: {name: job} of this call's and of what is done; gpu: has this machine one? failed: names."""
    if job.needs == "gpu" and not gpu:
        return "a GPU"
    for name in job.data:
        folder = name.partition("/")[0]  # a part of it may lie otherwise, as torchvision keeps its files
        if not (DATA / folder).is_dir():
            return f"data/{folder}, which is not there: docs/data-sets.md"
    for name in job.after:
        if name not in jobs:
            return f"'{name}', which is not among these jobs"
        if name in failed:
            return f"'{name}', which failed"
        if not jobs[name].is_done and why_waiting(jobs[name], jobs, gpu, failed):
            return f"'{name}'"
    return ""


@functools.cache
def files_under(top, beginning):
    """The files below a folder whose path in it begins so -> {path: bytes}."""
    found = {}
    folder, name = os.path.split(beginning)
    for entry in (top / folder).glob(f"{glob.escape(name)}*"):
        for path in entry.rglob("*") if entry.is_dir() else [entry]:
            with contextlib.suppress(FileNotFoundError):  # a run may be under way
                if path.is_file() and path.suffix not in TEMPORARY:
                    found[path] = path.stat().st_size
    return found


def files_to_carry(job):
    """What a job that is to run reads or goes on with, as far as it is there -> {path: bytes}."""
    parts = [files_under(DATA, f"{name}/") for name in job.data]
    parts += [files_under(RUNS, beginning) for beginning in job.uses]
    return {path: size for part in parts for path, size in part.items()}


def print_plan(jobs, known, gpu):
    """--dry-run: the jobs in their order, hours and bytes. known: as in `why_waiting`."""
    print(f"{'state':<8} {'CPU min':>8} {'GPU min':>8} {'MB to carry':>12}   job")
    carried = {}
    todo = [job for job in jobs if not job.is_done]
    for job in jobs:
        files = files_to_carry(job) if job in todo else {}
        carried |= files
        waits = why_waiting(job, known, gpu) if job in todo else ""
        state = "waiting" if waits else "to run" if job in todo else "done"
        cpu, card = (f"{job.minutes[kind]:g}" if kind in job.minutes else "-" for kind in ("cpu", "gpu"))
        print(f"{state:<8} {cpu:>8} {card:>8} {sum(files.values()) / 1e6:>12,.1f}   {job.name}"
              + f"   (waits for {waits})" * bool(waits))
    on_cpu = [job for job in todo if job.needs == "cpu"]
    hours = [sum(job.seconds_left(is_gpu) for job in group) / 3600
             for is_gpu, group in ((False, on_cpu), (True, todo))]
    print(f"{len(todo)} of {len(jobs)} jobs are not done; one after the other: {hours[0]:.1f} h of one "
          f"CPU core for the {len(on_cpu)} that need no GPU, {hours[1]:.1f} h of a GPU for all")
    print(f"they read {sum(carried.values()) / 1e6:,.1f} MB of data/ and runs/ that are there, each file "
          f"counted once")
