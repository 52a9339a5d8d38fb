"""1x1 convolutions as matrix products, which sum up what they write for BatchNorm.

A channels-last blob is a matrix with a row for each pixel. Summing up a tile of the product while
it is in registers costs no pass over memory; with cuDNN's convolutions, it takes another kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from caffe_dns.kernels.channel_statistics import Sums
from caffe_dns.kernels.layout import LARGEST, multiprocessors

#: What gives a convolution's gradients.
Gradients = Callable[[Tensor, Tensor, Tensor, Sequence[bool]], tuple[Tensor | None, Tensor | None]]

#: From which compute capability on tiles are copied by a unit of their own.
CAPABILITY = (9, 0)
#: How many rows the pivot is the mean of.
SAMPLE = 16
#: The sides of a tile of the product, how many bytes of a row a tile of a factor has, warps, stages
#: and programs that a multiprocessor has room for; the best of 25 on an H200.
ROWS, COLUMNS, DEPTH, WARPS, STAGES, RESIDENT = 128, 64, 128, 4, 3, 2
#: The largest weight for which that is faster: for larger ones cuDNN and a pass over its top are.
LARGEST_WEIGHT = 1 << 16


@triton.jit
def _multiply(
    x_tiles,
    w_tiles,
    y_tiles,
    x,
    w,
    pivots,
    sums,
    num_rows,
    num_columns,
    depth,
    TYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SAMPLE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """y = x w^T, and for each column of y the sums of y - pivot and of its square.

    The pivot is the mean of the first rows. A program makes a share of the tiles of some columns.
    """
    blocks = tl.cdiv(num_columns, COLUMNS)
    block, split = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    splits = tl.num_programs(0) // blocks
    columns = block * COLUMNS + tl.arange(0, COLUMNS)
    along = tl.arange(0, DEPTH)
    first = tl.minimum(tl.arange(0, SAMPLE), num_rows - 1)
    sample = tl.zeros((SAMPLE, COLUMNS), tl.float32)
    for begin in tl.range(0, depth, DEPTH):
        few = tl.load(x + first[:, None] * depth + (begin + along)[None, :])
        factors = tl.load(w + columns[None, :] * depth + (begin + along)[:, None])
        sample = tl.dot(few, factors, sample, input_precision="tf32")
    pivot = tl.sum(sample, 0)[None, :] / SAMPLE
    total = tl.zeros((1, COLUMNS), tl.float32)
    squares = tl.zeros((1, COLUMNS), tl.float32)
    # Flattened, the next tile's factors are on their way while this one is added up.
    for tile in tl.range(split, tl.cdiv(num_rows, ROWS), splits, flatten=True):
        y = tl.zeros((ROWS, COLUMNS), tl.float32)
        for begin in tl.range(0, depth, DEPTH, num_stages=STAGES):
            left = x_tiles.load([tile * ROWS, begin])
            right = w_tiles.load([block * COLUMNS, begin])
            y = tl.dot(left, right.T, y, input_precision="tf32")
        rounded = y.to(TYPE)
        y_tiles.store([tile * ROWS, block * COLUMNS], rounded)
        inside = (tile * ROWS + tl.arange(0, ROWS) < num_rows)[:, None]
        distance = tl.where(inside, rounded.to(tl.float32) - pivot, 0.0)
        total += tl.sum(distance, 0)[None, :]
        squares += tl.sum(distance * distance, 0)[None, :]
    place = sums + 2 * split * num_columns + columns
    tl.store(place, tl.sum(total, 0))
    tl.store(place + num_columns, tl.sum(squares, 0))
    if split == 0:
        tl.store(pivots + columns, tl.sum(pivot, 0))


@cache
def _can_copy_tiles(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= CAPABILITY


def fits(x: Tensor, channels: int) -> bool:
    """Whether the kernel can make a product of so many channels of images x, and it pays.

    They are bfloat16, or float32 where TF32 may be used, with their channels innermost.
    """
    is_half, depth = x.dtype == torch.bfloat16, x.shape[1]
    return (
        (is_half or (x.dtype == torch.float32 and torch.backends.cudnn.allow_tf32))
        and x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and depth % _depth(x) == 0
        and depth * channels <= LARGEST_WEIGHT
        and channels % COLUMNS == 0
        and 0 < x.numel() // depth * max(channels, depth) <= LARGEST
        and _can_copy_tiles(x.device)
    )


def _depth(x: Tensor) -> int:
    """How many numbers of a row a tile of x has."""
    return min(DEPTH // x.element_size(), triton.next_power_of_2(max(SAMPLE, x.shape[1])))


def _splits(rows: int, blocks: int, device: torch.device) -> int:
    """Among how many programs the rows of each of so many blocks of columns are divided."""
    tiles = triton.cdiv(rows, ROWS)
    splits = max(1, min(tiles, RESIDENT * multiprocessors(device) // blocks))
    # As few as need no more turns.
    return triton.cdiv(tiles, triton.cdiv(tiles, splits))


def product(x: Tensor, w: Tensor) -> tuple[Tensor, Sums]:
    """The convolution of x with a weight of 1x1, with its channels innermost, and its sums."""
    num, depth, *size = x.shape
    rows, columns, at_once = x.numel() // depth, len(w), _depth(x)
    y = torch.empty(
        (num, columns, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    left, right = x.permute(0, 2, 3, 1).reshape(rows, depth), w.reshape(columns, depth)
    splits = _splits(rows, columns // COLUMNS, x.device)
    pivot, sums = (
        torch.empty(shape, device=x.device) for shape in ((columns,), (splits, 2, columns))
    )
    _multiply[(splits * (columns // COLUMNS),)](
        TensorDescriptor.from_tensor(left, [ROWS, at_once]),
        TensorDescriptor.from_tensor(right, [COLUMNS, at_once]),
        TensorDescriptor.from_tensor(y.permute(0, 2, 3, 1).view(rows, columns), [ROWS, COLUMNS]),
        left,
        right,
        pivot,
        sums,
        rows,
        columns,
        depth,
        TYPE=tl.bfloat16 if x.dtype == torch.bfloat16 else tl.float32,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        DEPTH=at_once,
        SAMPLE=SAMPLE,
        STAGES=STAGES,
        num_warps=WARPS,
    )
    return y, Sums(pivot, sums)


class SummedProduct(torch.autograd.Function):
    """The convolution of x with a weight of 1x1, and what `Sums` has of its top.

    `gradients` gives those of x and w that are wanted, from that of the top, x, w and which.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, gradients: Gradients
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, found = product(x, w)
        ctx.save_for_backward(x, w)
        ctx.gradients = gradients
        ctx.mark_non_differentiable(found.pivot, found.sums)
        return y, found.pivot, found.sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        return *ctx.gradients(gradients[0], x, w, ctx.needs_input_grad[:2]), None
