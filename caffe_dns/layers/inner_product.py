"""InnerProduct and CInnerProduct: a matrix times everything from `axis` on, plus a bias.

Restates `inner_product_layer.cpp` and, for CInnerProduct, yiwenguo's
`compress_inner_product_layer.cpp`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.layers import large_product
from caffe_dns.layers.base import Shape, count, layer_types
from caffe_dns.layers.masked import DeviationMasks, MagnitudeMasks, WeightedLayer
from caffe_dns.layers.products import FEW_OUTPUTS, FewOutputs, Linear
from caffe_dns.proto.caffe_pb2 import CInnerProductParameter, InnerProductParameter


class BaseInnerProduct(WeightedLayer):
    """Settings and shapes of inner products. The weight is [N, K], or [K, N] if `transpose`."""

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.inner_product_param
        if settings.num_output < 1:
            raise self.error("must be given and positive", "inner_product_param.num_output")
        self.num_output = settings.num_output
        self.transpose = settings.transpose
        shape = bottom_shapes[0]
        self.first_axis = self.axis(settings.axis, len(shape), "inner_product_param.axis")
        self.output_axis = self.first_axis
        self.num_inputs = count(tuple(shape[self.first_axis :]))
        weight_shape = (self.num_output, self.num_inputs)
        self.products = count(weight_shape) * count(tuple(shape[1 : self.first_axis]))
        if self.transpose:
            weight_shape = weight_shape[::-1]
            self.input_axis = 0
        self.add_weights(weight_shape, (self.num_output,), settings)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = tuple(bottom_shapes[0])
        inputs = count(shape[self.first_axis :])
        if inputs != self.num_inputs:
            raise self.error(f"the weight takes {self.num_inputs} inputs, the bottom has {inputs}")
        return [(*shape[: self.first_axis], self.num_output)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        return self.apply_to(bottoms[0], *self.effective(self.context.activations))

    def apply_to(self, bottom: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        flat = self._flattened(bottom.to(weight.dtype))
        kind = FewOutputs if self.num_output <= FEW_OUTPUTS else Linear
        apart = self.apply_apart(kind(self.transpose), flat, weight, bias)
        if apart is not None:
            return apart
        if flat.dim() > 1 and large_product.is_wanted(weight):
            return large_product.top(flat, weight, bias, Linear(self.transpose))
        return F.linear(flat, weight.t() if self.transpose else weight, bias)

    def _flattened(self, bottom: Tensor) -> Tensor:
        """The bottom as numbers of inputs, in the order of its axes."""
        innermost = (
            bottom.dim() == 4
            and bottom.is_contiguous(memory_format=torch.channels_last)
            and not bottom.is_contiguous()
        )
        if innermost and self.first_axis == 1 and kernels.suit(bottom):
            from caffe_dns.kernels.flatten import Flattened

            flat: Tensor = Flattened.apply(bottom)
            return flat
        return bottom.reshape(*bottom.shape[: self.first_axis], self.num_inputs)


@layer_types.register("InnerProduct")
class InnerProduct(DeviationMasks, BaseInnerProduct):
    """InnerProduct with a weight mask unless `sparsity_term: false`."""

    def mask_settings(self) -> InnerProductParameter:
        return self.param.inner_product_param


@layer_types.register("CInnerProduct")
class CInnerProduct(MagnitudeMasks, BaseInnerProduct):
    """InnerProduct with masks by magnitude on weight and bias (official surgery)."""

    # The fork's two layers differ here; it matters when training starts from a pruned model.
    measures_masked = False

    def mask_settings(self) -> CInnerProductParameter:
        return self.param.cinner_product_param
