"""How the kernels see a blob: `rows` values for each of `channels` channels.

A blob of N x C x spatial axes is channels-last in memory, or has each channel's plane contiguous; a
kernel computes its addresses by the same rule for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

#: How many numbers a program of a kernel has in hand at a time, and how many of a small blob.
TILE, SMALL_TILE = 2048, 512
#: From how many numbers on a blob is not small.
LARGE = 1 << 21
#: The most channels in a tile, and in one that is summed up: 256 and 128 bytes of bfloat16.
CHANNELS, SUM_CHANNELS = 128, 64
#: Where rows are summed up: how many numbers a program has in hand, by how many warps, and programs
#: that so keep a large GPU busy. Fewer leave fewer sums to be added up.
SUM_TILE, SUM_WARPS, PROGRAMS = 4096, 8, 264
#: How many bytes the numbers have together that stand in one place of the tiles that it asks memory
#: for at once: four bfloat16, two float32. More do not fit the registers. It does so only where it
#: stores nothing in between: for all that a compiler knows, that could be what is loaded next.
AT_ONCE = 8
#: Where nothing is stored in between, and a row's channels lie in one piece: how many bytes a tile
#: has, by how many warps, and from how many tiles ahead on it is on its way to shared memory. So an
#: H200's memory gives 4.2 TB/s of the 4.8 it has, where it gave 2.2 to a single blob.
STREAM_TILE, STREAM_WARPS, STREAM_STAGES = 8192, 4, 5
#: The largest number of elements that 32 bits can index.
LARGEST = 2**31 - 1
#: The most blocks on the second axis of a grid.
MOST_BLOCKS = 65_535


@triton.jit
def tile(rows, channels, num_rows, num_channels, plane, LAST: tl.constexpr):
    """Which of these elements are inside the blob, and where in memory they are."""
    inside = (rows < num_rows) & (channels < num_channels)
    if LAST:
        where = rows * num_channels + channels
    else:
        where = (rows // plane * num_channels + channels) * plane + rows % plane
    return inside, where


@dataclass(frozen=True)
class Layout:
    """The layout of a blob, and how a kernel divides it.

    `plane` is the number of pixels in a channel's plane, `last` whether it is channels-last.
    """

    rows: int
    channels: int
    plane: int
    last: bool

    @property
    def settings(self) -> dict[str, Any]:
        """The kernels' arguments for this layout."""
        return {
            "num_rows": self.rows,
            "num_channels": self.channels,
            "plane": self.plane,
            "LAST": self.last,
            "HEIGHT": self.height,
            "COLUMNS": self.columns,
        }

    @property
    def columns(self) -> int:
        """Channels in a tile."""
        return self._at_most(CHANNELS)

    @property
    def _sum_columns(self) -> int:
        return self._at_most(SUM_CHANNELS)

    def _at_most(self, channels: int) -> int:
        """This many channels, or fewer if that is enough."""
        return min(channels, triton.next_power_of_2(self.channels)) if self.last else 1

    @property
    def height(self) -> int:
        """Rows in a tile."""
        return (TILE if self.is_large else SMALL_TILE) // self.columns

    @property
    def is_large(self) -> bool:
        """Whether large tiles are enough to keep a large GPU busy."""
        return self.rows * self.channels >= LARGE

    @property
    def sums(self) -> dict[str, Any]:
        """`settings` for kernels that sum up rows; see `sum_blocks` and `splits`."""
        return self.settings | {
            "HEIGHT": self._sum_height,
            "COLUMNS": self._sum_columns,
            "num_warps": SUM_WARPS if self.is_large else SUM_WARPS // 2,
        }

    def streamed(self, blob: Tensor) -> dict[str, Any]:
        """`sums` for kernels that store nothing while they sum up such a blob."""
        if not (self.last and self.is_large):
            return self.sums | {"AT_ONCE": tiles_at_once(blob), "STAGES": 0}
        height = STREAM_TILE // (self._sum_columns * blob.element_size())
        chosen = {"HEIGHT": height, "AT_ONCE": 1, "STAGES": STREAM_STAGES}
        return self.sums | chosen | {"num_warps": STREAM_WARPS}

    @property
    def _sum_height(self) -> int:
        return (SUM_TILE if self.is_large else SMALL_TILE) // self._sum_columns

    @property
    def sum_blocks(self) -> int:
        """The number of blocks of channels that are summed up."""
        return triton.cdiv(self.channels, self._sum_columns)

    @property
    def column_blocks(self) -> int:
        return triton.cdiv(self.channels, self.columns)

    @property
    def row_blocks(self) -> int:
        return triton.cdiv(self.rows, self.height)

    @property
    def splits(self) -> int:
        """Among how many programs the rows of a channel are divided for sums."""
        blocks = triton.cdiv(self.rows, self._sum_height)
        return max(1, min(blocks, PROGRAMS // self.sum_blocks))


@cache
def multiprocessors(device: torch.device) -> int:
    """The number of a GPU's multiprocessors; 1 if kernels are interpreted."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def fits(blob: Tensor) -> bool:
    """Whether kernels can work on this blob."""
    return (
        blob.dtype in (torch.float32, torch.bfloat16)
        and 0 < blob.numel() <= LARGEST
        and blob.shape[1] <= MOST_BLOCKS
    )


def layout_of(blob: Tensor) -> Layout:
    """The layout of a blob with 2 axes or more that `laid_out` has returned."""
    num, channels = blob.shape[:2]
    plane = blob.numel() // (num * channels)
    last = plane == 1 or not blob.is_contiguous()
    return Layout(num * plane, channels, plane, last)


def tiles_at_once(blob: Tensor) -> int:
    """How many tiles of a blob to ask memory for at once where they are summed up."""
    return AT_ONCE // blob.element_size()


def slice_of(blob: Tensor, like: Tensor) -> tuple[Tensor, int]:
    """The blob laid out like another of its shape, or as some channels of a larger blob that is.

    With it comes how many channels that has: what comes down to one of several that were put side
    by side need not be copied.
    """
    layout = layout_of(like)
    if blob.dim() == 4:
        width = blob.shape[3]
        if layout.last:
            wide = blob.stride(3)
            strides = (wide * layout.plane, 1, width * wide, wide)
        else:
            wide = blob.stride(0) // layout.plane
            strides = (wide * layout.plane, layout.plane, width, 1)
        if blob.stride() == strides and layout.rows * wide <= LARGEST:
            return blob, wide
    return laid_out(blob, like), layout.channels


def laid_out(blob: Tensor, like: Tensor | None = None) -> Tensor:
    """The blob in a layout that kernels know: its own if it is one, or that of `like`."""
    if like is not None:
        if blob.stride() == like.stride():
            return blob
        return torch.empty_like(like, dtype=blob.dtype).copy_(blob)
    if blob.is_contiguous():
        return blob
    if blob.dim() == 4 and blob.is_contiguous(memory_format=torch.channels_last):
        return blob
    return blob.contiguous()
