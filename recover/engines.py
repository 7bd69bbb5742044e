"""The one door to the engines: what one is, which one a run has, how many batches it computes at once."""
import copy
import os
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from recover.fast import CpuEngine
from recover.objective import PlainEngine
from recover.views import View
from sre2l.kernels.compiled import why_no_triton
from sre2l.kernels.cpu.convs import describe_convolutions
from sre2l.kernels.cpu.host import host_passes
from sre2l.nets.precision import dtype_of, pick_precision, set_tf32
from sre2l.run.device import give_back_memory
from sre2l.run.errors import UserError, first_line
from sre2l.run.processes import world_size

ENGINES = ("fast", "plain")
ENOUGH_PIXELS = 20e6  # of all batches together: measured on an H200, more gains less than 3 %
MOST_GROUPS = 16
WHOLE_IMAGE = View(None, False, (0, 0))


@runtime_checkable
class Engine(Protocol):
    """All that step.py and recover.py use of an engine. It computes G independent batches at a time."""

    name: str       # one of ENGINES
    precision: str  # of the network, one of PRECISIONS
    captures: bool  # whether a CUDA graph can replay an iteration

    def at(self, iteration):
        """-> the Engine that computes this iteration of every batch, counted from 0."""

    def tabulate(self, views):
        """views: T lists of G View -> what loss_and_gradient takes as the view of iteration t, at [t]."""

    def loss_and_gradient(self, images, targets, view):
        """images (G, B, 3, S, S), targets (G, B), view: of tabulate's -> (Terms, gradient like images).

        Neither writes into the images nor waits for the GPU."""

    def adam_step(self, images, first, second, gradient, rate, low, high):
        """Adam's step and the clamp to valid pixels, in place, as sre2l.kernels.adam.adam_step."""


def make_fast_engine(network, weights, size, precision="fp32", own_convolutions=True):
    """The fast engine for the network's device: Triton's kernels on a GPU, C functions on a CPU.

    own_convolutions: on a CPU, else torch's. Raises what torch.fx raises where it cannot trace a network."""
    on_gpu = next(network.parameters()).is_cuda
    if on_gpu or os.environ.get("TRITON_INTERPRET") == "1":  # the tests run Triton's kernels without a GPU
        from recover.triton_engine import TritonEngine  # here: Triton comes with torch's CUDA builds alone
        return TritonEngine(network, weights, size, precision)
    return CpuEngine(network, weights, size, precision, own_convolutions)


def relative(a, b):
    """The distance of two tensors over the length of the second."""
    return ((a - b).norm() / b.norm().clamp(min=1e-30)).item()


def make_case(size):
    """Two batches of two images of noise -> (images, targets, views), which any engine takes."""
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 2, 3, size, size)))
    return images, torch.zeros(2, 2, dtype=torch.int64), [WHOLE_IMAGE] * 2


def compute_plain(network, weights, size):
    """What the plain engine computes of noise -> (the case, its Terms, its gradient).

    Small images are enough and quick; the few networks that do not take them get images of `size`."""

    def compute(case_size):
        case = make_case(case_size)
        return case, *PlainEngine(copy.deepcopy(network), weights).loss_and_gradient(*case)

    try:
        return compute(min(size, 64))
    except Exception:  # a network of the user's own may say it by any
        return compute(size)


def why_not_fast(network, weights, size):
    """Compare the network with what fuse.py makes of it -> None, or why that cannot be used.

    Both compute in float64 on a CPU. Here alone an operation in place shows that torch.fx got wrong."""
    network = copy.deepcopy(network).cpu().double()
    (images, targets, views), wanted, wanted_gradient = compute_plain(network, weights, size)

    # Our own convolutions have a check of their own, and in float64 they would take a gigabyte for weights.
    try:
        engine = make_fast_engine(network, weights, images.shape[-1], own_convolutions=False)
        terms, gradient = engine.loss_and_gradient(images, targets, engine.tabulate([views])[0])
    except Exception as error:  # torch.fx, a shape, an operation that this graph does not have: anything
        return f"torch.fx cannot trace this network ({first_line(error)})"
    pairs = (terms.ce, wanted.ce), (terms.bn, wanted.bn), (gradient, wanted_gradient)
    if all(relative(*pair) < 1e-6 for pair in pairs):
        return None
    return "traced by torch.fx, this network computes something else"


def make_engine(name, network, weights, size, precision):
    """-> (an Engine, a line that says which one and why). precision: None for the engine's default.

    A network that cannot be rewritten gets the plain engine, and so does a GPU without Triton."""
    device = next(network.parameters()).device
    why = None
    if name == "fast":
        why = why_not_fast(network, weights, size)
        give_back_memory()  # of the two networks in float64
        if why is None and device.type == "cuda":
            why = why_no_triton()
    fast = name == "fast" and why is None
    precision = precision or default_precision(fast, device)
    set_tf32(precision)

    if not fast:
        if dtype_of(precision) != torch.float32:
            reason = f"; {why}" if why else ""
            raise UserError(f"--precision {precision} needs the fast engine{reason}; use fp32 or tf32")
        engine = PlainEngine(copy.deepcopy(network), weights, precision)
        return engine, f"plain engine: {why}" if why else "plain engine"

    engine = make_fast_engine(network, weights, size, precision)
    if not isinstance(engine, CpuEngine):
        return engine, "fast engine"
    return engine, f"fast engine, {host_passes()[1]}, {describe_convolutions(engine.network, engine.exact)}"


def make_engines(name, network, weights, sizes, precision):
    """-> ({size: an Engine for images of that size}, a line as make_engine's). All are fast, or all plain."""
    engines = {}
    for size in sizes:
        engines[size], note = make_engine(name, network, weights, size, precision)
        if engines[size].name != name:
            plain = {size: make_engine("plain", network, weights, size, precision)[0] for size in sizes}
            return plain, note
    return engines, note


def default_precision(fast, device):
    """fp16 for the fast engine on a GPU, as good as fp32 (docs/speed.md); else as in other stages."""
    return "fp16" if fast and device.type == "cuda" else pick_precision(None, device)


def enough_groups(num_batches, batch_size, size):
    """How many batches at a time keep a GPU busy."""
    return min(num_batches, MOST_GROUPS, max(1, round(ENOUGH_PIXELS / (batch_size * size ** 2))))


def choose_groups(engine, batches, size, device):
    """How many batches at a time keep a GPU busy and fit into 4/5 of its free memory; 1 on a CPU."""
    if not engine.captures:
        return 1
    batch = len(batches[0].pairs)
    wanted = enough_groups(-(-len(batches) // world_size()), batch, size)  # so that every process has some
    if wanted == 1:
        return 1

    # Run one batch of zeros and see what memory it takes, and add Adam's moments and one copy of the images.
    free = torch.cuda.mem_get_info(device)[0]
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    images = torch.zeros(1, batch, 3, size, size, device=device)
    targets = torch.zeros(1, batch, dtype=torch.int64, device=device)
    engine.loss_and_gradient(images, targets, engine.tabulate([[WHOLE_IMAGE]])[0])
    one = torch.cuda.max_memory_allocated(device) - before + 3 * images.nbytes
    torch.cuda.empty_cache()
    return max(1, min(wanted, int(0.8 * free / one)))
