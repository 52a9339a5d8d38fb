"""ConvLSTM against its equations, step by step and place by place, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_dns.layers import Layer
from tests.layers.forks.test_dense_block import convolved
from tests.layers.harness import check_gradients, draw, make_layer, refused, run
from tests.layers.test_recurrent import sigmoid

TIMES, STREAMS, CHANNELS, OUTPUTS, PLACES = 3, 2, 2, 2, (4, 5)
X = (TIMES, STREAMS, CHANNELS, *PLACES)
STATE = (1, STREAMS, OUTPUTS, *PLACES)
SHAPES = (X, (TIMES, STREAMS), STATE, STATE)
#: The second stream begins anew in the second step.
MARKS = torch.tensor([[1.0, 1], [1, 0], [1, 1]]).double()


def text(conv: str = "kernel_size: 3 pad: 2 dilation: 2", debug: str = "") -> str:
    return (
        f"type: 'ConvLSTM' recurrent_param {{ expose_hidden: true }} lstm_conv_param {{ "
        f"num_output: {OUTPUTS} {conv} }} lstm_debug_param {{ {debug} }}"
    )


def filled(definition: str) -> Layer:
    made = make_layer(definition, *SHAPES, tops=3).double()
    with torch.no_grad():
        for index, blob in enumerate(made.blobs):
            blob.copy_(0.5 * draw(*blob.shape, seed=1 + index))
    return made


def bottoms() -> list[Tensor]:
    return [draw(*X), MARKS, draw(*STATE, seed=20), draw(*STATE, seed=21)]


@pytest.mark.parametrize("hadamard", [True, False])
@pytest.mark.parametrize("dilation", [1, 2])
def test_steps(hadamard: bool, dilation: int) -> None:
    made = filled(
        text(
            f"kernel_size: 3 pad: {dilation} dilation: {dilation}",
            "" if hadamard else "disable_hadamard: true",
        )
    )
    assert len(made.blobs) == (6 if hadamard else 3)
    of_x, of_hidden, bias, *of_cell = (blob.detach().numpy() for blob in made.blobs)
    x, marks, first, first_cell = (bottom.numpy() for bottom in bottoms())
    top, last, last_cell = run(made, *bottoms())
    for stream in range(STREAMS):
        hidden, cell = first[0, stream], first_cell[0, stream]
        for time in range(TIMES):
            mark = marks[time, stream]
            gates = convolved(x[time, stream], of_x, dilation)
            gates = gates + convolved(hidden * mark, of_hidden, dilation) + bias[:, None, None]
            parts = gates.reshape(4, OUTPUTS, *PLACES).copy()
            for gate, weight in enumerate(of_cell):
                parts[gate] += weight * cell
            taken, forgot, shown = sigmoid(parts[0]), mark * sigmoid(parts[1]), sigmoid(parts[2])
            cell = forgot * cell + taken * np.tanh(parts[3])
            hidden = shown * np.tanh(cell)
            np.testing.assert_allclose(top[time, stream].detach(), hidden, rtol=1e-9)
        np.testing.assert_allclose(last[0, stream].detach(), hidden, rtol=1e-9)
        np.testing.assert_allclose(last_cell[0, stream].detach(), cell, rtol=1e-9)


def test_weights_of_the_cell_are_one_at_first() -> None:
    made = make_layer(text(), *SHAPES, tops=3)
    assert all((blob == 1).all() for blob in made.blobs[-3:])


def test_gradients() -> None:
    shapes = (2, 1, 1, 2, 2), (2, 1), (1, 1, 1, 2, 2), (1, 1, 1, 2, 2)
    small = text("kernel_size: 3 pad: 1").replace(f"num_output: {OUTPUTS}", "num_output: 1")
    made = make_layer(small, *shapes, tops=3).double()
    marks = torch.ones(2, 1).double()

    class Marked(torch.nn.Module):
        """The layer with its indicators given, which have no gradient."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = made

        def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.inner(x, marks, hidden, cell))

    given = [draw(*shapes[0]), draw(*shapes[2], seed=1), draw(*shapes[3], seed=2)]
    check_gradients(Marked(), *given)  # type: ignore[arg-type]


def test_what_does_not_fit() -> None:
    def complaint(definition: str, *shapes: tuple[int, ...]) -> str:
        return refused(definition, *(shapes or SHAPES), tops=3)

    assert "a pad of 0 does not keep" in complaint(text("kernel_size: 3"))
    assert "kernel_size: given 3 times; once" in complaint(text("kernel_size: [3, 3, 3]"))
    still = "kernel_size: 3 pad: 0 dilation: 0"
    assert "lstm_conv_param.dilation: must be at least 1" in complaint(text(still))
    assert "expose_hidden: true would be" in complaint(text().replace("true", "false", 1))
    assert "axis_hadamard: is not supported" in complaint(text(debug="axis_hadamard: 2"))
    assert "T x N x C x H x W" in complaint(text(), X[:4], *SHAPES[1:])
    assert "it has to be 3 x 2" in complaint(text(), X, (3, 3), STATE, STATE)
    assert "a state is" in complaint(text(), X, SHAPES[1], STATE, (1, 2, 3, 4, 5))
