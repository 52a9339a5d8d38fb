"""Layers that join, cut and renumber blobs: golden cases, views, inferred extents and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.layers.harness import (
    check_gradients,
    draw,
    make_layer,
    refused,
    run,
)
from tests.oracle import run_layer_case

GOLDEN = [
    "concat",
    "concat0",
    "crop",
    "crop_one",
    "filter",
    "flatten",
    "flatten_axes",
    "reshape",
    "reshape_axes",
    "silence",
    "slice",
    "slice_points",
    "split",
]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_case(name: str) -> None:
    run_layer_case(name)


# Concat and Slice -----------------------------------------------------------------------------


@pytest.mark.parametrize("settings", ["axis: 2", "axis: -1", "concat_dim: 2"])
def test_concat(settings: str) -> None:
    shapes = [(2, 3, 4), (2, 3, 1), (2, 3, 2)]
    layer = make_layer(f"type: 'Concat' concat_param {{ {settings} }}", *shapes)
    bottoms = [draw(*shape, seed=i) for i, shape in enumerate(shapes)]
    np.testing.assert_array_equal(run(layer, *bottoms)[0], np.concatenate(bottoms, 2))
    check_gradients(layer, *bottoms)


def test_concat_of_one_bottom_is_that_bottom() -> None:
    bottom = draw(2, 3)
    assert make_layer("type: 'Concat'", (2, 3))(bottom) is bottom


@pytest.mark.parametrize(
    ("settings", "tops", "extents"),
    [
        ("", 3, [2, 2, 2]),
        ("slice_dim: 1", 2, [3, 3]),
        ("axis: -2", 1, [6]),
        ("slice_point: 1 slice_point: 4", 3, [1, 3, 2]),
        ("slice_dim: 1 slice_point: 5", 2, [5, 1]),
    ],
)
def test_slice(settings: str, tops: int, extents: list[int]) -> None:
    layer = make_layer(f"type: 'Slice' slice_param {{ {settings} }}", (2, 6, 3), tops=tops)
    bottom = draw(2, 6, 3)
    results = run(layer, bottom)
    assert [top.shape[1] for top in results] == extents
    np.testing.assert_array_equal(np.concatenate(results, 1), bottom)
    check_gradients(layer, bottom)


@pytest.mark.parametrize(
    ("definition", "shapes", "tops", "part"),
    [
        ("type: 'Concat' concat_param { axis: 1 concat_dim: 1 }", [(2, 3)], 1, "not both"),
        ("type: 'Concat' concat_param { concat_dim: 2 }", [(2, 3)], 1, "concat_dim: axis 2"),
        ("type: 'Concat'", [(2, 3), (3, 3)], 1, "bottom 0 is (2, 3), bottom 1 (3, 3)"),
        ("type: 'Concat'", [(2, 3), (2, 3, 1)], 1, "bottom 1 (2, 3, 1)"),
        ("type: 'Slice' slice_param { axis: 1 slice_dim: 1 }", [(2, 3)], 3, "not both"),
        ("type: 'Slice'", [(2, 3)], 2, "2 tops do not evenly divide the extent 3"),
        ("type: 'Slice' slice_param { slice_point: 1 }", [(2, 3)], 3, "3 tops need 2"),
        ("type: 'Slice' slice_param { slice_point: 4 }", [(2, 3)], 2, "beyond the extent 3"),
        ("type: 'Slice' slice_param { slice_point: 0 }", [(2, 3)], 2, "above 0 and ascending"),
        (
            "type: 'Slice' slice_param { slice_point: 2 slice_point: 2 }",
            [(2, 3)],
            3,
            "above 0 and ascending",
        ),
    ],
)
def test_wrong_concat_and_slice(
    definition: str, shapes: list[tuple[int, ...]], tops: int, part: str
) -> None:
    assert part in refused(definition, *shapes, tops=tops)


# Split, Silence and Filter --------------------------------------------------------------------


def test_split_copies_nothing_and_keeps_gradients_apart() -> None:
    layer = make_layer("type: 'Split'", (2, 3, 4, 5), tops=2)
    bottom = draw(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    first, second = run(layer, bottom)
    assert first.data_ptr() == second.data_ptr() == bottom.data_ptr()
    assert first.is_contiguous(memory_format=torch.channels_last)
    for top in (first, second):
        top.retain_grad()
    (2 * first + 3 * second).sum().backward()
    for tensor, gradient in ((first, 2.0), (second, 3.0), (bottom, 5.0)):
        assert tensor.grad is not None and (tensor.grad == gradient).all()


def test_concat_keeps_the_memory_format() -> None:
    bottom = draw(2, 3, 4, 5).to(memory_format=torch.channels_last)
    top = run(make_layer("type: 'Concat'", (2, 3, 4, 5), (2, 3, 4, 5)), bottom, bottom)[0]
    assert top.is_contiguous(memory_format=torch.channels_last)


def test_silence_has_no_top() -> None:
    assert run(make_layer("type: 'Silence'", (2, 3), (4,), tops=0), draw(2, 3), draw(4)) == []
    assert "takes 0 top" in refused("type: 'Silence'", (2, 3))


def test_filter_gives_gradients_to_what_it_chooses() -> None:
    layer = make_layer("type: 'Filter'", (4, 3, 2), (4, 5), (4, 1), tops=2)
    data = [draw(4, 3, 2).requires_grad_(), draw(4, 5).requires_grad_()]
    tops = layer(*data, torch.tensor([[1.0], [0.0], [-2.0], [0.5]]))
    gradients = [draw(3, 3, 2, seed=1), draw(3, 5, seed=2)]
    torch.autograd.backward(tops, gradients)
    for bottom, top, gradient in zip(data, tops, gradients, strict=True):
        np.testing.assert_array_equal(top.detach(), bottom.detach().numpy()[[0, 2, 3]])
        expected = np.zeros(bottom.shape)
        expected[[0, 2, 3]] = gradient
        assert bottom.grad is not None
        np.testing.assert_array_equal(bottom.grad, expected)


def test_filter_that_chooses_nothing() -> None:
    layer = make_layer("type: 'Filter'", (2, 3), (2, 1))
    assert layer(draw(2, 3), torch.zeros(2, 1))[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("shapes", "tops", "part"),
    [
        ([(2, 3), (2,)], 2, "2 bottoms make 1 top(s), not 2"),
        ([(2, 3), (3,)], 1, "does not have the selector's 3 items"),
        ([(2, 3), (2, 3)], 1, "one entry per item, not (2, 3)"),
    ],
)
def test_wrong_filter(shapes: list[tuple[int, ...]], tops: int, part: str) -> None:
    assert part in refused("type: 'Filter'", *shapes, tops=tops)


# Flatten and Reshape --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ("", (2, 60)),
        ("axis: 0", (120,)),
        ("axis: 1 end_axis: 2", (2, 12, 5)),
        ("axis: -3 end_axis: -2", (2, 12, 5)),
        ("axis: 2 end_axis: 2", (2, 3, 4, 5)),
        ("axis: 2 end_axis: 1", (2, 3, 1, 4, 5)),
    ],
)
def test_flatten(settings: str, shape: tuple[int, ...]) -> None:
    layer = make_layer(f"type: 'Flatten' flatten_param {{ {settings} }}", (2, 3, 4, 5))
    bottom = draw(2, 3, 4, 5)
    np.testing.assert_array_equal(run(layer, bottom)[0], bottom.numpy().reshape(shape))


def test_flatten_counts_in_caffes_order_whatever_the_memory_format() -> None:
    bottom = draw(2, 3, 4, 5)
    layer = make_layer("type: 'Flatten'", (2, 3, 4, 5))
    top = run(layer, bottom.to(memory_format=torch.channels_last))[0]
    np.testing.assert_array_equal(top, bottom.numpy().reshape(2, 60))


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ("shape { dim: 0 dim: 0 dim: 2 dim: -1 }", (2, 3, 2, 4)),
        ("shape { dim: -1 }", (48,)),
        ("shape { dim: 0 dim: -1 dim: 2 }", (2, 12, 2)),
        ("shape { dim: 4 dim: 6 } axis: 1", (2, 4, 6)),
        ("shape { dim: 4 dim: 6 } axis: -3", (2, 4, 6)),
        ("shape { dim: 1 } axis: -1 num_axes: 0", (2, 3, 8, 1)),
        ("shape { dim: 1 dim: 1 } axis: 1 num_axes: 0", (2, 1, 1, 3, 8)),
        ("axis: 1 num_axes: 0", (2, 3, 8)),
        ("shape { dim: 0 dim: 4 dim: -1 } axis: 1", (2, 3, 4, 2)),
        ("shape { dim: 6 } axis: 0 num_axes: 2", (6, 8)),
    ],
)
def test_reshape(settings: str, shape: tuple[int, ...]) -> None:
    layer = make_layer(f"type: 'Reshape' reshape_param {{ {settings} }}", (2, 3, 8))
    bottom = draw(2, 3, 8)
    top = run(layer, bottom)[0]
    np.testing.assert_array_equal(top, bottom.numpy().reshape(shape))
    assert top.data_ptr() == bottom.data_ptr()
    check_gradients(layer, bottom)


@pytest.mark.parametrize(
    ("definition", "part"),
    [
        ("type: 'Reshape' reshape_param { shape { dim: -1 dim: -1 } }", "at most one -1"),
        ("type: 'Reshape' reshape_param { shape { dim: -2 } }", "shape: is [-2]"),
        ("type: 'Reshape' reshape_param { shape { dim: 5 dim: -1 } }", "product 5"),
        ("type: 'Reshape' reshape_param { shape { dim: 7 } }", "cannot become 7 (7)"),
        ("type: 'Reshape'", "a bottom of 2 3 8 (48) cannot become (1)"),
        (
            "type: 'Reshape' reshape_param { shape { dim: 2 dim: 24 dim: 1 dim: 0 } }",
            "no bottom axis 3 to copy",
        ),
        ("type: 'Reshape' reshape_param { axis: 4 }", "reshape_param.axis: axis 4"),
        ("type: 'Reshape' reshape_param { axis: 2 num_axes: 2 }", "num_axes: is 2; 0 to 1"),
        ("type: 'Reshape' reshape_param { num_axes: -2 }", "reshape_param.num_axes: is -2"),
        ("type: 'Reshape' bottom: 'x' top: 'x'", "cannot work in place"),
        ("type: 'Flatten' bottom: 'x' top: 'x'", "cannot work in place"),
        ("type: 'Split' bottom: 'x' top: 'x'", "cannot work in place"),
        ("type: 'Flatten' flatten_param { axis: 3 }", "flatten_param.axis: axis 3"),
        ("type: 'Flatten' flatten_param { axis: 2 end_axis: 0 }", "axis 0 lies before axis 2"),
    ],
)
def test_wrong_flatten_and_reshape(definition: str, part: str) -> None:
    assert part in refused(definition, (2, 3, 8))


# Crop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "window"),
    [
        ("", np.s_[:, :, :3, :4]),
        ("offset: 2", np.s_[:, :, 2:5, 2:6]),
        ("axis: 1 offset: 1 offset: 0 offset: 3", np.s_[:, 1:3, 0:3, 3:7]),
        ("axis: -1 offset: 3", np.s_[:, :, :, 3:7]),
        ("axis: 0", np.s_[:1, :2, :3, :4]),
    ],
)
def test_crop(settings: str, window: tuple[slice, ...]) -> None:
    layer = make_layer(f"type: 'Crop' crop_param {{ {settings} }}", (2, 3, 6, 7), (1, 2, 3, 4))
    data, size = draw(2, 3, 6, 7), draw(1, 2, 3, 4)
    np.testing.assert_array_equal(run(layer, data, size)[0], data.numpy()[window])
    check_gradients(layer, data, size)


@pytest.mark.parametrize(
    ("settings", "shapes", "part"),
    [
        (
            "offset: 4",
            [(2, 3, 6, 7), (2, 3, 3, 3)],
            "4 with size 3 is beyond the extent 6 of axis 2",
        ),
        ("offset: 1 offset: 1 offset: 1", [(2, 3, 6, 7), (2, 3, 3, 3)], "given 3 times"),
        ("axis: 4", [(2, 3, 6, 7), (2, 3, 3, 3)], "crop_param.axis: axis 4"),
        ("", [(2, 3, 6, 7), (2, 3, 3)], "the second bottom has 3 axes, the first 4"),
        ("", [(2, 3, 6, 7)], "takes 2 bottom"),
    ],
)
def test_wrong_crop(settings: str, shapes: list[tuple[int, ...]], part: str) -> None:
    assert part in refused(f"type: 'Crop' crop_param {{ {settings} }}", *shapes)
