"""The maxima of a convolution's top, against PyTorch's in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("numba")

from caffe_dns.kernels.on_cpu import maxima
from tests.kernels.on_cpu.test_from_maxima import Pair, draw, places_in

#: Images, channels, outputs, the bottom's extents, the kernel and its stride: odd extents, several
#: blocks of outputs, one whole block, a single window.
CASES = [
    (5, 1, 20, (12, 11), (5, 5), (1, 1)),
    (2, 20, 50, (12, 12), (5, 5), (1, 1)),
    (3, 3, 131, (7, 8), (3, 2), (2, 1)),
    (1, 2, maxima.BLOCK, (6, 9), (1, 3), (1, 2)),
    (2, 4, 3, (3, 4), (3, 4), (1, 1)),
    (0, 2, 3, (5, 5), (2, 2), (1, 1)),
]


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_maxima(case: tuple[int, int, int, Pair, Pair, Pair], biased: bool) -> None:
    images, channels, outputs, size, kernel, stride = case
    x, w = draw(images, channels, *size, seed=1), draw(outputs, channels, *kernel, seed=2)
    bias = draw(1, 1, 1, outputs, seed=3).flatten() if biased else None
    whole = F.conv2d(x.double(), w.double(), None if bias is None else bias.double(), stride)
    height, width = whole.shape[2:]
    exact, index = F.max_pool2d(whole, 2, ceil_mode=True, return_indices=True)
    # What sums in float32 may be off by, in any order (Higham, Accuracy and Stability, 3.1).
    sizes = F.conv2d(x.double().abs(), w.double().abs(), None, stride)
    sizes = sizes if bias is None else sizes + bias.double().abs().view(-1, 1, 1)
    bound = (w[0].numel() + 1) * 2**-24 * F.max_pool2d(sizes, 2, ceil_mode=True)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(maxima.maxima(x, w, bias, stride, (height, width)))
    finally:
        torch.set_num_threads(threads)
    for top, places in found:
        assert bool(((top - exact).abs() <= bound).all())
        assert top.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(places, places_in(index, x, stride, width))
    assert torch.equal(found[0][0], found[1][0])  # whatever the number of threads


def test_equal_sums_and_nan() -> None:
    """The first of equal sums, and NaN before any number, as in PyTorch's pooling."""
    x = torch.tensor(
        [[3.0, 3, 0, 1], [3, 3, 1, 1], [1, torch.nan, 5, 0], [9, 2, torch.nan, torch.nan]]
    )
    x = x.view(1, 1, 4, 4)
    top, places = maxima.maxima(x, torch.ones(1, 1, 1, 1), None, (1, 1), (4, 4))
    exact, index = F.max_pool2d(x, 2, return_indices=True)
    torch.testing.assert_close(top, exact, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(places.long(), index)
    assert places.flatten().tolist() == [0, 3, 9, 15]
