"""The backward pass of a depthwise convolution and the BatchNorms around it.

One kernel makes the gradient of the convolution's top from the one above its BatchNorm, propagates
it, and sums up what the weight and the BatchNorm below need.
"""

from __future__ import annotations

import triton
import triton.language as tl

from caffe_dns.kernels.batch_norm import line
from caffe_dns.kernels.patches import SIZES, activation, patches, place, taps


@triton.jit
def _top_gradient(y, gradient, image, row, column, size, channels, top, RELU: tl.constexpr):
    """The gradient of a pixel of the top from that above its BatchNorm; 0 beyond the image."""
    slope, intercept, mean, along_shift, along_distance = top
    inside, where = place(image, row, column, size, channels)
    value = tl.load(y + where, mask=inside, other=0.0).to(tl.float32)
    above = tl.load(gradient + where, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        above = tl.where(value * slope + intercept > 0, above, 0.0)
    below = (above - along_shift - (value - mean) * along_distance) * slope
    return tl.where(inside, below, 0.0)


@triton.jit
def _top_row(
    y, gradient, image, row, patch, size, channels, top, RELU: tl.constexpr, STRIDE: tl.constexpr
):
    """The pixels of a row of the top that a patch had a part in: four, or two."""
    if STRIDE == 1:
        left = patch * 2 - 1
        a = _top_gradient(y, gradient, image, row, left, size, channels, top, RELU)
        b = _top_gradient(y, gradient, image, row, left + 1, size, channels, top, RELU)
        c = _top_gradient(y, gradient, image, row, left + 2, size, channels, top, RELU)
        d = _top_gradient(y, gradient, image, row, left + 3, size, channels, top, RELU)
    else:
        a = _top_gradient(y, gradient, image, row, patch, size, channels, top, RELU)
        b = _top_gradient(y, gradient, image, row, patch + 1, size, channels, top, RELU)
        c, d = a, b
    return a, b, c, d


@triton.jit
def _bottom(x, image, row, column, size, channels, own, RELU: tl.constexpr):
    """A pixel of the bottom: where, whether it is inside, it, and what was convolved."""
    inside, where = place(image, row, column, size, channels)
    value = tl.load(x + where, mask=inside, other=0.0).to(tl.float32)
    return where, inside, value, activation(value, inside, own, RELU)


@triton.jit
def _hand_down(result, below, pixel, own, total, products, RELU: tl.constexpr):
    """Store a pixel's gradient; add it up below the ReLU, and times the distance to the mean."""
    where, inside, value, _ = pixel
    below = below.to(result.dtype.element_ty)
    tl.store(result + where, below, mask=inside)
    passes = inside
    if RELU:
        passes = passes & (value * own[0] + own[1] > 0)
    below = tl.where(passes, below.to(tl.float32), 0.0)
    return total + below, products + below * (value - own[2])


@triton.jit
def _line_back(
    means, inverse_stds, factors, shifts, along_shifts, along_factors, count,
    channels, num_channels, AFFINE: tl.constexpr,
):  # fmt: skip
    """What `_top_gradient` needs for each channel: `line`, and parts in the gradients of both."""
    slope, intercept, mean, inverse_std = line(
        means, inverse_stds, factors, shifts, channels, num_channels, AFFINE
    )
    along_shift = tl.load(along_shifts + channels) / count
    return (
        slope,
        intercept,
        mean,
        along_shift,
        tl.load(along_factors + channels) / count * inverse_std,
    )


@triton.jit
def _undo(above, here, below, w, p, q):
    """What two neighbours get from three rows of the top, and what they bring to the weight.

    A window's first row lay above what it made: what lies below was made of its last.
    """
    a0, b0, c0, d0 = above
    a1, b1, c1, d1 = here
    a2, b2, c2, d2 = below
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = w
    first = c2 * w0 + b2 * w1 + a2 * w2 + c1 * w3 + b1 * w4 + a1 * w5 + c0 * w6 + b0 * w7 + a0 * w8
    second = d2 * w0 + c2 * w1 + b2 * w2 + d1 * w3 + c1 * w4 + b1 * w5 + d0 * w6 + c0 * w7 + b0 * w8
    along = (
        p * c2 + q * d2, p * b2 + q * c2, p * a2 + q * b2,
        p * c1 + q * d1, p * b1 + q * c1, p * a1 + q * b1,
        p * c0 + q * d0, p * b0 + q * c0, p * a0 + q * b0,
    )  # fmt: skip
    return first, second, along


@triton.jit
def _undo_stride(here, below, w, p, q, r, s):
    """The same for four, p and q above r and s, of a convolution with a stride of 2."""
    a1, b1, _, _ = here
    a2, b2, _, _ = below
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = w
    first, second = a1 * w4, a1 * w5 + b1 * w3
    third, fourth = a1 * w7 + a2 * w1, a1 * w8 + b1 * w6 + a2 * w2 + b2 * w0
    along = (s * b2, r * a2, s * a2, q * b1, p * a1, q * a1, s * b1, r * a1, s * a1)
    return first, second, third, fourth, along


@triton.jit
def _plus(sums, more):
    """Sums for each tap of the window, and more."""
    a0, a1, a2, a3, a4, a5, a6, a7, a8 = sums
    b0, b1, b2, b3, b4, b5, b6, b7, b8 = more
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3, a4 + b4, a5 + b5, a6 + b6, a7 + b7, a8 + b8


@triton.jit
def _where(known, row):
    a, b, c, d = row
    return (
        tl.where(known, a, 0.0),
        tl.where(known, b, 0.0),
        tl.where(known, c, 0.0),
        tl.where(known, d, 0.0),
    )


@triton.jit
def _store_sums(sums, split, channels, num_channels, total, products, along):
    """Sums over a program's patches: two numbers for each channel, and then a window for each."""
    where = sums + split * 11 * num_channels + channels
    tl.store(where, tl.sum(total, 0)[None, :])
    tl.store(where + num_channels, tl.sum(products, 0)[None, :])
    where = sums + (split * 11 + 2) * num_channels + channels * 9
    for tap in tl.static_range(9):
        tl.store(where + tap, tl.sum(along[tap], 0)[None, :])


@triton.jit(do_not_specialize=[*SIZES, "count"])
def gradients(
    x, w, y, gradient, result, sums, means, inverse_stds, factors, shifts,
    top_means, top_inverse_stds, top_factors, top_shifts, along_shifts, along_factors,
    num_patches, across, height, width, top_height, top_width, num_channels, rows_each, count,
    AFFINE: tl.constexpr, RELU: tl.constexpr, TOP_AFFINE: tl.constexpr, TOP_RELU: tl.constexpr,
    STRIDE: tl.constexpr, PATCHES: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The gradient of what was convolved in some rows, and over them the sums of it below the ReLU,
    of it times the normalised bottom, and of the weight's gradient."""
    split, channels, image, patch, begin, end = patches(
        num_patches, across, num_channels, tl.cdiv(height, STRIDE), rows_each, PATCHES, COLUMNS
    )
    own = line(means, inverse_stds, factors, shifts, channels, num_channels, AFFINE)
    top = _line_back(
        top_means, top_inverse_stds, top_factors, top_shifts, along_shifts, along_factors, count,
        channels, num_channels, TOP_AFFINE,
    )  # fmt: skip
    size, top_size = (height, width, num_channels), (top_height, top_width, num_channels)
    window = taps(w, channels, 0) + taps(w, channels, 1) + taps(w, channels, 2)
    total = tl.zeros((PATCHES, COLUMNS), tl.float32)
    products, along = total, (total, total, total, total, total, total, total, total, total)
    above = _top_row(
        y, gradient, image, begin - 1, patch, top_size, channels, top, TOP_RELU, STRIDE
    )
    here = _top_row(y, gradient, image, begin, patch, top_size, channels, top, TOP_RELU, STRIDE)
    for row in tl.range(begin, end, num_stages=STAGES):
        below = _top_row(
            y, gradient, image, row + 1, patch, top_size, channels, top, TOP_RELU, STRIDE
        )
        p = _bottom(x, image, row * STRIDE, patch * 2, size, channels, own, RELU)
        q = _bottom(x, image, row * STRIDE, patch * 2 + 1, size, channels, own, RELU)
        if STRIDE == 1:
            first, second, more = _undo(above, here, below, window, p[3], q[3])
        else:
            r = _bottom(x, image, row * 2 + 1, patch * 2, size, channels, own, RELU)
            s = _bottom(x, image, row * 2 + 1, patch * 2 + 1, size, channels, own, RELU)
            first, second, third, fourth, more = _undo_stride(
                here, below, window, p[3], q[3], r[3], s[3]
            )
            total, products = _hand_down(result, third, r, own, total, products, RELU)
            total, products = _hand_down(result, fourth, s, own, total, products, RELU)
        total, products = _hand_down(result, first, p, own, total, products, RELU)
        total, products = _hand_down(result, second, q, own, total, products, RELU)
        # What goes two turns on as it is would keep Triton from loading ahead.
        above = _where(image >= -1, here)
        along, here = _plus(along, more), below
    _store_sums(sums, split, channels, num_channels, total, products * own[3], along)
