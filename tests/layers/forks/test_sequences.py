"""Layers of sequences against their definitions, step by step, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.layers.harness import check_gradients, draw, make_layer, refused, run


@pytest.mark.parametrize(("axis", "sequences"), [(0, 2), (1, 4), (-1, 5)])
def test_continuation_indicator(axis: int, sequences: int) -> None:
    text = f"time_step: 3 axis: {axis}"
    made = make_layer(
        f"type: 'ContinuationIndicator' continuation_indicator_param {{ {text} }}", (2, 4, 5)
    )
    (top,) = run(made, draw(2, 4, 5))
    assert top.tolist() == [[0] * sequences, [1] * sequences, [1] * sequences]


def test_continuation_indicator_of_a_number_of_sequences() -> None:
    text = "type: 'ContinuationIndicator' continuation_indicator_param { %s }"
    (top,) = run(make_layer(text % "time_step: 3 batch_size: 2"))
    assert top.tolist() == [[0, 0], [1, 1], [1, 1]]
    assert "give either a bottom or how many" in refused(text % "time_step: 3")
    assert "give either" in refused(text % "time_step: 3 batch_size: 2", (2, 4))


def test_what_does_not_fit() -> None:
    text = "type: 'ContinuationIndicator' continuation_indicator_param { %s }"
    assert "time_step: must be positive" in refused(text % "", (2, 4))
    assert "axis: axis 2 is out of range" in refused(text % "time_step: 3 axis: 2", (2, 4))


def lstm(
    x: np.ndarray,
    begins: np.ndarray,
    blobs: list[np.ndarray],
    state: list[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """The outputs of each step and stream, [T, N, H]; `state` has the last output and cell."""
    weight, hidden_weight, bias = blobs
    size = hidden_weight.shape[1]
    top = np.zeros((*x.shape[:2], size))
    for step, stream in np.ndindex(*x.shape[:2]):
        output, cell = state[stream]
        gates = weight @ x[step, stream] + bias
        if begins[step, stream]:
            cell = np.zeros(size)
        else:
            gates = gates + hidden_weight @ output
        taken, forgot, shown = (
            1 / (1 + np.exp(-gates[i * size : (i + 1) * size])) for i in range(3)
        )
        cell = forgot * cell + taken * np.tanh(gates[3 * size :])
        top[step, stream] = shown * np.tanh(cell)
        state[stream] = top[step, stream], cell
    return top


@pytest.mark.parametrize("by_streams", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_lstm(by_streams: bool, told: bool) -> None:
    x = draw(2, 4, 3, 5)  # passes, steps, streams, inputs
    begins = torch.tensor(
        [[[1, 1, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]], [[0, 1, 0]] + [[0] * 3] * 3]
    )
    shape = (4, 3, 5) if by_streams else (12, 5)
    text = f"type: 'Lstm' lstm_param {{ num_output: 2 {'' if by_streams else 'batch_size: 3'} }}"
    made = make_layer(text, shape, *[(4, 3)] * told).double()
    blobs = [draw(*blob.shape, seed=1 + i) for i, blob in enumerate(made.blobs)]
    with torch.no_grad():
        for blob, values in zip(made.blobs, blobs, strict=True):
            blob.copy_(values)
    state = [(np.zeros(2), np.zeros(2)) for _ in range(3)]
    kept = dict(made.named_buffers())
    for inputs, starts in zip(x, begins, strict=True):
        if not told:
            starts = torch.zeros(4, 3)
            starts[0] = 1
        expected = lstm(inputs.numpy(), starts.numpy(), [each.numpy() for each in blobs], state)
        given = [inputs.reshape(shape), *[1.0 - starts.double()] * told]
        (top,) = run(made, *given)
        np.testing.assert_allclose(top.detach().reshape(4, 3, 2), expected, rtol=1e-10)
        last = [np.stack(each) for each in zip(*state, strict=True)]
        # In the same memory after each pass, where a recorded CUDA graph looks for them.
        for buffer, right in zip((kept["last_h"], kept["last_c"]), last, strict=True):
            np.testing.assert_allclose(buffer, right, rtol=1e-10)


def test_gradients_of_lstm() -> None:
    text = "type: 'Lstm' lstm_param { num_output: 2 batch_size: 3 %s }"
    check_gradients(make_layer(text % "", (9, 4)), draw(9, 4))
    made = make_layer(text % "clipping_threshold: 0.01", (3, 4)).double()
    with torch.no_grad():
        made.blobs[0].copy_(draw(8, 4))
    made(draw(3, 4))[0, 0].backward(torch.tensor(50.0).double())
    assert made.blobs[2].grad is not None
    # Of the one stream, the bias has the gradient of the gates: each of them at its limit, or 0.
    shares = made.blobs[2].grad.view(4, 2)[:, 0]
    assert shares.abs().tolist() == pytest.approx([0.01, 0, 0.01, 0.01])


def test_transpose_and_reverse() -> None:
    x = draw(2, 3, 4, 5)
    made = make_layer("type: 'Transpose' transpose_param { dim: [3, 2, 0, 1] }", (2, 3, 4, 5))
    np.testing.assert_array_equal(run(made, x)[0], x.numpy().transpose(3, 2, 0, 1))
    made = make_layer("type: 'Reverse' reverse_param { axis: 2 }", (2, 3, 4, 5))
    np.testing.assert_array_equal(run(made, x)[0], x.numpy()[:, :, ::-1])


def test_what_sequences_do_not_fit() -> None:
    assert "num_output: must be given" in refused("type: 'Lstm'", (4, 3))
    text = "type: 'Lstm' lstm_param { num_output: 2 batch_size: %d }"
    assert "is no number of steps of 3 streams" in refused(text % 3, (4, 3))
    assert "batch_size: must be positive" in refused(text % 0, (4, 3))
    assert "needs an axis of steps and streams" in refused(text % 2, ())
    assert "4 numbers say where" in refused(text % 2, (4, 3), (3,))
    assert "each of the 2 axes once" in refused("type: 'Transpose'", (4, 3))
    assert "axis 2 is out of range" in refused("type: 'Reverse' reverse_param { axis: 2 }", (4, 3))
