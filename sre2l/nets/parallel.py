"""One network trained by several processes: gradients averaged by DistributedDataParallel, BatchNorm's running statistics kept right.

In one process, running statistics meet the micro-batches one after another: r <- (1 - m) r + m s_k. That is a weighted sum over k, so each
process keeps the terms of its own micro-batches, lets them decay for the others', and the sum over the processes is the same r."""
import warnings

import torch
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.parallel import DistributedDataParallel

from sre2l.run.processes import rank, sum_over_processes, world_size


def replicate(network, device):
    """The network as the forward pass of several processes wants it; the same network in one. All begin with process 0's weights."""
    if world_size() == 1:
        return network
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.14 has another name for broadcast_buffers, which older ones do not know
        return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False)


def average_gradients(network):
    """What DistributedDataParallel does during a backward pass, for a batch of which some process has no row and so no such pass."""
    for parameter in network.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        sum_over_processes(parameter.grad).div_(world_size())


class RunningStatistics:
    """The running statistics of a network's BatchNorm layers over several processes; in one process nothing happens."""

    def __init__(self, network):
        norms = [module for module in network.modules() if isinstance(module, BatchNorm) and module.track_running_stats]
        norms = norms if world_size() > 1 else []
        self.sums = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
        self.kept = [1 - norm.momentum for norm in norms for _ in range(2)]
        self.counts = [norm.num_batches_tracked for norm in norms]

    def skip(self, num_batches):
        """Let this process's terms decay for micro-batches of other processes."""
        if num_batches and self.sums:
            torch._foreach_mul_(self.sums, [kept ** num_batches for kept in self.kept])

    def split(self):
        """Before training: process 0 keeps what all have, the others start their terms from zero."""
        if rank() > 0:
            for buffer in self.sums + self.counts:
                buffer.zero_()

    def combine(self, divisor=1):
        """Before an evaluation or a checkpoint: the sum over the processes, in all of them, divided by `divisor`."""
        for buffers in (self.sums, self.counts):
            if buffers:
                flat = torch.cat([buffer.flatten() for buffer in buffers])
                sum_over_processes(flat)
                flat = flat // divisor if flat.dtype == torch.int64 else flat / divisor
                for buffer, part in zip(buffers, flat.split([buffer.numel() for buffer in buffers])):
                    buffer.copy_(part.view_as(buffer))
