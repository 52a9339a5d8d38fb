"""The arithmetic in which recorded runs are computed is itself held to numpy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.arithmetic import RoundedOnce


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randn(*shape).astype(np.float32))


def test_sums_are_those_of_float64_rounded_once() -> None:
    left, right, bias = normal(7, 50), normal(50, 9, seed=1), normal(9, seed=2)
    exact = left.numpy().astype(np.float64) @ right.numpy() + bias.numpy()
    with RoundedOnce():
        product, total = torch.addmm(bias, left, right), left.sum()
    assert np.array_equal(product.numpy(), exact.astype(np.float32))
    assert total.item() == np.float32(left.numpy().astype(np.float64).sum())


def test_arguments_that_are_written_are_rounded_in_their_place() -> None:
    squares, values = normal(5).abs(), normal(5, seed=1)
    wide = squares.numpy().astype(np.float64)
    expected = wide + float(np.float32(0.05)) * values.numpy().astype(np.float64) ** 2
    with RoundedOnce():
        torch._foreach_addcmul_([squares], [values], [values], value=0.05)
    assert np.array_equal(squares.numpy(), expected.astype(np.float32))


def test_gradients_are_rounded_once() -> None:
    images, weight, gradient = normal(2, 3, 8, 8), normal(4, 3, 3, 3, seed=1), normal(2, 4, 6, 6)
    found = []
    for dtype in (torch.float32, torch.float64):
        bottom, kernel = (t.to(dtype, copy=True).requires_grad_() for t in (images, weight))
        with RoundedOnce():
            F.conv2d(bottom, kernel).backward(gradient.to(dtype))
        found.append([bottom.grad, kernel.grad])
    for rounded, exact in zip(*found, strict=True):
        assert rounded is not None and exact is not None
        assert torch.equal(rounded, exact.float())


@pytest.mark.parametrize("group", [1, 2])
def test_caffes_order_is_product_after_product(group: int) -> None:
    images, weight = normal(2, 4, 7, 6), normal(6, 4 // group, 3, 2, seed=1)
    padded = np.pad(images.numpy(), [(0, 0), (0, 0), (1, 1), (0, 0)])
    expected = np.zeros((2, 6, 4, 5), np.float32)
    for output in range(6):
        first = output // (6 // group) * weight.shape[1]
        for channel, row, column in np.ndindex(*weight.shape[1:]):
            seen = padded[:, first + channel, row : row + 7 : 2, column : column + 5]
            product = seen * weight.numpy()[output, channel, row, column]
            expected[:, output] = expected[:, output] + product
    with RoundedOnce(caffes_order=True):
        top = F.conv2d(images, weight.requires_grad_(), None, (2, 1), (1, 0), groups=group)
    assert np.array_equal(top.detach().numpy(), expected)


def test_caffes_order_adds_the_bias_last() -> None:
    left, weight, bias = normal(3, 20), normal(4, 20, seed=1).requires_grad_(), normal(4, seed=2)
    expected = np.zeros((3, 4), np.float32)
    for k in range(20):
        expected = expected + left.numpy()[:, k, None] * weight.detach().numpy()[:, k]
    with RoundedOnce(caffes_order=True):
        top = F.linear(left, weight, bias)
    assert np.array_equal(top.detach().numpy(), expected + bias.numpy())


def test_passes_without_gradients_take_no_order() -> None:
    left, weight = normal(30, 200), normal(40, 200, seed=1)
    with RoundedOnce(caffes_order=True), torch.no_grad():
        top = F.linear(left, weight, torch.zeros(40))
    exact = left.numpy().astype(np.float64) @ weight.numpy().T
    assert np.array_equal(top.numpy(), exact.astype(np.float32))


def test_the_order_of_a_sum_is_lost_in_its_rounding() -> None:
    """Float32 sums in two orders differ in most of these cases; rounded once, in none."""
    rows = normal(1000, 500)
    shuffled = rows[:, torch.randperm(500, generator=torch.Generator().manual_seed(0))]
    in_sequence = [array.numpy().cumsum(1, np.float32)[:, -1] for array in (rows, shuffled)]
    assert (in_sequence[0] != in_sequence[1]).mean() > 0.5
    with RoundedOnce():
        assert torch.equal(rows.sum(1), shuffled.sum(1))


def test_what_rounds_in_unknown_ways_is_refused() -> None:
    with RoundedOnce(), pytest.raises(NotImplementedError, match=r"aten\.erfinv"):
        torch.erfinv(torch.zeros(3))


def test_roots_are_rounded_right() -> None:
    """MKL, which PyTorch asks for the roots of many numbers, is off by one place now and then."""
    values = torch.rand(100_000, generator=torch.Generator().manual_seed(2))
    wanted = torch.from_numpy(np.sqrt(values.numpy()))  # as IEEE 754 has them
    with RoundedOnce():
        assert torch.equal(values.sqrt(), wanted)
        assert torch.equal(torch._foreach_sqrt([values])[0], wanted)
