"""What the two training stages share: evaluation, learning-rate schedule, weight-decay groups, optimiser steps in any precision."""
import contextlib
import math
import os
from dataclasses import dataclass

import numpy as np
import torch

from sre2l.data.augment import normalise
from sre2l.kernels.compiled import why_no_triton
from sre2l.run.processes import rank, start, sum_over_processes, world_size
from sre2l.nets.precision import dtype_of, pick_precision, set_tf32
from sre2l.run.device import pick_device
from sre2l.run.errors import UserError
from sre2l.run.seeds import unit_rng

GPU_SHARE = 0.5  # of the free memory of a GPU: a validation set beyond it is copied at each evaluation


def set_deterministic(wanted):
    """--deterministic: the same bits in every run, or an error at the first operation that cannot; cuBLAS reads its variable when it starts."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)


def start_device(name, precision, deterministic, training=True, compiled=False):
    """--device, --precision and --deterministic -> (device, precision) of this process, once all processes have met; raises UserError, also for
    --compile where that cannot be, so that --overwrite has deleted nothing yet."""
    set_deterministic(deterministic)
    device = pick_device(name)
    if compiled and (why := why_not_compile(device)):
        raise UserError(f"--compile needs an NVIDIA GPU and Triton: {why}; leave it away")
    precision = pick_precision(precision, device, training)
    set_tf32(precision)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not deterministic  # batches have one shape, but for the last of an epoch
    start(device)
    return device, precision


def upload(tensor, device):
    """A tensor of the CPU on the device, without making the host wait for what the GPU has still to do."""
    if device.type == "cuda" and not tensor.is_cuda:
        return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)
    return tensor.to(device)


def autocast(precision, device):
    """The context in which a network computes in this precision; its weights stay float32, and losses are computed outside."""
    if dtype_of(precision) == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype_of(precision))


def at_least_float32(outputs):
    """A network's outputs as losses want them: half precision becomes float32, float64 stays."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


@dataclass(frozen=True)
class Resident:
    """The images that this process measures, in the GPU's memory: pixels (n, S, S, 3) uint8, labels (n,); `total` over all processes."""
    pixels: torch.Tensor
    labels: torch.Tensor
    total: int

    def __len__(self):
        return self.total


def own_rows(images):
    """The images that this process measures: every world-th."""
    return range(rank(), len(images), world_size())


def stack(images, rows):
    """-> pixels (n, S, S, 3) uint8 and labels (n,), on the CPU."""
    return torch.from_numpy(np.stack([images.pixels(row) for row in rows])), torch.from_numpy(images.labels[list(rows)])


def keep_on_device(images, device):
    """Images of equal size (S, S, 3) -> Resident where there is a GPU with room, else the same Images."""
    rows = own_rows(images)
    if device.type != "cuda" or not rows or images.pixels(0).nbytes * len(rows) > GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
        return images
    pixels, labels = stack(images, rows)
    return Resident(pixels.to(device), labels.to(device), len(images))


def own_batches(images, device, batch_size):
    """Yield (pixels (n, S, S, 3) uint8, labels (n,)) on the device: this process's part of Images or Resident."""
    if isinstance(images, Resident):
        yield from zip(images.pixels.split(batch_size), images.labels.split(batch_size))
        return
    rows = own_rows(images)
    for first in range(0, len(rows), batch_size):
        pixels, labels = stack(images, rows[first:first + batch_size])
        yield upload(pixels, device), upload(labels, device)


@torch.inference_mode()
def evaluate(network, images, mean, std, device, batch_size=256, precision="fp32"):
    """Top-1 and top-5 in percent of `images` (decoded to equal (S, S, 3) uint8) in eval mode; the mode is restored.

    Of several processes each measures its part, and all get the result."""
    was_training = network.training
    network.eval()
    mean, std = (torch.tensor(value, device=device) for value in (mean, std))
    hits = torch.zeros(2, dtype=torch.int64, device=device)
    for pixels, labels in own_batches(images, device, batch_size):
        with autocast(precision, device):
            logits = network(normalise(pixels.permute(0, 3, 1, 2), mean, std))
        right = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]  # (n, 5)
        hits += torch.stack((right[:, 0].sum(), right.sum()))
    network.train(was_training)
    return tuple(round(100 * count / len(images), 4) for count in sum_over_processes(hits).tolist())


def check_finite(loss, network, epoch, lr_flag, precision):
    """Raise UserError at the end of an epoch whose mean loss is not finite, or after which a weight or a running statistic is not: before a
    checkpoint of it is written. fp16's scaler skips a step whose gradients overflow, so that none of them are. Syncs the GPU."""
    sums = torch.stack([value.sum() for value in network.state_dict().values() if value.is_floating_point()])
    if math.isfinite(loss) and sums.isfinite().all():
        return
    what = f"the loss, {loss}," if not math.isfinite(loss) else "a weight or a running statistic of the network"
    other = f" or --precision {'bf16' if precision == 'fp16' else 'fp32'}" if precision in ("fp16", "bf16", "tf32") else ""
    raise UserError(f"epoch {epoch}: {what} is not finite; no checkpoint of it is written, an earlier one stays: "
                    f"start anew with a smaller {lr_flag}{other}")


def lr_factor(epoch, epochs, warmup=0):
    """The learning rate of an epoch over the base rate: linear from 0.01 for `warmup` epochs, then a cosine that ends above 0."""
    if epoch < warmup:
        return 0.01 + 0.99 * epoch / warmup
    return (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) / 2


def seed_torch(seed, *unit):
    """Seed torch's own generators for a unit of work, as (epoch,): dropout is then the same whether the run was interrupted or not."""
    torch.manual_seed(int(unit_rng(seed, *unit).integers(2 ** 31)))


def set_lr(optimizer, lr):
    for group in optimizer.param_groups:
        group["lr"] = lr


def weight_decay_groups(network, weight_decay, decay_all=False):
    """Optimizer groups: decay on every parameter, or only on those named `weight` with more than one dimension, as released."""
    if decay_all:
        return [{"params": list(network.parameters()), "weight_decay": weight_decay}]
    decayed, free = [], []
    for name, parameter in network.named_parameters():
        (decayed if "weight" in name and parameter.ndim > 1 else free).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def make_sgd(parameters, lr, momentum, weight_decay, device):
    """SGD, fused on a GPU. parameters: a network's, or groups of them.

    NOTE: the momenta begin at zero here, which gives what torch's own first step gives: its fused SGD leaves them as memory was where fp16's
    scaler skips the first step, and the next one trains on them."""
    fused = device.type == "cuda"  # NOTE: on a CPU, fused optimisers go wrong where parameter and gradient strides differ
    optimizer = torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay, fused=fused)
    for parameter in (p for group in optimizer.param_groups for p in group["params"] if fused and momentum):
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def why_not_compile(device):
    return why_no_triton() if device.type == "cuda" else f"the device is {device}"


def compile_network(network, one_pass):
    """--compile: the network as torch.compile makes it, for batches of one size, and a short last one. one_pass: a batch is one forward and backward
    pass; these become CUDA graphs then, which would overwrite gradients that others are added to."""
    torch.compiler.reset()  # nothing of another student
    return torch.compile(network, dynamic=False, mode="reduce-overhead" if one_pass else "default")


def make_scaler(precision, device):
    """fp16's gradient scaler, which skips a step whose gradients overflow; one that does nothing for the others."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
