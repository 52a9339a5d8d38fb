"""Gradients from those of maxima, against PyTorch's in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("numba")

from caffe_dns.kernels.on_cpu import from_maxima

Pair = tuple[int, int]
#: Images, channels, outputs, the bottom's extents, the kernel, its stride, and of the pooling
#: kernel and stride: more images than are summed up at a time, windows that overlap, one output,
#: more short rows than are summed up at a time, a row of several pieces.
CASES = [
    (17, 3, 7, (9, 8), (3, 4), (1, 1), (2, 2), (2, 2)),
    (2, 5, 9, (11, 10), (2, 3), (2, 1), (3, 2), (2, 1)),
    (1, 4, 1, (6, 9), (1, 1), (1, 2), (2, 2), (3, 2)),
    (3, 2, 6, (5, 5), (5, 5), (1, 1), (1, 1), (1, 1)),
    (2, 9, 40, (12, 9), (2, 2), (1, 1), (6, 7), (2, 1)),
    (3, 1, 5, (12, 9), (8, 3), (1, 1), (2, 2), (2, 2)),
    (2, 67, 3, (6, 7), (2, 4), (1, 1), (2, 2), (2, 2)),
]


def draw(*shape: int, seed: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=torch.channels_last)


def places_in(maxima: Tensor, x: Tensor, stride: Pair, width: int) -> Tensor:
    """Where in memory the windows begin that these maxima are the sums of."""
    numbers = torch.arange(x.numel()).view(len(x), *x.shape[2:], x.shape[1])[..., 0]
    image = torch.arange(len(x)).view(-1, 1, 1, 1)
    found = numbers[image, maxima // width * stride[0], maxima % width * stride[1]].int()
    return found.contiguous(memory_format=torch.channels_last)


def check(found: Tensor | None, exact: Tensor | None) -> None:
    assert found is not None and exact is not None and found.shape == exact.shape
    error = (found.double() - exact).abs().max() / exact.abs().max()
    assert float(error) < 1e-6


@pytest.mark.parametrize("below", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_gradients(case: tuple[int, int, int, Pair, Pair, Pair, Pair, Pair], below: bool) -> None:
    images, channels, outputs, size, kernel, stride, window, window_stride = case
    x, w = draw(images, channels, *size, seed=1), draw(outputs, channels, *kernel, seed=2)
    exact_x, exact_w = (blob.double().requires_grad_() for blob in (x, w))
    whole = F.conv2d(exact_x, exact_w, None, stride)
    top, maxima = F.max_pool2d(whole, window, window_stride, return_indices=True)
    gradient = draw(*top.shape, seed=3)
    gradient[gradient.abs() < 0.2] = 0
    top.backward(gradient.double())
    places = from_maxima.places_of(maxima, x.shape, stride, whole.shape[3])
    assert torch.equal(places, places_in(maxima, x, stride, whole.shape[3]))
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(from_maxima.gradients(gradient, places, x, w, below=below))
    finally:
        torch.set_num_threads(threads)
    for result, along, of_bias in found:
        check(along, exact_w.grad)
        check(of_bias, gradient.double().sum((0, 2, 3)))
        assert along.stride() == w.stride()
        if below:
            check(result, exact_x.grad)
        assert (result is not None) == below
    for own, other in zip(*found, strict=True):
        assert own is None or torch.equal(own, other)  # whatever the number of threads


@pytest.mark.parametrize("channels", [1, 3, 20])
def test_what_is_not_finite_stays_in_its_window(channels: int) -> None:
    """As in Caffe, which multiplies matrices, with a column for each window (`im2col.cpp`)."""
    x, w = draw(2, channels, 9, 10, seed=1), draw(7, channels, 3, 5, seed=2)
    x[x.abs() < 0.3] = 0
    w[w.abs() < 0.3] = 0
    top, maxima = F.max_pool2d(F.conv2d(x, w), 2, return_indices=True)
    gradient = draw(*top.shape, seed=3)
    for (image, output, row, column), value in {
        (0, 1, 1, 2): torch.inf,
        (0, 5, 2, 0): -torch.inf,
        (1, 3, 0, 1): torch.nan,
    }.items():
        gradient[image, output, row, column] = value
    dense = torch.zeros(2, 7, 42).scatter_(2, maxima.flatten(2), gradient.flatten(2)).double()
    columns = F.unfold(x.double(), (3, 5))
    exact_w = sum(a @ b.t() for a, b in zip(dense, columns, strict=True))
    exact_x = F.fold(w.double().flatten(1).t() @ dense, (9, 10), (3, 5))
    places = places_in(maxima, x, (1, 1), 6)
    below, along, _ = from_maxima.gradients(gradient, places, x, w, below=True)
    for found, exact in ((below, exact_x), (along, exact_w)):
        assert found is not None and isinstance(exact, Tensor)
        exact = exact.view(found.shape)
        assert 0 < int(exact.isfinite().sum()) < exact.numel()
        torch.testing.assert_close(found, exact.float(), rtol=1e-5, atol=1e-5, equal_nan=True)
