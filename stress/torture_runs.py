"""Runs of a stage in forked children that are killed in one of three ways and started again until done.

A process that has imported everything forks a child for each run, so that a run costs no imports. Such a
child dies of SIGKILL as any process does.
"""
import functools
import importlib
import json
import multiprocessing
import os
import resource
import secrets
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from sre2l.run.paths import ROOT
from sre2l.run.start import run_script

# Modules that write, or decide what is written: a run can die before any line of them.
WRITING = {
    "files", "hashes", "lock", "output", "state", "signals", "manifest", "log", "start", "batches",
    "image_folder", "label_files", "packed", "recipe", "checkpoints", "student", "squeeze", "recover",
    "relabel", "train", "results"}
HANG_SEC = 120
FORK = multiprocessing.get_context("fork")
GRACE_SEC = 5  # between SIGTERM and SIGKILL for a rank whose peer was killed


@dataclass(frozen=True)
class Stage:
    """A way to run a stage. commands: the flags of each process; together: they are ranks of one torchrun.

    may_differ: names of files that two undisturbed runs may leave with other contents."""
    name: str
    module: str
    commands: list
    together: bool = False
    may_differ: tuple = ()


@dataclass(frozen=True)
class Trap:
    """How a run dies.

    kind: 'instant': by SIGKILL; value: seconds after its start.
          'line': by SIGKILL; value: (file:line, how many runs of that line).
          'bytes': by SIGXFSZ; value: the largest file that it can write.
          'none': not at all; it counts how often each line runs."""
    kind: str = "none"
    value: object = None


@dataclass
class Process:
    """A command that is started until it is done. child: None where none runs; errors: the reading end of
    its stderr."""
    rank: int
    trap: Trap = Trap()
    child: FORK.Process | None = None
    errors: int | None = None
    started: float = 0.0
    done: bool = False


@dataclass
class Course:
    """What came to pass until all was done. deaths: their kinds; problem: or None."""
    deaths: list = field(default_factory=list)
    starts: int = 0
    seconds: float = 0.0
    problem: str | None = None


# In the child.

@functools.cache
def place_of(filename):
    """'folder/module' of a file of ours that writes, None for any other."""
    file = Path(filename)
    return f"{file.parent.name}/{file.stem}" if file.stem in WRITING and ROOT in file.parents else None


def watch_lines(target):
    """Count the lines of WRITING that run -> the counts. Die before the n-th run of a line.

    target: (file:line, n), None for no line."""
    counts = Counter()

    def on_line(frame, event, _):
        if event == "line":
            place = f"{place_of(frame.f_code.co_filename)}:{frame.f_lineno}"
            counts[place] += 1
            if target == (place, counts[place]):
                os.kill(os.getpid(), signal.SIGKILL)
        return on_line

    def on_call(frame, *_):
        return on_line if place_of(frame.f_code.co_filename) else None

    threading.settrace(on_call)
    sys.settrace(on_call)
    return counts


def write_and_exit(counts, path, pid, leave, code):
    """What os._exit is in a child that counts lines: write the counts, unless this is the child's worker."""
    sys.settrace(None)
    if os.getpid() == pid:
        path.write_text(json.dumps(counts), encoding="utf-8")
    leave(code)


def limit_files(num_bytes):
    """Let the kernel kill this process when it writes beyond the first num_bytes of a file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def set_trap(trap, lines):
    """lines: where to write how often each line ran."""
    if trap.kind == "bytes":
        limit_files(trap.value)
    elif trap.kind != "instant":
        counts = watch_lines(trap.value)
        os._exit = functools.partial(write_and_exit, counts, lines, os.getpid(), os._exit)


def live(stage, process, env, errors, lines):
    """The life of a forked child: the stage's command as its launcher would start it, with a trap set."""
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(errors, 2)
    os.environ.update(env)
    sys.argv = [stage.module, *map(str, stage.commands[process.rank])]
    module = importlib.import_module(stage.module)
    set_trap(process.trap, lines)
    run_script(module.main, module.get_args)


# In the parent.

def world_env(stage):
    """The environment of each process: torchrun's for ranks. Recover and relabel use no process group."""
    if not stage.together:
        return [{}] * len(stage.commands)
    size = str(len(stage.commands))
    common = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "TORCHELASTIC_RUN_ID": secrets.token_hex(8)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(len(stage.commands))]


def start(stage, process, trap, env, base):
    """Fork a child for a process of a stage."""
    process.trap = trap
    process.done = False
    process.errors, writer = os.pipe()
    process.started = time.monotonic()
    lines = base / f"lines.{process.rank}.json"
    process.child = FORK.Process(target=live, args=(stage, process, env, writer, lines))
    process.child.start()
    os.close(writer)


def last_words(process):
    """What a process that has ended said to the user."""
    with open(process.errors, "rb") as pipe:
        return pipe.read().decode(errors="replace").strip()


def kill(processes):
    """End those that still run, at once."""
    for process in processes:
        if process.child:
            process.child.kill()
            process.child.join()
            process.child = None


def end_others(processes):
    """What torchrun does when one of its processes has died: SIGTERM to the rest, SIGKILL after a while."""
    left = [process.child for process in processes if process.child]
    for child in left:
        child.terminate()
    until = time.monotonic() + GRACE_SEC
    for child in left:
        child.join(max(0, until - time.monotonic()))
    kill(processes)


def ended_now(processes):
    """-> [(process, exit code, negative for a signal)] of those that have ended since the last look."""
    ended = []
    for process in processes:
        if process.child and process.child.exitcode is not None:
            ended.append((process, process.child.exitcode))
            process.child = None
    return ended


def collect(processes):
    """The same; one that ends badly may take others with it, and a second look finds the cause as well."""
    ended = ended_now(processes)
    if any(code for _, code in ended):
        time.sleep(0.02)
        ended += ended_now(processes)
    return ended


def drive(stage, base, choose):
    """Start the processes of a stage, and again those that were killed, until all are done -> Course.

    choose() -> the Trap of a start."""
    processes = [Process(rank) for rank in range(len(stage.commands))]
    course = Course()
    begin = time.monotonic()
    while not all(process.done for process in processes) and not course.problem:
        # Start who is idle. Ranks start together.
        idle = [process for process in processes
                if not process.child and (stage.together or not process.done)]
        if idle and (not stage.together or len(idle) == len(processes)):
            for process, env in zip(processes, world_env(stage)):
                if process in idle:
                    start(stage, process, choose(), env, base)
            course.starts += 1

        # Kill whose time has come.
        time.sleep(0.001)
        now = time.monotonic()
        for process in processes:
            seconds = now - process.started
            if process.child and process.trap.kind == "instant" and seconds >= process.trap.value:
                process.child.kill()
            if process.child and seconds > HANG_SEC:
                course.problem = f"process {process.rank} has not ended after {HANG_SEC} seconds"
        settle(stage, processes, collect(processes), course)

    kill(processes)  # after a problem some still run
    course.seconds = time.monotonic() - begin
    return course


def settle(stage, processes, ended, course):
    """Take note of processes that have ended: done, killed by their trap, or by themselves: a problem."""
    deadly = (-signal.SIGKILL, -signal.SIGXFSZ)
    killed = [process for process, code in ended if code in deadly and process.trap.kind != "none"]
    course.deaths += [process.trap.kind for process in killed]
    others_follow = bool(killed) and stage.together
    if others_follow:
        end_others(processes)
    for process, code in ended:
        words = last_words(process)
        process.done = code == 0
        if code != 0 and process not in killed and not others_follow:
            course.problem = f"process {process.rank} ended by itself with {code}: {words}"
    if others_follow:
        for process in processes:
            process.done = False
