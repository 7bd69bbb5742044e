"""The evaluation: top-1 and top-5 of a network on real images."""
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
def evaluate(network, images, mean, std, device, batch_size=256, precision="fp32", alone=False):
    """Top-1 and top-5 in percent, in eval mode; the network's mode is restored.

    images: what keep_on_device returns, or what it takes. Of several processes each measures its part, and
    all get the result; alone: this process measures all images, whatever the others do."""
    if alone:
        images = decode_own(images, device=device)
    elif not isinstance(images, OwnImages):
        images = keep_on_device(images, device)
    was_training = network.training
    network.eval()
    mean, std = (torch.tensor(value, device=device) for value in (mean, std))
    hits = torch.zeros(2, dtype=torch.int64, device=device)  # among the first one, among the first five
    for first in range(0, len(images.labels), batch_size):
        pixels = upload(images.pixels[first:first + batch_size], device)
        labels = upload(images.labels[first:first + batch_size], device)
        with autocast(precision, device):
            logits = network(normalise(pixels.permute(0, 3, 1, 2), mean, std))
        is_right = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]  # (n, 5)
        hits += torch.stack((is_right[:, 0].sum(), is_right.sum()))
    network.train(was_training)
    if not alone:
        sum_over_processes(hits)
    return tuple(round(100 * count / len(images), 4) for count in hits.tolist())
