"""Axpy, ShuffleChannel and Reorg against loops in float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests.layers.harness import check_gradients, draw, make_layer, refused, run


@pytest.mark.parametrize("factors", [(2, 3), (2, 3, 1, 1)])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4), (2, 3)])
def test_axpy(shape: tuple[int, ...], factors: tuple[int, ...]) -> None:
    made = make_layer("type: 'Axpy'", factors, shape, shape)
    a, x, y = draw(*factors), draw(*shape, seed=1), draw(*shape, seed=2)
    expected = np.einsum("nc,nc...->nc...", a.view(2, 3).numpy(), x.numpy()) + y.numpy()
    np.testing.assert_allclose(run(made, a, x, y)[0], expected, rtol=1e-12)
    check_gradients(made, a, x, y)


def test_what_axpy_refuses() -> None:
    shape = (2, 3, 4, 5)
    assert "the same shape would be right" in refused("type: 'Axpy'", (2, 3), shape, (2, 3, 4, 4))
    assert "one for each item and channel" in refused("type: 'Axpy'", (2, 3, 4, 5), shape, shape)


@pytest.mark.parametrize("group", [1, 2, 3, 6])
@pytest.mark.parametrize("shape", [(2, 6, 3, 4), (2, 6)])
def test_shuffle_channel(shape: tuple[int, ...], group: int) -> None:
    text = f"type: 'ShuffleChannel' shuffle_channel_param {{ group: {group} }}"
    made = make_layer(text, shape)
    x = draw(*shape)
    # The channel at place j of group i goes to place i of the j-th portion.
    expected = np.zeros(shape)
    for i in range(group):
        for j in range(6 // group):
            expected[:, j * group + i] = x[:, i * (6 // group) + j]
    np.testing.assert_array_equal(run(made, x)[0], expected)
    check_gradients(made, x)


def test_groups_that_do_not_fit() -> None:
    text = "type: 'ShuffleChannel' shuffle_channel_param { group: 4 }"
    assert "4 groups do not divide the channels of (2, 6)" in refused(text, (2, 6))


def darknet_reorg(x: np.ndarray, stride: int, reverse: bool) -> np.ndarray:
    """Every number by its index in memory; `reverse` writes where the other way reads."""
    num, channels, height, width = x.shape
    fewer = channels // stride**2
    flat, top = x.reshape(-1), np.zeros(x.size)
    for n, c, y, z in np.ndindex(*x.shape):
        small = z + width * (y + height * (c + channels * n))
        offset = c // fewer
        row, column = y * stride + offset // stride, z * stride + offset % stride
        place = row + height * stride * (c % fewer + fewer * n)
        large = column + width * stride * place
        if reverse:
            top[large] = flat[small]
        else:
            top[small] = flat[large]
    if reverse:
        return top.reshape(num, fewer, height * stride, width * stride)
    return top.reshape(num, channels * stride**2, height // stride, width // stride)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("stride", "shape"), [(2, (2, 8, 4, 6)), (3, (1, 9, 3, 6)), (1, (1, 2, 3, 4))]
)
def test_reorg(stride: int, shape: tuple[int, ...], reverse: bool) -> None:
    settings = f"stride: {stride} reverse: {str(reverse).lower()}"
    made = make_layer(f"type: 'Reorg' reorg_param {{ {settings} }}", shape)
    x = draw(*shape)
    np.testing.assert_array_equal(run(made, x)[0], darknet_reorg(x.numpy(), stride, reverse))
    check_gradients(made, x)


def test_what_reorg_refuses() -> None:
    text = "type: 'Reorg' reorg_param { stride: 2 }"
    assert "stride^2 does not divide the 6 channels" in refused(text, (1, 6, 4, 4))
    assert "does not divide 4 x 5 pixels" in refused(text, (1, 8, 4, 5))
    assert "must be given" in refused("type: 'Reorg'", (1, 8, 4, 4))


@pytest.mark.parametrize(("text", "step"), [("", (1, -1)), ("flip_height: true", (-1, -1))])
def test_flip(text: str, step: tuple[int, int]) -> None:
    x = draw(2, 3, 4, 5)
    made = make_layer(f"type: 'Flip' flip_param {{ {text} }}", (2, 3, 4, 5))
    np.testing.assert_array_equal(run(made, x)[0], x.numpy()[:, :, :: step[0], :: step[1]])
    assert "the bottom needs 4 axes" in refused("type: 'Flip'", (2, 3))


@pytest.mark.parametrize("kind", ["L1", "L2"])
def test_normalize_channels(kind: str) -> None:
    text = f"type: 'NormalizeChannels' normalize_param {{ normalize_type: '{kind}' %s }}"
    x = draw(2, 3, 4, 5)
    top, norms = run(make_layer(text % "", (2, 3, 4, 5), tops=2), x)
    values = x.numpy()
    expected = abs(values).sum(1) + 1e-6 if kind == "L1" else ((values**2).sum(1) + 1e-6) ** 0.5
    np.testing.assert_allclose(norms, expected[:, None], rtol=1e-12)
    np.testing.assert_allclose(top, values / expected[:, None], rtol=1e-12)
    check_gradients(make_layer(text % "bp_norm: true", (2, 3), tops=2), draw(2, 3))


def test_channel_scale() -> None:
    x, factors = draw(2, 3, 4, 5), draw(2, 4, 5, seed=1)
    made = make_layer("type: 'ChannelScale'", (2, 3, 4, 5), (2, 4, 5))
    (top,) = run(made, x, factors)
    np.testing.assert_allclose(top, x.numpy() * factors.numpy()[:, None], rtol=1e-12)
    check_gradients(make_layer("type: 'ChannelScale'", (2, 3), (2, 1)), draw(2, 3), draw(2, 1))
    assert "one for each item and place" in refused("type: 'ChannelScale'", (2, 3, 4), (2, 3))


def test_what_normalize_channels_refuses() -> None:
    text = "type: 'NormalizeChannels' normalize_param { %s }"
    assert "known: L1, L2" in refused(text % "normalize_type: 'L3'", (2, 3))
    assert "fix_gradient: is not supported" in refused(text % "fix_gradient: true", (2, 3))
    assert "the bottom needs 2 to 4 axes" in refused(text % "", (2,))
