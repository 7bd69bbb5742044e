"""The evaluation: top-1 and top-5 of a network on real images."""
import math

import numpy as np
import torch

from sre2l.data.augment import normalise
from sre2l.data.real_images import OwnImages, decode_own
from sre2l.nets.precision import autocast
from sre2l.run.device import upload
from sre2l.run.processes import rank, sum_over_processes, world_size


def keep_on_device(images, device):
    """Decode what this process measures, once -> OwnImages, in the GPU's memory where there is room.

    images: of equal size, as read_val gives them."""
    return decode_own(images, rank(), world_size(), device)


@torch.inference_mode()
def first_answers(network, images, mean, std, device, batch_size=256, precision="fp32"):
    """Yield (the classes of the five largest logits (n, 5), the right classes (n,)) of one batch after the
    other, in eval mode; the network's mode is restored. images: OwnImages."""
    was_training = network.training
    network.eval()
    mean, std = (torch.tensor(value, device=device) for value in (mean, std))
    for first in range(0, len(images.labels), batch_size):
        pixels = upload(images.pixels[first:first + batch_size], device)
        labels = upload(images.labels[first:first + batch_size], device)
        with autocast(precision, device):
            logits = network(normalise(pixels.permute(0, 3, 1, 2), mean, std))
        yield logits.topk(min(5, logits.shape[1])).indices, labels
    network.train(was_training)


def evaluate(network, images, mean, std, device, batch_size=256, precision="fp32"):
    """Top-1 and top-5 in percent. images: what keep_on_device returns, or what it takes.

    Of several processes each measures its part, and all get the result."""
    if not isinstance(images, OwnImages):
        images = keep_on_device(images, device)
    hits = torch.zeros(2, dtype=torch.int64, device=device)  # among the first one, among the first five
    for answers, labels in first_answers(network, images, mean, std, device, batch_size, precision):
        is_right = answers == labels[:, None]
        hits += torch.stack((is_right[:, 0].sum(), is_right.sum()))
    sum_over_processes(hits)
    return tuple(round(100 * count / len(images), 4) for count in hits.tolist())


def is_chance(top1, num_classes, num_images):
    """Is a top-1 in percent below twice chance, or within what luck gives in so few images? Of few classes,
    ten points above chance are enough, and half of the way from chance to 100 always is."""
    chance = 100 / num_classes
    luck = 3 * math.sqrt(chance * (100 - chance) / num_images)
    return top1 < min(chance + max(luck, min(chance, 10)), (100 + chance) / 2)


def describe_chance(top1, num_classes, num_images, causes):
    """A warning for the log where a trained network's top-1 is chance, with its likely causes; else ''."""
    if not is_chance(top1, num_classes, num_images):
        return ""
    few = f" One image is {100 / num_images:.0f} points: these are few to tell." if num_images <= 50 else ""
    return (f"\nwarning: of {num_images} images that is not clearly above chance (1 in {num_classes}); "
            f"{causes}?{few}")


def best_order(answers, labels):
    """The order of classes that the answers of a network speak for -> {right class: answered class}.

    answers, labels (n,) int64. Pairs are taken by how often they occur, each class once on either side."""
    pairs, counts = np.unique(np.stack((labels, answers), 1), axis=0, return_counts=True)
    order = {}
    taken = set()
    for label, answer in pairs[np.argsort(-counts, kind="stable")].tolist():
        if label not in order and answer not in taken:
            order[label] = answer
            taken.add(answer)
    return order


def share_in_best_order(answers, labels):
    """-> (the share of right answers if the classes were in their best order, that order). The order is found
    on every second image and measured on the others, or luck would count."""
    order = best_order(answers[::2], labels[::2])
    others = zip(labels[1::2].tolist(), answers[1::2].tolist())
    hits = sum(order.get(label) == answer for label, answer in others)
    return hits / max(1, len(labels) // 2), order
