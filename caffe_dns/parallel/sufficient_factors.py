"""Gradients of large inner products, from the numbers that all ranks multiply.

The gradient of such a weight is a product of two matrices with a row for each image: what the layer
has read, and the gradient of what it has written. For a batch of usual size these are far fewer
numbers than the weight has. So ranks exchange them instead of gradients, and each multiplies those
of all ranks by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import count
from caffe_dns.layers.inner_product import BaseInnerProduct
from caffe_dns.layers.weight_gradients import DeferredWeightGradients, Product
from caffe_dns.net import Net
from caffe_dns.net.params import Param
from caffe_dns.parallel.averaging import GradientAverage
from caffe_dns.parallel.ranks import Ranks

#: Numbers in a weight from which on it pays.
LARGE = 1 << 20
#: Layers of which nobody knows beforehand how many rows their tops have.
UNPREDICTABLE = ("Filter", "Python")


@dataclass
class _Begun:
    """A gradient whose factors are on their way."""

    product: Product
    weight: Tensor
    wait_for_gradient: Callable[[], Tensor]
    wait_for_bottom: Callable[[], Tensor]


class SufficientFactors(DeferredWeightGradients):
    """Computes the means over all ranks of the gradients of some weights.

    `rows` has the weights of inner products, and how many rows each multiplies.
    """

    with_biases = False

    def __init__(self, rows: Mapping[Param, int], ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks
        self._rows = {id(param.tensor): number for param, number in rows.items()}
        self._begun: list[_Begun] = []

    def takes(self, weight: Tensor, work: int) -> bool:
        return id(weight) in self._rows

    def compute(self, product: Product, weight: Tensor, *inputs: Tensor) -> None:
        gradient, x = (rows.flatten(0, -2) for rows in inputs[:2])
        expected = self._rows[id(weight)]
        if len(x) != expected:
            raise CaffeError(f"an inner product has {len(x)} rows to multiply, not {expected}")
        waits = [self._ranks.start_gathering(rows) for rows in (gradient, x)]
        self._begun.append(_Begun(product, weight, *waits))

    def join(self) -> None:
        for begun in self._begun:
            gradient = _ready_to_multiply(begun.wait_for_gradient(), 1 / self._ranks.size)
            bottom = _ready_to_multiply(begun.wait_for_bottom())
            self._bring(begun.product, begun.weight, gradient, bottom, begun.weight)
        super().join()

    def drop(self) -> None:
        super().drop()
        self._begun.clear()


def share_gradients(
    net: Net, ranks: Ranks
) -> tuple[GradientAverage | None, SufficientFactors | None]:
    """What makes gradients those of all ranks: averages most, and computes the others."""
    rows = _choose(net, ranks) if ranks.size > 1 and ranks.are_alike else {}
    average = ranks.average([param for param in net.learnable_params if param not in rows])
    return average, SufficientFactors(rows, ranks) if rows else None


def _ready_to_multiply(rows: Tensor, factor: float = 1.0) -> Tensor:
    """`rows * factor`, laid out as the product that adds up over rows reads them fastest."""
    in_tf32 = rows.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    if in_tf32 and kernels.wanted(rows.device):
        from caffe_dns.kernels.columns import by_columns

        return by_columns(rows, factor)
    return rows if factor == 1 else rows * factor


def _choose(net: Net, ranks: Ranks) -> dict[Param, int]:
    """The weights for which it pays, of layers that share them with no other, and their rows."""
    if any(step.layer.type in UNPREDICTABLE for step in net.steps):
        return {}
    users = Counter(id(blob) for step in net.steps for blob in step.layer.blobs)
    chosen = {}
    for step in net.steps:
        layer = step.layer
        if not isinstance(layer, BaseInnerProduct) or users[id(layer.blobs[0])] > 1:
            continue
        param = net.table.owner(layer, 0)
        rows = count(net.blob_shapes[step.bottoms[0]][: layer.first_axis])
        if param.tensor.requires_grad and _pays(param.tensor, rows * ranks.size):
            chosen[param] = rows
    return chosen


def _pays(weight: Tensor, rows: int) -> bool:
    """Whether an average would move at least twice as many numbers as so many rows have."""
    return weight.numel() >= LARGE and 2 * rows * sum(weight.shape) <= weight.numel()
