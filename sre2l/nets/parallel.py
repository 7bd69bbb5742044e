"""One network trained by several processes: each has a copy, and computes its rows of every batch."""
import torch
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from sre2l.run.processes import rank, sum_over_processes, world_size


def own_slice(num_rows):
    """The rows of a batch that this process computes, and their weight in the batch's mean loss.

    Where a process would have fewer than two rows, on which BatchNorm cannot train, all processes compute the
    whole batch."""
    world = world_size()
    if num_rows < 2 * world:
        return slice(0, num_rows), 1 / world
    rows = slice(num_rows * rank() // world, num_rows * (rank() + 1) // world)
    return rows, (rows.stop - rows.start) / num_rows


def own_rows(batch):
    """The slice of a batch whose crops this process needs, as load_batches asks for it."""
    return own_slice(len(batch.rows))[0]


def sum_gradients(network):
    """Give every process the sum of all processes' gradients, in one message.

    A process may have no row of a short batch: its gradients count as zeros. A parameter that has a gradient
    in no process stays without one, as in a single process."""
    if world_size() == 1:
        return
    parameters = list(network.parameters())
    has_gradient = torch.tensor([parameter.grad is not None for parameter in parameters]).float()
    sum_over_processes(has_gradient)
    parameters = [parameter for parameter, number in zip(parameters, has_gradient) if number]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
    sum_over_processes(flat)
    for parameter, part in zip(parameters, flat.split([parameter.numel() for parameter in parameters])):
        parameter.grad.copy_(part.view_as(parameter))


def average_running_statistics(network):
    """Give every process the mean of all BatchNorm statistics; numbers of batches are rounded down.

    Call this at the end of every epoch: the result then does not depend on when the network is saved."""
    if world_size() == 1:
        return
    for module in network.modules():
        if isinstance(module, BatchNorm):
            for buffer in module.buffers(recurse=False):
                sum_over_processes(buffer)
                buffer.div_(world_size(), rounding_mode=None if buffer.is_floating_point() else "floor")
