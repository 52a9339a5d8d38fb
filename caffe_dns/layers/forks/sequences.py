"""What recurrent layers are told of sequences: ContinuationIndicator (DeepDetect)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from caffe_dns.layers.base import Layer, Shape, layer_types


@layer_types.register("ContinuationIndicator")
class ContinuationIndicator(Layer):
    """0 where a sequence begins, else 1, for sequences that all begin at step 0.

    Top: T x N, with `time_step` for T and the extent of the bottom's `axis` for N
    (`continuation_indicator_layer.cpp`). What the bottom holds does not count.
    """

    no_force_backward = (0,)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        settings, shape = self.param.continuation_indicator_param, bottom_shapes[0]
        if not settings.time_step:
            raise self.error(
                "must be positive, how many steps a sequence has",
                "continuation_indicator_param.time_step",
            )
        axis = self.axis(settings.axis, len(shape), "continuation_indicator_param.axis")
        return [(settings.time_step, shape[axis])]

    def forward(self, *bottoms: Tensor) -> Tensor:
        (shape,) = self.reshape([tuple(bottoms[0].shape)])
        top = bottoms[0].new_ones(shape)
        top[0] = 0
        return top
