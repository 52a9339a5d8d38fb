"""SpatialTransformer against its definition, place by place in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.layers.harness import check_gradients, draw, make_layer, refused, run

SHAPE = (2, 3, 5, 6)
#: Near the identity, and one that turns, so that some places lie outside.
THETA = torch.tensor(
    [[0.917, 0.131, 0.073, -0.113, 1.051, -0.083], [0.503, -0.907, 0.217, 0.853, 0.457, 0.337]]
).double()


def slow(x: np.ndarray, theta: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The sum over all pixels of each, by how near it is along both axes."""
    num, channels, height, width = x.shape
    top = np.zeros((num, channels, rows, columns))
    for n, i, j in np.ndindex(num, rows, columns):
        place = np.array([2 * i / rows - 1, 2 * j / columns - 1, 1])
        y, z = (theta[n].reshape(2, 3) @ place + 1) / 2 * (height, width)
        for r in (math.floor(y), math.floor(y) + 1):
            for c in (math.floor(z), math.floor(z) + 1):
                if 0 <= r < height and 0 <= c < width:
                    top[n, :, i, j] += (1 - abs(y - r)) * (1 - abs(z - c)) * x[n, :, r, c]
    return top


@pytest.mark.parametrize(
    ("settings", "size"),
    [("", (5, 6)), ("output_H: 4", (4, 6)), ("output_H: 7 output_W: 3", (7, 3))],
)
def test_spatial_transformer(settings: str, size: tuple[int, int]) -> None:
    made = make_layer(f"type: 'SpatialTransformer' st_param {{ {settings} }}", SHAPE, (2, 6))
    x = draw(*SHAPE)
    (top,) = run(made, x, THETA)
    np.testing.assert_allclose(top, slow(x.numpy(), THETA.numpy(), *size), rtol=1e-9, atol=1e-12)
    check_gradients(made, x, THETA)


def test_the_identity() -> None:
    made = make_layer("type: 'SpatialTransformer'", SHAPE, (2, 6))
    x = draw(*SHAPE)
    same = torch.tensor([[1.0, 0, 0, 0, 1, 0]] * 2).double()
    torch.testing.assert_close(made(x, same), x)


def test_numbers_that_the_definition_gives() -> None:
    given = "theta_1_1: 0.5 theta_1_2: -0.25 theta_2_1: 0 theta_2_2: 0.75"
    made = make_layer(f"type: 'SpatialTransformer' st_param {{ {given} }}", SHAPE, (2, 2, 1))
    x, shift = draw(*SHAPE), torch.tensor([[0.13, -0.21], [0.4, 0.07]]).double()
    theta = np.array([[0.5, -0.25, a, 0, 0.75, b] for a, b in shift.tolist()])
    found = run(made, x, shift[..., None])[0]
    np.testing.assert_allclose(found, slow(x.numpy(), theta, 5, 6), rtol=1e-9, atol=1e-12)
    check_gradients(made, x, shift[..., None])


def test_images_without_a_gradient() -> None:
    made = make_layer("type: 'SpatialTransformer' st_param { to_compute_dU: false }", SHAPE, (2, 6))
    x, theta = draw(*SHAPE).requires_grad_(), THETA.clone().requires_grad_()
    made(x, theta).sum().backward()
    assert x.grad is None
    assert theta.grad is not None and theta.grad.abs().min() > 0


def test_what_it_refuses() -> None:
    text = "type: 'SpatialTransformer' st_param {{ {} }}"
    for settings, shapes, message in (
        ("transform_type: 'projective'", (SHAPE, (2, 6)), "is 'projective'; 'affine' would be"),
        ("sampler_type: 'nearest'", (SHAPE, (2, 6)), "is 'nearest'; 'bilinear' would be right"),
        ("output_W: 0", (SHAPE, (2, 6)), "output_W: must be at least 1"),
        ("theta_1_1: 1", (SHAPE, (2, 6)), "the map is (2, 6); 2 x 5 would be right for"),
        ("", (SHAPE, (3, 6)), "the map is (3, 6); 2 x 6 would be right for"),
        ("", (SHAPE[:3], (2, 6)), "the first bottom needs 4 axes, it has 3"),
    ):
        assert message in refused(text.format(settings), *shapes)
