"""RNN, LSTM and LSTMUnit against recorded cases, a step-by-step float64 reference and gradcheck."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.layers import Layer
from tests.layers.build import make_layer
from tests.oracle import run_layer_case

TIMESTEPS, STREAMS, OUTPUTS = 4, 2, 3
X = (TIMESTEPS, STREAMS, 5)
MARKS = (TIMESTEPS, STREAMS)
STATE = (1, STREAMS, OUTPUTS)
STATIC = (STREAMS, 6)


@pytest.mark.parametrize("name", ["lstm", "lstm_hidden", "lstm_static", "lstm_unit", "rnn"])
def test_golden(name: str) -> None:
    run_layer_case(name)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def recurrent(kind: str, *shapes: tuple[int, ...], settings: str = "", tops: int = 1) -> Layer:
    names = " ".join(f'top: "t{index}"' for index in range(tops))
    text = (
        f'type: "{kind}" {names} recurrent_param {{ num_output: {OUTPUTS} {settings} '
        'weight_filler { type: "uniform" min: -0.6 max: 0.6 } '
        'bias_filler { type: "uniform" min: -0.3 max: 0.3 } }'
    )
    return make_layer(text, *shapes).double()


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def slow_layer(
    kind: str,
    layer: Layer,
    x: Tensor,
    marks: Tensor,
    static: Tensor | None,
    hidden: np.ndarray,
    cell: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All outputs, the last hidden state and the last cell."""
    blobs = [blob.detach().numpy() for blob in layer.blobs]
    weight, bias = blobs[:2]
    rest = blobs[2:]
    added = 0.0 if static is None else static.numpy().reshape(x.shape[1], -1) @ rest.pop(0).T
    outputs = []
    for t in range(x.shape[0]):
        mark = marks[t].numpy()[:, None]
        row = x[t].numpy().reshape(x.shape[1], -1)
        total = row @ weight.T + bias + added + (mark * hidden) @ rest[0].T
        if kind == "RNN":
            hidden = np.tanh(total)
            outputs.append(np.tanh(hidden @ rest[1].T + rest[2]))
        else:
            i, f, o, g = np.split(total, 4, axis=1)
            cell = mark * sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
            hidden = sigmoid(o) * np.tanh(cell)
            outputs.append(hidden)
    return np.stack(outputs), hidden, cell


@pytest.mark.parametrize("with_static", [True, False])
@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_states_go_on_from_pass_to_pass(kind: str, with_static: bool) -> None:
    shapes = [X, MARKS, STATIC] if with_static else [X, MARKS]
    layer = recurrent(kind, *shapes)
    rows = OUTPUTS * (4 if kind == "LSTM" else 1)
    expected_shapes = [(rows, 5), (rows,), (rows, OUTPUTS)]
    if with_static:
        expected_shapes.insert(2, (rows, 6))
    if kind == "RNN":
        expected_shapes += [(OUTPUTS, OUTPUTS), (OUTPUTS,)]
    assert [tuple(blob.shape) for blob in layer.blobs] == expected_shapes
    hidden = cell = np.zeros((STREAMS, OUTPUTS))
    static = draw(*STATIC, seed=3) if with_static else None
    for seed in (1, 2):
        x = draw(*X, seed=seed)
        marks = torch.tensor([[1, 1], [1, 0], [0, 1], [1, 1]]).double()
        expected, hidden, cell = slow_layer(kind, layer, x, marks, static, hidden, cell)
        top = layer(x, marks) if static is None else layer(x, marks, static)
        np.testing.assert_allclose(top.detach(), expected, rtol=1e-6, atol=1e-9)
        top.sum().backward()
    # Another number of streams starts with states of zeros.
    if static is None:
        zeros = np.zeros((1, OUTPUTS))
        expected, _, _ = slow_layer(kind, layer, x[:, :1], marks[:, :1], None, zeros, zeros)
        top = layer(x[:, :1], marks[:, :1])
        np.testing.assert_allclose(top.detach(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_exposed_states(kind: str) -> None:
    states = [STATE, STATE] if kind == "LSTM" else [STATE]
    layer = recurrent(
        kind, X, MARKS, STATIC, *states, settings="expose_hidden: true", tops=1 + len(states)
    )
    shapes = [X, MARKS, STATIC, *states]
    assert layer.reshape(shapes) == [(TIMESTEPS, STREAMS, OUTPUTS), *states]
    x, static = draw(*X), draw(*STATIC, seed=2)
    marks = torch.ones(MARKS).double()
    given = [draw(*STATE, seed=4 + index).requires_grad_() for index in range(len(states))]
    first = [values.detach().numpy()[0] for values in given]
    expected, hidden, cell = slow_layer(kind, layer, x, marks, static, first[0], first[-1])
    tops = layer(x, marks, static, *given)
    last = [hidden, cell][: len(states)]
    for top, values in zip(tops, [expected, *(s[None] for s in last)], strict=True):
        np.testing.assert_allclose(top.detach(), values, rtol=1e-6, atol=1e-9)
    # As in Caffe, gradients stop at both ends.
    assert [top.requires_grad for top in tops] == [True] + [False] * len(states)
    tops[0].sum().backward()
    assert all(values.grad is None for values in given)


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_gradients(kind: str) -> None:
    states = [STATE, STATE] if kind == "LSTM" else [STATE]
    # With exposed states, each of gradcheck's passes starts from the same ones.
    layer = recurrent(
        kind, X, MARKS, STATIC, *states, settings="expose_hidden: true", tops=1 + len(states)
    )
    marks = torch.tensor([[1, 0], [1, 1], [0, 1], [1, 1]]).double()
    first = [draw(*STATE, seed=4 + index) for index in range(len(states))]
    leaves = [draw(*X).requires_grad_(), draw(*STATIC, seed=2).requires_grad_(), *layer.blobs]
    assert torch.autograd.gradcheck(
        lambda x, static, *_: layer(x, marks, static, *first)[0], leaves
    )


def test_lstm_unit() -> None:
    layer = make_layer('type: "LSTMUnit" top: "c" top: "h"', (1, 3, 2), (1, 3, 8), (1, 3))
    assert layer.no_force_backward == (2,)
    cell, summed = draw(1, 3, 2), draw(1, 3, 8, seed=2)
    marks = torch.tensor([[1.0, 0.0, 0.5]]).double()
    i, f, o, g = np.split(summed.numpy(), 4, axis=2)
    expected = marks.numpy()[..., None] * sigmoid(f) * cell.numpy() + sigmoid(i) * np.tanh(g)
    tops = layer(cell, summed, marks)
    np.testing.assert_allclose(tops[0], expected, rtol=1e-12)
    np.testing.assert_allclose(tops[1], sigmoid(o) * np.tanh(expected), rtol=1e-12)
    leaves = (cell.requires_grad_(), summed.requires_grad_())
    assert torch.autograd.gradcheck(lambda c, s: layer(c, s, marks), leaves)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "RNN",
            ["x_transform, top blob W_xh_x", "h_neuron_2, top blob h_2", "o_concat, top blob o"],
        ),
        ("LSTM", ["x_transform, top blob W_xc_x", "unit_2, top blob c_2", "h_concat, top blob h"]),
    ],
)
def test_debug_info_logs_the_steps(kind: str, expected: list[str]) -> None:
    lines: list[str] = []
    layer = recurrent(kind, X, MARKS, settings="debug_info: true")
    log.set_sink(lines.append)
    try:
        top = layer(draw(*X), torch.ones(MARKS).double())
    finally:
        log.set_sink(None)
    for text in expected:
        assert sum(f"    [Forward] Layer layer_{text} data: " in line for line in lines) == 1
    assert lines[-1].endswith(" data: " + log.number(top.abs().mean().item()))


@pytest.mark.parametrize(
    ("shapes", "settings", "message"),
    [
        ([(4, 2), MARKS], "", "bottom: the first is 4 2"),
        ([X, (2, 4)], "", "bottom: the second is 2 4"),
        ([X, MARKS, (3, 6)], "", "bottom: the static input is 3 6"),
        ([X, MARKS, STATIC, STATE], "", "bottom: type LSTM takes 2 bottoms, or 3 with a static"),
        ([X, MARKS, STATE, STATE], "expose_hidden: true", "expose_hidden: type LSTM makes 3"),
        ([X, MARKS, STATE], "expose_hidden: true", "expose_hidden: type LSTM takes 4 bottoms"),
    ],
)
def test_wrong_definitions_are_named(
    shapes: list[tuple[int, ...]], settings: str, message: str
) -> None:
    with pytest.raises(CaffeError, match="layer 'layer': .*" + message):
        recurrent("LSTM", *shapes, settings=settings)


def test_a_missing_num_output_is_named() -> None:
    with pytest.raises(CaffeError, match=r"recurrent_param.num_output: must be given and positive"):
        make_layer('type: "RNN" top: "t"', X, MARKS)


def test_a_state_of_the_wrong_shape_is_named() -> None:
    with pytest.raises(CaffeError, match=r"bottom: a state is 1 2 4 \(8\); it has to be 1 2 3"):
        recurrent("RNN", X, MARKS, (1, 2, 4), settings="expose_hidden: true", tops=2)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 3, 2), (1, 3, 8), (1, 3)], "the first is 2 3 2"),
        ([(1, 3, 2), (1, 3, 6), (1, 3)], "the second is 1 3 6"),
        ([(1, 3, 2), (1, 3, 8), (3,)], "the third is 3 "),
    ],
)
def test_wrong_lstm_unit_bottoms_are_named(shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(CaffeError, match="layer 'layer': bottom: " + message):
        make_layer('type: "LSTMUnit" top: "c" top: "h"', *shapes)
