"""Synopsys' layers for operators of TensorFlow and ONNX, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.layers.harness import check_gradients, draw, make_layer, refused, run


@pytest.mark.parametrize(
    ("settings", "shape", "top"),
    [
        ("axis: 1", (2, 1, 3, 1), (2, 3, 1)),
        ("axis: [-1, 1]", (2, 1, 3, 1), (2, 3)),
        ("", (1, 4, 1, 1), (4,)),
        ("", (2, 3), (2, 3)),
    ],
)
def test_squeeze(settings: str, shape: tuple[int, ...], top: tuple[int, ...]) -> None:
    made = make_layer(f"type: 'Squeeze' squeeze_param {{ {settings} }}", shape)
    x = draw(*shape)
    np.testing.assert_array_equal(run(made, x)[0], x.numpy().reshape(top))
    check_gradients(made, x)


def test_what_squeeze_refuses() -> None:
    text = "type: 'Squeeze' squeeze_param {{ axis: {} }}"
    assert "axis 1 of (2, 3, 1) has an extent of 3" in refused(text.format(1), (2, 3, 1))
    assert "axis 3 is out of range" in refused(text.format(3), (2, 3, 1))


@pytest.mark.parametrize("shapes", [((2, 3, 4, 1), (3, 1, 5)), ((4,), (2, 1)), ((2, 3), (2, 3))])
@pytest.mark.parametrize(("kind", "function"), [("Add", np.add), ("Mul", np.multiply)])
def test_broadcasting(kind: str, function: np.ufunc, shapes: list[tuple[int, ...]]) -> None:
    made = make_layer(f"type: '{kind}'", *shapes)
    x, y = draw(*shapes[0]), draw(*shapes[1], seed=1)
    np.testing.assert_array_equal(run(made, x, y)[0], function(x.numpy(), y.numpy()))
    check_gradients(made, x, y)


def test_what_does_not_fit() -> None:
    assert "(2, 3) and (4, 3) do not fit; equal extents" in refused("type: 'Add'", (2, 3), (4, 3))


def test_pad() -> None:
    text = "type: 'Pad' pad_param { paddings: [0, 1, 2, 0, 1, 3] constant_values: -0.5 }"
    made = make_layer(text, (2, 3, 4))
    x = draw(2, 3, 4)
    expected = np.pad(x, [(0, 1), (2, 0), (1, 3)], constant_values=-0.5)
    np.testing.assert_array_equal(run(made, x)[0], expected)
    check_gradients(made, x)
    assert "has 6 numbers; two for each axis of (2, 3)" in refused(text, (2, 3))


def slow_depth_to_space(x: np.ndarray, side: int, form: str) -> np.ndarray:
    """Each number of a top, N x C x H x W, from where the fork's loops take it."""
    num, channels, height, width = x.shape
    top = np.zeros((num, channels // side**2, height * side, width * side))
    for n, c, y, z in np.ndindex(*top.shape):
        row, column = y % side, z % side
        if form == "CRD":
            channel = (c * side + row) * side + column
        else:
            channel = c + (row * side + column) * top.shape[1]
        top[n, c, y, z] = x[n, channel, y // side, z // side]
    return top


@pytest.mark.parametrize("form", ["NHWC", "NCHW", "DCR", "CRD"])
@pytest.mark.parametrize("side", [1, 2, 3])
def test_depth_to_space(form: str, side: int) -> None:
    x = draw(2, 2 * side**2, 3, 2)
    expected = slow_depth_to_space(x.numpy(), side, form)
    if form == "NHWC":
        x, expected = x.permute(0, 2, 3, 1), expected.transpose(0, 2, 3, 1)
    settings = f"block_size: {side} data_format: '{form}'"
    made = make_layer(f"type: 'DepthToSpace' depth_to_space_param {{ {settings} }}", tuple(x.shape))
    np.testing.assert_array_equal(run(made, x)[0], expected)
    check_gradients(made, x)


def test_what_depth_to_space_refuses() -> None:
    text = "type: 'DepthToSpace' depth_to_space_param {{ {} }}"
    for settings, shape, message in (
        ("", (1, 2, 2, 4), "block_size: must be given and positive"),
        ("block_size: 2 data_format: 'NCWH'", (1, 4, 2, 4), "is 'NCWH'; known: NHWC, NCHW, DCR"),
        ("block_size: 2", (1, 4, 2, 3), "block_size^2 does not divide the 3 channels"),
        ("block_size: 2", (4, 2, 3), "the bottom needs 4 axes"),
    ):
        assert message in refused(text.format(settings), shape)


def slow_space_to_batch(
    x: np.ndarray, block: list[int], paddings: list[tuple[int, int]]
) -> np.ndarray:
    """For each place in a block, what lies there, as batches one behind the other."""
    rest = [(0, 0)] * (x.ndim - 1 - len(block))
    padded = np.pad(x, [(0, 0), *paddings, *rest])
    steps = [
        (slice(None), *(slice(o, None, b) for o, b in zip(place, block, strict=True)))
        for place in np.ndindex(*block)
    ]
    return np.concatenate([padded[step] for step in steps])


@pytest.mark.parametrize(
    ("shape", "block", "paddings"),
    [
        ((2, 3, 4, 5), [1, 2, 3], [(0, 0), (2, 0), (0, 1)]),
        ((3, 4, 2), [2], [(1, 1)]),
        ((1, 4, 6), [2, 3], [(0, 0), (0, 0)]),
    ],
)
def test_space_to_batch_and_back(
    shape: tuple[int, ...], block: list[int], paddings: list[tuple[int, int]]
) -> None:
    flat = [amount for pair in paddings for amount in pair]
    settings = f"block_shape: {block} paddings: {flat}"
    made = make_layer(f"type: 'SpaceToBatchND' space_to_batch_nd_param {{ {settings} }}", shape)
    x = draw(*shape)
    (top,) = run(made, x)
    np.testing.assert_array_equal(top, slow_space_to_batch(x.numpy(), block, paddings))
    check_gradients(made, x)
    settings = f"block_shape: {block} crops: {flat}"
    back = make_layer(
        f"type: 'BatchToSpaceND' batch_to_space_nd_param {{ {settings} }}", tuple(top.shape)
    )
    assert torch.equal(run(back, top)[0], x)
    check_gradients(back, draw(*top.shape))


def test_what_blocks_refuse() -> None:
    pair = "{} {{ block_shape: 2 {} }}"
    for kind, field, settings, shape, message in (
        ("SpaceToBatchND", "space_to_batch_nd_param", "", (2, 3), "has 0 numbers; two for each"),
        ("SpaceToBatchND", "space_to_batch_nd_param", "paddings: [0, 0]", (2, 3), "2 does not div"),
        ("SpaceToBatchND", "space_to_batch_nd_param", "paddings: [0, 0]", (2,), "is [2]; at least"),
        ("BatchToSpaceND", "batch_to_space_nd_param", "crops: [0, 0]", (3, 4), "do not divide the"),
        ("BatchToSpaceND", "batch_to_space_nd_param", "crops: [4, 4]", (2, 4), "nothing is left"),
    ):
        assert message in refused(f"type: '{kind}' {pair.format(field, settings)}", shape)
