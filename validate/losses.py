"""Targets and losses of the student, and the gradient of a batch over its micro-batches."""
import contextlib

import torch
import torch.nn.functional as F

from sre2l.data.augment import mixed_share
from sre2l.run.processes import world_size
from sre2l.nets.parallel import average_gradients
from sre2l.nets.training import at_least_float32


def soft_targets(logits, temperature):
    """The teacher's raw logits (m, C), fp16 or fp32 -> softmax(logits / T), float32."""
    return F.softmax(logits.float() / temperature, dim=1)


def hard_targets(labels, mix, num_classes, size):
    """The control without a teacher: lam y + (1 - lam) y[partner] as probabilities. labels (m,) int64; size: the crops', pixels."""
    classes = F.one_hot(labels, num_classes).float()
    if mix.partner is None:
        return classes
    share = mixed_share(mix, size)
    return share * classes + (1 - share) * classes[mix.partner]


def distillation_loss(outputs, targets, temperature, times_t2=False):
    """KL(targets || softmax(outputs / T)), mean over the rows; times T^2 as in the Tiny-ImageNet protocol. Both (n, C)."""
    loss = F.kl_div(F.log_softmax(outputs / temperature, dim=1), targets, reduction="batchmean")
    return loss * temperature ** 2 if times_t2 else loss


def backward_in_micro_batches(network, loss_of, images, targets, share, scale=lambda loss: loss, before=lambda number, gap: None,
                              context=contextlib.nullcontext):
    """Accumulate the gradient of the batch's mean loss over this process's micro-batches, each weighted by its share of the batch's rows
    -> their part of that loss, no host sync. Several processes average their gradients at the last one.

    images, targets: the process's own rows; scale: a GradScaler's; before(number, gap) is called before each micro-batch with its number
    and how many of others it follows; context: in which the forward pass runs."""
    total = torch.zeros((), device=images.device)
    lonely = share.num_parts < world_size()  # some process has no row: no backward pass of its own in which to meet the others
    for rows, number, gap in zip(share.parts, share.numbers, share.gaps):
        before(number, gap)
        last = number == share.numbers[-1] and not lonely
        with contextlib.nullcontext() if world_size() == 1 or last else network.no_sync():
            with context():
                outputs = network(images[rows])
            loss = loss_of(at_least_float32(outputs), targets[rows]) * ((rows.stop - rows.start) / share.num_rows)
            scale(loss * world_size()).backward()  # the average over the processes is then the sum
        total = total + loss.detach()
    if lonely:
        average_gradients(network)
    return total
