"""How a kernel walks over images for a depthwise convolution, 3x3 with a pad of 1.

Blobs are channels-last. A program has neighbouring pixels of several places, a patch at each, and
walks down some rows of images.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: What a kernel is not compiled anew for.
SIZES = ["num_patches", "across", "height", "width", "top_height", "top_width", "rows_each"]


@triton.jit
def patches(
    num_patches, across, num_channels, rows, rows_each,
    PATCHES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program's share: its number, channels, images and patches in their rows, and rows."""
    blocks, segments = num_channels // COLUMNS, tl.cdiv(rows, rows_each)
    split = tl.program_id(0) // blocks
    channels = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    patch = split // segments * PATCHES + tl.arange(0, PATCHES)[:, None]
    image = tl.where(patch < num_patches, patch // across, -1)
    begin = split % segments * rows_each
    return split, channels, image, patch % across, begin, tl.minimum(begin + rows_each, rows)


@triton.jit
def place(image, row, column, size, channels):
    """Whether a pixel of each patch is in the image, and where."""
    height, width, num_channels = size
    inside = (image >= 0) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return inside, ((image * height + row) * width + column) * num_channels + channels


@triton.jit
def activation(value, inside, own, RELU: tl.constexpr):
    """What a BatchNorm makes of a number; 0 beyond the image."""
    y = value * own[0] + own[1]
    if RELU:
        # NaN stays NaN.
        y = tl.where(y < 0, 0.0, y)
    return tl.where(inside, y, 0.0)


@triton.jit
def taps(w, channels, row: tl.constexpr):
    """A row of the windows."""
    place = w + channels * 9 + row * 3
    return (
        tl.load(place).to(tl.float32),
        tl.load(place + 1).to(tl.float32),
        tl.load(place + 2).to(tl.float32),
    )
