"""Sequences: ContinuationIndicator (DeepDetect), Lstm (caffe-lstm, CTPN), Transpose and Reverse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import ALL_BOTTOMS, Layer, SameShape, Shape, count, layer_types
from caffe_dns.layers.checks import check_positive
from caffe_dns.layers.recurrent import KeepsStates, lstm_unit


@layer_types.register("ContinuationIndicator")
class ContinuationIndicator(Layer):
    """0 where a sequence begins, else 1, for sequences that all begin at step 0.

    Top: T x N, with `time_step` for T and the extent of the bottom's `axis` for N, or `batch_size`
    without a bottom (`continuation_indicator_layer.cpp` of DeepDetect and of xmfbit). What the
    bottom holds does not count.
    """

    bottoms = (0, 1)
    no_force_backward = (0,)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        settings = self.param.continuation_indicator_param
        if bool(settings.batch_size) == bool(bottom_shapes):
            raise self.error(
                "give either a bottom or how many sequences there are",
                "continuation_indicator_param.batch_size",
            )
        if not settings.time_step:
            raise self.error(
                "must be positive, how many steps a sequence has",
                "continuation_indicator_param.time_step",
            )
        if settings.batch_size:
            return [(settings.time_step, settings.batch_size)]
        (shape,) = bottom_shapes
        axis = self.axis(settings.axis, len(shape), "continuation_indicator_param.axis")
        return [(settings.time_step, shape[axis])]

    def forward(self, *bottoms: Tensor) -> Tensor:
        (shape,) = self.reshape([tuple(bottom.shape) for bottom in bottoms])
        like = bottoms[0] if bottoms else torch.empty(0, device=self.context.device)
        top = like.new_ones(shape)
        top[0] = 0
        return top


@layer_types.register("Lstm")
class Lstm(KeepsStates):
    """Long short-term memory, with the gates in the order input, forget, output, new values.

    Bottoms: steps and streams in one axis, (T * batch_size) x ..., or, with three axes and without
    `batch_size`, T x N x K, as in CTPN; and perhaps what is 0 where a sequence begins, T * N
    numbers: states go on from one pass to the next then, and begin at 0 else. Top: (T * batch_size)
    x num_output, or T x N x num_output. Blobs: the weights for what comes in and for the state, and
    a bias. As `lstm_layer.cpp`, but that the gradient of the state's weight is a derivative.
    """

    needs_numbers = ALL_BOTTOMS

    bottoms = (1, 2)
    no_force_backward = (1,)
    state_names = ("h", "c")

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings, shape = self.param.lstm_param, bottom_shapes[0]
        if settings.num_output < 1:
            raise self.error("must be given and positive", "lstm_param.num_output")
        check_positive(self, "lstm_param", ("batch_size",))
        if not shape:
            raise self.error("the bottom needs an axis of steps and streams, it has none", "bottom")
        self.num_output = settings.num_output
        self.by_streams = len(shape) == 3 and not settings.HasField("batch_size")
        self.num_inputs = count(tuple(shape[2 if self.by_streams else 1 :]))
        rows = 4 * self.num_output
        self.add_parameter((rows, self.num_inputs), settings.weight_filler, "weight")
        self.add_parameter((rows, self.num_output), settings.weight_filler, "hidden_weight")
        self.add_parameter((rows,), settings.bias_filler, "bias")
        self.add_states(self._extents(shape)[1])

    def _extents(self, shape: Shape) -> tuple[int, int]:
        """Steps and streams of a bottom."""
        if self.by_streams:
            return shape[0], shape[1]
        streams = self.param.lstm_param.batch_size
        return shape[0] // streams, streams

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = tuple(bottom_shapes[0])
        steps, streams = self._extents(shape)
        if count(shape) != steps * streams * self.num_inputs or not steps:
            raise self.error(
                f"{shape} is no number of steps of {streams} streams of {self.num_inputs}", "bottom"
            )
        if len(bottom_shapes) == 2 and count(bottom_shapes[1]) != steps * streams:
            raise self.error(f"{steps * streams} numbers say where sequences begin", "bottom")
        axes = (steps, streams) if self.by_streams else shape[:1]
        return [(*axes, self.num_output)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        (top,) = self.reshape([tuple(bottom.shape) for bottom in bottoms])
        steps, streams = self._extents(tuple(bottoms[0].shape))
        weight, hidden_weight, bias = self.blobs
        inputs = F.linear(bottoms[0].reshape(steps, streams, -1), weight, bias)
        output = cell = inputs.new_zeros(streams, self.num_output)
        goes_on = inputs.new_ones(steps, streams, 1)
        goes_on[0] = 0
        if len(bottoms) == 2:
            goes_on = (bottoms[1] != 0).to(inputs.dtype).view(steps, streams, 1)
            output, cell = self.last_states(streams)
        outputs = []
        for now, kept in zip(inputs, goes_on, strict=True):
            gates = self._limited(now + kept * F.linear(output, hidden_weight))
            cell, output = lstm_unit(cell, gates, kept)
            outputs.append(output)
        self.keep((output, cell))
        return torch.stack(outputs).view(top)

    def _limited(self, gates: Tensor) -> Tensor:
        """The gates, whose gradient is limited if the definition says so."""
        limit = self.param.lstm_param.clipping_threshold
        if limit > 0 and gates.requires_grad:
            gates.register_hook(lambda gradient: gradient.clamp(-limit, limit))
        return gates


@layer_types.register("Transpose")
class Transpose(Layer):
    """The bottom with its axes in the order `dim` (`transpose_layer.cpp`)."""

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape, order = bottom_shapes[0], list(self.param.transpose_param.dim)
        if sorted(order) != list(range(len(shape))):
            raise self.error(
                f"each of the {len(shape)} axes once would be right, not {order}",
                "transpose_param.dim",
            )
        return [tuple(shape[axis] for axis in order)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        return bottoms[0].permute(tuple(self.param.transpose_param.dim))


@layer_types.register("Reverse")
class Reverse(SameShape):
    """The bottom from its end to its beginning along `axis` (`reverse_layer.cpp`)."""

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        axes = len(bottom_shapes[0])
        self.reversed = self.axis(self.param.reverse_param.axis, axes, "reverse_param.axis")

    def forward(self, *bottoms: Tensor) -> Tensor:
        return bottoms[0].flip(self.reversed)
