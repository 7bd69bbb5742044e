"""How the benchmark measures: alternating pairs, peak memory, the device's own peak, tables."""
import contextlib
import gc
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from sre2l.nets.models import build_network
from sre2l.run.device import keep_freed_memory

WARM_CALLS = 2  # before a timing, and in which memory reaches its peak
PRELOAD = ["bench.recover", "bench.sides"]  # modules of the builders that fresh processes run


@dataclass(frozen=True)
class Side:
    """One of the two formulations. build() -> run; each run() does the same amount of work.

    build: is pickled. tf32: of convolutions and of matrix products. benchmark: cuDNN's search for algorithms.
    """
    build: Callable
    tf32: tuple = (True, False)  # torch's defaults, under which the released code runs
    benchmark: bool = False

    @contextlib.contextmanager
    def backends(self):
        """torch's global switches as this side wants them, put back afterwards."""
        cudnn = torch.backends.cudnn
        matmul = torch.backends.cuda.matmul
        before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
        cudnn.allow_tf32, matmul.allow_tf32 = self.tf32
        cudnn.benchmark = self.benchmark
        yield
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


def sync(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_a_call(run, count, device):
    """The mean wall time of `count` calls, the device idle before and after."""
    sync(device)
    start = time.perf_counter()
    for _ in range(count):
        run()
    sync(device)
    return (time.perf_counter() - start) / count


def warm_up(side, device):
    """Build a side and run it: compilation, allocations, the choice of algorithms.

    -> (run, the most GPU memory that it held by the allocator's count, bytes; None on a CPU)."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        free(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    with side.backends():
        run = side.build()
        seconds_a_call(run, WARM_CALLS, device)
    return run, torch.cuda.max_memory_allocated(device) - before if on_gpu else None


def time_pairs(sides, device, num_pairs, least_seconds):
    """Build and warm up all sides, then time them in turn.

    -> (a list over pairs of seconds a call, one for each side; the peak memory of each side, by warm_up).
    A timing is of as many calls as last least_seconds, at least one."""
    timed = []
    peaks = []
    for side in sides:
        run, peak = warm_up(side, device)
        peaks.append(peak)
        with side.backends():
            count = max(1, math.ceil(least_seconds / seconds_a_call(run, 1, device)))
        timed.append((side, run, count))

    pairs = []
    for _ in range(num_pairs):
        pairs.append([])
        for side, run, count in timed:
            with side.backends():
                pairs[-1].append(seconds_a_call(run, count, device))
    return pairs, peaks


def spread(values, digits=4):
    """-> median, min and max, to so many significant digits."""
    values = sorted(float(f"{value:.{digits}g}") for value in values)
    return {"median": float(f"{statistics.median(values):.{digits}g}"), "min": values[0], "max": values[-1]}


def free(device):
    """Give back what the builds before have left."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def resident(key):
    """Memory of this process, bytes or None. VmRSS: is what it has now, VmHWM: the most it has had."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key)), None)


def resident_growth(build, num_threads):
    """Build and run -> how far the resident memory's peak rises above the state before, bytes or None."""
    torch.set_num_threads(num_threads)
    keep_freed_memory()  # as every stage does
    before = resident("VmRSS:")
    run = build()
    for _ in range(WARM_CALLS):
        run()
    after = resident("VmHWM:")
    return after - before if after else None


def peak_memory(side, device):
    """The most memory that a side holds at once, bytes: by warm_up on a GPU, on a CPU a new process's growth.

    None where the system does not tell."""
    if device.type == "cuda":
        _, peak = warm_up(side, device)
        free(device)
        return peak
    context = multiprocessing.get_context("forkserver")  # its processes have the modules, not this heap
    context.set_forkserver_preload(PRELOAD)
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(resident_growth, side.build, torch.get_num_threads()).result()


def megabytes(num_bytes):
    """For a row; None stays None."""
    return None if num_bytes is None else round(num_bytes / 1e6, 1)


def peak_tflops(device, precision, size=8192):
    """TFLOP/s of a large square matrix product in this precision, the best of five timings."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    with Side(None, tf32=(precision == "tf32",) * 2).backends():
        best = min(seconds_a_call(lambda: a @ b, 20, device) for _ in range(5))
    return 2 * size ** 3 / best / 1e12


def peak_tb_s(device, num_bytes=1 << 30):
    """TB/s of a large copy on the device, read and written bytes, the best of five timings."""
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    best = min(seconds_a_call(lambda: target.copy_(source), 5, device) for _ in range(5))
    return 2 * source.nbytes / best / 1e12


def forward_gflop(network, spec, size):
    """GFLOP of one forward pass of one image of `size` pixels: convolutions and matrix products.

    network: torchvision's name; spec: sre2l.data.datasets.Dataset."""
    with torch.device("meta"):
        network, _ = build_network(network, spec.num_classes, spec.stem)
        with FlopCounterMode(display=False) as counter:
            network.eval()(torch.empty(1, 3, size, size))
    return counter.get_total_flops() / 1e9


def shown(value):
    """A cell of a table: '12.3 (11.9-13)' for a spread, '-' for nothing."""
    if isinstance(value, dict) and "median" in value:
        return f"{shown(value['median'])} ({shown(value['min'])}-{shown(value['max'])})"
    if isinstance(value, dict):
        return " ".join(f"{key} {shown(part)}" for key, part in value.items())
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "-" if value is None else str(value)


def table(rows, columns):
    """Aligned lines of text. rows: dicts; columns: {key: heading}. A column without any value is left out."""
    columns = {key: text for key, text in columns.items() if any(row.get(key) is not None for row in rows)}
    cells = [list(columns.values())] + [[shown(row.get(key)) for key in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths)) for line in cells)
    return "\n".join(line.rstrip() for line in lines)
