"""Which engine a run has, and how many batches it computes at a time."""
import copy

import numpy as np
import torch

from recover.fast import FastEngine
from recover.objective import PlainEngine
from recover.views import View
from sre2l.kernels.compiled import why_no_triton
from sre2l.run.processes import world_size
from sre2l.run.errors import first_line
from sre2l.kernels.cpu.convs import describe_convolutions
from sre2l.kernels.cpu.host import host_passes
from sre2l.nets.precision import dtype_of, pick_precision, set_tf32
from sre2l.run.device import give_back_memory
from sre2l.run.errors import UserError

ENGINES = ("fast", "plain")
ENOUGH_PIXELS, MOST_GROUPS = 20e6, 16  # of all batches together: measured on an H200, more gains less than 3 %


def relative(a, b):
    """The distance of two tensors over the length of the second."""
    return ((a - b).norm() / b.norm().clamp(min=1e-30)).item()


def why_not_fast(network, weights, size):
    """Compare the network as fuse.py rewrites it with the network itself, in float64 on a CPU, on two batches of two images of noise -> None,
    or why the rewritten one cannot be used. An operation in place that torch.fx does not understand shows here, and nowhere else."""
    network = copy.deepcopy(network).cpu().double()
    targets, view = torch.zeros(2, 2, dtype=torch.int64), [View(None, False, (0, 0))] * 2
    for trial in (min(size, 64), size):  # small images are enough and quick; few networks do not take them
        images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 2, 3, trial, trial)))
        try:
            wanted, wanted_gradient = PlainEngine(copy.deepcopy(network), weights).loss_and_gradient(images, targets, view)
            break
        except RuntimeError:
            if trial == size:
                raise
    try:
        engine = FastEngine(network, weights, trial, own_convolutions=False)  # they have a check of their own, and in float64 a gigabyte of weights
        terms, gradient = engine.loss_and_gradient(images, targets, engine.tabulate([view])[0])
    except Exception as error:  # torch.fx, a shape, an operation that this graph does not have: anything
        return f"torch.fx cannot trace this network ({first_line(error)})"
    pairs = (terms.ce, wanted.ce), (terms.bn, wanted.bn), (gradient, wanted_gradient)
    return None if all(relative(*pair) < 1e-6 for pair in pairs) else "traced by torch.fx, this network computes something else"


def make_engine(name, network, weights, size, precision):
    """-> (engine, a line that says which and why). A network that cannot be rewritten gets the plain one, which is slower, and so does a GPU
    whose torch has no Triton. precision: None for the engine's default. The engine carries its `name` and `precision`."""
    device, why = next(network.parameters()).device, None
    if name == "fast":
        why = why_not_fast(network, weights, size)
        give_back_memory()  # of the two networks in float64
        if why is None and device.type == "cuda":
            why = why_no_triton()
    fast = name == "fast" and why is None
    precision = precision or default_precision(fast, device)
    if fast:
        engine = FastEngine(network, weights, size, precision)
        note = "fast engine" if engine.on_gpu else f"fast engine, {host_passes()[1]}, {describe_convolutions(engine.network, engine.exact)}"
    else:
        if dtype_of(precision) != torch.float32:
            raise UserError(f"--precision {precision} needs the fast engine{f'; {why}' if why else ''}; use fp32 or tf32")
        engine, note = PlainEngine(copy.deepcopy(network), weights), "plain engine" + (f": {why}" if why else "")
    engine.precision = precision
    set_tf32(precision)
    return engine, note


def default_precision(fast, device):
    """fp16 for the fast engine on a GPU: its students were as good as fp32's (README.md); else as in other stages."""
    return "fp16" if fast and device.type == "cuda" else pick_precision(None, device)


def enough_groups(num_units, batch_size, size):
    """How many batches at a time keep a GPU busy."""
    return min(num_units, MOST_GROUPS, max(1, round(ENOUGH_PIXELS / (batch_size * size ** 2))))


def choose_groups(engine, units, size, device):
    """How many batches at a time keep the GPU busy and fit into four fifths of its free memory; 1 on a CPU. Runs one batch of zeros."""
    if not engine.captures:
        return 1
    batch = len(units[0].pairs)
    wanted = enough_groups(-(-len(units) // world_size()), batch, size)  # so that every process has some
    if wanted == 1:
        return 1
    free = torch.cuda.mem_get_info(device)[0]
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    images, targets = torch.zeros(1, batch, 3, size, size, device=device), torch.zeros(1, batch, dtype=torch.int64, device=device)
    engine.loss_and_gradient(images, targets, engine.tabulate([[View(None, False, (0, 0))]])[0])
    one = torch.cuda.max_memory_allocated(device) - before + 3 * images.nbytes
    torch.cuda.empty_cache()
    return max(1, min(wanted, int(0.8 * free / one)))
