"""Moves squares of pixels into channels, in the type and memory format of the next convolution."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32


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
