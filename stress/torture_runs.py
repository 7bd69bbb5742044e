"""Runs of a stage in forked children that are killed in one of three ways and started again until they are done.

A process that has imported everything forks a child for each run, so that a run costs no imports; such a child dies of SIGKILL as any process."""
import atexit
import contextlib
import functools
import importlib
import json
import os
import random
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from sre2l.run.paths import ROOT
from sre2l.run.start import run_script

WRITING = {"files", "claims", "state", "settings", "signals", "manifest", "log", "start", "batches", "image_folder",
           "label_files",
           "squeeze", "recover", "relabel", "train", "results", "page"}
HANG_SEC = 120


@dataclass(frozen=True)
class Stage:
    """A way to run a stage. commands: the flags of each process; together: they are the ranks of one world; may_differ: names of files."""
    name: str
    module: str
    commands: list
    together: bool = False
    may_differ: tuple = ()


@dataclass(frozen=True)
class Trap:
    """How a run dies. kind: 'instant' (SIGKILL; value: seconds after its start), 'line' (SIGKILL; (file:line, how many runs of it)), 'bytes'
    (SIGXFSZ; the largest file that it can write) or 'none', which only counts lines."""
    kind: str = "none"
    value: object = None


@dataclass
class Process:
    """A command that is started until it is done."""
    rank: int
    trap: Trap = Trap()
    pid: int | None = None
    errors: int | None = None
    started: float = 0.0
    done: bool = False


@dataclass
class Course:
    """What came to pass until all was done. deaths: (kind, seconds after the start); problem: what went wrong, None for nothing."""
    deaths: list = field(default_factory=list)
    starts: int = 0
    seconds: float = 0.0
    problem: str | None = None


def watch_lines(path, target):
    """Count the lines that run in the modules of WRITING; die before the n-th run of a line, target = (file:line, n).
    -> a function that writes the counts to `path`."""
    counts = Counter()

    @functools.cache
    def module_of(filename):
        file = Path(filename)
        return f"{file.parent.name}/{file.stem}" if file.stem in WRITING and ROOT in file.parents else None

    def on_line(frame, event, _):
        if event == "line":
            place = f"{module_of(frame.f_code.co_filename)}:{frame.f_lineno}"
            counts[place] += 1
            if target == (place, counts[place]):
                os.kill(os.getpid(), signal.SIGKILL)
        return on_line

    def on_call(frame, *_):
        return on_line if module_of(frame.f_code.co_filename) else None

    threading.settrace(on_call)
    sys.settrace(on_call)
    return lambda: path.write_text(json.dumps(counts))


def limit_files(num_bytes):
    """Let the kernel kill this process when it writes beyond the first num_bytes of a file: half a file is on the disk then."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def live(stage, process, env, errors, lines):
    """The life of a forked child: the stage's command as its launcher would start it, with a trap set."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(errors, 2)
        os.environ.update(env)
        sys.argv = [stage.module, *map(str, stage.commands[process.rank])]
        module, finish = importlib.import_module(stage.module), lambda: None
        if process.trap.kind == "bytes":
            limit_files(process.trap.value)
        elif process.trap.kind != "instant":
            finish = watch_lines(lines, process.trap.value)
        run_script(module.main, module.get_args)
        finish()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        with contextlib.suppress(ValueError, OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def free_port():
    """A port that is free and that the system gives nobody of itself, as it does from 32768 on."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = random.randrange(10_000, 29_000)
            probe.bind(("127.0.0.1", port))
            return port


def world_env(stage, base):
    """The environment of each process: torchrun's where they are the ranks of one world."""
    if not stage.together:
        return [{}] * len(stage.commands)
    port = free_port()
    size = str(len(stage.commands))
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": str(port), "TORCHELASTIC_ERROR_FILE": str(base / f"error.{rank}.json")} for rank in range(len(stage.commands))]


def start(stage, process, trap, env, base):
    """Fork a child for a process of a stage."""
    sys.stdout.flush()
    (base / f"error.{process.rank}.json").unlink(missing_ok=True)
    process.trap, process.done = trap, False
    process.errors, writer = os.pipe()
    process.started, process.pid = time.monotonic(), os.fork()
    if process.pid == 0:
        live(stage, process, env, writer, base / f"lines.{process.rank}.json")
    os.close(writer)


def reap(process):
    """-> None while the process runs, else its exit code, negative for a signal."""
    pid, status = os.waitpid(process.pid, os.WNOHANG)
    if not pid:
        return None
    process.pid = None
    return os.waitstatus_to_exitcode(status)


def last_words(process, base):
    """What a process that has ended said to the user."""
    with open(process.errors, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    error = base / f"error.{process.rank}.json"
    return " | ".join(filter(None, (said.strip(), error.read_text() if error.exists() else "")))


def end_others(processes, grace_sec):
    """What torchrun does when a process of a world has died: SIGTERM to the rest, and SIGKILL after a while."""
    left = [process for process in processes if process.pid]
    for process in left:
        os.kill(process.pid, signal.SIGTERM)
    until = time.monotonic() + grace_sec
    while left and time.monotonic() < until:
        left = [process for process in left if reap(process) is None]
        time.sleep(0.002)
    for process in left:
        os.kill(process.pid, signal.SIGKILL)
        os.waitpid(process.pid, 0)
        process.pid = None


def collect(processes):
    """-> [(process, exit code)] of those that have ended since the last look. One that ends badly may take others with it: a second look
    finds the cause as well."""
    ended = [(process, code) for process in processes if process.pid and (code := reap(process)) is not None]
    if any(code for _, code in ended):
        time.sleep(0.02)
        ended += [(process, code) for process in processes if process.pid and (code := reap(process)) is not None]
    return ended


def drive(stage, base, choose, grace=lambda: 0.0):
    """Start the processes of a stage, and again those that were killed, until all are done -> Course.

    choose() -> the Trap of a start; grace() -> the seconds that the ranks of a world have between SIGTERM and SIGKILL."""
    processes, course, begin = [Process(rank) for rank in range(len(stage.commands))], Course(), time.monotonic()
    while not all(process.done for process in processes) and not course.problem:
        idle = [process for process in processes if not process.pid and (stage.together or not process.done)]
        if idle and (not stage.together or len(idle) == len(processes)):
            env = world_env(stage, base)
            for process in idle:
                start(stage, process, choose(), env[process.rank], base)
            course.starts += 1
        time.sleep(0.001)
        now = time.monotonic()
        for process in processes:
            if process.pid and process.trap.kind == "instant" and now - process.started >= process.trap.value:
                os.kill(process.pid, signal.SIGKILL)
            if process.pid and now - process.started > HANG_SEC:
                course.problem = f"process {process.rank} has not ended after {HANG_SEC} seconds"
        settle(stage, base, processes, collect(processes), course, grace)
    for process in processes:  # after a problem
        if process.pid:
            os.kill(process.pid, signal.SIGKILL)
            os.waitpid(process.pid, 0)
    course.seconds = time.monotonic() - begin
    return course


def settle(stage, base, processes, ended, course, grace):
    """Take note of processes that have ended: done, killed by their trap, or by themselves, which is a problem."""
    killed = [process for process, code in ended if code in (-signal.SIGKILL, -signal.SIGXFSZ) and process.trap.kind != "none"]
    course.deaths += [(process.trap.kind, time.monotonic() - process.started) for process in killed]
    if killed and stage.together:
        end_others(processes, grace())
    for process, code in ended:
        words = last_words(process, base)
        process.done = code == 0
        if code != 0 and process not in killed and not (killed and stage.together):
            course.problem = f"process {process.rank} ended by itself with {code}: {words}"
    if killed and stage.together:
        for process in processes:
            process.done = False
