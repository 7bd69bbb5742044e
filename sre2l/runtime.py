"""What a run stands on: errors in words, exit codes, seeds, device, run folders, logs."""
import contextlib
import ctypes
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from sre2l import claims, distributed, interrupts
from sre2l.distributed import barrier, local_rank, local_world_size, rank, world_size
from sre2l.errors import UserError, not_deterministic, os_error_in_words
from sre2l.files import as_json, write_json
from sre2l.scalars import Scalars

ROOT = Path(__file__).resolve().parents[1]


def run_script(main, get_args):
    """Run a stage: a user's mistake is one sentence and exit code 2, Ctrl-C is 130, SIGTERM is 143. Of several processes the first
    speaks, and the launcher says why they ended."""
    if not interrupts.has_launcher():
        return run_guarded(main, get_args)
    distributed.exit_soon_after_signals(claims.release)  # a claim that stays keeps other machines out for a while
    if rank() > 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
    try:
        run_guarded(main, get_args)
        distributed.stop()
    except SystemExit as end:  # not through the interpreter's exit, where the threads of gloo and NCCL that wait for others abort
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)


def run_guarded(main, get_args):
    """run_script for one process: turn what ends main into words and an exit code."""
    interrupts.install()
    keep_freed_memory()
    try:
        main(get_args())
    except UserError as error:
        distributed.fail(f"error: {error}", 2)
    except OSError as error:  # a folder that cannot be written, a full disk
        distributed.fail(f"error: {os_error_in_words(error)}", 2)
    except Exception as error:
        if words := not_deterministic(error):
            distributed.fail(f"error: {words}", 2)
        if not interrupts.has_launcher():
            raise
        distributed.fail(traceback.format_exc().rstrip(), 1)
    finally:
        claims.release()


def keep_freed_memory():
    """Let glibc keep large blocks that are freed, instead of giving them back and faulting every page in again: an elementwise operation
    on 64 MB takes 4.6 ms so and 35 ms otherwise (two cores). Elsewhere nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-4, 0)            # M_MMAP_MAX: large blocks from the heap as well


def give_back_memory():
    """Give the system what has been freed so far, once: after work that will not come again."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def unit_rng(seed, *unit):
    """A CPU generator that depends on (seed, unit of work) and on nothing that ran before."""
    return np.random.default_rng([seed, *unit])


def pick_device(name):
    """'auto', 'cpu', 'cuda' or 'cuda:N' -> torch.device; of several processes each its own GPU. Raises UserError where that is not there."""
    count, several = torch.cuda.device_count(), world_size() > 1
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: choose auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and several:
        if device.index is not None:
            raise UserError(f"--device {name}: {world_size()} processes take a GPU each; choose them with CUDA_VISIBLE_DEVICES")
        if local_world_size() > count:
            raise UserError(f"GPUS={local_world_size()}: this machine has {count} GPUs that torch {torch.__version__} can use")
        return torch.device("cuda", local_rank())
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"--device {name}: this machine has {count} GPUs that torch {torch.__version__} can use")
    return device


def versions(device):
    """What a result depends on besides its settings, for logs and manifests."""
    import torchvision  # not above: it takes 1.6 s, and the stages that come here have it already
    commit = "unknown"
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
                                capture_output=True, text=True, check=True).stdout.strip()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
            "numpy": np.__version__, "device": name, "threads": torch.get_num_threads(), "deterministic": torch.are_deterministic_algorithms_enabled(),
            "processes": world_size(), "commit": commit}


def run_folder(args):
    """runs/<name>, the name defaulting to the data set; an absolute --name is a folder of its own."""
    return ROOT / "runs" / (args.name or args.dataset)


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
