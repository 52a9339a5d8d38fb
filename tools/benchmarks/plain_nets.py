"""The nets of models/ as one writes them in plain PyTorch, to measure against.

Each has its parameters in the order of its definition in models/, so that they can be copied from
one to the other. Called with images and labels, a net gives its loss. Nothing here uses caffe_dns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 1000


def pool(kernel: int, stride: int, pad: int = 0) -> nn.Module:
    return nn.MaxPool2d(kernel, stride, pad, ceil_mode=True)


def lrn() -> nn.Module:
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)


class Classifier(nn.Module):
    """A net that is one chain of modules."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.scores = nn.Sequential(*modules)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.scores(images), labels)


def lenet() -> nn.Module:
    return Classifier(
        nn.Conv2d(1, 20, 5),
        pool(2, 2),
        nn.Conv2d(20, 50, 5),
        pool(2, 2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(inplace=True),
        nn.Linear(500, 10),
    )


# AlexNet ----------------------------------------------------------------------------------------


def alexnet_bn() -> nn.Module:
    def normalized(module: nn.Conv2d | nn.Linear) -> list[nn.Module]:
        if isinstance(module, nn.Linear):
            return [module, nn.BatchNorm1d(module.out_features), nn.ReLU(inplace=True)]
        return [module, nn.BatchNorm2d(module.out_channels), nn.ReLU(inplace=True)]

    return Classifier(
        *normalized(nn.Conv2d(3, 96, 11, stride=4, padding=2)),
        pool(3, 2),
        *normalized(nn.Conv2d(96, 256, 5, padding=2)),
        pool(3, 2),
        *normalized(nn.Conv2d(256, 384, 3, padding=1)),
        *normalized(nn.Conv2d(384, 384, 3, padding=1)),
        *normalized(nn.Conv2d(384, 256, 3, padding=1)),
        pool(3, 2),
        nn.Flatten(),
        *normalized(nn.Linear(256 * 6 * 6, 4096)),
        nn.Dropout(0.5),
        *normalized(nn.Linear(4096, 4096)),
        nn.Dropout(0.5),
        nn.Linear(4096, CLASSES),
    )


def alexnet() -> nn.Module:
    return _two_towers(lambda: [lrn(), pool(3, 2)])


def caffenet() -> nn.Module:
    return _two_towers(lambda: [pool(3, 2), lrn()])


def _two_towers(reduced: Callable[[], list[nn.Module]]) -> nn.Module:
    """AlexNet, with what comes after the first two convolutions."""
    return Classifier(
        nn.Conv2d(3, 96, 11, stride=4),
        nn.ReLU(inplace=True),
        *reduced(),
        nn.Conv2d(96, 256, 5, padding=2, groups=2),
        nn.ReLU(inplace=True),
        *reduced(),
        nn.Conv2d(256, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 384, 3, padding=1, groups=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1, groups=2),
        nn.ReLU(inplace=True),
        pool(3, 2),
        nn.Flatten(),
        *dense_layers(256 * 6 * 6),
    )


def dense_layers(inputs: int) -> list[nn.Module]:
    """The end of CaffeNet and of VGG."""
    return [
        nn.Linear(inputs, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(4096, CLASSES),
    ]


# VGG --------------------------------------------------------------------------------------------


def vgg16() -> nn.Module:
    modules: list[nn.Module] = []
    channels = 3
    for depth, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(depth):
            modules += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        modules.append(pool(2, 2))
    return Classifier(*modules, nn.Flatten(), *dense_layers(512 * 7 * 7))


# ResNet -----------------------------------------------------------------------------------------


def normalized(
    inputs: int, width: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    convolution = nn.Conv2d(
        inputs, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    return [convolution, nn.BatchNorm2d(width)]


class Residual(nn.Module):
    """A branch beside a shortcut, which may be widened: to so many channels, with a stride."""

    def __init__(
        self, inputs: int, branch: list[nn.Module], widened: tuple[int, int] | None
    ) -> None:
        super().__init__()
        self.shortcut = nn.Sequential(
            *(normalized(inputs, widened[0], 1, widened[1]) if widened else ())
        )
        self.branch = nn.Sequential(*branch)

    def forward(self, values: Tensor) -> Tensor:
        return F.relu(self.shortcut(values) + self.branch(values), inplace=True)


def bottleneck(inputs: int, width: int, stride: int, *, widens: bool) -> nn.Module:
    branch = [
        *normalized(inputs, width, 1, stride),
        nn.ReLU(inplace=True),
        *normalized(width, width, 3),
        nn.ReLU(inplace=True),
        *normalized(width, 4 * width),
    ]
    return Residual(inputs, branch, (4 * width, stride) if widens else None)


def resnet20() -> nn.Module:
    modules = [*normalized(3, 16, 3), nn.ReLU(inplace=True)]
    channels = 16
    for width in (16, 32, 64):
        for _ in range(3):
            stride = width // channels
            branch = [
                *normalized(channels, width, 3, stride),
                nn.ReLU(inplace=True),
                *normalized(width, width, 3),
            ]
            modules.append(Residual(channels, branch, (width, stride) if stride > 1 else None))
            channels = width
    return Classifier(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def resnet50() -> nn.Module:
    modules = [
        nn.Conv2d(3, 64, 7, stride=2, padding=3),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        pool(3, 2),
    ]
    channels = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 0 else 1
            modules.append(bottleneck(channels, width, stride, widens=block == 0))
            channels = 4 * width
    return Classifier(*modules, nn.AvgPool2d(7), nn.Flatten(), nn.Linear(2048, CLASSES))


# GoogLeNet --------------------------------------------------------------------------------------


def convolve(inputs: int, width: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, width, kernel, stride=stride, padding=kernel // 2)
    return nn.Sequential(convolution, nn.ReLU(inplace=True))


class Inception(nn.Module):
    """Four branches side by side.

    The widths are those of the 1x1 convolution, of the reduction for 3x3, the 3x3, the reduction
    for 5x5, the 5x5, and of what follows the pooling.
    """

    def __init__(self, inputs: int, *widths: int) -> None:
        super().__init__()
        narrow, reduce3, wide3, reduce5, wide5, projected = widths
        self.width = narrow + wide3 + wide5 + projected
        self.branches = nn.ModuleList(
            [
                convolve(inputs, narrow),
                nn.Sequential(convolve(inputs, reduce3), convolve(reduce3, wide3, 3)),
                nn.Sequential(convolve(inputs, reduce5), convolve(reduce5, wide5, 5)),
                nn.Sequential(pool(3, 1, 1), convolve(inputs, projected)),
            ]
        )

    def forward(self, values: Tensor) -> Tensor:
        return torch.cat([branch(values) for branch in self.branches], 1)


def auxiliary(inputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.AvgPool2d(5, 3, ceil_mode=True),
        convolve(inputs, 128),
        nn.Flatten(),
        nn.Linear(128 * 4 * 4, 1024),
        nn.ReLU(inplace=True),
        nn.Dropout(0.7),
        nn.Linear(1024, CLASSES),
    )


class GoogLeNet(nn.Module):
    """With both auxiliary classifiers, which weigh 0.3 in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.below = nn.Sequential(
            convolve(3, 64, 7, 2),
            pool(3, 2),
            lrn(),
            convolve(64, 64),
            convolve(64, 192, 3),
            lrn(),
            pool(3, 2),
            Inception(192, 64, 96, 128, 16, 32, 32),
            Inception(256, 128, 128, 192, 32, 96, 64),
            pool(3, 2),
            Inception(480, 192, 96, 208, 16, 48, 64),
        )
        self.first = auxiliary(512)
        self.middle = nn.Sequential(
            Inception(512, 160, 112, 224, 24, 64, 64),
            Inception(512, 128, 128, 256, 24, 64, 64),
            Inception(512, 112, 144, 288, 32, 64, 64),
        )
        self.second = auxiliary(528)
        self.above = nn.Sequential(
            Inception(528, 256, 160, 320, 32, 128, 128),
            pool(3, 2),
            Inception(832, 256, 160, 320, 32, 128, 128),
            Inception(832, 384, 192, 384, 48, 128, 128),
            nn.AvgPool2d(7, 1),
            nn.Flatten(),
            nn.Dropout(0.4),
            nn.Linear(1024, CLASSES),
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        low = self.below(images)
        high = self.middle(low)
        first, second = self.first(low), self.second(high)
        loss = F.cross_entropy(self.above(high), labels)
        sides = F.cross_entropy(first, labels) + F.cross_entropy(second, labels)
        return loss + 0.3 * sides


# MobileNet --------------------------------------------------------------------------------------


def mobilenet_v1() -> nn.Module:
    def append(inputs: int, width: int, kernel: int, stride: int, groups: int = 1) -> None:
        modules.extend([*normalized(inputs, width, kernel, stride, groups), nn.ReLU(inplace=True)])

    modules: list[nn.Module] = []
    append(3, 32, 3, 2)
    channels = 32
    for width, stride in [
        *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
        *[(512, 1)] * 5,
        *((1024, 2), (1024, 1)),
    ]:
        append(channels, channels, 3, stride, groups=channels)
        append(channels, width, 1, 1)
        channels = width
    return Classifier(
        *modules, nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, CLASSES, 1), nn.Flatten()
    )


# SqueezeNet -------------------------------------------------------------------------------------


class Fire(nn.Module):
    """A 1x1 convolution, and on it two more side by side, of 1x1 and of 3x3, of one width."""

    def __init__(self, inputs: int, squeezed: int, width: int) -> None:
        super().__init__()
        self.squeeze = convolve(inputs, squeezed)
        self.narrow, self.wide = convolve(squeezed, width), convolve(squeezed, width, 3)

    def forward(self, values: Tensor) -> Tensor:
        squeezed = self.squeeze(values)
        return torch.cat([self.narrow(squeezed), self.wide(squeezed)], 1)


def squeezenet() -> nn.Module:
    modules: list[nn.Module] = [nn.Conv2d(3, 96, 7, stride=2), nn.ReLU(inplace=True), pool(3, 2)]
    channels = 96
    for number, (squeezed, width) in enumerate(
        ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256)), 2
    ):
        modules.append(Fire(channels, squeezed, width))
        channels = 2 * width
        if number in (4, 8):
            modules.append(pool(3, 2))
    return Classifier(
        *modules,
        nn.Dropout(0.5),
        nn.Conv2d(channels, CLASSES, 1, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


# Which there are --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plain:
    """How a net is built, and on what it is trained."""

    build: Callable[[], nn.Module]
    batch: int
    #: Channels, height and width of an image.
    image: tuple[int, int, int]
    classes: int = CLASSES


#: By the folder in models/.
NETS: dict[str, Plain] = {
    "lenet": Plain(lenet, 64, (1, 28, 28), 10),
    "alexnet": Plain(alexnet, 256, (3, 227, 227)),
    "alexnet_bn_dns": Plain(alexnet_bn, 256, (3, 224, 224)),
    "caffenet": Plain(caffenet, 256, (3, 227, 227)),
    "googlenet": Plain(GoogLeNet, 128, (3, 224, 224)),
    "mobilenet_v1": Plain(mobilenet_v1, 128, (3, 224, 224)),
    "resnet20": Plain(resnet20, 128, (3, 32, 32), 10),
    "resnet50": Plain(resnet50, 128, (3, 224, 224)),
    "squeezenet": Plain(squeezenet, 128, (3, 227, 227)),
    "vgg16": Plain(vgg16, 64, (3, 224, 224)),
}
