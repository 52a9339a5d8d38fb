"""2:4 on a GPU: layers whose products run on sparse Tensor Cores, which skip the zeros.

Of 4 neighbouring inputs of an output, at most 2 have a weight. The units read matrices in half
precision: nets compute in bfloat16.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns import log
from caffe_dns.errors import first_line
from caffe_dns.layers.base import Layer, Shape, add_bias
from caffe_dns.layers.convolution import BaseConvolution
from caffe_dns.layers.inner_product import BaseInnerProduct
from caffe_dns.layers.masked import WeightedLayer
from caffe_dns.net.fused import FusedLayers
from caffe_dns.net.net import Net
from caffe_dns.net.wiring import Step

#: What the units ask of rows and columns, of all their generations.
MULTIPLE = 64
#: Passes in a measurement, and how often it is made.
PASSES, ROUNDS = 20, 3
#: How far a product may be off, of the largest one: two roundings to bfloat16, and sums in float32.
TOLERANCE = 2**-7


@dataclass(frozen=True)
class Product:
    """What a layer multiplies, without its bias, by a matrix of outputs x inputs.

    `matrix` may be one of `torch.sparse.SparseSemiStructuredTensor`.
    """

    layer: WeightedLayer
    matrix: Tensor
    outputs: int
    bias: Tensor | None

    def without_bias(self, bottom: Tensor) -> tuple[Tensor, Tensor | None]:
        return self(bottom), self.bias

    def __call__(self, bottom: Tensor) -> Tensor:
        bottom = bottom.to(self.matrix.dtype)
        if isinstance(self.layer, BaseConvolution):
            down, right = self.layer.stride
            return self._product(bottom.permute(0, 2, 3, 1)[:, ::down, ::right]).permute(0, 3, 1, 2)
        return self._product(bottom.flatten(cast(BaseInnerProduct, self.layer).first_axis))

    def _product(self, items: Tensor) -> Tensor:
        """The outputs of some inputs, each the innermost axis."""
        rows = items.reshape(-1, items.shape[-1])
        if missing := self.matrix.shape[1] - rows.shape[1]:
            rows = F.pad(rows, (0, missing))
        return F.linear(rows, self.matrix)[:, : self.outputs].reshape(*items.shape[:-1], -1)


@dataclass(frozen=True)
class SparseLayer(FusedLayers):
    """A layer with a product of its own that is not part of a larger group (`FusedLayers`)."""

    step: Step

    @property
    def steps(self) -> list[Step]:
        return [self.step]

    def run(self, *bottoms: Tensor) -> Sequence[Tensor]:
        layer = cast(WeightedLayer, self.step.layer)
        top, bias = layer.without_bias(*bottoms)
        if bias is not None:
            top = add_bias(top, bias, layer.output_axis)
        return (top,)


def use_sparse_units(net: Net) -> list[SparseLayer]:
    """Let layers in the pattern 2:4 run on sparse Tensor Cores where that is faster.

    That is measured for a batch as `blob_shapes` has it. Returns the layers. See `use_sparse`.
    """
    found = []
    with torch.no_grad():
        for step in net.steps:
            if not _is_eligible(step, net.context.activations):
                continue
            layer = cast(WeightedLayer, step.layer)
            weight, bias = layer.effective(net.context.activations)
            matrix = weight.flatten(1)
            if not in_pattern(matrix):
                continue
            try:
                product = Product(layer, compress(filled_up(matrix)), len(matrix), bias)
                wins = _wins(product, weight, net.blob_shapes[step.bottoms[0]])
            except RuntimeError as error:
                # There are sizes that cuSPARSELt does not take, and it alone knows which.
                log.info(f"Layer {layer.name} stays dense: {first_line(error)}")
                continue
            if wins:
                layer.fixed_product = product.without_bias
                found.append(step)
    layers = {inner: _with_single(groups, found) for inner, groups in net.fusion.layers.items()}
    net.fusion = replace(net.fusion, layers=layers)
    names = ", ".join(step.layer.name for step in found)
    hint = "" if net.context.activations else " (2:4 runs in half precision: --precision bf16)"
    log.info(f"Sparse weights are faster in: {names or 'no layer'}{hint}")
    return [SparseLayer(step) for step in found]


def _with_single(
    groups: Mapping[Layer, FusedLayers], found: Sequence[Step]
) -> dict[Layer, FusedLayers]:
    """The groups, and each found layer that is in none of them as one of its own."""
    members = {step.layer for group in groups.values() for step in group.steps}
    single = {step.layer: SparseLayer(step) for step in found if step.layer not in members}
    return {**groups, **single}


def in_pattern(matrix: Tensor) -> bool:
    """Whether at most 2 of 4 neighbours in a row are not 0; the last of a row may be fewer."""
    groups = F.pad(matrix, (0, -matrix.shape[1] % 4)).unflatten(1, (-1, 4))
    return bool((groups.count_nonzero(2) <= 2).all())


def compress(matrix: Tensor) -> Tensor:
    """A matrix in half precision as the units read it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*SparseSemiStructuredTensor is in prototype")
        compressed: Tensor = torch.sparse.to_sparse_semi_structured(matrix.contiguous())
    # So the products come out in the order of memory that others want.
    compressed.fuse_transpose_cusparselt = True  # type: ignore[attr-defined]
    return compressed


def filled_up(matrix: Tensor) -> Tensor:
    """A matrix with zeros up to a size that the units take."""
    rows, columns = (-extent % MULTIPLE for extent in matrix.shape)
    return F.pad(matrix, (0, columns, 0, rows))


def _is_eligible(step: Step, dtype: torch.dtype | None) -> bool:
    """Whether a layer is no more than a matrix product in half precision.

    That are an InnerProduct and a convolution of 1x1.
    """
    layer = step.layer
    if dtype is None or (len(step.bottoms), len(step.tops)) != (1, 1) or any(step.loss_weights):
        return False
    if not isinstance(layer, WeightedLayer) or layer.input_axis != 1:
        return False
    if not isinstance(layer, BaseConvolution):
        return isinstance(layer, BaseInnerProduct)
    plain = layer.num_spatial_axes == 2 and layer.channel_axis == 1 and layer.group == 1
    return plain and set(layer.kernel) == {1} and not any((*layer.pad, *layer.beyond))


def _wins(sparse: Product, weight: Tensor, shape: Shape) -> bool:
    """Whether the sparse product is faster than the dense one of a weight, and as right."""
    layer, bottom = sparse.layer, torch.randn(shape, device=weight.device, dtype=weight.dtype)
    if bottom.dim() == 4:
        bottom = bottom.to(memory_format=torch.channels_last)

    def dense() -> Tensor:
        return layer.apply_to(bottom, weight, None)

    wanted = dense()
    off = float((sparse(bottom) - wanted).abs().max() / wanted.abs().max())
    if not off <= TOLERANCE:
        log.warning(f"The sparse product of layer {layer.name} is off by {off:.2g}: it is not used")
        return False
    return is_faster(lambda: sparse(bottom), dense)


def is_faster(work: Callable[[], object], other: Callable[[], object]) -> bool:
    return fastest(work) < fastest(other)


def fastest(work: Callable[[], object]) -> float:
    """Seconds of a pass on the GPU, the fastest of some rounds; the first passes do not count."""
    times = []
    for _ in range(1 + ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(PASSES):
            work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / PASSES)
    return min(times[1:])
