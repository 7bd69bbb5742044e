"""What the two training stages share: evaluation, learning-rate schedule, weight-decay groups."""
import math

import numpy as np
import torch

from sre2l.augment import normalise
from sre2l.runtime import unit_rng


@torch.inference_mode()
def evaluate(network, images, mean, std, device, batch_size=256):
    """Top-1 and top-5 in percent of `images` (Images decoded to equal (S, S, 3) uint8) in eval mode; the mode is restored."""
    was_training = network.training
    network.eval()
    hits = torch.zeros(2, dtype=torch.int64, device=device)
    for start in range(0, len(images), batch_size):
        pixels = torch.from_numpy(np.stack(images.items[start:start + batch_size])).to(device).permute(0, 3, 1, 2)
        labels = torch.from_numpy(images.labels[start:start + batch_size]).to(device)
        logits = network(normalise(pixels, mean, std))
        right = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]  # (n, 5)
        hits += torch.stack((right[:, 0].sum(), right.sum()))
    network.train(was_training)
    return tuple(round(100 * count / len(images), 4) for count in hits.tolist())


def lr_factor(epoch, epochs, warmup=0):
    """The learning rate of an epoch over the base rate: linear from 0.01 for `warmup` epochs, then a cosine that ends above 0."""
    if epoch < warmup:
        return 0.01 + 0.99 * epoch / warmup
    return (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) / 2


def seed_epoch(seed, epoch):
    """Seed torch's own generators for one epoch: dropout is then the same whether the run was interrupted or not."""
    torch.manual_seed(int(unit_rng(seed, epoch).integers(2 ** 31)))


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
