"""What a network's BatchNorm layers see of real images: statistics of classes, of groups and of one image.

m and v are the mean and the biased variance of one channel of one image in the input of one layer, over its
height and width. The lists here go over statistics_layers(network), in that order."""
import contextlib
import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from sre2l.data.augment import normalise, unit_rng
from sre2l.kernels.norms import statistics_layers
from sre2l.nets.checkpoints import read_checkpoint
from sre2l.run.ahead import in_order
from sre2l.run.device import upload
from sre2l.run.errors import UserError
from sre2l.run.files import save_torch
from sre2l.run.processes import rank, sum_over_processes, world_size
from sre2l.run.safe_load import is_whole

FORMAT = "sre2l-statistics-1"  # what the files say under `format`
EPS = 1e-6  # beside variances, of PSM
NUM_THREADS = 4  # that decode images
MAKERS = {  # who writes which kind
    "class": "squeeze's same command with --class-statistics",
    "group": "recover/pick.sh with --pick spread --group-statistics",
}


@dataclass(frozen=True)
class Statistics:
    """mean, var: for each layer a tensor (K, C_l) float32, K = classes or groups."""
    mean: list
    var: list


# -- their file

def class_statistics_path(teacher_file):
    """Where the class statistics of a teacher lie: teacher.e2.pth -> teacher.e2.class_statistics.pth."""
    path = Path(teacher_file)
    return path.with_name(f"{path.stem}.class_statistics.pth")


def save(path, statistics, teacher_sha256, kind):
    """Write statistics whole. teacher_sha256: hash_weights of their network; kind: 'class' or 'group'."""
    save_torch(path, {"format": FORMAT, "kind": kind, "teacher_sha256": teacher_sha256,
                      "mean": statistics.mean, "var": statistics.var})


def load(path, teacher, kind):
    """The statistics in a file -> Statistics. teacher: the Teacher that they have to be of.

    Raises UserError for a file that is missing or damaged, of another kind, or of another teacher."""
    if not Path(path).exists():
        raise UserError(f"{path}: there are no {kind} statistics of the teacher; {MAKERS[kind]} writes them")
    found = read_checkpoint(path)
    if found.get("format") != FORMAT or found.get("kind") != kind:
        raise UserError(f"{path}: holds no {kind} statistics; {MAKERS[kind]} writes them")
    if found.get("teacher_sha256") != teacher.sha256:
        raise UserError(f"{path}: these are statistics of another teacher than {teacher.source}; "
                        f"{MAKERS[kind]} writes those of this one")
    if not fits(found.get("mean"), teacher, kind) or not fits(found.get("var"), teacher, kind):
        raise UserError(f"{path}: does not fit the BatchNorm layers of {teacher.arch}, or is not finite; "
                        f"delete it: {MAKERS[kind]} writes it again")
    return Statistics(found["mean"], found["var"])


def are_stored(path, teacher, kind):
    """Does a file hold these statistics of this teacher, as `load` takes them?"""
    with contextlib.suppress(UserError):
        load(path, teacher, kind)
        return True
    return False


def num_class_bytes(network, num_classes):
    """About how many bytes a file of class statistics takes."""
    return 8 * num_classes * sum(layer.num_features for layer in statistics_layers(network))


def fits(values, teacher, kind):
    """Are these the values of every BatchNorm layer, finite, and for each class where the kind is 'class'?"""
    layers = statistics_layers(teacher.network)
    if not isinstance(values, list) or len(values) != len(layers) or not all(map(is_whole, values)):
        return False
    number = teacher.num_classes if kind == "class" else len(values[0])
    return all(value.shape == (number, layer.num_features) and value.isfinite().all()
               for value, layer in zip(values, layers))


# -- moments of single images

@torch.inference_mode()
def image_moments(network, images):
    """images (m, 3, S, S), normalised, through a network in eval mode -> for each layer (m, v), of shape
    (m, C_l) each; None for a layer that does not run. Of one that runs several times, their mean.

    An input without height and width has the variance 0."""
    layers = statistics_layers(network)
    seen = {layer: [] for layer in layers}

    def look(layer, inputs):
        features = inputs[0].flatten(2) if inputs[0].ndim > 2 else inputs[0][:, :, None]
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        seen[layer].append(torch.stack(torch.var_mean(features, 2, correction=0)[::-1]))

    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [tuple(torch.stack(runs).mean(0)) if runs else None for runs in seen.values()]


def gps_distances(network, images):
    """How far the moments of each image are from the running statistics (PSM's global-prior score):

        d = mean over the layers of (|m - mu|_2 + |log((v + EPS) / (sigma + EPS))|_2) / sqrt(C_l)

    images (m, 3, S, S), normalised -> (m,) float64 on their device. mu, sigma: running mean and variance."""
    terms = []
    for layer, moments in zip(statistics_layers(network), image_moments(network, images)):
        if moments is None:
            continue
        mean, var = (value.double() for value in moments)
        shift = torch.linalg.vector_norm(mean - layer.running_mean.double(), dim=1)
        ratios = (var + EPS) / (layer.running_var.double() + EPS)
        terms.append((shift + torch.linalg.vector_norm(ratios.log(), dim=1)) / mean.shape[1] ** 0.5)
    return torch.stack(terms).mean(0)


# -- over many images

def normalised_batches(images, batches, mean, std, device, text):
    """Yield (rows, the images of these rows (m, 3, S, S) normalised on the device), decoded at use.

    images: of equal size, such as those of shown_at; batches: lists of rows; text: of the progress bar."""
    mean, std = (torch.tensor(value, device=device) for value in (mean, std))

    def pixels_of(rows):
        return rows, torch.from_numpy(np.stack([images.pixels(row) for row in rows]))

    bar = tqdm(batches, text, unit="batch", disable=None, leave=False)
    for rows, pixels in in_order(pixels_of, bar, NUM_THREADS, device):
        yield rows, normalise(upload(pixels, device).permute(0, 3, 1, 2), mean, std)


def class_statistics(network, images, num_classes, mean, std, device, batch_size=256):
    """The mean of m and the mean of v over the images of each class (EDC) -> Statistics.

    v is the variance within an image, so the mean of v is smaller than the variance of the class. The sums
    are in float64. images: as in normalised_batches, labelled; of several processes each takes a part, and
    all get the result. A layer that does not run has its running statistics."""
    layers = statistics_layers(network)
    sums = [torch.zeros(2, num_classes, layer.num_features, dtype=torch.float64, device=device)
            for layer in layers]
    counts = torch.from_numpy(np.bincount(images.labels, minlength=num_classes)).to(device)
    if not counts.all():
        raise UserError(f"{images.root}: class {counts.tolist().index(0)} has no image, so there are no "
                        f"statistics of it")
    own = range(rank(), len(images), world_size())
    batches = [own[first:first + batch_size] for first in range(0, len(own), batch_size)]
    for rows, pixels in normalised_batches(images, batches, mean, std, device, "class statistics"):
        labels = upload(torch.from_numpy(images.labels[list(rows)]), device)
        for total, moments in zip(sums, image_moments(network, pixels)):
            if moments is not None:
                total.index_add_(1, labels, torch.stack(moments).double())

    found = Statistics([], [])
    for layer, total in zip(layers, sums):
        total = sum_over_processes(total) / counts[:, None]
        if not total.any():  # the layer has not run
            total = torch.stack((layer.running_mean, layer.running_var))[:, None].expand(total.shape)
        found.mean.append(total[0].float().cpu())
        found.var.append(total[1].float().cpu())
    return found


def group_statistics(network, images, groups, mean, std, device, batch_size=128, seed=0):
    """What the running statistics become where the network meets the images of one group alone -> Statistics.

    groups: a list of rows for each group, all classes in it. One pass over them in a drawn order, cut into
    batches of about equal size, the BatchNorm layers in train mode and all else in eval mode. The means and
    unbiased variances of the batches are averaged (momentum None), which is what PSM's many epochs with a
    momentum converge to. The network itself stays as it is. Raises UserError for a group of fewer than two
    images, on which BatchNorm cannot train."""
    found = Statistics([], [])
    for group, rows in enumerate(groups):
        if len(rows) < 2:
            raise UserError(f"{images.root}: group {group} has {len(rows)} images; statistics need two or "
                            f"more: choose fewer groups")
        adapted = copy.deepcopy(network).eval()
        layers = statistics_layers(adapted)
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the average over all batches
            layer.train()
        order = unit_rng(seed, group).permutation(np.asarray(rows))
        batches = np.array_split(order, -(-len(order) // batch_size))
        text = f"group {group + 1} of {len(groups)}"
        with torch.inference_mode():
            for _, pixels in normalised_batches(images, batches, mean, std, device, text):
                adapted(pixels)

        # A layer that has not run keeps what the network itself has.
        sources = [new if new.num_batches_tracked else old
                   for new, old in zip(layers, statistics_layers(network))]
        found.mean.append([source.running_mean.float().cpu() for source in sources])
        found.var.append([source.running_var.float().cpu() for source in sources])
    stacked = [[torch.stack(values) for values in zip(*kind)] for kind in (found.mean, found.var)]
    return Statistics(*stacked)
