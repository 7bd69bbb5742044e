"""One iteration of recover: view, loss, gradient, Adam, clamp; on a GPU replayed as a CUDA graph."""
import torch

from recover.objective import TERMS
from sre2l.kernels.adam import adam_rates

NEVER = 2 ** 31 - 1  # the iteration of what has not happened


def pixel_bounds(mean, std, device):
    """Black and white of each channel in normalised space -> two tensors (3, 1, 1)."""
    black = torch.tensor([(0 - m) / s for m, s in zip(mean, std)], device=device)
    white = torch.tensor([(1 - m) / s for m, s in zip(mean, std)], device=device)
    return black.view(3, 1, 1), white.view(3, 1, 1)


class Stepper:
    """Optimises G batches at a time with an engine. low, high: each channel's valid pixels, (3, 1, 1)."""

    def __init__(self, engine, low, high):
        self.engine = engine
        self.low = low
        self.high = high
        self.graph = None
        self.images = None

    def start(self, images, targets, views, learning_rates):
        """Take up new batches: images (G, B, 3, S, S), targets (G, B), T lists of G View, T rates."""
        if self.images is None or self.images.shape != images.shape:
            self.allocate(images, targets)
        self.images.copy_(images)
        self.targets.copy_(targets)
        self.first_moment.zero_()
        self.second_moment.zero_()
        self.first_nonfinite_step.fill_(NEVER)
        self.views = self.engine.tabulate(views)
        self.rates = adam_rates(learning_rates).to(images)

    def allocate(self, images, targets):
        """Tensors for batches of this shape. A captured graph, which has the former ones' addresses, goes."""
        self.graph = None
        self.images = images.clone()
        self.targets = targets.clone()
        self.first_moment = torch.zeros_like(images)
        self.second_moment = torch.zeros_like(images)
        whole = {"dtype": torch.int32, "device": images.device}
        self.first_nonfinite_step = torch.empty((len(images), len(TERMS)), **whole)
        self.iteration = torch.zeros((), **whole)

    @property
    def tensors(self):
        """All that an iteration changes in what is optimised: images, first and second moment."""
        return self.images, self.first_moment, self.second_moment

    def step(self, iteration):
        """Iteration 0, 1, ... -> its Terms, before the step."""
        view = self.views[iteration]
        rate = self.rates[iteration]
        self.iteration.fill_(iteration)
        if not self.engine.captures:
            return self.iterate(view, rate)
        if self.graph is None:
            self.capture(view, rate)
        self.view.copy_(view)
        self.rate.copy_(rate)
        self.graph.replay()
        return self.terms

    def iterate(self, view, rate):
        """One iteration -> its Terms. A CUDA graph can replay it: it reads tensors alone, and never waits."""
        terms, gradient = self.engine.loss_and_gradient(self.images, self.targets, view)
        self.record_nonfinite(terms)
        self.engine.adam_step(*self.tensors, gradient, rate, self.low, self.high)
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

    def capture(self, view, rate):
        """Record one iteration. The two that warm up and the recorded one leave no trace in the images."""
        self.view = view.clone()
        self.rate = rate.clone()
        changed = *self.tensors, self.first_nonfinite_step
        before = [tensor.clone() for tensor in changed]

        # Warm up on a stream of its own, as torch asks before a capture: kernels compile, memory is laid out.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.iterate(self.view, self.rate)
        torch.cuda.current_stream().wait_stream(side)

        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.terms = self.iterate(self.view, self.rate)

        for tensor, value in zip(changed, before):
            tensor.copy_(value)
