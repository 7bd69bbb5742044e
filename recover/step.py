"""One iteration of recover: view, loss, gradient, Adam, clamp; on a GPU captured once as a CUDA graph and replayed."""
import torch

from sre2l.kernels.adam import adam_rates

TERMS = ("ce", "bn", "tv", "l2")  # the columns of Stepper.broken
NEVER = 2 ** 31 - 1  # the iteration of what has not happened


class Stepper:
    """Optimises G batches at a time. low, high: the valid pixels of each channel, (3, 1, 1)."""

    def __init__(self, engine, low, high):
        self.engine, self.low, self.high = engine, low, high
        self.graph = self.images = None

    def start(self, images, targets, views, learning_rates):
        """Take up new batches: images (G, B, 3, S, S), targets (G, B); views: T lists of G View; learning_rates: T numbers."""
        if self.images is None or self.images.shape != images.shape:
            self.images, self.targets, self.graph = images.clone(), targets.clone(), None
            self.first, self.second = torch.zeros_like(images), torch.zeros_like(images)
            self.broken = torch.empty((len(images), len(TERMS)), dtype=torch.int32, device=images.device)
            self.now = torch.zeros((), dtype=torch.int32, device=images.device)
        self.images.copy_(images)
        self.targets.copy_(targets)
        self.first.zero_()
        self.second.zero_()
        self.broken.fill_(NEVER)
        self.views = self.engine.tabulate(views)
        self.rates = adam_rates(learning_rates).to(images)

    @property
    def tensors(self):
        """All that an iteration changes: images, first and second moment."""
        return self.images, self.first, self.second

    def iterate(self, view, rate):
        """One iteration -> its Terms. A CUDA graph can replay it: it reads tensors alone, and the host waits for nothing."""
        terms, gradient = self.engine.loss_and_gradient(self.images, self.targets, view)
        self.watch(terms)
        self.engine.adam_step(self.images, self.first, self.second, gradient, rate, self.low, self.high)
        return terms

    def watch(self, terms):
        """Keep, for each batch and term, the first iteration in which it was not finite."""
        values = torch.stack([getattr(terms, key) for key in TERMS], 1)
        since = self.now.expand(values.shape).masked_fill(values.isfinite(), NEVER)
        torch.minimum(self.broken, since, out=self.broken)

    def faults(self):
        """Of each batch: (the first iteration in which a term was not finite, the names of its terms that were not), None where all have been.
        Syncs the GPU."""
        rows = [(min(row), row) for row in self.broken.tolist()]
        return [None if first == NEVER else (first, [key for key, at in zip(TERMS, row) if at == first]) for first, row in rows]

    def step(self, iteration):
        """Iteration 0, 1, ... -> its Terms, before the step."""
        view, rate = self.views[iteration], self.rates[iteration]
        self.now.fill_(iteration)
        if not self.engine.captures:
            return self.iterate(view, rate)
        if self.graph is None:
            self.capture(view, rate)
        self.view.copy_(view)
        self.rate.copy_(rate)
        self.graph.replay()
        return self.terms

    def capture(self, view, rate):
        """Record one iteration. The two that warm up and the one recorded leave no trace in what is optimised."""
        self.view, self.rate = view.clone(), rate.clone()
        changed = *self.tensors, self.broken
        kept = [tensor.clone() for tensor in changed]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.iterate(self.view, self.rate)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.terms = self.iterate(self.view, self.rate)
        for tensor, before in zip(changed, kept):
            tensor.copy_(before)
