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
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.device.memory_format import laid_out_as
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import count
from caffe_dns.layers.inner_product import BaseInnerProduct
from caffe_dns.layers.products import Linear, Product
from caffe_dns.layers.weight_gradients import DeferredWeightGradients, Then
from caffe_dns.net import Net
from caffe_dns.net.params import Param
from caffe_dns.parallel.averaging import GradientAverage
from caffe_dns.parallel.ranks import Ranks

#: Weights of at least this size are averaged by their factors.
LARGE = 1 << 20
#: Layers whose tops have a number of rows that is not known beforehand.
UNPREDICTABLE = ("Filter", "Python")


class Updater(Protocol):
    """Updates parameters, and a part of one from that part of its gradient; see UpdateRule."""

    @property
    def may_set_apart(self) -> bool: ...

    def set_apart(self, param: Param, part: Callable[[Tensor], Tensor]) -> Updater: ...

    def apply_to(self, gradients: list[Tensor]) -> None: ...


@dataclass
class _Begun:
    """A gradient whose factors are being sent."""

    product: Linear
    wait_for_gradient: Callable[[], Tensor]
    wait_for_bottom: Callable[[], Tensor]


@dataclass
class _Weight:
    """A weight that learns from the rows of all ranks."""

    tensor: Tensor
    rows: int
    #: Updates this rank's part; None if all ranks update the whole weight.
    updater: Updater | None
    begun: _Begun | None = None
    #: The gradient of this rank's part, from the passes so far.
    gradient: Tensor | None = None


class SufficientFactors(DeferredWeightGradients):
    """Computes the means over all ranks of the gradients of some weights.

    `rows` has the weights of inner products, and how many rows each multiplies. Of those in
    `updaters`, each rank computes and updates a part, while backward goes on, and gets the other
    parts from the other ranks.
    """

    with_biases = False

    def __init__(
        self, rows: Mapping[Param, int], ranks: Ranks, updaters: Mapping[Param, Updater]
    ) -> None:
        super().__init__()
        self._ranks = ranks
        self._weights = {
            id(param.tensor): _Weight(param.tensor, number, updaters.get(param))
            for param, number in rows.items()
        }
        on_gpu = any(param.tensor.is_cuda for param in rows)
        self._stream = torch.cuda.Stream() if on_gpu else None
        #: Tensors that the stream still reads.
        self._kept: list[_Begun] = []
        self._waits: list[Callable[[], Tensor]] = []

    def takes(self, weight: Tensor, work: int) -> bool:
        return id(weight) in self._weights

    def compute(self, product: Product, weight: Tensor, *inputs: Tensor) -> Then:
        assert isinstance(product, Linear)
        taken = self._weights[id(weight)]
        gradient, x = (rows.flatten(0, -2) for rows in inputs[:2])
        if len(x) != taken.rows:
            raise CaffeError(f"an inner product has {len(x)} rows to multiply, not {taken.rows}")
        waits = [self._ranks.start_gathering(rows) for rows in (gradient, x)]
        taken.begun = _Begun(product, *waits)
        early = self._stream is not None and self._is_last and taken.updater is not None
        return partial(self._finish_beside, taken) if early else None

    def join(self) -> None:
        for taken in self._weights.values():
            if taken.begun is not None:
                self._finish(taken)
        if self._stream is not None and self._waits:
            torch.cuda.current_stream().wait_stream(self._stream)
        for wait in self._waits:
            wait()
        self._waits.clear()
        self._kept.clear()
        super().join()

    def drop(self) -> None:
        super().drop()
        self._waits.clear()
        self._kept.clear()
        for taken in self._weights.values():
            taken.begun = taken.gradient = None

    def _finish_beside(self, taken: _Weight) -> None:
        """Finish on a stream beside that of backward."""
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._finish(taken)

    def _finish(self, taken: _Weight) -> None:
        """Compute a gradient from the rows of all ranks; after the last pass, update a part."""
        begun, taken.begun = taken.begun, None
        assert begun is not None
        self._kept.append(begun)
        gradient, bottom = begun.wait_for_gradient(), begun.wait_for_bottom()
        if taken.updater is None:
            self._bring(begun.product, taken.tensor, *self._factors(gradient, bottom), taken.tensor)
            return
        # The weight's rows are columns of one of the factors.
        if begun.product.transpose:
            bottom = self._ranks.part_of(bottom.t()).t()
        else:
            gradient = self._ranks.part_of(gradient.t()).t()
        weight = taken.tensor.detach()
        part = self._ranks.part_of(weight)
        found = begun.product.weight_gradient(*self._factors(gradient, bottom), part)
        found = laid_out_as(part, found)
        taken.gradient = found if taken.gradient is None else taken.gradient + found
        if self._is_last:
            taken.updater.apply_to([taken.gradient])
            taken.gradient = None
            self._waits.append(self._ranks.start_completing(weight))

    def _factors(self, gradient: Tensor, bottom: Tensor) -> tuple[Tensor, Tensor]:
        """The factors, scaled so that their product is the mean of all ranks' gradients."""
        return _ready_to_multiply(gradient, 1 / self._ranks.size), _ready_to_multiply(bottom)


def share_gradients(
    net: Net, ranks: Ranks, updater: Updater
) -> tuple[GradientAverage | None, SufficientFactors | None]:
    """What makes gradients those of all ranks: averages most, and computes the others.

    Of these, weights that each rank may update a part of are set apart from the `updater`. Between
    hosts, parts would be more to send than rows.
    """
    rows, in_parts = {}, {}
    may_part = updater.may_set_apart and ranks.are_near
    if ranks.size > 1 and ranks.are_alike:
        rows = _choose(net, ranks, may_part=may_part)
    average = ranks.average([param for param in net.learnable_params if param not in rows])
    if may_part:
        in_parts = {
            param: updater.set_apart(param, ranks.part_of)
            for param in rows
            if _has_parts(param, ranks)
        }
    return average, SufficientFactors(rows, ranks, in_parts) if rows else None


def _ready_to_multiply(rows: Tensor, factor: float = 1.0) -> Tensor:
    """`rows * factor`, in the layout that the product over rows reads fastest."""
    in_tf32 = rows.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    if in_tf32 and kernels.wanted(rows.device):
        from caffe_dns.kernels.columns import by_columns

        return by_columns(rows, factor)
    return rows if factor == 1 else rows * factor


def _choose(net: Net, ranks: Ranks, *, may_part: bool) -> dict[Param, int]:
    """The weights for which this is faster, of layers that do not share them, and their rows."""
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
        in_parts = may_part and _has_parts(param, ranks)
        if param.tensor.requires_grad and _pays(param.tensor, rows * ranks.size, in_parts):
            chosen[param] = rows
    return chosen


def _has_parts(param: Param, ranks: Ranks) -> bool:
    return len(param.tensor) % ranks.size == 0


def _pays(weight: Tensor, rows: int, in_parts: bool) -> bool:
    """Whether this many rows are small compared to the weight.

    They are followed by parts, half of what an average sends; without parts, every rank multiplies
    all rows.
    """
    most = weight.numel() if in_parts else weight.numel() // 2
    return weight.numel() >= LARGE and rows * sum(weight.shape) <= most
