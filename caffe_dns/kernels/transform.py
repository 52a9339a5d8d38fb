"""Mirrors, subtracts the mean and scales for a batch of cropped images, in one kernel.

PyTorch needs about ten for it, and most of them write the batch to memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: How many pixels one program of the kernel makes.
BLOCK = 1024


@triton.jit
def _transform(
    pixels,
    cuts,
    mean,
    result,
    channels,
    height,
    width,
    mean_plane,
    mean_row,
    mean_column,
    top,
    left,
    scale,
    ALIKE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Some pixels of one channel of one image; each less its own source pixel of the mean.

    Where that is ALIKE for all of a channel, it is loaded once: for each, that takes half as long
    as all the rest.
    """
    plane = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = places < height * width
    row = places // width
    column = places % width
    if cuts is not None:
        cut = cuts + 3 * (plane // channels)
        top = tl.load(cut)
        left = tl.load(cut + 1)
        column = tl.where(tl.load(cut + 2) != 0, width - 1 - column, column)
    values = tl.load(pixels + plane * height * width + row * width + column, mask=inside)
    values = values.to(tl.float32)
    if mean is not None:
        source = mean + plane % channels * mean_plane
        if ALIKE:
            values -= tl.load(source)
        else:
            source += (top + row) * mean_row + (left + column) * mean_column
            values -= tl.load(source, mask=inside)
    tl.store(result + plane * height * width + places, values * scale, mask=inside)


def transform(
    pixels: Tensor,
    cuts: Tensor | None,
    mean: Tensor | None,
    corner: tuple[int, int],
    scale: float,
    into: Tensor | None = None,
) -> Tensor:
    """(pixels - mean) * scale, float32 [N, channels, height, width], mirrored where `cuts` says so.

    `pixels` is uint8 or float32; `cuts` [N, 3] int64 has top, left and mirrored of each image, in
    its place `corner` holds for all, unmirrored. `mean` is [channels or 1, rows or 1, columns or 1]
    and float32, of images that are not cropped. The result is `into` where that fits.
    """
    pixels = pixels.contiguous()
    count, channels, height, width = pixels.shape
    if into is not None and _fits(into, pixels):
        result = into
    else:
        result = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
    steps = [0, 0, 0]
    if mean is not None:
        extents_steps = zip(mean.shape, mean.stride(), strict=True)
        steps = [step if extent > 1 else 0 for extent, step in extents_steps]
    grid = (count * channels, triton.cdiv(height * width, BLOCK))
    _transform[grid](
        pixels,
        cuts,
        mean,
        result,
        channels,
        height,
        width,
        *steps,
        *corner,
        scale,
        ALIKE=steps[1:] == [0, 0],
        BLOCK=BLOCK,
    )
    return result


def _fits(result: Tensor, pixels: Tensor) -> bool:
    """Whether the kernel may write there what it makes of these pixels."""
    alike = result.shape == pixels.shape and result.device == pixels.device
    return alike and result.dtype == torch.float32 and result.is_contiguous()
