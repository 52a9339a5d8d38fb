"""Batch normalisation fused with factor and shift, the addition of a blob, and a ReLU.

PyTorch reads and writes the blob five times more for the same, and more often where a blob is
added.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.channel_statistics import add_up_splits, load
from caffe_dns.kernels.layout import Layout, layout_of


@triton.jit
def line(means, inverse_stds, factors, shifts, channels, num_channels, AFFINE: tl.constexpr):
    """Slope and intercept of each channel's line from bottom to top, and its statistics."""
    known = channels < num_channels
    mean = tl.load(means + channels, mask=known, other=0.0)
    inverse_std = tl.load(inverse_stds + channels, mask=known, other=0.0)
    slope = inverse_std
    intercept = -mean * inverse_std
    if AFFINE:
        factor = tl.load(factors + channels, mask=known, other=0.0)
        slope = inverse_std * factor
        intercept = tl.load(shifts + channels, mask=known, other=0.0) - mean * slope
    return slope, intercept, mean, inverse_std


@triton.jit
def tile_from_end(
    num_rows, num_channels, LAST: tl.constexpr, HEIGHT: tl.constexpr, COLUMNS: tl.constexpr
):
    """Rows and channels of this program's tile.

    Goes from the last row to the first, because the rows that the previous pass read last, or that
    the next pass reads first, are then in the cache.
    """
    place = tl.num_programs(0) - 1 - tl.program_id(0)
    rows, blocks = tl.cdiv(num_rows, HEIGHT), tl.cdiv(num_channels, COLUMNS)
    if LAST:
        row, column = place // blocks, place % blocks
    else:
        row, column = place % rows, place // rows
    channels = column * COLUMNS + tl.arange(0, COLUMNS)
    return row * HEIGHT + tl.arange(0, HEIGHT)[:, None], channels[None, :]


@triton.jit
def _packed(rows, channels, num_rows, num_channels, COLUMNS: tl.constexpr):
    """Where the bits of a tile are, eight channels to a byte, and which are inside."""
    group = tl.min(channels) // 8 + tl.arange(0, COLUMNS // 8)[None, :]
    return rows * (num_channels // 8) + group, (rows < num_rows) & (group < num_channels // 8)


@triton.jit
def store_signs(
    signs, y, rows, channels, num_rows, num_channels, HEIGHT: tl.constexpr, COLUMNS: tl.constexpr
):
    """Store a bit for each value of a tile: whether it is positive."""
    bits = tl.reshape((y > 0).to(tl.int32), (HEIGHT, COLUMNS // 8, 8))
    packed = tl.sum(bits << tl.arange(0, 8)[None, None, :], 2).to(tl.uint8)
    place, known = _packed(rows, channels, num_rows, num_channels, COLUMNS)
    tl.store(signs + place, packed, mask=known)


@triton.jit
def _apply(
    blob,
    addend,
    top,
    signs,
    means,
    inverse_stds,
    factors,
    shifts,
    addend_means,
    addend_inverse_stds,
    addend_factors,
    addend_shifts,
    num_rows,
    num_channels,
    plane,
    AFFINE: tl.constexpr,
    ADDS: tl.constexpr,
    POSTPONED: tl.constexpr,
    ADDEND_AFFINE: tl.constexpr,
    PACKS: tl.constexpr,
    RELU: tl.constexpr,
    LAST: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows, channels = tile_from_end(num_rows, num_channels, LAST, HEIGHT, COLUMNS)
    x, inside, where = load(blob, rows, channels, num_rows, num_channels, plane, LAST)
    slope, intercept, _, _ = line(
        means, inverse_stds, factors, shifts, channels, num_channels, AFFINE
    )
    y = x * slope + intercept
    if ADDS:
        other = tl.load(addend + where, mask=inside, other=0.0).to(tl.float32)
        if POSTPONED:
            slope, intercept, _, _ = line(
                addend_means,
                addend_inverse_stds,
                addend_factors,
                addend_shifts,
                channels,
                num_channels,
                ADDEND_AFFINE,
            )
            other = other * slope + intercept
        y += other
    if RELU:
        # NaN stays NaN.
        y = tl.where(y < 0, 0.0, y)
    y = y.to(top.dtype.element_ty)
    tl.store(top + where, y, mask=inside)
    if PACKS:
        store_signs(signs, y, rows, channels, num_rows, num_channels, HEIGHT, COLUMNS)


@triton.jit
def _pass_relu(x, gradient, slope, intercept, RELU: tl.constexpr):
    """The gradient below the ReLU."""
    if RELU:
        return tl.where(x * slope + intercept > 0, gradient, 0.0)
    return gradient


@triton.jit
def _is_positive(
    signs, rows, channels, where, inside, num_rows, num_channels,
    PACKED: tl.constexpr, HEIGHT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Where the sum is positive, by its signs or by itself."""
    if PACKED:
        place, known = _packed(rows, channels, num_rows, num_channels, COLUMNS)
        packed = tl.load(signs + place, mask=known, other=0).to(tl.int32)
        bits = (packed[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
        positive = tl.reshape(bits, (HEIGHT, COLUMNS)) > 0
    else:
        positive = tl.load(signs + where, mask=inside, other=0.0) > 0
    return positive


@triton.jit
def _sum_gradients(
    blob,
    gradients,
    more,
    signs,
    passed,
    means,
    inverse_stds,
    factors,
    shifts,
    sums,
    num_rows,
    num_channels,
    plane,
    AFFINE: tl.constexpr,
    ADDS: tl.constexpr,
    MORE: tl.constexpr,
    PACKED: tl.constexpr,
    RELU: tl.constexpr,
    LAST: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Sums of the gradient, and of it times the normalised bottom, over a share of the rows.

    If a blob is added, its gradient, of which there may be `more` above, is `passed` on.
    """
    split, splits = tl.program_id(1), tl.num_programs(1)
    channels = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    rows = tl.arange(0, HEIGHT)[:, None]
    slope, intercept, mean, inverse_std = line(
        means, inverse_stds, factors, shifts, channels, num_channels, AFFINE
    )
    total = tl.zeros((HEIGHT, COLUMNS), tl.float32)
    products = tl.zeros((HEIGHT, COLUMNS), tl.float32)
    if STAGES > 0:
        for begin in tl.range(split * HEIGHT, num_rows, splits * HEIGHT, num_stages=STAGES):
            x, inside, where = load(
                blob, begin + rows, channels, num_rows, num_channels, plane, LAST
            )
            gradient = tl.load(gradients + where, mask=inside, other=0.0).to(tl.float32)
            gradient = _pass_relu(x, gradient, slope, intercept, RELU)
            total += gradient
            products += gradient * (x - mean) * inverse_std
    else:
        start = split * HEIGHT
        while start < num_rows:
            for _ in tl.static_range(AT_ONCE):
                x, inside, where = load(
                    blob, start + rows, channels, num_rows, num_channels, plane, LAST
                )
                gradient = tl.load(gradients + where, mask=inside, other=0.0).to(tl.float32)
                if MORE:
                    gradient += tl.load(more + where, mask=inside, other=0.0).to(tl.float32)
                if ADDS:
                    lets = _is_positive(
                        signs, start + rows, channels, where, inside, num_rows, num_channels,
                        PACKED, HEIGHT, COLUMNS,
                    )  # fmt: skip
                    gradient = tl.where(lets, gradient, 0.0).to(passed.dtype.element_ty)
                    tl.store(passed + where, gradient, mask=inside)
                    gradient = gradient.to(tl.float32)
                else:
                    gradient = _pass_relu(x, gradient, slope, intercept, RELU)
                total += gradient
                products += gradient * (x - mean) * inverse_std
                start += splits * HEIGHT
    known = channels < num_channels
    place = sums + 2 * split * num_channels + channels
    tl.store(place, tl.sum(total, 0)[None, :], mask=known)
    tl.store(place + num_channels, tl.sum(products, 0)[None, :], mask=known)


@triton.jit
def handed_down(
    x, gradient, slope, mean, inverse_std, shift_gradients, factor_gradients, channels, num_rows,
    num_channels,
):  # fmt: skip
    """The gradient of a tile from the one above, and those of shift and factor."""
    known = channels < num_channels
    along_shift = tl.load(shift_gradients + channels, mask=known, other=0.0) / num_rows
    along_factor = tl.load(factor_gradients + channels, mask=known, other=0.0) / num_rows
    return (gradient - (along_shift + (x - mean) * inverse_std * along_factor)) * slope


@triton.jit
def _bottom_gradient(
    blob, gradients, result, means, inverse_stds, factors, shifts, shift_gradients,
    factor_gradients, num_rows, num_channels, plane, AFFINE: tl.constexpr, RELU: tl.constexpr,
    LAST: tl.constexpr, HEIGHT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows, channels = tile_from_end(num_rows, num_channels, LAST, HEIGHT, COLUMNS)
    x, inside, where = load(blob, rows, channels, num_rows, num_channels, plane, LAST)
    slope, intercept, mean, inverse_std = line(
        means, inverse_stds, factors, shifts, channels, num_channels, AFFINE
    )
    gradient = tl.load(gradients + where, mask=inside, other=0.0).to(tl.float32)
    gradient = _pass_relu(x, gradient, slope, intercept, RELU)
    below = handed_down(
        x, gradient, slope, mean, inverse_std, shift_gradients, factor_gradients, channels,
        num_rows, num_channels,
    )  # fmt: skip
    tl.store(result + where, below, mask=inside)


@dataclass(frozen=True)
class Normalization:
    """A normalised batch: relu((x - mean) * inverse_std * factor + shift + addend).

    Factor and shift are float32, C numbers each, or both None. With an addend, backward of the ReLU
    uses the signs of the sum; otherwise it recomputes the top.
    """

    x: Tensor
    mean: Tensor
    inverse_std: Tensor
    factor: Tensor | None
    shift: Tensor | None
    relu: bool

    @property
    def layout(self) -> Layout:
        return layout_of(self.x)

    @property
    def line(self) -> tuple[Tensor | None, ...]:
        """The kernel's arguments for the line from bottom to top."""
        return self.mean, self.inverse_std, self.factor, self.shift

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The images and `line`."""
        return self.x, *self.line

    def top(self) -> Tensor:
        """The top without an addend, of x's type and memory format."""
        return self.top_and_signs(None)[0]

    def top_and_signs(
        self, addend: Tensor | None, postponed: Normalization | None = None
    ) -> tuple[Tensor, Tensor]:
        """The top, and the signs of the sum for `gradients`: the top again, or bits.

        The addend has x's type and memory format. If its normalisation was `postponed`, it is done.
        """
        layout = self.layout
        top = torch.empty_like(self.x)
        packs = addend is not None and layout.last and layout.channels % 8 == 0
        signs = (
            torch.empty(layout.rows, layout.channels // 8, dtype=torch.uint8, device=top.device)
            if packs
            else top
        )
        _apply[(layout.row_blocks * layout.column_blocks,)](
            self.x,
            addend,
            top,
            signs,
            *self.line,
            *(postponed.line if postponed is not None else [None] * 4),
            **layout.settings,
            AFFINE=self.factor is not None,
            ADDS=addend is not None,
            POSTPONED=postponed is not None,
            ADDEND_AFFINE=postponed is not None and postponed.factor is not None,
            PACKS=packs,
            RELU=self.relu,
        )
        return top, signs

    def gradients(
        self,
        gradient: Tensor,
        more: Tensor | None = None,
        signs: Tensor | None = None,
        along: tuple[Tensor, Tensor] | None = None,
        zeros: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of x, factor, shift and addend, from one of the top's and perhaps `more`.

        `signs` are given where there is an addend, `along` where `parameter_gradients` are there;
        else `zeros` are set to 0. All are in x's memory format.
        """
        passed = torch.empty_like(gradient) if signs is not None else None
        along = along or self.parameter_gradients(gradient, more, signs, passed, zeros)
        result = self.bottom_gradient(gradient if passed is None else passed, along, passed is None)
        if self.factor is None:
            return result, None, None, passed
        return result, along[1], along[0], passed

    def parameter_gradients(
        self,
        gradient: Tensor,
        more: Tensor | None = None,
        signs: Tensor | None = None,
        passed: Tensor | None = None,
        zeros: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The gradients of shift and factor, whether there are any or not.

        Where there are signs, the gradient below the ReLU is `passed` on. `zeros`, as many as there
        are channels, are set to 0 besides.
        """
        layout, mean = self.layout, self.mean
        sums = mean.new_empty((layout.splits, 2, layout.channels))
        _sum_gradients[(layout.sum_blocks, layout.splits)](
            self.x,
            gradient,
            more,
            signs,
            passed,
            *self.line,
            sums,
            **(
                layout.streamed(self.x)
                if signs is None
                else layout.sums | {"AT_ONCE": 1, "STAGES": 0}
            ),
            AFFINE=self.factor is not None,
            ADDS=signs is not None,
            MORE=more is not None,
            PACKED=signs is not None and signs.dtype == torch.uint8,
            RELU=self.relu,
        )
        added_up = add_up_splits(sums.flatten(1), torch.float32, zeros)
        along_shift, along_factor = added_up.view(2, -1)
        return along_shift, along_factor

    def bottom_gradient(
        self, gradient: Tensor, along: tuple[Tensor, Tensor], above: bool
    ) -> Tensor:
        """That of x from the top's, `above` the ReLU or below, and `parameter_gradients`."""
        layout = self.layout
        result = torch.empty_like(self.x)
        _bottom_gradient[(layout.row_blocks * layout.column_blocks,)](
            self.x,
            gradient,
            result,
            *self.line,
            *along,
            **layout.settings,
            AFFINE=self.factor is not None,
            RELU=self.relu and above,
        )
        return result
