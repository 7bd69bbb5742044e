"""The plain formulation, as the released code computes it: what bench/bench.py compares the stages with. No stage uses it.

Slow in the ways of the original: hooks that copy every activation, priors computed and back-propagated at coefficient 0, a host sync and
a clone of the batch in every iteration, every JPEG decoded at each use, float images from the data workers, a host sync per micro-batch.
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
    """A forward hook: how far the last input of one BatchNorm2d layer was from its running statistics. Copies the activation."""

    def __init__(self, layer):
        layer.register_forward_hook(self.measure)

    def measure(self, layer, inputs, _):
        features, = inputs
        by_channel = features.permute(1, 0, 2, 3).contiguous().flatten(1)  # (C, N H W)
        mean, var = features.mean((0, 2, 3)), by_channel.var(1, correction=0)
        self.distance = torch.norm(layer.running_var - var) + torch.norm(layer.running_mean - mean)


def priors(y):
    """-> (sum of the Frobenius norms of four differences, the mean L2 norm of an image); the mean absolute differences, which the
    released code computes too, enter no loss."""
    differences = (y[..., :-1] - y[..., 1:], y[..., :-1, :] - y[..., 1:, :],
                   y[..., 1:, :-1] - y[..., :-1, 1:], y[..., :-1, :-1] - y[..., 1:, 1:])
    sum((difference.abs() / 255).mean() for difference in differences).mul(255)
    return sum(torch.norm(difference) for difference in differences), torch.norm(y.reshape(len(y), -1), dim=1).mean()


class Look:
    """roll(flip(crop(images))) by torchvision's modules, one draw for the whole batch, from torch's global generator.

    antialias is off, as when the code was published: a crop is never larger than the image, and with it the plain side is slower."""

    def __init__(self, size, rolls, crop_flip):  # rolls: least and largest, pixels
        self.crop, self.flip = RandomResizedCrop(size, SCALE, RATIO, antialias=False), RandomHorizontalFlip()
        self.rolls, self.crop_flip = rolls, crop_flip

    def __call__(self, images):
        if self.crop_flip:
            images = self.flip(self.crop(images))
        low, high = self.rolls
        return torch.roll(images, torch.randint(low, high + 1, (2,)).tolist(), (2, 3))


class PlainObjective:
    """The loss of recover. network: frozen, in eval mode; it keeps the hooks."""

    def __init__(self, network, weights, look):
        self.network, self.weights, self.look = network, weights, look
        self.hooks = [StatisticsHook(layer) for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]

    def loss(self, images, targets):
        """images (B, 3, S, S), targets (B,) -> the loss, with its graph."""
        w, y = self.weights, self.look(images)
        ce = F.cross_entropy(self.network(y), targets)
        multipliers = [w.first_bn_multiplier] + [1.0] * (len(self.hooks) - 1)
        bn = sum(multiplier * hook.distance for multiplier, hook in zip(multipliers, self.hooks))
        tv, l2 = priors(y)
        return ce + w.tv_l2 * tv + w.l2_scale * l2 + w.r_bn * bn


class PlainBatch:
    """A batch of images (B, 3, S, S) under optimisation, in place; low, high: three floats, the bounds of each channel."""

    def __init__(self, objective, images, targets, low, high):
        self.objective, self.targets, self.bounds = objective, targets, list(zip(low, high))
        self.images, self.best = images.requires_grad_(), None
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
        if loss.item() < 1e4:  # syncs the GPU; NOTE: the bound never falls, so that each iterate is the "best"
            self.best = self.images.data.clone()


def crop_and_flip(image, window, flip, size):
    """A PIL image cropped to window (top, left, height, width) pixels, resized by Pillow's bilinear filter, flipped."""
    image = TF.resized_crop(image, *window, (size, size), InterpolationMode.BILINEAR)
    return TF.hflip(image) if flip else image


def draw_window(image):
    """-> (window, flip) of RandomResizedCrop and RandomHorizontalFlip."""
    return RandomResizedCrop.get_params(image, SCALE, RATIO), bool(torch.rand(1) < 0.5)


def open_image(path):
    with open(path, "rb") as file:
        return Image.open(file).convert("RGB")


class PlainBatches(Dataset):
    """An item is one sre2l.data.label_files.Batch, prepared as the released workers do: ((images (m, 3, S, S) float32 normalised, classes, flips,
    boxes), label file's fields or None). labels: the folder whose crops are repeated, None = draw them."""

    def __init__(self, images, size, mean, std, labels=None):  # images: sre2l.data.image_folder.Images that holds paths
        self.images, self.size, self.mean, self.std, self.labels = images, size, mean, std, labels

    def crop(self, row, box=None, flip=None):
        """From the file to the uint8 crop: -> (PIL image, flip, box), both drawn where they are not given."""
        image = open_image(self.images.items[row])
        sides = (image.height, image.width) * 2
        if box is None:
            window, flip = draw_window(image)
            box = torch.tensor(window) / torch.tensor(sides)
        else:
            window = [round(v * side) for v, side in zip(box.tolist(), sides)]
        return crop_and_flip(image, window, flip, self.size), flip, box

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
    """Top-1 and top-5 in percent, which the released loop computes of the training batches; two host syncs."""
    right = outputs.topk(5).indices.t() == classes
    return [right[:k].reshape(-1).float().sum().mul(100 / len(classes)).item() for k in (1, 5)]


def train_batch(network, optimizer, samples, fields, device, micro_size, temperature):
    """One step of validate -> the sum over micro-batches of loss, top-1 and top-5."""
    (images, classes, *_), (partner, _, box, logits) = samples, fields
    images, classes, logits = images.to(device), classes.to(device), logits.to(device).float()
    images = cutmix(images, partner.to(device), box)
    optimizer.zero_grad()
    meters = np.zeros(3)
    for start in range(0, len(images), micro_size):
        rows = slice(start, start + micro_size)
        outputs = network(images[rows])
        shares = top_k(outputs, classes[rows])
        loss = F.kl_div(F.log_softmax(outputs / temperature, dim=1), F.softmax(logits[rows] / temperature, dim=1), reduction="batchmean")
        loss = loss * (len(outputs) / len(images))
        loss.backward()
        meters += loss.item(), *shares  # syncs the GPU
    optimizer.step()
    return meters
