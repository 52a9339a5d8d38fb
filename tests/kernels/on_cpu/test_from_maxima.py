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
#: kernel and stride: more images than are summed up at a time, windows that overlap, one output.
CASES = [
    (17, 3, 7, (9, 8), (3, 4), (1, 1), (2, 2), (2, 2)),
    (2, 5, 9, (11, 10), (2, 3), (2, 1), (3, 2), (2, 1)),
    (1, 4, 1, (6, 9), (1, 1), (1, 2), (2, 2), (3, 2)),
    (3, 2, 6, (5, 5), (5, 5), (1, 1), (1, 1), (1, 1)),
    (2, 9, 40, (12, 9), (2, 2), (1, 1), (6, 7), (2, 1)),
]


def draw(*shape: int, seed: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=torch.channels_last)


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
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(
                from_maxima.gradients(gradient, maxima, x, w, stride, whole.shape[3], below=below)
            )
    finally:
        torch.set_num_threads(threads)
    for result, along in found:
        check(along, exact_w.grad)
        assert along.stride() == w.stride()
        if below:
            check(result, exact_x.grad)
        assert (result is not None) == below
    for own, other in zip(*found, strict=True):
        assert own is None or torch.equal(own, other)  # whatever the number of threads
