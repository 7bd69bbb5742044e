"""What squeeze and validate share: schedule, seeds, optimisers, checks of a loss, torch.compile."""
import math

import torch

from sre2l.data.augment import unit_rng
from sre2l.run.errors import UserError

CHECKPOINT_SEC = 30  # between checkpoints at least; the last epoch has one in any case


def at_least_float32(outputs):
    """A network's outputs as losses want them: fp16 and bf16 become float32, float64 stays."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def make_scaler(precision, device):
    """fp16's gradient scaler, which skips a step whose gradients overflow; idle in other precisions."""
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    scaler.scale(torch.zeros((), device=device))  # makes its scale now: a process may have no row of a batch
    return scaler


def check_finite(loss, network, epoch, lr_flag, precision):
    """Raise UserError where an epoch's loss, a weight or a running statistic is not finite. Syncs the GPU.

    Call it before a checkpoint of the epoch is written. fp16's scaler skips a step whose gradients overflow,
    so in fp16 too nothing of a run in good order becomes infinite."""
    sums = torch.stack([value.sum() for value in network.state_dict().values() if value.is_floating_point()])
    if math.isfinite(loss) and sums.isfinite().all():
        return
    what = "a weight or a running statistic of the network"
    if not math.isfinite(loss):
        what = f"the loss, {loss},"
    other = ""
    if precision in ("fp16", "bf16", "tf32"):
        other = f" or --precision {'bf16' if precision == 'fp16' else 'fp32'}"
    raise UserError(f"epoch {epoch}: {what} is not finite; no checkpoint of it is written, an earlier one "
                    f"stays: start anew with a smaller {lr_flag}{other}")


def check_warmup(args):
    """Raise UserError where a warm-up has no end."""
    if args.warmup_epochs >= args.epochs:
        raise UserError(f"--warmup-epochs {args.warmup_epochs} is not below --epochs {args.epochs}")


def cosine_factor(epoch, epochs, slowdown=1.0):
    """A cosine over slowdown x epochs, of which the first 1 / slowdown is run: it ends at 0 for 1, at 0.25
    for 1.5, at 0.5 for 2 (eta of FADRM, zeta of EDC)."""
    return (1 + math.cos(math.pi * epoch / (slowdown * epochs))) / 2


def constant_factor(epoch, epochs):
    return 1.0


def ssrs_factor(epoch, epochs, slowdown=1.0):
    """EDC's smoothed schedule: the slowed cosine over five sixths of the epochs, then what is left of them
    times its last value. It drops there to a sixth: slowed by 2, from 0.629 to 0.105 of the base rate."""
    if 6 * epoch <= 5 * epochs:
        return cosine_factor(epoch, epochs, slowdown)
    return cosine_factor(5, 6, slowdown) * (epochs - epoch) / epochs


def linear_factor(epoch, epochs, slowdown=1.0):
    """A straight line to 1 - 1 / slowdown."""
    return 1 - epoch / (slowdown * epochs)


def multistep_factor(epoch, epochs, milestones, factor):
    """factor to the power of the milestones that have been reached, each a part of the epochs, rounded down
    to whole ones."""
    return factor ** sum(epoch >= int(milestone * epochs + 1e-6) for milestone in milestones)


def lr_factor(epoch, epochs, warmup, falls=cosine_factor):
    """An epoch's learning rate over the base rate: linear from 0.01 for `warmup` epochs, then as it falls.

    falls: a function of the epochs since the warm-up and of their number."""
    if epoch < warmup:
        return 0.01 + 0.99 * epoch / warmup
    return falls(epoch - warmup, epochs - warmup)


def set_lr(optimizer, lr):
    for group in optimizer.param_groups:
        group["lr"] = lr


def seed_torch(seed, *unit):
    """Seed torch for a unit of work such as (epoch, batch): dropout then depends on nothing before it."""
    torch.manual_seed(int(unit_rng(seed, *unit).integers(2 ** 31)))


def weight_decay_groups(network, weight_decay, decay_all=False):
    """An optimiser's groups. Decay is on `weight` parameters of more than one dimension, or on all."""
    if decay_all:
        return [{"params": list(network.parameters()), "weight_decay": weight_decay}]
    decayed, free = [], []
    for name, parameter in network.named_parameters():
        (decayed if "weight" in name and parameter.ndim > 1 else free).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def make_sgd(parameters, lr, momentum, weight_decay, device):
    """SGD, fused on a GPU. parameters: a network's, or groups of them.

    NOTE: torch's fused SGD leaves the momenta uninitialised where fp16's scaler skips the first step, and
    trains on them in the next one. Here they begin at zero, as torch's own first step does."""
    # NOTE: on a CPU, fused optimisers go wrong where the strides of a parameter and its gradient differ.
    is_fused = device.type == "cuda"
    optimizer = torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay, fused=is_fused)
    if is_fused and momentum:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def make_adam(parameters, lr, beta1, weight_decay, device):
    """Adam, fused on a GPU, with its weight decay in the gradient as torch has it."""
    is_fused = device.type == "cuda"
    return torch.optim.Adam(parameters, lr, (beta1, 0.999), weight_decay=weight_decay, fused=is_fused)


def compile_network(network, one_pass):
    """--compile: the network as torch.compile makes it, for batches of one size and a short last one.

    one_pass: a batch is a single forward and backward pass, which becomes a CUDA graph. A graph overwrites
    the gradients of the one before, so where gradients are accumulated there is none."""
    torch.compiler.reset()  # nothing of another student
    return torch.compile(network, dynamic=False, mode="reduce-overhead" if one_pass else "default")
