"""Batch normalisation and pooling in one against PyTorch in float64; interpreted without a GPU."""

from __future__ import annotations

import os
from importlib import import_module

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_dns.layers.pooling import Window, max_pool

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
layout = import_module("caffe_dns.kernels.layout")
normalized_pool = import_module("caffe_dns.kernels.normalized_pool")
Statistics = import_module("caffe_dns.kernels.channel_statistics").Statistics

WINDOWS = [
    Window((3, 3), (2, 2)),
    Window((2, 2), (2, 2), ceil=False),
    Window((2, 2), (1, 2), (1, 0)),
    Window((5, 3), (3, 2), (2, 1)),
    Window((1, 2), (2, 3)),
    Window((3, 3), (2, 2), ceil=False),
]
#: The least of blocks of channels, and of rows; fewer channels than any block has.
SHAPES = [(2, 96, 5, 7), (3, 6, 9, 8), (1, 130, 4, 4)]
EPS = 1e-3


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def arguments(x: Tensor, window: Window, relu: bool) -> list[object]:
    """What follows on x, factor and shift."""
    channels, size = x.shape[1], window.output_size((x.shape[2], x.shape[3]))
    kept = [torch.zeros(count, device=DEVICE) for count in (channels, channels, 1)]
    windows = (*window.kernel, *window.stride, *window.pad)
    bias = draw((channels,), 9).to(DEVICE)
    return [bias, Statistics(*kept, 0.5), EPS, relu, None, size, windows]


def reference(values: list[Tensor], window: Window, relu: bool) -> Tensor:
    x, *affine = values
    factor, shift = affine or (None, None)
    y = F.batch_norm(x, None, None, factor, shift, training=True, eps=EPS)
    return max_pool(F.relu(y) if relu else y, window)[0]


@pytest.mark.parametrize(
    ("shape", "window", "affine", "relu", "dtype"),
    [(SHAPES[0], window, True, True, torch.float32) for window in WINDOWS]
    + [(SHAPES[1], window, False, True, torch.float32) for window in WINDOWS[:2]]
    + [(SHAPES[2], WINDOWS[0], True, False, torch.float32)]
    + [(shape, WINDOWS[0], True, True, torch.bfloat16) for shape in SHAPES],
)
def test_against_float64(
    shape: tuple[int, ...], window: Window, affine: bool, relu: bool, dtype: torch.dtype
) -> None:
    channels = shape[1]
    x = (3 * draw(shape, 1) + draw((channels,), 2).view(-1, 1, 1)).to(dtype)
    # Some channels rise, some fall, and one is shut.
    factor = draw((channels,), 3)
    factor[1] = 0.0
    values = [x, factor, draw((channels,), 4)][: 3 if affine else 1]
    exact = [value.double().requires_grad_() for value in values]
    wanted = reference(exact, window, relu)
    upstream = draw(tuple(wanted.shape), 5).to(dtype)
    wanted.backward(upstream.double())

    values[0] = x.contiguous(memory_format=torch.channels_last)
    found_in = [value.to(DEVICE).requires_grad_() for value in values]
    rest = arguments(x, window, relu)
    assert normalized_pool.fits(found_in[0], rest[5], window.kernel, window.stride, window.pad)
    found = normalized_pool.NormalizedMaxPool.apply(*found_in, *[None] * (3 - len(found_in)), *rest)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.dtype == dtype
    found.backward(upstream.to(DEVICE))
    # Interpreted, bfloat16 is cut off, not rounded.
    tops = (1e-5, 1e-5) if dtype == torch.float32 else (2**-7, 1e-6)
    torch.testing.assert_close(found.double().cpu(), wanted, rtol=tops[0], atol=tops[1])
    for got, want in zip(found_in, exact, strict=True):
        assert got.grad is not None
        assert got.grad.stride() == got.stride()
        rounds = got.dtype == torch.bfloat16
        torch.testing.assert_close(
            got.grad.double().cpu(), want.grad, rtol=2**-7 if rounds else 1e-4, atol=1e-4
        )


def test_as_a_large_blob(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose sums are taken of tiles that are on their way to shared memory."""
    monkeypatch.setattr(layout, "LARGE", 1)
    test_against_float64(SHAPES[0], WINDOWS[0], True, True, torch.bfloat16)


def test_statistics_are_those_of_the_batch() -> None:
    x = draw((2, 40, 5, 6), 1).to(DEVICE).contiguous(memory_format=torch.channels_last)
    bias, statistics, *rest = arguments(x, WINDOWS[0], relu=True)
    assert isinstance(bias, Tensor)
    assert isinstance(statistics, Statistics)
    normalized_pool.NormalizedMaxPool.apply(x, None, None, bias, statistics, *rest)
    mean = x.double().mean((0, 2, 3)) + bias.double()
    torch.testing.assert_close(statistics.mean_sum.double(), mean, rtol=1e-5, atol=1e-5)
    variance = x.double().var((0, 2, 3))
    torch.testing.assert_close(statistics.variance_sum.double(), variance, rtol=1e-5, atol=1e-5)
    assert float(statistics.batches) == 1


def test_a_bias_before_it_has_a_gradient_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty_like", torch.ones_like)  # what memory may hold
    x = draw((2, 40, 5, 6), 1).to(DEVICE).contiguous(memory_format=torch.channels_last)
    bias, *rest = arguments(x, WINDOWS[0], relu=True)
    assert isinstance(bias, Tensor)
    top = normalized_pool.NormalizedMaxPool.apply(x, None, None, bias.requires_grad_(), *rest)
    (gradient,) = torch.autograd.grad(top.sum(), bias)
    assert torch.equal(gradient, torch.zeros_like(bias))


def test_nan_is_passed_on() -> None:
    x = torch.ones(1, 2, 4, 4, device=DEVICE).contiguous(memory_format=torch.channels_last)
    x[0, 1, 1, 1] = float("nan")
    rest = arguments(x, WINDOWS[1], relu=True)
    top = normalized_pool.NormalizedMaxPool.apply(x, None, None, *rest)
    assert top[0, 1].isnan().all()
    assert not top[0, 0].isnan().any()


def test_nothing_before_the_images_is_read() -> None:
    """Where a window begins with padding, and none of its pixels is larger than another."""
    window = WINDOWS[2]
    pixels = torch.full((4, 4, 5, 2), float("nan"), device=DEVICE)
    pixels[:2] = 7
    x = pixels[2:].permute(0, 3, 1, 2)
    level, shift = torch.zeros(2, device=DEVICE), torch.ones(2, device=DEVICE)
    rest = arguments(x, window, relu=True)
    assert normalized_pool.fits(x, rest[5], window.kernel, window.stride, window.pad)
    top = normalized_pool.NormalizedMaxPool.apply(x.requires_grad_(), level, shift, *rest)
    *_, chosen = top.grad_fn.saved_tensors
    assert top.isnan().all() and chosen.isnan().all()


@pytest.mark.parametrize(
    ("x", "window"),
    [
        (torch.zeros(2, 3, 4, 5), WINDOWS[0]),  # planes
        (torch.zeros(2, 3, 4, 8).contiguous(memory_format=torch.channels_last), Window((8, 8))),
        (torch.zeros(2, 3, 4, 8).contiguous(memory_format=torch.channels_last), Window((3, 3))),
        # The last window begins beyond the image.
        (
            torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
            Window((1, 1), (4, 4)),
        ),
    ],
)
def test_what_does_not_fit(x: Tensor, window: Window) -> None:
    size = window.output_size((x.shape[2], x.shape[3]))
    assert not normalized_pool.fits(x, size, window.kernel, window.stride, window.pad)
