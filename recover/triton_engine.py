"""The fast engine on a GPU. engines.py imports it only there: Triton comes with torch's CUDA builds alone.

The view is a table of fixed shape, so that nothing but the contents of tensors differs between iterations,
and step.py can capture one as a CUDA graph."""
import torch

from recover.fast import FastEngine
from recover.views import tabulate
from sre2l.kernels.triton.moments import Finisher
from sre2l.kernels.triton.norms import Passes
from sre2l.kernels.triton.stem import replace_stem
from sre2l.kernels.triton.view import ApplyView, adam_step


class TritonEngine(FastEngine):
    """FastEngine with every pass over an activation, the view and Adam's step as Triton kernels."""

    adam_step = staticmethod(adam_step)

    def __init__(self, network, weights, size, precision, target=None):
        super().__init__(network, weights, size, precision, target)
        # cuDNN may try its algorithms: shapes never change.
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
        traced = self.rewrite(network, for_triton=True)
        self.channels = replace_stem(traced, size)
        for norm in self.norms:
            norm.passes = Passes
        self.network = self.converted(traced)
        self.finisher = Finisher(self.matched_norms)

    def tabulate(self, views):
        """The views of iteration t, at [t]. views: T lists of G View -> a tensor (T, G, 10, S)."""
        table = tabulate([view for group in views for view in group], self.size)
        return table.to(self.exact).view(len(views), len(views[0]), *table.shape[1:]).to(self.device)

    def see(self, images, view):
        """(G, B, 3, S, S) -> what the network sees of them, (G B, 3 or 4, S, S) in its type, NHWC."""
        return ApplyView.apply(images, view, self.channels, self.dtype, 1 / self.loss_scale)

    def take_up(self, group):
        super().take_up(group)
        if self.finisher.groups == len(group.batches):  # else it is laid out anew, and reads them then
            self.finisher.read_targets()

    def finish(self):
        """After a forward pass: the BatchNorm term of each batch, (G,), and what backward passes need."""
        return self.finisher.finish()
