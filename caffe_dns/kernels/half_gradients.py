"""Gradients of convolutions for TF32, from factors in half precision, summed in float32.

Tensor Cores multiply these twice as fast as TF32, and read them in any order, whereas TF32 is read
only along the sum: for a weight's gradient, whose sum is over pixels, that is across channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from caffe_dns.kernels import half_factors
from caffe_dns.kernels.channel_statistics import add_up_splits
from caffe_dns.kernels.half_factors import Pair, Scaled, scaled, unscaled
from caffe_dns.kernels.layout import LARGEST, multiprocessors

#: The first generation of NVIDIA's GPUs that copies tiles to shared memory by itself, and how many
#: bytes of that a program takes.
CAPABILITY, SHARED = (9, 0), 147_512
#: The most numbers that are rounded before they are multiplied: of a part of the images.
MOST = 1 << 27
#: What the number of channels is a multiple of: rows begin where 16 bytes do.
ALIGNMENT = 8
#: The most programs for each that runs at a time, and how many turns one's beginning takes.
ROUNDS, BEGINNING = 8, 4
#: How many rows of a bottom's gradient a program has in hand, and outputs at a time.
ROWS, OUTPUTS = 128, 64


@triton.jit(do_not_specialize=["across", "pad_row", "pad_column", "STEPS"])
def _multiply(
    gradient,
    x,
    largest,
    sums,
    outer,
    channels,
    across,
    pad_row,
    pad_column,
    STEPS,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SPOTS: tl.constexpr,
    SHARES: tl.constexpr,
    OUTER: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    STAGES: tl.constexpr,
    ADD: tl.constexpr,
):
    """Sums over a share of the rows, for some spots in the window, of a tile of O x C products."""
    groups: tl.constexpr = KH * KW // SPOTS
    first = tl.program_id(0) % groups * SPOTS
    tile, blocks = tl.program_id(0) // groups, tl.cdiv(channels, CHANNELS)
    first_o, first_c = tile // blocks * OUTER, tile % blocks * CHANNELS
    begin = tl.program_id(1) * STEPS * PIXELS
    totals = ()
    for _ in tl.static_range(SPOTS):
        totals += (tl.zeros((OUTER, CHANNELS), tl.float32),)  # type: ignore[assignment]
    for step in tl.range(0, STEPS, num_stages=STAGES):
        row = begin + step * PIXELS
        # Beyond the first and the last row there are zeros.
        left = gradient.load([row, first_o]).T
        grown = ()
        for i in tl.static_range(SPOTS):
            spot = first + i
            distance = (spot // KW - pad_row) * across + spot % KW - pad_column
            right = x.load([row + distance, first_c])
            grown += (tl.dot(left, right, totals[i]),)  # type: ignore[assignment]
        totals = grown
    o, c = first_o + tl.arange(0, OUTER), first_c + tl.arange(0, CHANNELS)
    inside = (o < outer)[:, None] & (c < channels)[None, :]
    place = sums + ((tl.program_id(1) * outer + o)[:, None] * (KH * KW) + first) * channels
    for i in tl.static_range(SPOTS):
        total = unscaled(totals[i], largest, largest + SHARES, SHARES)
        mine = place + i * channels
        if ADD:
            total += tl.load(mine + c[None, :], mask=inside, other=0.0)
        tl.store(mine + c[None, :], total, mask=inside)


@triton.jit(do_not_specialize=["rows", "across", "pad_row", "pad_column"])
def _hand_down(
    gradient,
    weight,
    largest,
    largest_weight,
    result,
    pixels,
    rows,
    outer,
    channels,
    across,
    pad_row,
    pad_column,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SHARES: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    STAGES: tl.constexpr,
    EVEN: tl.constexpr,
):
    """A tile of the bottom's gradient: rows x channels."""
    blocks = tl.cdiv(channels, CHANNELS)
    first_c, first = tl.program_id(0) % blocks * CHANNELS, tl.program_id(0) // blocks * ROWS
    turns = tl.cdiv(outer, OUTPUTS)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    for step in tl.range(0, KH * KW * turns, num_stages=STAGES):
        spot, o = step // turns, step % turns * OUTPUTS
        distance = (spot // KW - pad_row) * across + spot % KW - pad_column
        left = gradient.load([first - distance, o])
        # What is of the next spot is not stored.
        right = weight.load([o, spot * channels + first_c])
        total = tl.dot(left, right, total)
    row, c = first + tl.arange(0, ROWS), first_c + tl.arange(0, CHANNELS)
    # Found by division, they would take more registers than there are.
    pixel = tl.load(pixels + row, mask=row < rows, other=-1)
    total = unscaled(total, largest, largest_weight, SHARES)
    place, known = result + pixel[:, None] * channels + c[None, :], (pixel >= 0)[:, None]
    tl.store(place, total, mask=known if EVEN else known & (c < channels)[None, :])


@cache
def _has_room(device: torch.device) -> bool:
    """Whether the device can copy tiles by itself, and has room for them."""
    if device.type != "cuda":
        return True
    properties = torch.cuda.get_device_properties(device)
    capability = properties.major, properties.minor
    shared = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]
    return capability >= CAPABILITY and shared >= SHARED


def fits(gradient: Tensor, x: Tensor, w: Tensor, pad: Pair) -> bool:
    """Whether the kernels can do it, for a convolution without stride, dilation and groups.

    Blobs are float32, N x channels x rows x columns with the channels innermost, the top is as
    high and wide as x, and TF32 may be used.
    """
    height, width = x.shape[2] + pad[0], x.shape[3] + pad[1]
    last = torch.channels_last
    return (
        torch.backends.cudnn.allow_tf32
        and all(blob.dtype == torch.float32 for blob in (gradient, x, w))
        and tuple(w.shape[2:]) == (2 * pad[0] + 1, 2 * pad[1] + 1)
        and gradient.shape[2:] == x.shape[2:]
        and all(blob.is_contiguous(memory_format=last) for blob in (gradient, x))
        and not any(channels % ALIGNMENT for channels in w.shape[:2])
        and len(x) > 0
        and height * width * max(w.shape[:2]) <= LARGEST // 2
        and _has_room(x.device)
    )


@dataclass(frozen=True)
class Way:
    """How many spots, outputs, channels and pixels a program has in hand, and how it does that."""

    spots: int
    outer: int
    channels: int
    pixels: int
    warps: int
    stages: int
    #: How many programs a multiprocessor has room for.
    resident: int


def gradients(
    gradient: Tensor, x: Tensor, w: Tensor, pad: Pair, *, below: bool
) -> tuple[Tensor | None, Tensor]:
    """Those of x, if `below`, and of w, from that of the top: blobs that fit.

    `pad` is (height, width). All have their channels innermost.
    """
    rows = (x.shape[2] + pad[0]) * (x.shape[3] + pad[1])
    parts = min(len(x), triton.cdiv(len(x) * rows * (w.shape[0] + w.shape[1]), MOST))
    images = triton.cdiv(len(x), parts)
    along = _Along(w, pad, images * rows, x.shape[3])
    down = _Down(w, pad) if below else None
    result = torch.empty_like(x) if below else x
    pieces = (blob.split(images) for blob in (gradient, x, result))
    for part, (own, bottom, to) in enumerate(zip(*pieces, strict=True)):
        factors = scaled([own, bottom], pad)
        along.add(factors, is_first=part == 0)
        del factors.blobs[1]
        if down is not None:
            down.fill(to, factors)
    return result if below else None, along.total()


class _Along:
    """The gradient of a weight, of as many rows in each part; an image is so wide."""

    def __init__(self, w: Tensor, pad: Pair, rows: int, width: int) -> None:
        self._w, self._pad, self._across = w, pad, width + pad[1]
        outer, channels, *kernel = w.shape
        self._way = way = _way(outer, channels, (kernel[0], kernel[1]))
        self._tiles = triton.cdiv(outer, way.outer) * triton.cdiv(channels, way.channels)
        self._tiles *= math.prod(kernel) // way.spots
        turns = triton.cdiv(rows, way.pixels)
        splits = _splits(turns, self._tiles, way.resident * multiprocessors(w.device))
        self._steps = triton.cdiv(turns, splits)
        self._sums = torch.empty(splits, w.numel(), device=w.device)

    def add(self, factors: Scaled, *, is_first: bool) -> None:
        """Take in a part: gradient and x."""
        way, (outer, channels, *kernel) = self._way, self._w.shape
        _multiply[(self._tiles, len(self._sums))](
            TensorDescriptor.from_tensor(factors.blobs[0], [way.pixels, way.outer]),
            TensorDescriptor.from_tensor(factors.blobs[1], [way.pixels, way.channels]),
            factors.largest,
            self._sums,
            outer,
            channels,
            self._across,
            *self._pad,
            self._steps,
            KH=kernel[0],
            KW=kernel[1],
            SPOTS=way.spots,
            SHARES=half_factors.SHARES,
            OUTER=way.outer,
            CHANNELS=way.channels,
            PIXELS=way.pixels,
            STAGES=way.stages,
            ADD=not is_first,
            num_warps=way.warps,
        )

    def total(self) -> Tensor:
        outer, channels, *kernel = self._w.shape
        total = add_up_splits(self._sums, torch.float32)
        return total.view(outer, *kernel, channels).permute(0, 3, 1, 2)


class _Down:
    """The gradient of a bottom, a part of the images at a time."""

    def __init__(self, w: Tensor, pad: Pair) -> None:
        self._shape, self._pad = w.shape, pad
        matrix = w.permute(0, 2, 3, 1).reshape(len(w), -1, 1, 1)
        self._weight = scaled([matrix], (0, 0))

    def fill(self, result: Tensor, factors: Scaled) -> None:
        """Write it into `result`, from that of the top."""
        outer, channels, *kernel = self._shape
        rows = len(factors.pixels)
        tile = 64 if channels <= 64 else 128 if channels <= 128 else 256
        _hand_down[(triton.cdiv(rows, ROWS) * triton.cdiv(channels, tile),)](
            TensorDescriptor.from_tensor(factors.blobs[0], [ROWS, OUTPUTS]),
            TensorDescriptor.from_tensor(self._weight.blobs[0], [OUTPUTS, tile]),
            factors.largest,
            self._weight.largest,
            result,
            factors.pixels,
            rows,
            outer,
            channels,
            result.shape[3] + self._pad[1],
            *self._pad,
            KH=kernel[0],
            KW=kernel[1],
            SHARES=half_factors.SHARES,
            ROWS=ROWS,
            CHANNELS=tile,
            OUTPUTS=OUTPUTS,
            EVEN=channels % tile == 0,
            STAGES=3 if tile > 128 else 4,
            num_warps=4 if tile == 64 else 8,
        )


def _way(outer: int, channels: int, kernel: Pair) -> Way:
    """How to divide a weight of so many outputs and channels: the best of some on an H200."""
    if channels <= 64:
        # A tile of the gradient is multiplied by those of a row of the window.
        spots = kernel[1] if kernel[1] in (1, 3) else 1
        if outer <= 64:
            return Way(spots, 64, 64, 64, 4, 3, 2)
        return Way(spots, 128, 64, 64, 8, 3, 1)
    if channels > 128:
        return Way(1, 128 if outer > 64 else 64, 256, 64, 8, 3, 1)
    if outer > 128:
        return Way(1, 256, 128, 64, 8, 3, 1)
    return Way(1, 128 if outer > 64 else 64, 128, 64, 8, 3, 2)


@cache
def _splits(turns: int, tiles: int, slots: int) -> int:
    """Among how many programs the turns of each tile are divided, of which so many run at a time.

    So that all are done as early as may be, those included that come last.
    """
    most = min(turns, triton.cdiv(ROUNDS * slots, tiles))
    return min(
        range(1, most + 1),
        key=lambda splits: (
            triton.cdiv(tiles * splits, slots) * (triton.cdiv(turns, splits) + BEGINNING)
        ),
    )
