"""What the student sees and learns of a batch, and its loss."""
from dataclasses import replace

import torch
import torch.nn.functional as F

from sre2l.data.augment import mixed_share, show_batch
from sre2l.nets.precision import dtype_of
from sre2l.run.device import upload
from validate.draws import SMOOTHING


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


def mix_and_targets(args, spec, classes, pixels, labels, temperature, precision):
    """What the student sees of a whole batch, and what it learns -> images (m, 3, S, S), targets (m, C):
    probabilities, or with --loss mse the teacher's raw logits.

    classes (m,) int64; pixels (m, 3, S, S) uint8 on the device; labels: what relabel stored, LabelBatch. One
    without logits is of a hard phase (--label-draw phases), whose classes are smoothed."""
    mix = labels.mix
    if mix.partner is not None:
        mix = replace(mix, partner=upload(mix.partner, pixels.device))
    images = show_batch(pixels, mix, spec.mean, spec.std, dtype_of(precision))
    if labels.logits is None or args.hard_labels:
        targets = hard_targets(torch.from_numpy(classes), labels.mix, spec.num_classes, spec.size)
        if args.label_draw == "phases":
            targets = (1 - SMOOTHING) * targets + SMOOTHING / spec.num_classes
        return images, upload(targets, pixels.device)
    logits = upload(labels.logits, pixels.device)
    return images, logits.float() if args.loss == "mse" else soft_targets(logits, temperature)


def distillation_loss(outputs, targets, temperature, times_t2=False):
    """KL(targets || softmax(outputs / T)), mean over rows; times T^2 as for Tiny-ImageNet. Both (n, C)."""
    loss = F.kl_div(F.log_softmax(outputs / temperature, dim=1), targets, reduction="batchmean")
    return loss * temperature ** 2 if times_t2 else loss


def student_loss(args, outputs, targets, classes, temperature, is_hard=False):
    """The loss of the protocol, mean over the rows. outputs, targets (n, C), of mix_and_targets; classes (n,)
    int64: each image's own, whatever is mixed into it; is_hard: in a hard phase.

    --loss mse is the mean over rows and classes of the squared difference between raw logits, without T (as
    in G-VBSM and EDC, which add the cross entropy with a weight)."""
    if args.hard_labels or is_hard:  # there is no teacher, so whatever the loss is, this takes its place
        return F.cross_entropy(outputs, targets)
    if args.loss == "mse":
        loss = F.mse_loss(outputs, targets)
    else:
        loss = distillation_loss(outputs, targets, temperature, args.kl_t2)
    if args.class_weight:
        loss = loss + args.class_weight * F.cross_entropy(outputs, classes)
    return loss
