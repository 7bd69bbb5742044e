"""Small networks with trained-like BatchNorm buffers, and the same as formulas over their state dicts."""
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class SmallNet(nn.Module):
    """Two convolutions with BatchNorm2d; on request a BatchNorm1d in the head and a layer that never runs."""

    def __init__(self, head_norm=False, idle_norm=False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.idle = nn.BatchNorm2d(5) if idle_norm else nn.Identity()
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8)
        self.fc1, self.bn3 = nn.Linear(8, 7), nn.BatchNorm1d(7) if head_norm else nn.Identity()
        self.fc2 = nn.Linear(7, 5)

    def forward(self, x):
        x = torch.tanh(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x))).mean((2, 3))
        return self.fc2(torch.tanh(self.bn3(self.fc1(x))))


def like_trained(network, seed):
    """Draw running statistics and affine weights of every BatchNorm; frozen, fp64, eval mode -> network."""
    g = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
            layer.running_mean.normal_(0, 0.5, generator=g)
            layer.running_var.uniform_(0.3, 2, generator=g)
        if isinstance(layer, _BatchNorm) and layer.affine:
            nn.init.uniform_(layer.weight, 0.5, 1.5, generator=g)
            nn.init.normal_(layer.bias, 0, 0.3, generator=g)
    return network.double().eval().requires_grad_(False)


class Formula:
    """A forward pass written out over the weights; norms: |mean - m|_2 + |var - v|_2 by name of BatchNorm."""

    def __init__(self, network):
        self.weights, self.norms = network.state_dict(), {}

    def norm(self, name, x):
        keys = ("weight", "bias", "running_mean", "running_var")
        weight, bias, mean, var = (self.weights[f"{name}.{key}"] for key in keys)
        rows = x.transpose(0, 1).reshape(x.shape[1], -1)  # (C, N H W)
        m = rows.sum(1) / rows.shape[1]
        v = ((rows - m[:, None]) ** 2).sum(1) / rows.shape[1]
        self.norms[name] = ((m - mean) ** 2).sum().sqrt() + ((v - var) ** 2).sum().sqrt()
        shape = (1, -1) + (1,) * (x.ndim - 2)
        normed = (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
        return normed * weight.view(shape) + bias.view(shape)

    def conv(self, name, x, stride=1, padding=0):
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"), stride, padding)

    def linear(self, name, x):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def small(self, x):
        """SmallNet's logits."""
        x = self.norm("bn1", self.conv("conv1", x, padding=1)).tanh()
        x = self.linear("fc1", self.norm("bn2", self.conv("conv2", x, stride=2)).clamp(min=0).mean((2, 3)))
        return self.linear("fc2", (self.norm("bn3", x) if "bn3.weight" in self.weights else x).tanh())

    def resnet18(self, x):
        """torchvision's ResNet-18: four stages of two basic blocks."""
        x = F.max_pool2d(self.norm("bn1", self.conv("conv1", x, 2, 3)).clamp(min=0), 3, 2, 1)
        for stage in (1, 2, 3, 4):
            for block in (0, 1):
                name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
                y = self.norm(f"{name}.bn1", self.conv(f"{name}.conv1", x, stride, 1)).clamp(min=0)
                y = self.norm(f"{name}.bn2", self.conv(f"{name}.conv2", y, 1, 1))
                if stride == 2:
                    x = self.norm(f"{name}.downsample.1", self.conv(f"{name}.downsample.0", x, 2))
                x = (x + y).clamp(min=0)
        return self.linear("fc", x.mean((2, 3)))


def build(name):
    """-> (network, a function x -> (logits, {BatchNorm layer: distance}), the same network as formulas)."""
    torch.manual_seed(1)
    kinds = {"conv": lambda: SmallNet(), "head": lambda: SmallNet(head_norm=True),
             "idle": lambda: SmallNet(idle_norm=True),
             "resnet18": lambda: torchvision.models.resnet18(num_classes=5)}
    network = like_trained(kinds[name](), 2)

    def forward(x):
        formula = Formula(network)
        return (formula.resnet18 if name == "resnet18" else formula.small)(x), formula.norms
    return network, forward


def calibrated(network, size, seed, batch=8):
    """like_trained, with running statistics near those of noise: no layer drowns another -> network."""
    network = like_trained(network, seed)
    g = torch.Generator().manual_seed(seed)
    found = {}

    def hook(layer, inputs):
        if layer.running_mean is None:
            return
        x = inputs[0].detach().transpose(0, 1).flatten(1)
        if layer not in found:
            found[layer] = 1
            noise = torch.randn(len(x), dtype=x.dtype, generator=g)
            layer.running_mean.copy_(x.mean(1) + 0.3 * x.std(1) * noise)
            layer.running_var.copy_(x.var(1) * (0.5 + torch.rand(len(x), dtype=x.dtype, generator=g)) + 1e-3)

    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    with torch.no_grad():
        network(torch.randn(batch, 3, size, size, dtype=torch.float64, generator=g))
    for handle in handles:
        handle.remove()
    return network
