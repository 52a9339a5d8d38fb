"""Local response normalisation across channels, in one pass forward and one backward.

PyTorch would write out squares, sums and powers, each in float32 and as large as the blob. Here
only the bottom is kept; backward recomputes the rest.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.layout import laid_out, layout_of, tile

#: The most neighbours that a kernel sums up: it reads their neighbours again for each in backward.
LARGEST_SIZE = 7
#: Numbers that a program has in hand at a time. Each takes the powers of all its neighbours' sums:
#: in backward, four times as many would not stay in registers.
TILE = 512
#: The same where neighbours lie side by side and are exchanged, and the most channels for that.
ROWS_TILE, LARGEST_ROW = 1024, 1024


@triton.jit
def _near(
    blob, rows, channels, num_rows, num_channels, plane, LAST: tl.constexpr, OFFSET: tl.constexpr
):
    """A tile in float32, so many channels further on, zeros for channels that are not there.

    Places are counted from those of the tile itself, so that whoever asks twice gets one read.
    """
    _, where = tile(rows, channels, num_rows, num_channels, plane, LAST)
    inside = (rows < num_rows) & (channels + OFFSET >= 0) & (channels + OFFSET < num_channels)
    step = OFFSET if LAST else OFFSET * plane
    return tl.load(blob + (where + step), mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _scale(
    blob,
    rows,
    channels,
    share,
    k,
    num_rows,
    num_channels,
    plane,
    LAST: tl.constexpr,
    SIZE: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """k + share * sum of the squares around the channels so many further on; 1 beyond the blob."""
    x = _near(blob, rows, channels, num_rows, num_channels, plane, LAST, OFFSET - SIZE // 2)
    squares = x * x
    for step in tl.static_range(1, SIZE):
        x = _near(
            blob, rows, channels, num_rows, num_channels, plane, LAST, OFFSET - SIZE // 2 + step
        )
        squares += x * x
    inside = (rows < num_rows) & (channels + OFFSET >= 0) & (channels + OFFSET < num_channels)
    return tl.where(inside, k + share * squares, 1.0)


@triton.jit
def _power(base, exponent):
    return tl.exp2(tl.log2(base) * exponent)


@triton.jit
def _forward(
    blob,
    top,
    share,
    beta,
    k,
    num_rows,
    num_channels,
    plane,
    SIZE: tl.constexpr,
    LAST: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    channels = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    rows = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)[:, None]
    scale = _scale(blob, rows, channels, share, k, num_rows, num_channels, plane, LAST, SIZE, 0)
    inside, where = tile(rows, channels, num_rows, num_channels, plane, LAST)
    x = _near(blob, rows, channels, num_rows, num_channels, plane, LAST, 0)
    tl.store(top + where, x * _power(scale, -beta), mask=inside)


@triton.jit
def _backward(
    blob,
    gradients,
    result,
    share,
    beta,
    k,
    num_rows,
    num_channels,
    plane,
    SIZE: tl.constexpr,
    LAST: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """With s for `_scale`: g * s^-beta - 2 * beta * share * x * sum of a, where each neighbour has
    a = g * x * s^(-beta - 1)."""
    channels = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    rows = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)[:, None]
    own = tl.zeros((HEIGHT, COLUMNS), tl.float32)
    total = tl.zeros((HEIGHT, COLUMNS), tl.float32)
    for step in tl.static_range(SIZE):
        near = step - SIZE // 2
        scale = _scale(
            blob, rows, channels, share, k, num_rows, num_channels, plane, LAST, SIZE, near
        )
        gradient = _near(gradients, rows, channels, num_rows, num_channels, plane, LAST, near)
        x = _near(blob, rows, channels, num_rows, num_channels, plane, LAST, near)
        direct = gradient * _power(scale, -beta)
        total += direct * x / scale
        if step == SIZE // 2:
            own = direct
    inside, where = tile(rows, channels, num_rows, num_channels, plane, LAST)
    x = _near(blob, rows, channels, num_rows, num_channels, plane, LAST, 0)
    tl.store(result + where, own - 2 * beta * share * x * total, mask=inside)


@triton.jit
def _window(
    values, channels, num_channels, SIZE: tl.constexpr, HEIGHT: tl.constexpr, COLUMNS: tl.constexpr
):
    """The sums of a tile of all channels over those around each."""
    total = values
    for step in tl.static_range(SIZE):
        near = channels + (step - SIZE // 2)
        if step != SIZE // 2:
            place = tl.minimum(tl.maximum(near, 0), COLUMNS - 1)
            moved = tl.gather(values, tl.broadcast_to(place, (HEIGHT, COLUMNS)), 1)
            total += tl.where((near >= 0) & (near < num_channels), moved, 0.0)
    return total


@triton.jit
def _forward_rows(
    blob, top, share, beta, k, num_rows, num_channels,
    SIZE: tl.constexpr, HEIGHT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`_forward` of rows of all channels, which lie side by side."""
    channels = tl.arange(0, COLUMNS)[None, :]
    rows = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)[:, None]
    inside, where = tile(rows, channels, num_rows, num_channels, 1, True)
    x = tl.load(blob + where, mask=inside, other=0.0).to(tl.float32)
    squares = _window(x * x, channels, num_channels, SIZE, HEIGHT, COLUMNS)
    scale = tl.where(inside, k + share * squares, 1.0)
    tl.store(top + where, x * _power(scale, -beta), mask=inside)


@triton.jit
def _backward_rows(
    blob, gradients, result, share, beta, k, num_rows, num_channels,
    SIZE: tl.constexpr, HEIGHT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`_backward` of such rows, in which what a channel brings to its neighbours is made once."""
    channels = tl.arange(0, COLUMNS)[None, :]
    rows = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)[:, None]
    inside, where = tile(rows, channels, num_rows, num_channels, 1, True)
    x = tl.load(blob + where, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(gradients + where, mask=inside, other=0.0).to(tl.float32)
    squares = _window(x * x, channels, num_channels, SIZE, HEIGHT, COLUMNS)
    scale = tl.where(inside, k + share * squares, 1.0)
    own = gradient * _power(scale, -beta)
    total = _window(own * x / scale, channels, num_channels, SIZE, HEIGHT, COLUMNS)
    tl.store(result + where, own - 2 * beta * share * x * total, mask=inside)


class NormalizedAcross(torch.autograd.Function):
    """x * (k + share * sum of the squares of `size` channels around)^-beta.

    `x` is N x C x spatial axes, float32 or bfloat16; `size` is odd and at most LARGEST_SIZE. The
    top has x's type and memory format; between, all is float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, share: float, beta: float, k: float) -> Tensor:
        x = laid_out(x)
        layout = layout_of(x)
        settings = {"SIZE": size, "share": share, "beta": beta, "k": k}
        ctx.rows = layout.last and layout.channels <= LARGEST_ROW
        if ctx.rows:
            columns = triton.next_power_of_2(layout.channels)
            height = max(1, ROWS_TILE // columns)
            settings |= {"num_rows": layout.rows, "num_channels": layout.channels}
            ctx.settings = settings | {"HEIGHT": height, "COLUMNS": columns}
            ctx.grid = (triton.cdiv(layout.rows, height),)
        else:
            height = TILE // layout.columns
            ctx.settings = layout.settings | settings | {"HEIGHT": height}
            ctx.grid = (triton.cdiv(layout.rows, height), layout.column_blocks)
        top = torch.empty_like(x)
        (_forward_rows if ctx.rows else _forward)[ctx.grid](x, top, **ctx.settings)
        ctx.save_for_backward(x)
        return top

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        result = torch.empty_like(x)
        gradient = laid_out(gradients[0], like=x)
        (_backward_rows if ctx.rows else _backward)[ctx.grid](x, gradient, result, **ctx.settings)
        return result, None, None, None, None
