"""Maximum pooling of what a BatchNorm and a ReLU make of a blob, which is never written down.

Blobs have their channels innermost.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.batch_norm import Normalization, line
from caffe_dns.kernels.channel_statistics import Statistics, Sums, add_up_splits, measured
from caffe_dns.kernels.layout import laid_out, layout_of, tiles_at_once
from caffe_dns.kernels.max_pool import NOWHERE, divide, handed_down, maxima, pooled_tile


@triton.jit
def _sum_gradients(
    blob, gradients, winners, means, inverse_stds, sums,
    num_rows, num_channels, height, width, top_height, top_width,
    KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    HEIGHT: tl.constexpr, COLUMNS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Sums of what the maxima hand down, and of it times the normalised winners."""
    split, splits = tl.program_id(1), tl.num_programs(1)
    channels = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    known = channels < num_channels
    mean = tl.load(means + channels, mask=known, other=0.0)
    total = tl.zeros((HEIGHT, COLUMNS), tl.float32)
    products = tl.zeros((HEIGHT, COLUMNS), tl.float32)
    start = split * HEIGHT
    while start < num_rows:
        for _ in tl.static_range(AT_ONCE):
            row = start + tl.arange(0, HEIGHT)[:, None]
            inside = (row < num_rows) & known
            place = row * num_channels + channels
            winner = tl.load(winners + place, mask=inside, other=NOWHERE).to(tl.int32)
            gradient = tl.load(gradients + place, mask=inside, other=0.0).to(tl.float32)
            won = winner != NOWHERE
            y = row // top_width % top_height * SH - PH + winner // KW
            x = row % top_width * SW - PW + winner % KW
            image = row // (top_width * top_height)
            place = ((image * height + y) * width + x) * num_channels + channels
            value = tl.load(blob + place, mask=won, other=0.0).to(tl.float32)
            gradient = tl.where(won, gradient, 0.0)
            total += gradient
            products += gradient * (value - mean)
            start += splits * HEIGHT
    inverse_std = tl.load(inverse_stds + channels, mask=known, other=0.0)
    place = sums + 2 * split * num_channels + channels
    tl.store(place, tl.sum(total, 0)[None, :], mask=known)
    tl.store(place + num_channels, tl.sum(products, 0)[None, :] * inverse_std, mask=known)


@triton.jit
def _bottom_gradient(
    blob, gradients, winners, result, means, inverse_stds, factors, shifts, along_shifts,
    along_factors, pixels, num_channels, height, width, top_height, top_width,
    AFFINE: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    pixel, channels, known = pooled_tile(pixels, num_channels, ROWS, COLUMNS)
    place = pixel * num_channels + channels
    x = tl.load(blob + place, mask=known, other=0.0).to(tl.float32)
    gradient = handed_down(
        gradients, winners, pixel, channels, known, num_channels, height, width, top_height,
        top_width, KH, KW, SH, SW, PH, PW, ROWS, COLUMNS,
    )  # fmt: skip
    slope, _, mean, inverse_std = line(
        means, inverse_stds, factors, shifts, channels, num_channels, AFFINE
    )
    there = channels < num_channels
    along_shift = tl.load(along_shifts + channels, mask=there, other=0.0) / pixels
    along_factor = tl.load(along_factors + channels, mask=there, other=0.0) / pixels
    gradient -= along_shift + (x - mean) * inverse_std * along_factor
    tl.store(result + place, gradient * slope, mask=known)


class NormalizedMaxPool(torch.autograd.Function):
    """The maxima of relu((x - mean) / sqrt(variance + eps) * factor + shift).

    Of an N x C x H x W blob whose channels are innermost; the rest as in `NormalizedBatch` and
    `MaxPool`: `size` is that of the top, `window` height and width of kernel, stride and pad.
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
        size: tuple[int, int],
        window: tuple[int, ...],
    ) -> Tensor:
        mean, inverse_std = measured(x, sums, bias, statistics, eps)
        normalization = Normalization(x, mean, inverse_std, factor, shift, relu)
        top, winners = maxima(x, size, window, normalized=normalization.line, relu=relu)
        ctx.save_for_backward(x, mean, inverse_std, factor, shift, winners)
        ctx.window = window
        return top

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inverse_std, factor, shift, winners = ctx.saved_tensors
        gradient = laid_out(gradients[0], like=winners)
        top = layout_of(winners)
        sums = mean.new_empty((top.splits, 2, top.channels))
        shapes = x.shape, winners.shape
        grid, settings = divide(layout_of(x), x, shapes, ctx.window, small=True)
        sizes = {name: settings[name] for name in ("height", "width", "top_height", "top_width")}
        window = {name: settings[name] for name in ("KW", "SH", "SW", "PH", "PW")}
        summed = {name: top.sums[name] for name in ("HEIGHT", "COLUMNS", "num_warps")}
        _sum_gradients[(top.sum_blocks, top.splits)](
            x, gradient, winners, mean, inverse_std, sums, top.rows, top.channels,
            **sizes, **window, **summed, AT_ONCE=tiles_at_once(gradient),
        )  # fmt: skip
        along = add_up_splits(sums.flatten(1), torch.float32).view(2, -1)
        result = torch.empty_like(x)
        _bottom_gradient[grid](
            x, gradient, winners, result, mean, inverse_std, factor, shift, *along,
            AFFINE=factor is not None, **settings,
        )  # fmt: skip
        bias = torch.zeros_like(mean) if ctx.needs_input_grad[3] else None
        shared = (None, None) if factor is None else (along[1], along[0])
        return result, *shared, bias, *[None] * 6
