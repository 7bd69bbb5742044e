"""The plain formulation, as the released code computes it: what bench/bench.py compares the stages with.

No stage uses it. It is slow in the ways of the original: hooks copy every activation; priors are computed and
back-propagated at coefficient 0; every iteration has a host sync and clones the batch; every JPEG is decoded
at each use; data workers send float images; every micro-batch has a host sync.
"""
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import InterpolationMode, RandomHorizontalFlip, RandomResizedCrop
from torchvision.transforms import functional as TF

from sre2l.data.augment import draw_mix
from sre2l.data.label_files import label_path

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of RandomResizedCrop


class StatisticsHook:
    """A forward hook: how far a BatchNorm2d layer's last input was from its running statistics. Copies it."""

    def __init__(self, layer):
        layer.register_forward_hook(self.measure)

    def measure(self, layer, inputs, _):
        (features,) = inputs
        by_channel = features.permute(1, 0, 2, 3).contiguous().flatten(1)  # (C, N H W)
        mean, var = features.mean((0, 2, 3)), by_channel.var(1, correction=0)
        self.distance = torch.norm(layer.running_var - var) + torch.norm(layer.running_mean - mean)


def priors(y):
    """-> (sum of the Frobenius norms of four differences, the mean L2 norm of an image).

    The released code computes the mean absolute differences too, which enter no loss."""
    differences = (y[..., :-1] - y[..., 1:], y[..., :-1, :] - y[..., 1:, :],
                   y[..., 1:, :-1] - y[..., :-1, 1:], y[..., :-1, :-1] - y[..., 1:, 1:])
    sum((difference.abs() / 255).mean() for difference in differences).mul(255)
    l2 = torch.norm(y.reshape(len(y), -1), dim=1).mean()
    return sum(torch.norm(difference) for difference in differences), l2


class Look:
    """roll(flip(crop(images))) by torchvision's modules: one draw a batch, from torch's global generator.

    antialias is off, as when the code was published. A crop is never larger than the image, and antialias
    would make the plain side slower."""

    def __init__(self, size, rolls, crop_flip):  # rolls: least and largest, pixels
        self.crop = RandomResizedCrop(size, SCALE, RATIO, antialias=False)
        self.flip = RandomHorizontalFlip()
        self.rolls = rolls
        self.crop_flip = crop_flip

    def __call__(self, images):
        if self.crop_flip:
            images = self.flip(self.crop(images))
        low, high = self.rolls
        return torch.roll(images, torch.randint(low, high + 1, (2,)).tolist(), (2, 3))


class PlainObjective:
    """The loss of recover. network: frozen, in eval mode; it keeps the hooks."""

    def __init__(self, network, weights, look):
        self.network = network
        self.weights = weights
        self.look = look
        layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
        self.hooks = [StatisticsHook(layer) for layer in layers]

    def loss(self, images, targets):
        """images (B, 3, S, S), targets (B,) -> the loss, with its graph."""
        w = self.weights
        y = self.look(images)
        ce = F.cross_entropy(self.network(y), targets)
        multipliers = [w.first_bn_multiplier] + [1.0] * (len(self.hooks) - 1)
        bn = sum(multiplier * hook.distance for multiplier, hook in zip(multipliers, self.hooks))
        tv, l2 = priors(y)
        return ce + w.tv_l2 * tv + w.l2_scale * l2 + w.r_bn * bn


class PlainBatch:
    """A batch of images (B, 3, S, S) under optimisation, in place. low, high: the bounds of each channel."""

    def __init__(self, objective, images, targets, low, high):
        self.objective = objective
        self.targets = targets
        self.bounds = list(zip(low, high))
        self.images = images.requires_grad_()
        self.best = None
        self.optimizer = torch.optim.Adam([self.images], lr=0, betas=(0.5, 0.9), eps=1e-8)

    def step(self, rate):
        """One iteration with this learning rate."""
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad()
        loss = self.objective.loss(self.images, self.targets)
        loss.backward()
        self.optimizer.step()
        for channel, (low, high) in enumerate(self.bounds):
            self.images.data[:, channel] = torch.clamp(self.images.data[:, channel], low, high)
        if loss.item() < 1e4:  # syncs the GPU. NOTE: the bound never falls, so each iterate is the "best"
            self.best = self.images.data.clone()


class PlainBatches(Dataset):
    """An item is one sre2l.data.loader.Batch, prepared as the released workers do.

    -> ((images (m, 3, S, S) float32 normalised, classes, flips, boxes), the label file's fields or None).
    images: sre2l.data.image_folder.Images that holds paths.
    labels: the folder whose crops are repeated; None draws them."""

    def __init__(self, images, size, mean, std, labels=None):
        self.images = images
        self.size = size
        self.mean = mean
        self.std = std
        self.labels = labels

    def crop(self, row, box=None, flip=None):
        """From the file to the uint8 crop: -> (PIL image, flip, box), both drawn where they are not given."""
        with Image.open(self.images.items[row]) as file:
            image = file.convert("RGB")
        sides = (image.height, image.width) * 2
        if box is None:
            window = RandomResizedCrop.get_params(image, SCALE, RATIO)
            flip = bool(torch.rand(1) < 0.5)
            box = torch.tensor(window) / torch.tensor(sides)
        else:
            window = [round(v * side) for v, side in zip(box.tolist(), sides)]
        image = TF.resized_crop(image, *window, (self.size, self.size), InterpolationMode.BILINEAR)
        return TF.hflip(image) if flip else image, flip, box

    def sample(self, row, *crop):
        image, flip, box = self.crop(row, *crop)
        return TF.normalize(TF.to_tensor(image), self.mean, self.std), int(self.images.labels[row]), flip, box

    def stored(self, batch):
        """-> the arguments of crop for each image, the other fields of the label file or None."""
        if self.labels is None:
            return [(row,) for row in batch.rows], None
        boxes, flips, *fields = torch.load(label_path(self.labels, batch.epoch, batch.index))
        return list(zip(batch.rows, boxes, flips.tolist())), fields

    def __getitem__(self, batch):
        crops, fields = self.stored(batch)
        return default_collate([self.sample(*crop) for crop in crops]), fields


def cutmix(images, partner, box):
    """Mix in place, as the released code does; box: row1, col1, row2, col2."""
    row1, col1, row2, col2 = box
    images[:, :, row1:row2, col1:col2] = images[partner, :, row1:row2, col1:col2]
    return images


@torch.no_grad()
def label_batch(network, samples, device, path, rng):
    """One batch of relabel with cutmix: mix, teacher, logits to fp16, the label file."""
    images, _, flips, boxes = samples
    images = images.to(device)
    mix = draw_mix("cutmix", 1.0, len(images), images.shape[-1], rng)
    logits = network(cutmix(images, mix.partner.to(device), mix.box)).half()
    torch.save([boxes, flips, mix.partner, mix.lam, mix.box, logits.cpu()], path)


def top_k(outputs, classes):
    """Top-1 and top-5 in percent, which the released loop takes of the training batches. Two host syncs."""
    right = outputs.topk(5).indices.t() == classes
    return [right[:k].reshape(-1).float().sum().mul(100 / len(classes)).item() for k in (1, 5)]


def train_batch(network, optimizer, samples, fields, device, micro_size, temperature):
    """One step of validate -> the sum over micro-batches of loss, top-1 and top-5."""
    images, classes, *_ = samples
    partner, _, box, logits = fields
    classes = classes.to(device)
    logits = logits.to(device).float()
    images = cutmix(images.to(device), partner.to(device), box)
    optimizer.zero_grad()
    meters = np.zeros(3)
    for start in range(0, len(images), micro_size):
        rows = slice(start, start + micro_size)
        outputs = network(images[rows])
        shares = top_k(outputs, classes[rows])
        predicted = F.log_softmax(outputs / temperature, dim=1)
        wanted = F.softmax(logits[rows] / temperature, dim=1)
        loss = F.kl_div(predicted, wanted, reduction="batchmean")
        loss = loss * (len(outputs) / len(images))
        loss.backward()
        meters += loss.item(), *shares  # syncs the GPU
    optimizer.step()
    return meters
