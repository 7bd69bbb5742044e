"""The small networks of this field: ConvNets, and networks of ImageNet in their 32- and 64-pixel forms.

convnet3, convnet1-w32, ...: depth D (blocks of 3x3 convolution with padding 1, BatchNorm, ReLU and 2x2
average pool) and width W (128 channels where the name says none), then one linear layer over all that is left
of the image. That layer depends on the size of the image: a ConvNet is built for the size of its data set,
S pixels, and has W * (S // 2^D)^2 inputs there. It takes the sizes that leave as many, 32 to 39 pixels of
convnet3, and no other. Its weights have the names that the condensation papers' code gives them
(layers.conv.0.weight, ..., classifier.weight).

NAME-32 and NAME-64: the first layers keep more of a small image, so that the last feature map of an image of
that size is 4x4 (WRN: 8x8) before the average over it. They take larger images too. The first convolution is
3x3, there is no max pool, and all else is torchvision's but for WRN-16-2. Strides, of the first convolution
and of the groups of blocks after it (DenseNet: of the transitions between them):

| name                | -32                 | -64                 |
|---------------------|---------------------|---------------------|
| resnet18, resnet50  | 1, 1 2 2 2          | 2, 1 2 2 2          |
| shufflenet_v2_x0_5  | 1, 2 2 2            | 2, 2 2 2            |
| mobilenet_v2        | 1, 1 1 2 2 1 2 1    | 2, 1 1 2 2 1 2 1    |
| densenet121         | 1, 2 2 2            | 2, 2 2 2            |
| wrn16_2             | 1, 1 2 2            | 2, 1 2 2            |

Published results at 64 pixels (Tiny-ImageNet) are of either kind: SRe2L's ResNets and FADRM's networks are
the -32 forms, shown 64 pixels; G-VBSM's MobileNetV2, of half the width, strides as the -64 form does."""
import re

import torch.nn.functional as F
import torchvision
from torch import nn

from sre2l.run.errors import UserError

CONVNET = r"convnet([1-9])(?:-w([1-9]\d*))?"
WIDTH = 128  # of a ConvNet whose name says none
MOBILENET = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2],
             [6, 320, 1, 1]]  # expansion, channels, blocks, stride of the first; 24 channels: 2 on ImageNet


class ConvNet(nn.Module):
    """Images (N, 3, size, size) -> logits (N, num_classes)."""

    def __init__(self, num_classes, depth, width, size):
        super().__init__()
        channels = [3] + [width] * depth
        convs = [nn.Conv2d(i, o, 3, padding=1) for i, o in zip(channels, channels[1:])]
        norms = [nn.BatchNorm2d(width) for _ in range(depth)]
        self.layers = nn.ModuleDict({"conv": nn.ModuleList(convs), "norm": nn.ModuleList(norms)})
        self.classifier = nn.Linear(width * (size >> depth) ** 2, num_classes)

    def forward(self, x):
        for conv, norm in zip(self.layers["conv"], self.layers["norm"]):
            x = F.avg_pool2d(F.relu(norm(conv(x))), 2)
        return self.classifier(x.flatten(1))


class WideBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions. Where the number of channels changes, the
    shortcut is a 1x1 convolution of what the first BatchNorm and ReLU give."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = None
        if channels != width:
            self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x):
        y = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = F.relu(self.bn2(self.conv1(y)))
        return shortcut + self.conv2(y)


class WideResNet(nn.Module):
    """WRN-16-2: a convolution of 16 channels, three groups of two blocks with 32, 64 and 128."""

    def __init__(self, num_classes, first_stride):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, first_stride, padding=1, bias=False)
        blocks = [WideBlock(16, 32, 1), WideBlock(32, 32, 1), WideBlock(32, 64, 2), WideBlock(64, 64, 1),
                  WideBlock(64, 128, 2), WideBlock(128, 128, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(128)
        self.fc = nn.Linear(128, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = F.relu(self.bn(self.blocks(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


def replace_first_layers(network, stride):
    """Give a ResNet, in place, what small images want: a 3x3 convolution as conv1, and no maxpool."""
    conv = network.conv1
    network.conv1 = nn.Conv2d(conv.in_channels, conv.out_channels, 3, stride, padding=1, bias=False)
    network.maxpool = nn.Identity()


def small_resnet(name):
    def build(num_classes, stride):
        network = torchvision.models.get_model(name, num_classes=num_classes)
        replace_first_layers(network, stride)
        return network
    return build


def small_shufflenet(num_classes, stride):
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=num_classes)
    network.conv1[0].stride = (stride, stride)
    network.maxpool = nn.Identity()
    return network


def small_mobilenet(num_classes, stride):
    network = torchvision.models.mobilenet_v2(num_classes=num_classes, inverted_residual_setting=MOBILENET)
    network.features[0][0].stride = (stride, stride)
    return network


def small_densenet(num_classes, stride):
    network = torchvision.models.densenet121(num_classes=num_classes)
    network.features.conv0 = nn.Conv2d(3, 64, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(network.features.conv0.weight)  # as torchvision's own
    network.features.pool0 = nn.Identity()
    return network


FAMILIES = {"resnet18": small_resnet("resnet18"), "resnet50": small_resnet("resnet50"),
            "shufflenet_v2_x0_5": small_shufflenet, "mobilenet_v2": small_mobilenet,
            "densenet121": small_densenet, "wrn16_2": WideResNet}
STRIDES = {"-32": 1, "-64": 2}  # of the first convolution
FORMS = {name + form: (build, stride) for name, build in FAMILIES.items() for form, stride in STRIDES.items()}
NAMES = [*(f"convnet{depth}" for depth in range(1, 7)), "convnet3-w32", *FORMS]  # to suggest


def is_small(arch):
    return arch in FORMS or re.fullmatch(CONVNET, arch) is not None


def build_small(arch, num_classes, size):
    """A small network with fresh weights. size: of the images, pixels, for a ConvNet.

    Raises UserError for a ConvNet that is too deep for them."""
    if arch in FORMS:
        build, stride = FORMS[arch]
        return build(num_classes, stride)
    depth, width = re.fullmatch(CONVNET, arch).groups()
    if size >> int(depth) == 0:
        raise UserError(f"{arch} halves images of {size} pixels {depth} times, and nothing is left of them; "
                        f"take convnet{size.bit_length() - 1} or less")
    return ConvNet(num_classes, int(depth), int(width or WIDTH), size)
