"""ConvLSTM: an LSTM whose states are feature maps (agethen's fork)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import ALL_BOTTOMS, Layer, Shape, count, layer_types
from caffe_dns.layers.recurrent import lstm_unit
from caffe_dns.layers.spatial import spatial_setting
from caffe_dns.proto.caffe_pb2 import FillerParameter

_CONV, _DEBUG = "lstm_conv_param", "lstm_debug_param"


@layer_types.register("ConvLSTM")
class ConvLSTM(Layer):
    """A step's gates are convolutions of its input and of the state, and the cell by weights.

    Bottoms: x, T x N x C x H x W; T x N indicators, 0 where a sequence begins; and the first state
    and cell, 1 x N x K x H x W. Tops: the states T x N x K x H x W, the last state, the last cell.
    Blobs: the filters of x and of the state, 4K x ..., and a bias, with the gates in the order
    input, forget, output, new values; then, unless `disable_hadamard`, for the first three gates
    what the cell before counts at each place, H x W, 1 at first (`conv_lstm_layer.cpp`). States
    have gradients.
    """

    needs_numbers = ALL_BOTTOMS
    bottoms = (4, 4)
    tops = (3, 3)
    no_force_backward = (1,)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings, debug = self.param.lstm_conv_param, self.param.lstm_debug_param
        if not self.param.recurrent_param.expose_hidden:
            raise self.error("true would be right", "recurrent_param.expose_hidden")
        for name, only in (("axis_hadamard", 3), ("num_axes_hadamard", 2)):
            if getattr(debug, name) != only:
                raise self.error(f"is not supported; {only} would do", f"{_DEBUG}.{name}")
        if settings.num_output < 1:
            raise self.error("must be given and positive", f"{_CONV}.num_output")
        shape = bottom_shapes[0]
        if len(shape) != 5:
            what = f"the first is {tuple(shape)}; it has to be T x N x C x H x W"
            raise self.error(what, "bottom")
        self.num_output, self.channels = settings.num_output, shape[2]
        self.kernel = spatial_setting(self, 2, "kernel_size", within=_CONV)
        self.pad = spatial_setting(self, 2, "pad", default=0, least=0, within=_CONV)
        self.dilation = spatial_setting(self, 2, "dilation", default=1, within=_CONV)
        for kernel, pad, dilation in zip(self.kernel, self.pad, self.dilation, strict=True):
            if 2 * pad != dilation * (kernel - 1):
                raise self.error(
                    f"with a kernel_size of {kernel} and a dilation of {dilation}, a pad of "
                    f"{pad} does not keep the bottom's extents",
                    f"{_CONV}.pad",
                )
        rows = 4 * self.num_output
        for inputs in (self.channels, self.num_output):
            self.add_parameter((rows, inputs, *self.kernel), settings.weight_filler)
        if settings.bias_term:
            self.add_parameter((rows,), settings.bias_filler)
        self.of_cell = 0 if debug.disable_hadamard else 3
        for _ in range(self.of_cell):
            self.add_parameter(tuple(shape[3:]), FillerParameter(value=1))

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape, marks, *states = map(tuple, bottom_shapes)
        if len(shape) != 5 or shape[2] != self.channels:
            what = f"the first is {shape}; T x N x {self.channels} x H x W would be right"
            raise self.error(what, "bottom")
        if count(marks) != shape[0] * shape[1]:
            what = f"the second is {marks}; it has to be {shape[0]} x {shape[1]}"
            raise self.error(what, "bottom")
        state = (1, shape[1], self.num_output, *shape[3:])
        for given in states:
            if given != state:
                raise self.error(f"a state is {given}; it has to be {state}", "bottom")
        if self.of_cell and tuple(self.blobs[-1].shape) != shape[3:]:
            what = f"has weights for {tuple(self.blobs[-1].shape)} places, not for {shape[3:]}"
            raise self.error(what, "bottom")
        return [(*shape[:2], *state[2:]), state, state]

    def forward(self, *bottoms: Tensor) -> Sequence[Tensor]:
        x, marks, hidden, cell = bottoms
        hidden, cell = hidden.squeeze(0), cell.squeeze(0)
        of_x, of_hidden, *others = self.blobs
        bias = others[0] if len(others) > self.of_cell else None
        inputs = self._convolved(x.flatten(0, 1), of_x).unflatten(0, x.shape[:2])
        outputs = []
        for now, mark in zip(inputs, marks.detach().reshape(*x.shape[:2], 1), strict=True):
            gates = now + self._convolved(hidden * mark[..., None, None], of_hidden, bias)
            if self.of_cell:
                seen = [cell * weight for weight in others[-3:]]
                gates = gates + torch.cat([*seen, torch.zeros_like(cell)], 1)
            flat_cell, flat_hidden = lstm_unit(cell.flatten(1), gates.flatten(1), mark)
            cell, hidden = flat_cell.view_as(cell), flat_hidden.view_as(cell)
            outputs.append(hidden)
        return torch.stack(outputs), hidden[None], cell[None]

    def _convolved(self, values: Tensor, filters: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(values, filters, bias, padding=self.pad, dilation=self.dilation)
