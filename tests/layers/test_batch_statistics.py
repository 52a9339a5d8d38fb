"""BatchNorm's statistics on a CPU against float64, however the blob lies in memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from caffe_dns.layers.batch_norm import BatchNorm
from caffe_dns.layers.batch_statistics import NormalizedRows, adds_up_rows, statistics
from tests.layers.build import make_layer

EPS = 1e-5
LAST = torch.channels_last
#: The first is the largest that the others' sums are like; some have rows that fit no rectangle.
SHAPES = [(128, 16, 32, 32), (9, 700, 9, 11), (25, 48, 19, 21), (4, 8200, 3, 45), (2, 3, 20, 20)]


def blob(shape: tuple[int, ...], mean: float, memory_format: torch.memory_format) -> Tensor:
    """Normal numbers of this mean, and another in every channel, of deviation 1."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(shape, generator=generator)
    values += mean * (1 + torch.rand(shape[1], generator=generator)).view(-1, 1, 1)
    return values.contiguous(memory_format=memory_format)


def expected(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and 1/std of each channel, in float64."""
    exact = values.double()
    return exact.mean((0, 2, 3)), (exact.var((0, 2, 3), correction=0) + EPS).rsqrt()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mean", [0.0, 1.0, 9.0, 1000.0])
def test_statistics_are_those_of_float64(shape: tuple[int, ...], mean: float) -> None:
    values = blob(shape, mean, LAST)
    assert adds_up_rows(values)
    mean_of, variance, inverse_std = (each.double() for each in statistics(values, EPS))
    exact_mean, exact = expected(values)
    torch.testing.assert_close(mean_of, exact_mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(inverse_std, exact, rtol=1e-6, atol=0)
    # The square's relative error is twice that of the root.
    torch.testing.assert_close(variance, exact**-2 - EPS, rtol=2e-6, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_layers_sum_up_statistics_of_float64(
    memory_format: torch.memory_format, mean: float
) -> None:
    values = blob(SHAPES[0], mean, memory_format)
    layer = make_layer('type: "BatchNorm" top: "t"', SHAPES[0], train=True)
    assert isinstance(layer, BatchNorm)
    top = layer(values)
    assert top.is_contiguous(memory_format=memory_format)
    exact_mean, inverse_std = expected(values)
    count = values.numel() // values.shape[1]
    variance = (inverse_std**-2 - EPS) * count / (count - 1)
    torch.testing.assert_close(layer.blobs[0].double(), exact_mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.blobs[1].double(), variance, rtol=2e-6, atol=0)
    exact = (values.double() - exact_mean.view(-1, 1, 1)) * inverse_std.view(-1, 1, 1)
    # A number of 1000 deviations has itself been rounded to 3e-5 of them.
    torch.testing.assert_close(top.double(), exact, rtol=0, atol=1e-6 + 2e-7 * mean)


@pytest.mark.parametrize("shape", [(1, 6), (1, 6, 1, 1), (1,)])
def test_one_number_is_its_own_mean_exactly(shape: tuple[int, ...]) -> None:
    """As there; what rounding would leave of x - mean, sqrt(eps) makes 300 times larger."""
    values = torch.linspace(0.3, 7.7, math.prod(shape)).view(shape).requires_grad_()
    layer = make_layer('type: "BatchNorm" top: "t"', shape, train=True)
    top = layer(values)
    top.square().sum().backward()
    assert not top.any()
    assert values.grad is not None and not values.grad.any()
    assert layer.blobs[0].equal(values.detach().flatten()) and not layer.blobs[1].any()
    assert layer.blobs[2].item() == 1


def test_gradients_are_those_of_float64() -> None:
    shape = (64, 8, 16, 16)
    values = blob(shape, 0.5, LAST).requires_grad_()
    factor, shift = torch.linspace(0.5, 2, 8).requires_grad_(), torch.zeros(8, requires_grad=True)
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(4)).contiguous(
        memory_format=LAST
    )
    NormalizedRows.apply(values, factor, shift, *statistics(values, EPS), EPS).backward(gradient)
    exact = [leaf.detach().double().requires_grad_() for leaf in (values, factor, shift)]
    torch.nn.functional.batch_norm(
        exact[0], None, None, exact[1], exact[2], True, eps=EPS
    ).backward(gradient.double())
    assert values.grad is not None and factor.grad is not None and shift.grad is not None
    assert exact[0].grad is not None and exact[1].grad is not None and exact[2].grad is not None
    torch.testing.assert_close(values.grad.double(), exact[0].grad, rtol=0, atol=2e-6)
    # Sums of 16384 numbers, of which each is about 1.
    torch.testing.assert_close(factor.grad.double(), exact[1].grad, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(shift.grad.double(), exact[2].grad, rtol=1e-5, atol=1e-3)


def test_where_pytorch_is_exact_it_is_left_to_it() -> None:
    wide = blob((16, 4, 16, 16), 0, torch.contiguous_format)
    assert not adds_up_rows(wide)
    assert not adds_up_rows(wide.contiguous(memory_format=LAST).double())
    assert not adds_up_rows(wide[:1].contiguous(memory_format=LAST))  # few rows
    assert not adds_up_rows(wide[:, :1])
    assert adds_up_rows(wide.contiguous(memory_format=LAST))
    assert adds_up_rows(torch.zeros(1000, 3))


def test_what_is_not_finite_stays_so() -> None:
    values = blob((16, 4, 16, 16), 0, LAST)
    values[3, 2, 1, 0] = float("nan")
    mean, variance, _ = statistics(values, EPS)
    assert mean.isnan().tolist() == variance.isnan().tolist() == [False, False, True, False]
