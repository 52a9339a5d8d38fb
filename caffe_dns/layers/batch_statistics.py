"""Mean and variance of a batch's channels on a CPU, for channels-last blobs.

PyTorch sums such blobs row by row in float32, and for 100,000 values per channel the sums keep five
digits. Where a channel is contiguous, it is as exact as float64. Here many rows are laid side by
side as if they were channels of their own, so that each sum is over few values, and the sums are
combined in float64. The same kernel reads the same memory, and is faster on wide rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

#: Numbers side by side, at most: as many as two passes over them find in the fastest cache.
_WIDTH = 2048
#: Numbers in a sum in float32. More are as exact where many sums are combined, this often as many.
_ROWS, _ROWS_FOR_EACH = 512, 16
#: From so many deviations on, the rounding of a mean shows in the variance.
_FAR = 10.0
#: Up to so many times eps, a square of that is of no account.
_NEGLIGIBLE = 1e3


def normalize_batch(
    values: Tensor, factor: Tensor | None, shift: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """factor * (values - mean) / sqrt(variance + eps) + shift, each channel by its own statistics.

    The other two are these, mean and variance, which have no gradient.
    """
    if values.numel() == values.shape[1] > 0:
        # One number is its own mean. What rounding would leave of their difference, here as
        # values * a - mean * a, the small square root of eps makes large.
        only = values.detach()
        zeros, _, variance = _in_torch(values - only, factor, shift, eps)
        return zeros, only.reshape(-1), torch.zeros_like(variance)
    if adds_up_rows(values):
        mean, variance, inverse_std = statistics(values, eps)
        top: Tensor = NormalizedRows.apply(values, factor, shift, mean, variance, inverse_std, eps)
        return top, mean, variance
    return _in_torch(values, factor, shift, eps)


def _in_torch(
    values: Tensor, factor: Tensor | None, shift: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    top, mean, inverse_std = torch.native_batch_norm(
        values, factor, shift, None, None, True, 0.0, eps
    )
    return top, mean.detach(), inverse_std.detach().pow(-2).sub_(eps)


def adds_up_rows(values: Tensor) -> bool:
    """Whether PyTorch would add up many rows: float32 on a CPU, axis 1 the innermost in memory."""
    return (
        values.device.type == "cpu"
        and values.dtype == torch.float32
        and values.numel() > _ROWS * values.shape[1] > _ROWS
        and values.stride(1) == 1
        and _channels_are_innermost(values)
    )


def _channels_are_innermost(values: Tensor) -> bool:
    if values.dim() == 4:  # asked often, and answered without a view
        return values.is_contiguous(memory_format=torch.channels_last)
    return values.movedim(1, -1).is_contiguous()


def statistics(values: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and 1 / sqrt(variance + eps) of each channel, axis 1, of such a blob.

    In float32; mean and 1/std are within 1e-6 of what float64 gives.
    """
    values = values.detach()
    mean, variance = _combined(values)
    inverse_std = 1 / np.sqrt(variance + eps)
    if _is_far(mean, variance, inverse_std, eps):
        # The numbers themselves are coarse there, but their distances are exact.
        middle = torch.from_numpy(mean.astype(np.float32))
        mean, variance = _combined(values - middle.view(-1, *[1] * (values.dim() - 2)))
        mean += middle.numpy()
        inverse_std = 1 / np.sqrt(variance + eps)
    result = np.empty((3, len(mean)), np.float32)
    result[0], result[1], result[2] = mean, variance, inverse_std
    means, variances, inverse_stds = torch.from_numpy(result).unbind()
    return means, variances, inverse_stds


def _is_far(mean: Array, variance: Array, inverse_std: Array, eps: float) -> bool:
    """Whether a channel is so far from 0 that its variance has been rounded by it."""
    if np.abs(mean * inverse_std).max() <= _FAR:
        return False
    return bool((mean * mean > _FAR**2 * (variance + _NEGLIGIBLE * eps)).any())


def _combined(values: Tensor) -> tuple[Array, Array]:
    """Mean and variance in float64, of numbers that are not far from 0."""
    channels = values.shape[1]
    rows = values.numel() // channels
    abreast, heights = _plan(rows, channels)
    whole = abreast * sum(heights)
    parts, start = [], 0
    for height in heights:
        parts.append(_part(values, start, height, abreast))
        start += abreast * height
    if whole < rows:
        rest = _rows(values, whole, (rows - whole, channels), (channels, 1)).numpy()
        parts.append((rest, np.zeros_like(rest)))
    means, variances = map(np.concatenate, zip(*parts, strict=True)) if parts[1:] else parts[0]
    shares = _shares(rows, channels)
    exact = means.astype(np.float64)
    mean = shares @ exact
    exact -= mean
    exact *= exact
    return mean, shares @ exact + shares @ variances


def _part(values: Tensor, start: int, height: int, abreast: int) -> tuple[Array, Array]:
    """Means and variances [abreast, channels] of the rows from `start` on."""
    width = abreast * values.shape[1]
    blob = _rows(values, start, (1, width, height, 1), (0, 1, width, 1))
    mean, variance = torch.batch_norm_update_stats(blob, None, None, 0.0)
    return mean.view(abreast, -1).numpy(), variance.view(abreast, -1).numpy()


def _rows(values: Tensor, start: int, shape: Sequence[int], stride: Sequence[int]) -> Tensor:
    """The memory from row `start` on; a row has a number of each channel."""
    return values.as_strided(shape, stride, values.storage_offset() + start * values.shape[1])


@lru_cache(maxsize=256)
def _plan(rows: int, channels: int) -> tuple[int, list[int]]:
    """How many rows lie side by side, and how many of such wide rows are added up each time.

    If possible, all rows in one rectangle.
    """
    most_abreast = max(1, _WIDTH // channels)
    abreast = next(
        (n for n in range(most_abreast, most_abreast // 2, -1) if rows % n == 0), most_abreast
    )
    height, most = rows // abreast, max(_ROWS, _ROWS_FOR_EACH * abreast)
    return abreast, [min(most, height - start) for start in range(0, height, most)]


@lru_cache(maxsize=256)
def _shares(rows: int, channels: int) -> Array:
    """What part of all rows each of the means is of."""
    abreast, heights = _plan(rows, channels)
    counts = [height for height in heights for _ in range(abreast)] + [1] * (rows % abreast)
    return np.array(counts, np.float64) / rows


class NormalizedRows(torch.autograd.Function):
    """`torch.native_batch_norm` in training, with statistics that were computed before."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        factor: Tensor | None,
        shift: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        inverse_std: Tensor,
        eps: float,
    ) -> Tensor:
        """Mean, variance and 1/std are those of `values`; they get no gradient of their own."""
        ctx.save_for_backward(values, factor, mean, inverse_std)
        ctx.eps = eps
        return torch.native_batch_norm(values, factor, shift, mean, variance, False, 0.0, eps)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, factor, mean, inverse_std = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        gradient, of_factor, of_shift = torch.ops.aten.native_batch_norm_backward(
            gradients[0], values, factor, None, None, mean, inverse_std, True, ctx.eps, wanted
        )
        return gradient, of_factor, of_shift, None, None, None, None
