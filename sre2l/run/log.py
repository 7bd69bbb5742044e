"""What a run says: log lines for people, the same numbers as metrics, and how long the rest will take."""
import contextlib
import json
import shlex
import sys
import time
from pathlib import Path

from tqdm import tqdm

from sre2l.run.device import versions
from sre2l.run.files import as_json, drop_torn_line, write_json
from sre2l.run.processes import rank

SERIES = ("unit", "seed")  # keys of metrics: each value has a curve of its own in TensorBoard
STEPS = ("iteration", "epoch")


class Scalars:
    """Event files, a folder for each unit or seed: TensorBoard draws their curves over each other."""

    def __init__(self, folder):
        self.folder, self.writers = Path(folder), {}

    def add(self, values):
        """Write one line of metrics. A line without a step is the last of its unit, whose file is closed."""
        from torch.utils.tensorboard import SummaryWriter
        series = next((f"{key}{values[key]}" for key in SERIES if key in values), "")
        step = next((values[key] for key in STEPS if key in values), None)
        if step is None:
            if series in self.writers:
                self.writers.pop(series).close()
            return
        # purge_step: what a killed run wrote of this step and later ones is hidden
        if series not in self.writers:
            self.writers[series] = SummaryWriter(str(self.folder / series), purge_step=step)
        for key, value in values.items():
            if key not in (*SERIES, *STEPS):
                self.writers[series].add_scalar(key, value, step)
        self.writers[series].flush()  # a run may end by os._exit, or by a kill


class RunLog:
    """A run's args.json, log.txt (lines for people) and metrics.jsonl (the same numbers).

    where: file name -> its path. The log starts with what the run depends on: command, arguments, versions,
    device, commit. Of several processes the first writes. Where they do different work (`sliced`) the others
    keep metrics of their own. With --tensorboard the numbers are written as event files as well."""

    def __init__(self, where, args, device, sliced=False):
        self.is_first = rank() == 0
        self.log_path = where("log.txt")
        self.metrics_path = None
        self.last = time.monotonic()
        self.scalars = Scalars(where("tensorboard")) if args.get("tensorboard") else None
        if self.is_first or sliced:
            self.metrics_path = where("metrics.jsonl" if self.is_first else f"metrics.rank{rank()}.jsonl")
            drop_torn_line(self.metrics_path)
        if self.is_first:
            write_json(where("args.json"), as_json(args))
            drop_torn_line(self.log_path)
            self.line(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {shlex.join(sys.argv)}")
            self.line(json.dumps(as_json(args)), on_screen=False)
            self.line(json.dumps(versions(device)))

    def line(self, text, on_screen=True, from_any=False):
        """One line, or several. from_any: also from another process than the first, as the last to end."""
        if not (self.is_first or from_any):
            return
        if on_screen:
            tqdm.write(text, file=sys.stdout if self.is_first else sys.__stdout__)
        with open(self.log_path, "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def metrics(self, **values):
        """One JSON line. Its `seconds` are those since the line before: their sum is the stage's time."""
        now = time.monotonic()
        if self.metrics_path:
            with open(self.metrics_path, "a", encoding="utf-8") as file:
                file.write(json.dumps({**values, "seconds": round(now - self.last, 3)}) + "\n")
            if self.scalars:
                self.scalars.add(values)
        self.last = now


def read_metrics(path):
    """The lines of a metrics file, each a dict; what is no JSON, after a power cut, is passed over."""
    found = []
    for line in open(path, encoding="utf-8", errors="replace"):
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [values for values in found if isinstance(values, dict)]


def keyed(paths, *keys):
    """The metrics in those files that are there -> {(value of each key, whole numbers): line}. The last line
    of a key counts: after a kill some stand there twice."""
    lines = [values for path in paths if path.exists() for values in read_metrics(path)]
    complete = (values for values in lines if all(isinstance(values.get(key), int) for key in keys))
    return {tuple(values[key] for key in keys): values for values in complete}


def stage_seconds(metrics_path):
    """A stage's seconds over all its starts, by the first process's clock; None without metrics."""
    if not Path(metrics_path).exists():
        return None
    return round(sum(values.get("seconds", 0) for values in read_metrics(metrics_path)), 3)


def eta(done, total, start):
    """'00:12, 00:45 to go' after `done` of `total` steps since `start`; nothing to tell at first."""
    if not done:
        return "started"
    spent = time.monotonic() - start
    left = spent / done * (total - done)
    return f"{tqdm.format_interval(spent)}, {tqdm.format_interval(left)} to go"


def in_bytes(number):
    """A number of bytes as people read it: '541.1 kB'."""
    power = min(4, (len(str(number)) - 1) // 3)
    unit = ("bytes", "kB", "MB", "GB", "TB")[power]
    return f"{number / 1000 ** power:.{1 if power else 0}f} {unit}"
