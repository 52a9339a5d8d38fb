"""Moves squares of pixels into channels, in the type and memory format of the next convolution."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32
#: How many numbers of a gradient a program puts back.
BLOCK = 512


@triton.jit
def _gather(
    images,
    result,
    pixels,
    num_channels,
    height,
    width,
    block_height,
    block_width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    DEPTH: tl.constexpr,
    SIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A tile of the result: squares, each with its DEPTH numbers behind it."""
    depth = tl.arange(0, COLUMNS)[None, :]
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    known = (pixel < pixels) & (depth < DEPTH)
    y = pixel // block_width % block_height * SIDE + depth // SIDE % SIDE - pad_h
    x = pixel % block_width * SIDE + depth % SIDE - pad_w
    image = pixel // (block_width * block_height)
    channel = depth // (SIDE * SIDE)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & (channel < num_channels) & known
    place = image * stride_n + channel * stride_c + y * stride_h + x * stride_w
    value = tl.load(images + place, mask=inside, other=0.0)
    tl.store(result + pixel * DEPTH + depth, value, mask=known)


@triton.jit
def _put_back(
    source, result, count, num_channels, height, width, block_height, block_width, depth,
    stride_n, stride_c, stride_h, stride_w, SIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some numbers of images, count in all, from squares."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    x, y = place % width, place // width % height
    channel = place // (width * height) % num_channels
    image = place // (width * height * num_channels)
    square = (image * block_height + y // SIDE) * block_width + x // SIDE
    where = square * depth + (channel * SIDE + y % SIDE) * SIDE + x % SIDE
    value = tl.load(source + where, mask=inside)
    where = image * stride_n + channel * stride_c + y * stride_h + x * stride_w
    tl.store(result + where, value, mask=inside)


class FoldedWeight(torch.autograd.Function):
    """A weight as `space_to_depth` makes it of images, in its own type."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, side: int, blocks: tuple[int, int], channels: int
    ) -> Tensor:
        ctx.like, ctx.side = torch.empty_like(weight, device="meta"), side
        return space_to_depth(weight, side, (0, 0), blocks, channels, weight.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        last = torch.channels_last
        gradient, like = gradients[0].contiguous(memory_format=last), ctx.like
        result = torch.empty_like(like, device=gradient.device)
        depth, *blocks = gradient.shape[1:]
        _put_back[(triton.cdiv(result.numel(), BLOCK),)](
            gradient,
            result,
            result.numel(),
            *result.shape[1:],
            *blocks,
            depth,
            *result.stride(),
            SIDE=ctx.side,
            BLOCK=BLOCK,
        )
        return result, None, None, None


def space_to_depth(
    images: Tensor,
    side: int,
    pad: tuple[int, int],
    size: tuple[int, int],
    channels: int,
    dtype: torch.dtype,
) -> Tensor:
    """N x C x H x W images as N x (channels * side * side) x size, channels innermost in memory.

    `pad` pixels come before the first row and the first column; what lies beyond the images, or
    their channels, is zero. No gradient goes back.
    """
    num, num_channels, height, width = images.shape
    depth = channels * side * side
    result = torch.empty(
        (num, depth, *size), dtype=dtype, device=images.device, memory_format=torch.channels_last
    )
    pixels = num * size[0] * size[1]
    _gather[(triton.cdiv(pixels, ROWS),)](
        images,
        result,
        pixels,
        num_channels,
        height,
        width,
        *size,
        *images.stride(),
        *pad,
        DEPTH=depth,
        SIDE=side,
        ROWS=ROWS,
        COLUMNS=triton.next_power_of_2(depth),
    )
    return result
