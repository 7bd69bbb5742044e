"""Small networks, each with one thing that a network may do with a BatchNorm layer's result."""
import torch
import torch.nn.functional as F
from torch import nn

from tests.nets import calibrated

SIZE = 12  # of the images, pixels; one pattern has a parameter of this shape


class Renamed(nn.BatchNorm2d):
    """A BatchNorm layer of a class of its own, with a forward of its own."""

    def forward(self, x):
        return F.leaky_relu(super().forward(x), 0.2)


class Activated(nn.BatchNorm2d):
    """A BatchNorm layer with its activation, as timm has them: torch.fx sees what is in it."""

    def forward(self, x):
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)
        return F.relu(y, inplace=True)


class OddNet(nn.Module):
    """conv -> BatchNorm -> middle(network, image, y) -> mean over the pixels -> logits."""

    def __init__(self, middle):
        super().__init__()
        self.middle = middle
        self.conv, self.bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv3, self.bn3 = nn.Conv2d(6, 6, 1, bias=False), nn.BatchNorm2d(6, eps=1e-3)
        self.strided, self.thin = nn.Conv2d(6, 6, 3, stride=2, padding=1), nn.Conv2d(6, 6, 1, stride=2)
        self.line, self.image_norm, self.renamed = nn.BatchNorm1d(6), nn.BatchNorm2d(3), Renamed(6)
        self.bare, self.batch = nn.BatchNorm2d(6, affine=False), nn.BatchNorm2d(6, track_running_stats=False)
        self.relu6, self.clamp = nn.ReLU6(), nn.Hardtanh(-1, 2)
        self.relu, self.hardswish = nn.ReLU(inplace=True), nn.Hardswish(inplace=True)
        self.pool, self.pool2 = nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2)
        self.offset = nn.Parameter(torch.randn(1, 6, SIZE, SIZE))
        self.fc = nn.Linear(6, 5)
        self.activated = Activated(6)

    def forward(self, x):
        y = self.middle(self, x, self.bn(self.conv(x)))
        return self.fc(y.mean((2, 3)))


def after(change):
    """A pattern in which y alone is changed, before another convolution with BatchNorm."""
    return lambda n, x, y: F.relu(n.bn2(n.conv2(change(n, y))))


def residual(n, x, y):
    z = F.relu(y)
    return F.relu(n.bn2(n.conv2(z)) + z)


def residual_in_place(n, x, y):
    z = n.relu(y)
    out = n.bn2(n.conv2(z))
    out += z
    return n.conv3(n.relu(out))


def shortcut(n, x, y):
    """As in ResNets: a strided branch, and every second pixel through a 1x1 convolution."""
    z = n.relu(y)
    out = n.bn2(n.strided(z))
    out += n.bn3(n.thin(z))
    return n.relu(out)


def thin_twice(n, x, y):
    """One stride-2 1x1 convolution that runs for two inputs."""
    z = F.relu(y)
    v = F.relu(n.bn2(n.conv2(z) + n.conv3(z)))
    return n.strided(z) + n.thin(z) + n.strided(v) * n.thin(v)


def three_ways(n, x, y):
    z = F.relu(y)
    return F.relu(n.bn2(n.conv2(z)) + z) + n.conv3(z)


def dense(n, x, y):
    z = F.relu(y)
    return F.relu(n.bn3(n.conv3(torch.cat((z[:, :3], F.relu(n.bn2(n.conv2(z)))[:, 3:]), 1))))


def halves(n, x, y):
    """As in ShuffleNet."""
    left, right = F.relu(y).chunk(2, 1)
    return torch.cat((right, left), 1) * torch.sigmoid(n.bn2(n.conv2(y)))


def pooled_and_not(n, x, y):
    z = F.relu(y)
    return n.pool(z) + z[:, :, ::2, ::2]


def pooled_twice_used(n, x, y):
    z = n.pool(F.relu(y))
    return F.relu(n.bn2(n.conv2(z)) + z)


def ignored(n, x, y):
    """A layer that runs though nobody reads its result: its statistics count."""
    n.bn2(n.conv2(y))
    return F.relu(y)


def looked_away(n, x, y):
    """A layer whose result the logits depend on, but whose gradient stops after it."""
    return F.relu(y) * torch.sigmoid(n.bn2(n.conv2(y)).detach())


def decides(n, x, y):
    return F.relu(y) if len(x) > 0 and y.sum() > -1e9 else y


def used_before_and_after(n, x, y):
    before = y.mean((2, 3), keepdim=True)
    return torch.relu_(y) * before


def changed_under_another_name(n, x, y):
    """In place on a value that is used again: what was y is now relu(y)."""
    z = n.relu(y)
    return n.conv3(z) + y


def changed_without_a_name(n, x, y):
    n.relu(y)
    return n.conv3(y)


def sum_under_another_name(n, x, y):
    z = y
    z += n.conv3(y.detach())
    return F.relu(y) + z


PATTERNS = {
    "relu": after(lambda n, y: F.relu(y)), "nothing": after(lambda n, y: y),
    "relu module": after(lambda n, y: n.relu(y)), "relu method": after(lambda n, y: y.relu()),
    "relu6": after(lambda n, y: n.relu6(y)), "relu6 function": after(lambda n, y: F.relu6(y)),
    "hardtanh": after(lambda n, y: n.clamp(y)),
    "hardtanh function": after(lambda n, y: F.hardtanh(y, -0.5, 0.5)),
    "hardswish": after(lambda n, y: n.hardswish(y)), "silu": after(lambda n, y: F.silu(y, inplace=True)),
    "leaky": after(lambda n, y: F.leaky_relu(y)), "clamp": after(lambda n, y: y.clamp(-1, 1)),
    "in place": after(lambda n, y: F.relu(y, inplace=True)),
    "in place, torch": after(lambda n, y: torch.relu_(y)), "in place, method": after(lambda n, y: y.relu_()),
    "in place, two": after(lambda n, y: y.mul_(2).add_(1).relu_()),
    "in place, after a clamp": after(lambda n, y: n.relu6(y).add_(1)),
    "a number": after(lambda n, y: F.relu(y + 1)), "itself": after(lambda n, y: F.relu(y + y)),
    "broadcast over pixels": after(lambda n, y: F.relu(y + F.relu(y).mean((2, 3), keepdim=True))),
    "broadcast over channels": after(lambda n, y: F.relu(y + y.sigmoid().mean(1, keepdim=True))),
    "broadcast over images": after(lambda n, y: F.relu(y + n.offset)),
    "times alpha": after(lambda n, y: F.relu(torch.add(y, y.sigmoid(), alpha=2))),
    "layer twice": lambda n, x, y: F.relu(n.bn2(n.conv2(F.relu(n.bn2(n.conv2(F.relu(y))))))),
    "first layer twice": lambda n, x, y: F.relu(n.bn(n.conv2(F.relu(y)))),
    "image twice": lambda n, x, y: F.relu(y) + n.conv(x),
    "image in the sum": lambda n, x, y: F.relu(y + torch.cat((x, x), 1)),
    "norm of the image": lambda n, x, y: F.relu(n.bn2(n.conv(n.image_norm(x)))) + y, "residual": residual,
    "residual, reversed": lambda n, x, y: F.relu(F.relu(y) + n.bn2(n.conv2(F.relu(y)))),
    "residual in place": residual_in_place,
    "residual without relu": lambda n, x, y: n.conv3(n.bn2(n.conv2(y)) + y),
    "two norms": lambda n, x, y: F.relu(n.bn2(n.conv2(y)) + n.bn3(n.conv3(y))), "shortcut": shortcut,
    "thin twice": thin_twice, "thin alone": lambda n, x, y: F.relu(n.bn2(n.thin(F.relu(y)))),
    "three ways": three_ways, "dense": dense, "halves": halves,
    "pool": lambda n, x, y: F.relu(n.bn2(n.conv2(n.pool(F.relu(y))))),
    "pool of relu6": lambda n, x, y: n.pool(n.relu6(y)),
    "pool without relu": lambda n, x, y: n.conv2(n.pool(y)),
    "pool of another kind": lambda n, x, y: n.conv2(n.pool2(F.relu(y))),
    "pool after a sum": lambda n, x, y: n.pool(F.relu(n.bn2(n.conv2(y)) + y)), "pool and not": pooled_and_not,
    "pool, two ways": pooled_twice_used, "lines": lambda n, x, y: F.relu(n.line(y.flatten(2)))[..., None],
    "head": lambda n, x, y: n.line(F.relu(y).mean((2, 3)))[..., None, None],
    "without weights": lambda n, x, y: F.relu(n.bare(n.conv2(y))),
    "without statistics": lambda n, x, y: F.relu(n.batch(n.conv2(y)) + y),
    "used before and after": used_before_and_after, "ignored": ignored, "looked away": looked_away,
    "decides": decides, "class of its own": lambda n, x, y: n.renamed(n.conv2(F.relu(y))),
    "with its activation": lambda n, x, y: n.activated(n.conv2(F.relu(y))),
    "changed under another name": changed_under_another_name,
    "changed without a name": changed_without_a_name, "sum under another name": sum_under_another_name}


def odd_network(pattern, size=SIZE):
    """The same calibrated OddNet whenever it is asked for."""
    torch.manual_seed(1)
    return calibrated(OddNet(PATTERNS[pattern]), size, 2)
