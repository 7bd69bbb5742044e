"""What the student sees and learns of a batch, and its loss."""
from dataclasses import replace

import torch
import torch.nn.functional as F

from sre2l.data.augment import mixed_share, show_batch
from sre2l.nets.precision import dtype_of
from sre2l.run.device import upload


def soft_targets(logits, temperature):
    """The teacher's raw logits (m, C), fp16 or fp32 -> softmax(logits / T), float32."""
    return F.softmax(logits.float() / temperature, dim=1)


def hard_targets(labels, mix, num_classes, size):
    """The control without a teacher: lam y + (1 - lam) y[partner], probabilities (m, C).

    labels (m,) int64; size: of the crops, pixels."""
    classes = F.one_hot(labels, num_classes).float()
    if mix.partner is None:
        return classes
    share = mixed_share(mix, size)
    return share * classes + (1 - share) * classes[mix.partner]


def mix_and_targets(args, spec, classes, pixels, labels, precision):
    """What the student sees of a whole batch, and what it learns -> images (m, 3, S, S), targets (m, C).

    classes (m,) int64; pixels (m, 3, S, S) uint8 on the device; labels: what relabel stored, LabelBatch."""
    mix = labels.mix
    if mix.partner is not None:
        mix = replace(mix, partner=upload(mix.partner, pixels.device))
    images = show_batch(pixels, mix, spec.mean, spec.std, dtype_of(precision))
    if args.hard_labels:
        targets = hard_targets(torch.from_numpy(classes), labels.mix, spec.num_classes, spec.size)
        return images, upload(targets, pixels.device)
    return images, soft_targets(upload(labels.logits, pixels.device), args.temperature)


def distillation_loss(outputs, targets, temperature, times_t2=False):
    """KL(targets || softmax(outputs / T)), mean over rows; times T^2 as for Tiny-ImageNet. Both (n, C)."""
    loss = F.kl_div(F.log_softmax(outputs / temperature, dim=1), targets, reduction="batchmean")
    return loss * temperature ** 2 if times_t2 else loss
