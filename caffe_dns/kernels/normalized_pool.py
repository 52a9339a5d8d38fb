"""Batch normalisation with factor, shift and ReLU, fused with the maximum pooling after it.

The normalised values are never written: the maxima are found among the values before, and receive a
gradient in the pass that makes that of the values. Blobs are channels-last.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.batch_norm import Normalization, line
from caffe_dns.kernels.channel_statistics import Statistics, Sums, measured
from caffe_dns.kernels.layout import LARGEST, laid_out, layout_of
from caffe_dns.kernels.max_pool import LARGEST_WINDOW, NOWHERE

Pair = tuple[int, int]

#: How many numbers a program has in hand: a vector of eight bfloat16 for each thread. Of more,
#: threads keep so much in registers that few fit a multiprocessor (measured on an H200).
TILE = 1024
#: How many tiles of few channels a program makes maxima of, one after the other: each thread reads
#: the lines of all its channels, which in a tile of many are shared (measured there, too).
STEPS = 4
#: No number of a blob is less.
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
#: Channels in a tile: as many of these as leave the fewest places beyond the blob.
CHANNELS = (128, 64, 32)


@triton.jit
def _best(
    x, first, row, column, channels, known, sign, num_channels, height, width,
    WHOLE: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """The largest numbers of windows, which begin at `first`, times a sign, and where they are.

    The first of equal ones counts.
    """
    best = tl.full((ROWS, COLUMNS), LOWEST, tl.float32)
    winner = tl.full((ROWS, COLUMNS), 0, tl.int32)
    if not WHOLE:
        # Of a window of NaN, the first pixel that is in the image.
        winner += tl.maximum(-row, 0) * KW + tl.maximum(-column, 0)
    for i in tl.static_range(KH):
        for j in tl.static_range(KW):
            where = (first + i * width + j) * num_channels + channels
            if WHOLE:
                value = tl.load(x + where).to(tl.float32) * sign
                better = value > best
            else:
                inside = known & (row + i >= 0) & (row + i < height)
                inside = inside & (column + j >= 0) & (column + j < width)
                value = tl.load(x + where, mask=inside, other=0.0).to(tl.float32) * sign
                better = inside & (value > best)
            best = tl.where(better, value, best)
            winner = tl.where(better, i * KW + j, winner)
    return best, winner


@triton.jit
def _maximum(
    x, top, winners, chosen, means, inverse_stds, factors, shifts,
    pixels, num_channels, height, width, top_height, top_width,
    AFFINE: tl.constexpr, RELU: tl.constexpr, WHOLE: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr,
    STEPS: tl.constexpr, FROM_END: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """STEPS tiles of the top; `pixels` are those of all images. Also where each maximum was, and
    what it was before it was normalised. With WHOLE, no window reaches beyond the image, and no
    tile beyond the last channel: nothing needs to be left out."""
    blocks = tl.cdiv(num_channels, COLUMNS)
    place = tl.program_id(0)
    if FROM_END:
        place = tl.num_programs(0) - 1 - place
    channels = place % blocks * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    slope, intercept, _, _ = line(
        means, inverse_stds, factors, shifts, channels, num_channels, AFFINE
    )
    # A line that rises has its maximum where x has, one that falls where -x has; a level one has it
    # in the first place. Where x is not finite, no number of the line is one.
    sign = (slope > 0).to(tl.float32) - (slope < 0).to(tl.float32)
    for step in range(STEPS):
        pixel = (place // blocks * STEPS + step) * ROWS + tl.arange(0, ROWS)[:, None]
        if WHOLE:
            # Beyond the last pixel, it is made again.
            pixel = tl.minimum(pixel, pixels - 1)
        known = (pixel < pixels) & (channels < num_channels)
        row = pixel // top_width % top_height * SH - PH
        column = pixel % top_width * SW - PW
        first = (pixel // (top_width * top_height) * height + row) * width + column
        best, winner = _best(
            x, first, row, column, channels, known, sign, num_channels, height, width, WHOLE,
            KH, KW, ROWS, COLUMNS,
        )  # fmt: skip
        # What a sign of zero has taken away.
        where = (first + winner // KW * width + winner % KW) * num_channels + channels
        value = tl.load(x + where, mask=known & (sign == 0), other=0.0).to(tl.float32)
        value += (best if WHOLE else tl.where(known, best, 0.0)) * sign
        y = value * slope + intercept
        if RELU:
            winner = tl.where(y <= 0, NOWHERE, winner)
            # NaN stays NaN.
            y = tl.where(y < 0, 0.0, y)
        where = pixel * num_channels + channels
        if WHOLE:
            known = None
        tl.store(top + where, y, mask=known)
        tl.store(winners + where, winner.to(tl.uint8), mask=known)
        tl.store(chosen + where, value, mask=known)


@triton.jit
def _window(gradients, winners, row, column, first, height, width, num_channels, channels, known):
    """The winners and the gradients of the windows at a row and column of the top."""
    there = known & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    where = (first + row * width + column) * num_channels + channels
    winner = tl.load(winners + where, mask=there, other=NOWHERE).to(tl.int32)
    return winner, tl.load(gradients + where, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _along(
    means, inverse_stds, factors, shifts, shift_gradients, factor_gradients, channels,
    num_channels, num_rows, AFFINE: tl.constexpr,
):  # fmt: skip
    """Slope and mean, and what the gradient of x has less: a shift, and a factor of x - mean."""
    known = channels < num_channels
    slope, _, mean, inverse_std = line(
        means, inverse_stds, factors, shifts, channels, num_channels, AFFINE
    )
    shift = slope * tl.load(shift_gradients + channels, mask=known, other=0.0) / num_rows
    along = tl.load(factor_gradients + channels, mask=known, other=0.0) / num_rows
    return slope, mean, shift, slope * inverse_std * along


@triton.jit
def _hand_down(
    x, gradients, winners, result, means, inverse_stds, factors, shifts, shift_gradients,
    factor_gradients, squares, num_rows, num_channels, rows, columns,
    height, width, top_height, top_width,
    AFFINE: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient of x for a tile of squares as wide as the stride, rows x columns an image.

    No square has more than two windows each way. From the last to the first, whose results are in
    the cache when the next pass reads them.
    """
    blocks = tl.cdiv(num_channels, COLUMNS)
    place = tl.num_programs(0) - 1 - tl.program_id(0)
    channels = place % blocks * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    slope, mean, shift, factor = _along(
        means, inverse_stds, factors, shifts, shift_gradients, factor_gradients, channels,
        num_channels, num_rows, AFFINE,
    )  # fmt: skip
    square = place // blocks * ROWS + tl.arange(0, ROWS)[:, None]
    known = (square < squares) & (channels < num_channels)
    row, column = square // columns % rows, square % columns
    image = square // (rows * columns)
    windows = image * top_height * top_width
    here, given = _window(
        gradients, winners, row, column, windows, top_height, top_width, num_channels, channels,
        known,
    )  # fmt: skip
    if KW > SW:
        left, given_left = _window(
            gradients, winners, row, column - 1, windows, top_height, top_width, num_channels,
            channels, known,
        )  # fmt: skip
    if KH > SH:
        above, given_above = _window(
            gradients, winners, row - 1, column, windows, top_height, top_width, num_channels,
            channels, known,
        )  # fmt: skip
    if KH > SH and KW > SW:
        across, given_across = _window(
            gradients, winners, row - 1, column - 1, windows, top_height, top_width,
            num_channels, channels, known,
        )  # fmt: skip
    for r in tl.static_range(SH):
        for c in tl.static_range(SW):
            y, z = row * SH + r - PH, column * SW + c - PW
            inside = known & (y >= 0) & (y < height) & (z >= 0) & (z < width)
            where = ((image * height + y) * width + z) * num_channels + channels
            value = tl.load(x + where, mask=inside, other=0.0).to(tl.float32)
            total = tl.zeros((ROWS, COLUMNS), tl.float32)
            if r < KH and c < KW:
                total += tl.where(here == r * KW + c, given, 0.0)
            if r < KH and c + SW < KW:
                total += tl.where(left == r * KW + c + SW, given_left, 0.0)
            if r + SH < KH and c < KW:
                total += tl.where(above == (r + SH) * KW + c, given_above, 0.0)
            if r + SH < KH and c + SW < KW:
                total += tl.where(across == (r + SH) * KW + c + SW, given_across, 0.0)
            total = total * slope - (shift + (value - mean) * factor)
            tl.store(result + where, total, mask=inside)


def fits(x: Tensor, size: Pair, kernel: Pair, stride: Pair, pad: Pair) -> bool:
    """Whether the kernels can pool this blob, whose channels have to be innermost.

    Each window of the top, rows x columns, has to have a pixel, and each pixel no more than two
    windows each way.
    """
    if x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    (num, channels, *extents), axes = x.shape, (0, 1)
    filled = all(
        pad[axis] < kernel[axis] <= 2 * stride[axis]
        and (size[axis] - 1) * stride[axis] - pad[axis] < extents[axis]
        for axis in axes
    )
    # Squares may lie in part beyond the image.
    height, width = (extents[axis] + pad[axis] + stride[axis] for axis in axes)
    places = num * channels * height * width
    small = kernel[0] * kernel[1] <= LARGEST_WINDOW and places <= LARGEST
    return filled and small and layout_of(x).last


class NormalizedMaxPool(torch.autograd.Function):
    """The maxima of relu((x - mean) / sqrt(variance + eps) * factor + shift), as x in its type.

    `x` is N x C x H x W with its channels innermost; what else there is `NormalizedBatch` tells,
    and `MaxPool` of the windows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        factor: Tensor | None,
        shift: Tensor | None,
        bias: Tensor | None,
        statistics: Statistics,
        eps: float,
        relu: bool,
        sums: Sums | None,
        size: Pair,
        window: tuple[int, ...],
    ) -> Tensor:
        mean, inverse_std = measured(x, sums, bias, statistics, eps, from_end=True)
        shape, last = (*x.shape[:2], *size), torch.channels_last
        top = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=last)
        winners, chosen = torch.empty_like(top, dtype=torch.uint8), torch.empty_like(top)
        pixels, settings = top.numel() // x.shape[1], _settings(x, size, window)
        steps = _steps(settings["COLUMNS"])
        _maximum[_grid(pixels, x, steps)](
            x,
            top,
            winners,
            chosen,
            mean,
            inverse_std,
            factor,
            shift,
            pixels,
            AFFINE=factor is not None,
            RELU=relu,
            WHOLE=_are_whole(x, size, window),
            STEPS=steps,
            FROM_END=sums is not None,
            **settings,
        )
        ctx.save_for_backward(x, mean, inverse_std, factor, shift, winners, chosen)
        ctx.relu, ctx.window = relu, window
        ctx.bias_type = None if bias is None else bias.dtype
        return top

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inverse_std, factor, shift, winners, chosen = ctx.saved_tensors
        gradient = laid_out(gradients[0], like=winners)
        # All that a channel's gradient adds up is what the maxima are handed.
        handed = Normalization(chosen, mean, inverse_std, factor, shift, ctx.relu)
        bias = torch.empty_like(mean, dtype=ctx.bias_type) if ctx.needs_input_grad[3] else None
        along_shift, along_factor = handed.parameter_gradients(gradient, zeros=bias)
        result = torch.empty_like(x)
        (height, width), (_, _, *stride, pad_h, pad_w) = x.shape[2:], ctx.window
        rows = triton.cdiv(height + pad_h, stride[0])
        columns = triton.cdiv(width + pad_w, stride[1])
        squares = len(x) * rows * columns
        settings = _settings(x, winners.shape[2:], ctx.window)
        _hand_down[_grid(squares, x)](
            x,
            gradient,
            winners,
            result,
            mean,
            inverse_std,
            factor,
            shift,
            along_shift,
            along_factor,
            squares,
            x.numel() // x.shape[1],
            rows=rows,
            columns=columns,
            AFFINE=factor is not None,
            **settings,
        )
        along = (None, None) if factor is None else (along_factor, along_shift)
        return result, *along, bias, *[None] * 6


def _are_whole(x: Tensor, size: Pair, window: tuple[int, ...]) -> bool:
    """Whether all windows lie within the images, and tiles fill the channels."""
    kernel, stride, pad = window[:2], window[2:4], window[4:]
    filled = x.shape[1] % _columns(x.shape[1]) == 0
    return (
        filled
        and not any(pad)
        and all(
            (size[axis] - 1) * stride[axis] + kernel[axis] <= x.shape[axis + 2] for axis in (0, 1)
        )
    )


def _columns(channels: int) -> int:
    """Channels in a tile."""
    most = triton.next_power_of_2(channels)
    return min(CHANNELS, key=lambda columns: triton.cdiv(channels, min(columns, most)) * columns)


def _steps(columns: int) -> int:
    """Tiles that a program makes maxima of."""
    return STEPS if columns < max(CHANNELS) else 1


def _grid(pixels: int, x: Tensor, steps: int = 1) -> tuple[int]:
    columns = _columns(x.shape[1])
    return (triton.cdiv(pixels, steps * TILE // columns) * triton.cdiv(x.shape[1], columns),)


def _settings(x: Tensor, size: Pair, window: tuple[int, ...]) -> dict[str, Any]:
    """What both kernels know of bottom, top and windows."""
    columns = _columns(x.shape[1])
    return dict(zip(("KH", "KW", "SH", "SW", "PH", "PW"), window, strict=True)) | {
        "num_channels": x.shape[1],
        "height": x.shape[2],
        "width": x.shape[3],
        "top_height": size[0],
        "top_width": size[1],
        "ROWS": TILE // columns,
        "COLUMNS": columns,
    }
