"""What a run says: log lines for people, the same numbers as metrics, and how long the rest will take."""
import contextlib
import json
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from sre2l.run.device import versions
from sre2l.run.files import as_json, write_json
from sre2l.run.processes import barrier, rank, world_size
from sre2l.run.tensorboard import Scalars


class RunLog:
    """A run's args.json, log.txt (lines for people) and metrics.jsonl (the same numbers). where: file name -> its path.

    The log starts with what the run depends on: command, arguments, versions, device, commit. Of several processes the first writes;
    where they do different work (`sliced`) the others keep metrics too, in files of their own. --tensorboard: the same numbers as event files."""

    def __init__(self, where, args, device, sliced=False):
        self.log_path, self.metrics_path, self.last = where("log.txt"), where("metrics.jsonl"), time.monotonic()
        self.scalars = Scalars(where("tensorboard")) if args.get("tensorboard") else None
        if rank() > 0:
            self.log_path, self.metrics_path = None, where(f"metrics.rank{rank()}.jsonl") if sliced else None
            if sliced:
                drop_torn_line(self.metrics_path)
            return
        write_json(where("args.json"), as_json(args))
        for path in (self.log_path, self.metrics_path):
            drop_torn_line(path)
        self.line(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {' '.join(sys.argv)}")
        self.line(json.dumps(as_json(args)), on_screen=False)
        self.line(json.dumps(versions(device)))

    def line(self, text, on_screen=True):
        if not self.log_path:
            return
        if on_screen:
            tqdm.write(text)
        with open(self.log_path, "a") as file:
            file.write(text + "\n")

    def metrics(self, **values):
        """One JSON line. Its `seconds` are the wall time since the line before, so that a stage's time is their sum."""
        now = time.monotonic()
        if self.metrics_path:
            with open(self.metrics_path, "a") as file:
                file.write(json.dumps({**values, "seconds": round(now - self.last, 3)}) + "\n")
            if self.scalars:
                self.scalars.add(values)
        self.last = now

    def wait(self):
        """Wait for the processes that have more to do; the wait is part of the stage's time."""
        if world_size() > 1:
            barrier()
            self.metrics(processes=world_size())


def drop_torn_line(path):
    """Remove what a killed run left of a line at the end of a log."""
    if Path(path).exists() and (data := Path(path).read_bytes()) and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def read_metrics(path):
    """The lines of a metrics file, each a dict; what is no JSON, after a power cut, is passed over."""
    found = []
    for line in open(path, errors="replace"):
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [values for values in found if isinstance(values, dict)]


def keyed(paths, *keys):
    """The metrics in those files that are there -> {(value of each key, whole numbers): line}. The last line of a key counts: after a kill some
    stand there twice."""
    lines = [values for path in paths if path.exists() for values in read_metrics(path)]
    return {tuple(values[key] for key in keys): values for values in lines if all(isinstance(values.get(key), int) for key in keys)}


def stage_seconds(metrics_path):
    """The time a stage has taken over all its starts, in seconds, by the first process's clock; None where it left no metrics."""
    if not Path(metrics_path).exists():
        return None
    return round(sum(values.get("seconds", 0) for values in read_metrics(metrics_path)), 3)


def eta(done, total, start):
    """'00:12, 00:45 to go' after `done` of `total` steps since time.monotonic() `start`; nothing to tell before the first."""
    if not done:
        return "started"
    spent = time.monotonic() - start
    left = spent / done * (total - done)
    return f"{tqdm.format_interval(spent)}, {tqdm.format_interval(left)} to go"


def print_plan(settings, **plan):
    """--dry-run: the resolved settings and what the run would write, as JSON on standard output."""
    shown = {key: f"{value[0]} to {value[-1]}, {len(value)} in all" if key == "classes" and value else value for key, value in settings.items()}
    print(json.dumps(as_json({"settings": shown, **plan}), indent=1))
