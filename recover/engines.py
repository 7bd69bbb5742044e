"""The one door to the engines: which one a run has, how many batches it computes at once.

What an engine is: Engine in objective.py."""
import copy
import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from recover.fast import CpuEngine
from recover.objective import TERMS, PlainEngine, Weights
from recover.several import CycleEngine, SumEngine, common_weights
from recover.targets import BnTarget
from recover.views import WHOLE_IMAGE
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


@dataclass(frozen=True)
class Matched:
    """A teacher of recover's: its network, what its terms count, what its statistics are to match."""
    network: nn.Module
    weights: Weights
    target: BnTarget | None = None  # None: its running statistics


def make_fast_engine(network, weights, size, precision="fp32", own_convolutions=True, target=None):
    """The fast engine for the network's device: Triton's kernels on a GPU, C functions on a CPU.

    own_convolutions: on a CPU, else torch's; target: a BnTarget. Raises what torch.fx raises where it cannot
    trace a network."""
    on_gpu = next(network.parameters()).is_cuda
    if on_gpu or os.environ.get("TRITON_INTERPRET") == "1":  # the tests run Triton's kernels without a GPU
        from recover.triton_engine import TritonEngine  # here: Triton comes with torch's CUDA builds alone
        return TritonEngine(network, weights, size, precision, target)
    return CpuEngine(network, weights, size, precision, own_convolutions, target)


def relative(a, b):
    """The distance of two tensors over the length of the second."""
    return ((a - b).norm() / b.norm().clamp(min=1e-30)).item()


def compute_plain(network, weights, size):
    """What the plain engine computes of two batches of two images of noise -> (images, targets and views; its
    Terms; its gradient).

    Small images are enough and quick; the few networks that do not take them get images of `size`."""

    def compute(case_size):
        images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 2, 3, case_size, case_size)))
        case = images, torch.zeros(2, 2, dtype=torch.int64), [WHOLE_IMAGE] * 2
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
    pairs = {name: (getattr(terms, name), getattr(wanted, name)) for name in TERMS}
    if all(relative(*pair) < 1e-6 for pair in (*pairs.values(), (gradient, wanted_gradient))):
        return None
    absent = [name for name, (found, plain) in pairs.items() if plain.any() and not found.any()]
    if absent and absent[0] not in ("ce", "bn"):  # every fast engine has these
        return f"the fast engine does not have the term {absent[0]}"
    return "traced by torch.fx, this network computes something else"


def why_no_teacher_fast(matched, size):
    """Why the fast engine cannot be had, by the first teacher for which it cannot; None where it can."""
    for number, one in enumerate(matched, 1):
        why = why_not_fast(one.network, one.weights, size)
        give_back_memory()  # of the two networks in float64
        if why:
            return f"teacher {number}: {why}" if len(matched) > 1 else why
    return why_no_triton() if next(matched[0].network.parameters()).is_cuda else None


def build_engine(matched, shares, size, precision, fast):
    """The Engine for images of `size` pixels: of one teacher its own, of several one that has theirs."""
    weights = [one.weights for one in matched]
    own = [each.with_priors_over(sum(shares)) for each in weights] if shares else weights
    engines = [make_fast_engine(one.network, each, size, precision, target=one.target) if fast
               else PlainEngine(copy.deepcopy(one.network), each, precision, one.target)
               for one, each in zip(matched, own)]
    if len(engines) == 1:
        return engines[0]
    return SumEngine(engines, shares, common_weights(weights)) if shares else CycleEngine(engines)


def describe_engine(engine, why):
    """Which engine it is, and why where it is not the fast one, in a line."""
    if engine.name == "plain":
        return f"plain engine: {why}" if why else "plain engine"
    first = getattr(engine, "engines", [engine])[0]
    if isinstance(first, CpuEngine):
        return f"fast engine, {host_passes()[1]}, {describe_convolutions(first.network, first.exact)}"
    return "fast engine"


def make_engines(name, matched, shares, sizes, precision):
    """-> ({size: the Engine for images of so many pixels}, a line that says which one and why).

    matched: [Matched], one for each teacher; shares: the weight of each in a sum, None where they take turns;
    precision: None for the engine's default. Where one network cannot be rewritten all get the plain engine,
    and so does a GPU without Triton."""
    device = next(matched[0].network.parameters()).device
    why = why_no_teacher_fast(matched, max(sizes)) if name == "fast" else None
    fast = name == "fast" and why is None
    precision = precision or default_precision(fast, device)
    set_tf32(precision)

    if not fast and dtype_of(precision) != torch.float32:
        reason = f"; {why}" if why else ""
        raise UserError(f"--precision {precision} needs the fast engine{reason}; use fp32 or tf32")
    engines = {size: build_engine(matched, shares, size, precision, fast) for size in sizes}
    return engines, describe_engine(engines[max(sizes)], why)


def make_engine(name, matched, shares, size, precision):
    """-> (the Engine for images of one size, a line): make_engines for it alone."""
    engines, note = make_engines(name, matched, shares, [size], precision)
    return engines[size], note


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
    view = engine.tabulate([[WHOLE_IMAGE]])[0]
    for iteration in range(engine.period):  # the graphs of teachers that take turns share their memory
        engine.at(iteration).loss_and_gradient(images, targets, view)
    one = torch.cuda.max_memory_allocated(device) - before + 3 * images.nbytes
    torch.cuda.empty_cache()
    return max(1, min(wanted, int(0.8 * free / one)))
