"""The Embed layer: a learned vector for each whole number."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import Layer, Shape, layer_types
from caffe_dns.layers.checks import check_indices


@layer_types.register("Embed")
class Embed(Layer):
    """The rows of the weight that the bottom's entries name, plus a bias (`embed_layer.cpp`).

    A bottom of shape (...) makes a top of shape (..., num_output). blobs: the weight, of shape
    (input_dim, num_output), and with `bias_term` the bias, of shape (num_output,).
    """

    no_force_backward = (0,)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.embed_param
        for name in ("num_output", "input_dim"):
            if getattr(settings, name) < 1:
                raise self.error("must be given and positive", f"embed_param.{name}")
        shape = (settings.input_dim, settings.num_output)
        self.add_parameter(shape, settings.weight_filler, "weight")
        if settings.bias_term:
            self.add_parameter((settings.num_output,), settings.bias_filler, "bias")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return [(*bottom_shapes[0], self.param.embed_param.num_output)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        weight, *bias = self.blobs
        indices = bottoms[0].long()
        check_indices(self, indices, len(weight), "index")
        top = F.embedding(indices, weight)
        return top + bias[0] if bias else top
