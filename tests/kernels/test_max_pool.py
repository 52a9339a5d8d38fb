"""Maximum pooling in Triton against the Pooling layer's own; interpreted where there is no GPU."""

from __future__ import annotations

import os
from importlib import import_module

import pytest
import torch

from caffe_dns.layers.pooling import Window, max_pool

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
MaxPool = import_module("caffe_dns.kernels.max_pool").MaxPool

WINDOWS = [
    Window((3, 3), (2, 2)),
    Window((3, 2), (1, 2), (1, 0)),
    Window((2, 2), (2, 2), ceil=False),
    Window((5, 3), (3, 2), (2, 1)),
    Window((1, 2), (3, 3)),
    Window((3, 3), (2, 2), (2, 2)),
]
#: The last ones have no pixel.
EMPTY = Window((1, 1), (2, 4))


def draw(last: bool, dtype: torch.dtype) -> tuple[torch.Generator, torch.Tensor]:
    """Whole numbers, so that there are ties, and sums are exact; and what draws more.

    Two blocks, of rows, and of channels where they are innermost.
    """
    generator = torch.Generator().manual_seed(3)
    shape = (2, 70, 4, 5) if last else (2, 6, 7, 9)
    bottom = torch.randint(-3, 3, shape, generator=generator).to(DEVICE, dtype)
    return generator, bottom.contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("window", "dtype"),
    [(window, torch.float32) for window in WINDOWS]
    + [(window, torch.bfloat16) for window in WINDOWS[::3]],
)
def test_the_same_as_the_layer(window: Window, last: bool, dtype: torch.dtype) -> None:
    generator, bottom = draw(last, dtype)
    bottom.requires_grad_()
    height, width = bottom.shape[2:]
    size = window.output_size((height, width))
    found = MaxPool.apply(bottom, None, size, window.kernel, window.stride, window.pad, False)
    wanted = max_pool(bottom, window)[0]
    assert torch.equal(found, wanted)
    assert found.is_contiguous(memory_format=torch.channels_last) == last
    upstream = torch.randint(1, 5, wanted.shape, generator=generator).to(DEVICE, dtype)
    (expected,) = torch.autograd.grad(wanted, bottom, upstream)
    (gradient,) = torch.autograd.grad(found, bottom, upstream)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("window", "relu"), [*((window, True) for window in (*WINDOWS[:4], EMPTY)), (WINDOWS[1], False)]
)
def test_a_bias_and_a_relu_before(window: Window, last: bool, relu: bool) -> None:
    generator, bottom = draw(last, torch.float32)
    bias = torch.randint(-2, 3, bottom.shape[1:2], generator=generator)
    bias = bias.to(DEVICE, torch.float32)
    inputs = (bottom.requires_grad_(), bias.requires_grad_())
    height, width = bottom.shape[2:]
    size = window.output_size((height, width))
    found = MaxPool.apply(*inputs, size, window.kernel, window.stride, window.pad, relu)
    biased = bottom + bias.view(-1, 1, 1)
    wanted = max_pool(torch.relu(biased) if relu else biased, window)[0]
    assert torch.equal(found, wanted)
    upstream = torch.randint(1, 5, wanted.shape, generator=generator).to(DEVICE, torch.float32)
    for got, want in zip(
        torch.autograd.grad(found, inputs, upstream),
        torch.autograd.grad(wanted, inputs, upstream),
        strict=True,
    ):
        assert torch.equal(got, want)


def test_nan_is_passed_on() -> None:
    bottom = torch.tensor([[[[1.0, float("nan"), 2.0, 5.0]]]], device=DEVICE)
    top = MaxPool.apply(bottom, None, (1, 2), (1, 2), (1, 2), (0, 0), False)
    assert top[0, 0, 0].isnan().tolist() == [True, False]
    assert top[0, 0, 0, 1] == 5
