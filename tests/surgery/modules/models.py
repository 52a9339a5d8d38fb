"""Small models as people write them in PyTorch, a problem for each, and a loop that trains one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut, as in torchvision's ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.downsample(x))


class ResNet(nn.Module):
    """[3, 8, 8] images, four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(BasicBlock(8, 8, 1), BasicBlock(8, 16, 2))
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(F.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


class LanguageModel(nn.Module):
    """A transformer block over 12 tokens of 16, whose output uses the embedding's weight."""

    def __init__(self, tokens: int = 16, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        inner = self.norm1(x)
        x = x + self.attention(inner, inner, inner, need_weights=False)[0]
        return self.head(x + self.mlp(self.norm2(x)))


def images() -> tuple[Tensor, Tensor]:
    """Images with one bright quarter, which is the class."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(48, 3, 8, 8, generator=generator) * 0.3
    classes = torch.arange(48) % 4
    for picture, quarter in zip(pictures, classes.tolist(), strict=True):
        row, column = 4 * (quarter // 2), 4 * (quarter % 2)
        picture[quarter % 3, row : row + 4, column : column + 4] += 1
    return pictures, classes


def sentences() -> tuple[Tensor, Tensor]:
    """Tokens that count up, and what comes next."""
    begins = torch.arange(32)[:, None] % 16
    tokens = (begins + torch.arange(12)) % 16
    return tokens, (tokens + 1) % 16


def tiny() -> Any:
    """A convolution and a linear layer in float64, for [2, 6, 6] images and three classes."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 16, 3)).double()


def tiny_batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    data = torch.randn(8, 2, 6, 6, dtype=torch.float64, generator=generator)
    return data, torch.randint(0, 3, (8,), generator=generator)


def train(
    model: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int,
    problem: tuple[Tensor, Tensor],
    after: Callable[[], None],
) -> float:
    """Train on one batch, and call `after` behind each step; returns the last loss."""
    data, wanted = problem
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(data).flatten(0, -2), wanted.flatten())
        loss.backward()
        optimizer.step()
        after()
    return loss.item()
