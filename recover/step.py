"""One iteration of recover: view, loss, gradient, Adam, clamp; on a GPU replayed as a CUDA graph."""
from dataclasses import dataclass

import torch

from recover.objective import TERMS, Terms
from sre2l.kernels.adam import adam_rates

NEVER = 2 ** 31 - 1  # the iteration of what has not happened


def pixel_bounds(mean, std, device):
    """Black and white of each channel in normalised space -> two tensors (3, 1, 1)."""
    black = torch.tensor([(0 - m) / s for m, s in zip(mean, std)], device=device)
    white = torch.tensor([(1 - m) / s for m, s in zip(mean, std)], device=device)
    return black.view(3, 1, 1), white.view(3, 1, 1)


@dataclass
class Captured:
    """A CUDA graph of one iteration, with the tensors that it reads and writes at fixed addresses."""
    graph: torch.cuda.CUDAGraph
    view: torch.Tensor
    rate: torch.Tensor
    terms: Terms


class Space:
    """What an iteration changes in images of one size, and the graphs that have these tensors' addresses."""

    def __init__(self, images):
        self.images = images.clone()
        self.first_moment = torch.zeros_like(images)
        self.second_moment = torch.zeros_like(images)
        self.graphs = {}  # {Engine: Captured}

    @property
    def tensors(self):
        return self.images, self.first_moment, self.second_moment


class Stepper:
    """Optimises G batches at a time with an engine. low, high: each channel's valid pixels, (3, 1, 1)."""

    def __init__(self, engine, low, high):
        self.engine = engine
        self.low = low
        self.high = high
        self.space = None

    def start(self, images, targets, views, learning_rates, first=0, engine=None):
        """Take up batches, or a new block of them, with a fresh Adam: images (G, B, 3, S, S), targets (G, B),
        T lists of G View, T rates.

        first: the number of the first of these T iterations; engine: another one, for another size S."""
        self.engine = engine or self.engine
        if self.space is None or self.images.shape[:2] != images.shape[:2]:
            self.allocate(targets)
        size = images.shape[-1]
        if size not in self.spaces:
            self.spaces[size] = Space(images)
        self.space = self.spaces[size]
        self.images.copy_(images)
        self.targets.copy_(targets)
        self.space.first_moment.zero_()
        self.space.second_moment.zero_()
        self.first = first
        self.views = self.engine.tabulate(views)
        self.rates = adam_rates(learning_rates).to(images)

    def allocate(self, targets):
        """Tensors for as many batches, as large as these. Captured graphs, which have the former ones'
        addresses, go."""
        self.spaces = {}  # {size: Space}
        self.targets = targets.clone()
        whole = {"dtype": torch.int32, "device": targets.device}
        self.first_nonfinite_step = torch.full((len(targets), len(TERMS)), NEVER, **whole)
        self.iteration = torch.zeros((), **whole)

    @property
    def images(self):
        """The images as they are now, (G, B, 3, S, S)."""
        return self.space.images

    @property
    def tensors(self):
        """All that an iteration changes in what is optimised: images, first and second moment."""
        return self.space.tensors

    def forget_nonfinite(self):
        """Of the batches that come now no term has been anything but finite."""
        self.first_nonfinite_step.fill_(NEVER)

    def step(self, iteration):
        """Iteration first, first + 1, ... -> its Terms, before the step."""
        engine = self.engine.at(iteration)
        view = self.views[iteration - self.first]
        rate = self.rates[iteration - self.first]
        self.iteration.fill_(iteration)
        if not engine.captures:
            return self.iterate(engine, view, rate)
        if engine not in self.space.graphs:
            self.space.graphs[engine] = self.capture(engine, view, rate)
        captured = self.space.graphs[engine]
        captured.view.copy_(view)
        captured.rate.copy_(rate)
        captured.graph.replay()
        return captured.terms

    def iterate(self, engine, view, rate):
        """One iteration -> its Terms. A CUDA graph can replay it: it reads tensors alone, and never waits."""
        terms, gradient = engine.loss_and_gradient(self.images, self.targets, view)
        self.record_nonfinite(terms)
        engine.adam_step(*self.tensors, gradient, rate, self.low, self.high)
        return terms

    def record_nonfinite(self, terms):
        """Keep, for each batch and term, the first iteration in which it was not finite."""
        values = torch.stack([getattr(terms, name) for name in TERMS], 1)
        step = self.iteration.expand(values.shape).masked_fill(values.isfinite(), NEVER)
        torch.minimum(self.first_nonfinite_step, step, out=self.first_nonfinite_step)

    def nonfinite_terms(self):
        """Of each batch: (the first iteration in which a term was not finite, the names of its terms that
        were not), None where all have been finite. Syncs the GPU."""
        found = []
        for steps in self.first_nonfinite_step.tolist():
            first = min(steps)
            names = [name for name, step in zip(TERMS, steps) if step == first]
            found.append(None if first == NEVER else (first, names))
        return found

    def capture(self, engine, view, rate):
        """Record one iteration -> Captured. The two that warm up and the recorded one leave no trace in the
        images."""
        view = view.clone()
        rate = rate.clone()
        changed = *self.tensors, self.first_nonfinite_step
        before = [tensor.clone() for tensor in changed]

        # Warm up on a stream of its own, as torch asks before a capture: kernels compile, memory is laid out.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.iterate(engine, view, rate)
        torch.cuda.current_stream().wait_stream(side)

        # Graphs share one pool of memory: they never run at a time, and a graph's terms are read before
        # another one is replayed.
        others = [captured.graph for space in self.spaces.values() for captured in space.graphs.values()]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, others[0].pool() if others else None):
            terms = self.iterate(engine, view, rate)

        for tensor, value in zip(changed, before):
            tensor.copy_(value)
        return Captured(graph, view, rate, terms)
