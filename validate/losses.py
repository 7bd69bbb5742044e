"""Targets and losses of the student, and the split of a batch into micro-batches."""
import torch
import torch.nn.functional as F

from sre2l.augment import mixed_share


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


def micro_batches(num_rows, micro_size):
    """Slices of micro_size rows. A single row left over joins the slice before it: BatchNorm cannot train on one image."""
    starts = list(range(0, num_rows, micro_size))
    if len(starts) > 1 and num_rows - starts[-1] == 1:
        starts.pop()
    return [slice(start, stop) for start, stop in zip(starts, starts[1:] + [num_rows])]


def backward_in_micro_batches(network, loss_of, images, targets, micro_size):
    """Accumulate the gradient of the batch's mean loss, each micro-batch weighted by its share of the rows -> that loss, no host sync."""
    total = torch.zeros((), device=images.device)
    for rows in micro_batches(len(images), micro_size):
        loss = loss_of(network(images[rows]), targets[rows]) * (len(images[rows]) / len(images))
        loss.backward()
        total += loss.detach()
    return total
