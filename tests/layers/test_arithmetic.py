"""Layers that add, multiply and sum up: golden cases, gradients, ties, broadcasting and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caffe_dns.errors import CaffeError
from tests.layers.harness import (
    check_gradients,
    draw,
    make_layer,
    refused,
    run,
)
from tests.oracle import run_layer_case

GOLDEN = [
    "batch_reindex",
    "bias",
    "bias_2bottoms",
    "bias_axis",
    "eltwise_max",
    "eltwise_prod",
    "eltwise_sum",
    "reduction_asum",
    "reduction_mean",
    "reduction_sum",
    "reduction_sumsq",
    "scale",
    "scale_2bottoms",
    "scale_axis",
    "scale_bias",
    "tile",
]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_case(name: str) -> None:
    run_layer_case(name)


# Scale and Bias -------------------------------------------------------------------------------

BIAS = "bias_term: true bias_filler { type: 'gaussian' }"


@pytest.mark.parametrize(
    ("settings", "shapes", "blobs"),
    [
        ("", [(2, 3, 4, 5)], [(3,)]),
        ("axis: -2 num_axes: -1", [(2, 3, 4, 5)], [(4, 5)]),
        ("axis: 0 num_axes: -1", [(2, 3)], [(2, 3)]),
        ("num_axes: 0", [(2, 3, 4)], [()]),
        (f"axis: 1 num_axes: 2 {BIAS}", [(2, 3, 4, 5)], [(3, 4), (3, 4)]),
        (f"num_axes: 0 {BIAS}", [(2, 3)], [(), ()]),
        ("axis: 2", [(2, 3, 4, 5), (4, 5)], []),
        (f"axis: 0 {BIAS}", [(2, 3, 4), (2, 3)], [(2, 3)]),
        (f"axis: 1 {BIAS}", [(2, 3, 4), ()], [()]),
    ],
)
def test_scale(settings: str, shapes: list[tuple[int, ...]], blobs: list[tuple[int, ...]]) -> None:
    layer = make_layer(f"type: 'Scale' scale_param {{ {settings} }}", *shapes).double()
    assert [tuple(blob.shape) for blob in layer.blobs] == blobs
    bottoms = [draw(*shape, seed=i) for i, shape in enumerate(shapes)]
    operands = [*bottoms[1:], *(blob.detach() for blob in layer.blobs)]
    axis = layer.param.scale_param.axis % len(shapes[0])
    scale, bias = ([_spread(o, shapes[0], axis) for o in operands] + [np.float64(0)])[:2]
    np.testing.assert_allclose(run(layer, *bottoms)[0].detach(), bottoms[0].numpy() * scale + bias)
    check_gradients(layer, *bottoms)


@pytest.mark.parametrize(
    ("settings", "shapes", "blobs"),
    [
        ("filler { type: 'gaussian' }", [(2, 3, 4, 5)], [(3,)]),
        ("axis: -1 filler { type: 'gaussian' }", [(2, 3, 4)], [(4,)]),
        ("axis: 0 num_axes: 0", [(2, 3)], [()]),
        ("axis: 1", [(2, 3, 4, 5), (3, 4)], []),
        ("axis: 3", [(2, 3), ()], []),
    ],
)
def test_bias(settings: str, shapes: list[tuple[int, ...]], blobs: list[tuple[int, ...]]) -> None:
    layer = make_layer(f"type: 'Bias' bias_param {{ {settings} }}", *shapes).double()
    assert [tuple(blob.shape) for blob in layer.blobs] == blobs
    bottoms = [draw(*shape, seed=i) for i, shape in enumerate(shapes)]
    (operand,) = [*bottoms[1:], *(blob.detach() for blob in layer.blobs)]
    bias = _spread(operand, shapes[0], layer.param.bias_param.axis % len(shapes[0]))
    np.testing.assert_allclose(run(layer, *bottoms)[0].detach(), bottoms[0].numpy() + bias)
    check_gradients(layer, *bottoms)


def _spread(operand: torch.Tensor, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """The operand, repeated by explicit indices over a whole bottom."""
    values = np.empty(shape)
    for index in np.ndindex(*shape):
        values[index] = operand[index[axis : axis + operand.dim()]]
    return values


def test_default_fillers() -> None:
    layer = make_layer("type: 'Scale' scale_param { bias_term: true }", (2, 3, 4))
    assert [blob.tolist() for blob in layer.blobs] == [[1.0] * 3, [0.0] * 3]
    assert make_layer("type: 'Bias'", (2, 3)).blobs[0].tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("definition", "shapes", "part"),
    [
        ("type: 'Scale' scale_param { axis: 3 }", [(2, 3, 4)], "scale_param.axis: axis 3"),
        ("type: 'Scale' scale_param { num_axes: 3 }", [(2, 3, 4)], "scale_param.num_axes: is 3"),
        ("type: 'Scale' scale_param { num_axes: -2 }", [(2, 3, 4)], "num_axes: is -2"),
        ("type: 'Scale'", [(2, 3, 4), (4,)], "shape (4,) does not fit"),
        ("type: 'Scale'", [(2, 3), (3, 4)], "shape (3, 4) does not fit"),
        ("type: 'Bias' bias_param { axis: -3 }", [(2, 3)], "bias_param.axis: axis -3"),
        ("type: 'Bias' bias_param { num_axes: 2 }", [(2, 3)], "bias_param.num_axes: is 2"),
        ("type: 'Bias'", [(2, 3), (2,)], "shape (2,) does not fit"),
        ("type: 'Bias'", [(2, 3), (3,), (3,)], "takes 1 to 2 bottom"),
    ],
)
def test_operands_that_do_not_fit(
    definition: str, shapes: list[tuple[int, ...]], part: str
) -> None:
    assert part in refused(definition, *shapes)


# Eltwise --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        "operation: PROD",
        "operation: PROD stable_prod_grad: false",
        "",
        "coeff: 1 coeff: -1 coeff: 0.5",
        "operation: MAX",
        "operation: MAX coeff: 2 coeff: 3 coeff: 4",
    ],
)
def test_eltwise(settings: str) -> None:
    layer = make_layer(f"type: 'Eltwise' eltwise_param {{ {settings} }}", *[(2, 3, 4)] * 3)
    bottoms = [draw(2, 3, 4, seed=i) for i in range(3)]
    a, b, c = (bottom.numpy() for bottom in bottoms)
    expected = {"PROD": a * b * c, "MAX": np.maximum(np.maximum(a, b), c)}.get(
        settings.partition("operation: ")[2].split(" ")[0],
        a - b + 0.5 * c if settings else a + b + c,
    )
    np.testing.assert_allclose(run(layer, *bottoms)[0], expected, rtol=1e-12)
    check_gradients(layer, *bottoms)


@pytest.mark.parametrize(
    ("entries", "winner"),
    [
        ([1, 1, 0], 1),
        ([1, 1, 1], 1),
        ([2, 1, 2], 0),
        ([1, 2, 2], 1),
        ([1, 1, 2], 2),
        ([2, 1, 1], 0),
    ],
)
def test_maximum_gives_the_gradient_of_a_tie_to_one_bottom(entries: list[int], winner: int) -> None:
    layer = make_layer("type: 'Eltwise' eltwise_param { operation: MAX }", *[(1, 1)] * 3)
    bottoms = [torch.tensor([[float(entry)]], requires_grad=True) for entry in entries]
    run(layer, *bottoms)[0].sum().backward()
    gradients = [0.0 if bottom.grad is None else bottom.grad.item() for bottom in bottoms]
    assert gradients == [float(i == winner) for i in range(3)]


def test_product_with_a_zero_has_a_gradient() -> None:
    settings = "operation: PROD stable_prod_grad: false"
    layer = make_layer(f"type: 'Eltwise' eltwise_param {{ {settings} }}", (1, 1), (1, 1))
    zero, three = (torch.tensor([[value]], requires_grad=True) for value in (0.0, 3.0))
    run(layer, zero, three)[0].sum().backward()
    assert zero.grad is not None and zero.grad.item() == 3.0


@pytest.mark.parametrize(
    ("settings", "shapes", "part"),
    [
        ("coeff: 1", [(2, 3), (2, 3)], "eltwise_param.coeff: given 1 times"),
        ("operation: PROD coeff: 1 coeff: 2", [(2, 3), (2, 3)], "PROD takes no coefficients"),
        ("", [(2, 3), (2, 1)], "bottom 0 is (2, 3) and bottom 1 is (2, 1)"),
        ("", [(2, 3)], "takes at least 2 bottom"),
    ],
)
def test_wrong_eltwise(settings: str, shapes: list[tuple[int, ...]], part: str) -> None:
    assert part in refused(f"type: 'Eltwise' eltwise_param {{ {settings} }}", *shapes)


@pytest.mark.parametrize(
    ("definition", "bottoms"),
    [
        ("type: 'Scale'", 1),
        ("type: 'Scale' scale_param { bias_term: true }", 1),
        ("type: 'Bias'", 1),
        ("type: 'Eltwise'", 3),
        ("type: 'Eltwise' eltwise_param { operation: PROD }", 2),
        ("type: 'Eltwise' eltwise_param { operation: MAX }", 3),
    ],
)
def test_memory_format_is_kept(definition: str, bottoms: int) -> None:
    values = draw(2, 3, 4, 5).float().to(memory_format=torch.channels_last)
    top = run(make_layer(definition, *[(2, 3, 4, 5)] * bottoms), *[values] * bottoms)[0]
    assert top.is_contiguous(memory_format=torch.channels_last)


# Reduction, Tile and BatchReindex -------------------------------------------------------------


@pytest.mark.parametrize("operation", ["SUM", "ASUM", "SUMSQ", "MEAN"])
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_reduction(operation: str, axis: int) -> None:
    settings = f"operation: {operation} axis: {axis} coeff: -1.5"
    layer = make_layer(f"type: 'Reduction' reduction_param {{ {settings} }}", (2, 3, 4))
    bottom = draw(2, 3, 4)
    axis %= 3
    rows = bottom.numpy().reshape(*bottom.shape[:axis], -1)
    expected = {
        "SUM": rows.sum(-1),
        "ASUM": abs(rows).sum(-1),
        "SUMSQ": (rows**2).sum(-1),
        "MEAN": rows.mean(-1),
    }[operation]
    np.testing.assert_allclose(run(layer, bottom)[0], -1.5 * expected, rtol=1e-12)
    check_gradients(layer, bottom)


def test_sum_of_absolute_values_has_no_gradient_at_zero() -> None:
    layer = make_layer("type: 'Reduction' reduction_param { operation: ASUM }", (3,))
    bottom = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    run(layer, bottom)[0].backward()
    assert bottom.grad is not None and bottom.grad.tolist() == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_tile(axis: int) -> None:
    layer = make_layer(f"type: 'Tile' tile_param {{ axis: {axis} tiles: 3 }}", (2, 3, 4))
    bottom = draw(2, 3, 4)
    expected = np.concatenate([bottom.numpy()] * 3, axis)
    np.testing.assert_array_equal(run(layer, bottom)[0], expected)
    check_gradients(layer, bottom)


@pytest.mark.parametrize(
    ("definition", "shapes", "part"),
    [
        ("type: 'Tile'", [(2, 3)], "tile_param.tiles: must be given"),
        ("type: 'Tile' tile_param { tiles: -1 }", [(2, 3)], "tile_param.tiles: must be"),
        ("type: 'Tile' tile_param { tiles: 2 axis: 2 }", [(2, 3)], "tile_param.axis: axis 2"),
        ("type: 'Reduction' reduction_param { axis: 2 }", [(2, 3)], "reduction_param.axis"),
        ("type: 'Reduction'", [()], "reduction_param.axis: axis 0 is out of range"),
        ("type: 'BatchReindex'", [(2, 3), (2, 1)], "the indices exactly 1, not 2 and 2"),
    ],
)
def test_wrong_settings(definition: str, shapes: list[tuple[int, ...]], part: str) -> None:
    assert part in refused(definition, *shapes)


def test_batch_reindex_adds_up_gradients() -> None:
    layer = make_layer("type: 'BatchReindex'", (4, 3, 2), (5,))
    data, indices = draw(4, 3, 2).requires_grad_(), [1, 2, 1, 0, 1]
    (top,) = run(layer, data, torch.tensor(indices, dtype=torch.float64))
    np.testing.assert_array_equal(top.detach(), data.detach().numpy()[indices])
    gradient = draw(5, 3, 2, seed=1)
    top.backward(gradient)
    expected = np.zeros(data.shape)
    for item, index in enumerate(indices):
        expected[index] += gradient[item].numpy()
    assert data.grad is not None
    np.testing.assert_allclose(data.grad, expected, rtol=1e-12)


@pytest.mark.parametrize("index", [-1.0, 4.0])
def test_batch_reindex_out_of_range(index: float) -> None:
    layer = make_layer("type: 'BatchReindex'", (4, 2), (3,))
    with pytest.raises(CaffeError, match=f"index {index:.0f} is out of range; 0 to 3"):
        layer(torch.zeros(4, 2), torch.tensor([0.0, index, 1.0]))
