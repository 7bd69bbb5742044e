"""What a run stands on: errors in words, exit codes, seeds, device, run folders, logs, atomic files."""
import contextlib
import ctypes
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
import uuid
from pathlib import Path

import numpy as np
import torch
import torchvision
from tqdm import tqdm

from sre2l import distributed
from sre2l.distributed import barrier, local_rank, local_world_size, rank, world_size
from sre2l.errors import UserError, first_line, not_deterministic  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]


def run_script(main, get_args):
    """Run a stage: a user's mistake is one sentence and exit code 2, Ctrl-C is 130, SIGTERM is 143. Of several processes the first
    speaks, and the launcher says why they ended."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return run_guarded(main, get_args)
    distributed.exit_soon_after_signals()
    if rank() > 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
    try:
        run_guarded(main, get_args, alone=False)
        distributed.stop()
    except SystemExit as end:  # not through the interpreter's exit, where the threads of gloo and NCCL that wait for others abort
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)


def run_guarded(main, get_args, alone=True):
    """run_script for one process: turn what ends main into words and an exit code."""
    parent = os.getpid()

    def end(word, code):
        if alone:
            print(f"{word}; the same command continues", file=sys.stderr)
        sys.exit(code)

    def stop(*_):
        if os.getpid() != parent:  # a worker process, which inherits this handler
            os._exit(143)
        end("terminated", 143)

    signal.signal(signal.SIGTERM, stop)
    keep_freed_memory()
    try:
        main(get_args())
    except (UserError, OSError) as error:  # OSError: a folder that cannot be written, a full disk
        distributed.fail(f"error: {error}", 2)
    except KeyboardInterrupt:
        end("interrupted", 130)
    except Exception as error:
        if words := not_deterministic(error):
            distributed.fail(f"error: {words}", 2)
        if alone:
            raise
        distributed.fail(traceback.format_exc().rstrip(), 1)


def keep_freed_memory():
    """Let glibc keep large blocks that are freed, instead of giving them back and faulting every page in again: an elementwise operation
    on 64 MB takes 4.6 ms so and 35 ms otherwise (two cores). Elsewhere nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-4, 0)            # M_MMAP_MAX: large blocks from the heap as well


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


def beside(root, suffix):
    """The path beside a folder of images or labels that tells about it: runs/x/labels, 'manifest.json' -> runs/x/labels.manifest.json."""
    root = Path(os.path.abspath(root))  # a trailing slash or '..' changes nothing
    return root.with_name(f"{root.name}.{suffix}")


@contextlib.contextmanager
def atomic(path, root=None):
    """Write to a temporary name, then rename: `with atomic(path) as tmp: save(tmp)`. For a file of an image or label folder `root`
    the temporary one lies beside the root, since the released reader counts everything in it."""
    tmp = beside(root or path, f"{uuid.uuid4().hex}.tmp")  # not the process number: threads and machines share folders
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        yield tmp
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def write_json(path, value):
    with atomic(path) as tmp:
        tmp.write_text(json.dumps(value, indent=1) + "\n")


def read_json(path):
    """A JSON object from disk; raises UserError for anything else."""
    try:
        value = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object")
    return value


def as_json(settings):
    """The same values as JSON gives them back, so that settings compare equal after a round trip."""
    return json.loads(json.dumps(settings, default=str))


def claim(path, settings, free=()):
    """Tie an output to its settings: the first run writes them to `path`, a later one must agree except in `free` keys, which
    take the later value unless that is None. Of several processes the first does it while the others wait."""
    if rank() > 0:
        return barrier()
    settings = as_json(settings)
    if Path(path).exists():
        stored = read_json(path).get("settings", {})
        settings |= {key: stored[key] for key in free if settings.get(key) is None and key in stored}
        keys = [k for k in sorted(set(stored) | set(settings)) if k not in free and stored.get(k) != settings.get(k)]
        if keys:
            differ = "; ".join(f"{k}: there {stored.get(k)!r}, here {settings.get(k)!r}" for k in keys)
            raise UserError(f"{path}: this output belongs to a run with other settings ({differ}). "
                            f"Choose another --name or output folder, or delete the output and this file")
    write_json(path, {"settings": settings})
    barrier()


def refuse_unclaimed(root):
    """Raise UserError for a folder with contents that no manifest vouches for: images or labels of other origin."""
    if not beside(root, "manifest.json").exists() and Path(root).is_dir() and any(Path(root).iterdir()):
        raise UserError(f"{root}: holds files but no manifest stands beside it, perhaps a published set; choose another folder")


class RunLog:
    """A run's args.json, log.txt (lines for people) and metrics.jsonl (the same numbers). where: file name -> its path.

    The log starts with what the run depends on: command, arguments, versions, device, commit. Of several processes the first writes;
    where they do different work (`sliced`) the others keep metrics too, in files of their own."""

    def __init__(self, where, args, device, sliced=False):
        self.log_path, self.metrics_path, self.last = where("log.txt"), where("metrics.jsonl"), time.monotonic()
        if rank() > 0:
            self.log_path, self.metrics_path = None, where(f"metrics.rank{rank()}.jsonl") if sliced else None
            return
        write_json(where("args.json"), as_json(args))
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
        self.last = now

    def wait(self):
        """Wait for the processes that have more to do; the wait is part of the stage's time."""
        if world_size() > 1:
            barrier()
            self.metrics(processes=world_size())


def stage_seconds(metrics_path):
    """The time a stage has taken over all its starts, in seconds, by the first process's clock; None where it left no metrics."""
    if not Path(metrics_path).exists():
        return None
    return round(sum(json.loads(line)["seconds"] for line in open(metrics_path)), 3)


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
