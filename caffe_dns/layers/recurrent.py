"""Recurrent layers over sequences laid out as T timesteps x N streams: RNN, LSTM and LSTMUnit.

Caffe unrolls these into a net of small layers; here one layer loops over the timesteps, with the
same blobs in the same order (`recurrent_layer.cpp`, `rnn_layer.cpp`, `lstm_layer.cpp`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns import log
from caffe_dns.layers.base import Layer, Shape, count, layer_types, shape_text

#: One N x H tensor for each name in `Recurrent.state_names`.
State = tuple[Tensor, ...]


class KeepsStates(Layer):
    """A layer whose states, N x num_output each, can go on from one forward pass to the next.

    They are copied into buffers, which a CUDA graph that has recorded a pass finds again.
    """

    #: Caffe's names for the states.
    state_names: ClassVar[tuple[str, ...]]
    num_output: int

    def add_states(self, streams: int) -> None:
        """Create the states, zeros."""
        for name in self.state_names:
            state = torch.zeros(streams, self.num_output, device=self.context.device)
            self.register_buffer(f"last_{name}", state, persistent=False)

    def last_states(self, streams: int) -> State:
        """What the pass before has kept; zeros where it had another number of streams."""
        last = [getattr(self, f"last_{name}") for name in self.state_names]
        if last[0].shape[0] != streams:
            return tuple(values.new_zeros(streams, self.num_output) for values in last)
        # Copies, because `keep` writes while autograd still needs what was there.
        return tuple(values.clone() for values in last)

    @torch.no_grad()
    def keep(self, state: State) -> None:
        """Keep the states for the next pass."""
        for name, values in zip(self.state_names, state, strict=True):
            last = getattr(self, f"last_{name}")
            if last.shape == values.shape:
                last.copy_(values)
            else:
                setattr(self, f"last_{name}", values.detach().clone())


class Recurrent(KeepsStates):
    """What RNN and LSTM share; abstract, as in Caffe.

    Bottoms: x (T x N x ...), the sequence indicators (T x N; 0 where a sequence begins), perhaps a
    static input (N x ...), and with `expose_hidden` the first states (1 x N x H). Tops: the outputs
    (T x N x H) and with `expose_hidden` the last states. Without it, states go on from one forward
    pass to the next. No gradient passes through either kind of state.

    Blobs: weight and bias for x, weight for the static input if there is one, weight for the state.
    """

    bottoms = (2, None)
    tops = (1, None)
    no_force_backward = (1,)

    # Of the states, the first also enters the next linear transformation.
    #: Rows of the weights for each output.
    gates: ClassVar[int] = 1
    #: What Caffe's names of blobs have for what the gates are computed of: W_xh, W_xc.
    hidden_name: ClassVar[str]

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.recurrent_param
        self.num_output = settings.num_output
        if self.num_output < 1:
            raise self.error("must be given and positive", "recurrent_param.num_output")
        self.exposed = len(self.state_names) if settings.expose_hidden else 0
        self._check_recurrent_counts(len(bottom_shapes))
        self.has_static = len(bottom_shapes) > 2 + self.exposed
        self._check_shapes(bottom_shapes)
        timesteps, streams = bottom_shapes[0][:2]
        log.info(
            "Initializing recurrent layer: assuming input batch contains "
            f"{timesteps} timesteps of {streams} independent streams."
        )
        rows, hidden = self.gates * self.num_output, self.hidden_name
        inputs = count(bottom_shapes[0][2:])
        self.add_parameter((rows, inputs), settings.weight_filler, f"W_x{hidden}")
        self.add_parameter((rows,), settings.bias_filler, f"b_{hidden}")
        if self.has_static:
            inputs = count(bottom_shapes[2][1:])
            self.add_parameter((rows, inputs), settings.weight_filler, f"W_x{hidden}_static")
        self.add_parameter((rows, self.num_output), settings.weight_filler, f"W_h{hidden}")
        self.add_states(streams)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        self._check_shapes(bottom_shapes)
        timesteps, streams = bottom_shapes[0][:2]
        state = (1, streams, self.num_output)
        return [(timesteps, streams, self.num_output), *[state] * self.exposed]

    def forward(self, *bottoms: Tensor) -> Tensor | Sequence[Tensor]:
        inputs = self._transform(*bottoms[: 2 + self.has_static])
        weight = self.blobs[2 + self.has_static].t()
        state = self._first_state(bottoms[2 + self.has_static :], inputs.shape[1])
        outputs = []
        marks = bottoms[1].detach().unsqueeze(2).unbind()
        for t, (step_inputs, mark) in enumerate(zip(inputs.unbind(), marks, strict=True), 1):
            summed = torch.addmm(step_inputs, state[0] * mark, weight)
            state = self.step(summed, state, mark, t)
            outputs.append(state[0])
        top = self.output(torch.stack(outputs))
        if self.exposed:
            return (top, *(values.detach().unsqueeze(0) for values in state))
        self.keep(state)
        return top

    def step(self, summed: Tensor, state: State, mark: Tensor, t: int) -> State:
        """The states after timestep `t` (from 1) from the sum of all linear transformations.

        `summed` is N x gates * H, `mark` the timestep's sequence indicators, N x 1.
        """
        raise NotImplementedError

    def output(self, hidden: Tensor) -> Tensor:
        """The first top from the first state at all timesteps, T x N x H."""
        raise NotImplementedError

    def debug(self, layer: str, blob: str, values: Tensor) -> None:
        """With `debug_info`, log a mean absolute value as Caffe does for a layer of its own net."""
        if self.param.recurrent_param.debug_info:
            mean = log.number(float(values.detach().abs().mean()))
            log.info(f"    [Forward] Layer {self.name}_{layer}, top blob {blob} data: {mean}")

    def _transform(self, x: Tensor, marks: Tensor, static: Tensor | None = None) -> Tensor:
        """What the linear transformations of x and the static input add up to, T x N x rows."""
        blobs = self.blobs
        inputs = F.linear(x.flatten(2), blobs[0], blobs[1])
        self.debug("x_transform", f"W_x{self.hidden_name}_x", inputs)
        if static is None:
            return inputs
        added = F.linear(static.flatten(1), blobs[2])
        name = f"W_x{self.hidden_name}_x_static"
        self.debug(name, name, added)
        return inputs + added

    def _first_state(self, given: Sequence[Tensor], streams: int) -> State:
        # Caffe shares the data of exposed states with its inner net, but not their gradients.
        if given:
            return tuple(values.detach().squeeze(0) for values in given)
        return self.last_states(streams)

    def _check_recurrent_counts(self, num_bottoms: int) -> None:
        least = 2 + self.exposed
        if not least <= num_bottoms <= least + 1:
            raise self.error(
                f"type {self.type} takes {least} bottoms, or {least + 1} with a static input, "
                f"the definition gives {num_bottoms}",
                "recurrent_param.expose_hidden" if self.exposed else "bottom",
            )
        if self.num_tops != 1 + self.exposed:
            raise self.error(
                f"type {self.type} makes {1 + self.exposed} top(s), the definition names "
                f"{self.num_tops}",
                "recurrent_param.expose_hidden" if self.exposed else "top",
            )

    def _check_shapes(self, bottom_shapes: Sequence[Shape]) -> None:
        x, marks = bottom_shapes[:2]
        if len(x) < 3:
            raise self.error(f"the first is {shape_text(x)}; it has to be T x N x ...", "bottom")
        if tuple(marks) != tuple(x[:2]):
            raise self.error(
                f"the second is {shape_text(marks)}; it has to be {x[0]} x {x[1]}, an indicator "
                "for each timestep and stream",
                "bottom",
            )
        if self.has_static and (len(bottom_shapes[2]) < 2 or bottom_shapes[2][0] != x[1]):
            raise self.error(
                f"the static input is {shape_text(bottom_shapes[2])}; it has to be {x[1]} x ...",
                "bottom",
            )
        state = (1, x[1], self.num_output)
        for shape in bottom_shapes[2 + self.has_static :]:
            if tuple(shape) != state:
                raise self.error(
                    f"a state is {shape_text(shape)}; it has to be {shape_text(state)}", "bottom"
                )


@layer_types.register("RNN")
class RNN(Recurrent):
    """h = tanh(W_hh * h + W_xh * x + b_h) and, as output, tanh(W_ho * h + b_o).

    Two more blobs at the end: weight and bias of the output.
    """

    state_names = ("h",)
    hidden_name = "h"

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        super().build(bottom_shapes)
        settings = self.param.recurrent_param
        self.add_parameter((self.num_output, self.num_output), settings.weight_filler, "W_ho")
        self.add_parameter((self.num_output,), settings.bias_filler, "b_o")

    def step(self, summed: Tensor, state: State, mark: Tensor, t: int) -> State:
        hidden = summed.tanh()
        self.debug(f"h_input_sum_{t}", f"h_neuron_input_{t}", summed)
        self.debug(f"h_neuron_{t}", f"h_{t}", hidden)
        return (hidden,)

    def output(self, hidden: Tensor) -> Tensor:
        weight, bias = self.blobs[-2:]
        top = F.linear(hidden, weight, bias).tanh()
        self.debug("o_concat", "o", top)
        return top


@layer_types.register("LSTM")
class LSTM(Recurrent):
    """Long short-term memory with the gates input, forget, output and the candidate, in this order.

    The output is the hidden state.
    """

    state_names = ("h", "c")
    gates = 4
    hidden_name = "c"

    def step(self, summed: Tensor, state: State, mark: Tensor, t: int) -> State:
        cell, hidden = lstm_unit(state[1], summed, mark)
        self.debug(f"gate_input_{t}", f"gate_input_{t}", summed)
        self.debug(f"unit_{t}", f"c_{t}", cell)
        self.debug(f"unit_{t}", f"h_{t}", hidden)
        return hidden, cell

    def output(self, hidden: Tensor) -> Tensor:
        self.debug("h_concat", "h", hidden)
        return hidden


def lstm_unit(cell: Tensor, summed: Tensor, mark: Tensor) -> tuple[Tensor, Tensor]:
    """The next cell and hidden state; `cell` is ... x H, `summed` ... x 4H, `mark` ... x 1.

    For indicators other than 0 and 1 the forget gate's gradient is that of Caffe's GPU code, the
    true one; its CPU code differs (`lstm_unit_layer.cpp`, `.cu`).
    """
    pre_input, pre_forget, pre_output, candidate = summed.chunk(4, -1)
    cell = mark * pre_forget.sigmoid() * cell + pre_input.sigmoid() * candidate.tanh()
    return cell, pre_output.sigmoid() * cell.tanh()


@layer_types.register("LSTMUnit")
class LSTMUnit(Layer):
    """One timestep of an LSTM (`lstm_unit_layer.cpp`).

    Bottoms: the cell (1 x N x H), what enters the gates (1 x N x 4H) and the sequence indicators
    (1 x N). Tops: the next cell and hidden state.
    """

    bottoms = (3, 3)
    tops = (2, 2)
    no_force_backward = (2,)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        cell = bottom_shapes[0]
        if len(cell) != 3 or cell[0] != 1:
            raise self.error(f"the first is {shape_text(cell)}; it has to be 1 x N x H", "bottom")
        wanted = [(1, cell[1], 4 * cell[2]), (1, cell[1])]
        for name, shape, right in zip(("second", "third"), bottom_shapes[1:], wanted, strict=True):
            if tuple(shape) != right:
                raise self.error(
                    f"the {name} is {shape_text(shape)}; it has to be {shape_text(right)}", "bottom"
                )
        return [tuple(cell)] * 2

    def forward(self, *bottoms: Tensor) -> Sequence[Tensor]:
        cell, summed, marks = bottoms
        return lstm_unit(cell, summed, marks.detach().unsqueeze(2))
