"""The planes of decoded JPEGs, and the pixels that libjpeg makes of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.data.datum import IntArray

#: Bytes at whose multiples planes begin, and lines of them.
_PLANE, _LINE = 256, 32


def lay_out(kinds: IntArray) -> tuple[IntArray, int]:
    """Where the planes of some JPEGs are to lie in one memory, and how many bytes they take.

    `kinds` is [N, 4], of each what `PlainJpeg` has. Returned is, for each, [N, 9]: where Y, Cb and
    Cr begin; bytes from line to line of Y, and of the others; lines and columns of the others; how
    many lines and columns of Y one of theirs is for.
    """
    colours = -(-kinds[:, :2] // kinds[:, 2:])
    pitches = -(-np.stack([kinds[:, 1], colours[:, 1]], 1) // _LINE) * _LINE
    lines = np.stack([kinds[:, 0], colours[:, 0], colours[:, 0]], 1)
    sizes = -(-lines * pitches[:, [0, 1, 1]] // _PLANE) * _PLANE
    ends = np.cumsum(sizes).reshape(sizes.shape)
    return np.hstack([ends - sizes, pitches, colours, kinds[:, 2:]]), int(ends[-1, -1])


def pixels(memory: Tensor, table: IntArray, result: Tensor) -> None:
    """Put a crop of each JPEG, blue, green and red, into its place in `result`.

    `memory` is uint8, with planes as `lay_out` has them; `table` has what that gives, and top and
    left of the crop, and its place, [M, 12]; `result` is uint8 [N, 3, height, width].
    """
    if kernels.wanted(memory.device):
        from caffe_dns.kernels import ycbcr

        ycbcr.pixels(memory, torch.from_numpy(table).to(memory.device), result)
        return
    _, _, height, width = result.shape
    for *planes, top, left, place in table.tolist():
        image = _image(memory, *planes)
        result[place] = image[:, top : top + height, left : left + width]


# What libjpeg does: jdcolor.c, and below jdsample.c.


def _image(memory: Tensor, *layout: int) -> Tensor:
    """Blue, green and red of a whole image, and of what else its lines of colours are for."""
    *starts, pitch, colour_pitch, lines, columns, of_lines, of_columns = layout
    size = lines * of_lines, columns * of_columns
    y, cb, cr = (
        memory[start : start + extent[0] * each].view(-1, each)[:, : extent[1]].int()
        for start, each, extent in zip(
            starts,
            (pitch, colour_pitch, colour_pitch),
            (size, (lines, columns), (lines, columns)),
            strict=True,
        )
    )
    cb, cr = (_upsampled(plane, of_lines, of_columns) - 128 for plane in (cb, cr))
    blue, red = (116130 * cb + 32768) >> 16, (91881 * cr + 32768) >> 16
    green = (-22554 * cb - 46802 * cr + 32768) >> 16
    return (y + torch.stack([blue, green, red])).clamp(0, 255).byte()


def _upsampled(plane: Tensor, of_lines: int, of_columns: int) -> Tensor:
    """A colour for each pixel: three quarters of the nearest, a quarter of the next, twice."""
    if of_lines == 2:
        above, below = torch.cat([plane[:1], plane[:-1]]), torch.cat([plane[1:], plane[-1:]])
        plane = torch.stack([3 * plane + above, 3 * plane + below], 1).flatten(0, 1)
    else:
        plane = 4 * plane
    if of_columns == 2:
        left = torch.cat([plane[:, :1], plane[:, :-1]], 1)
        right = torch.cat([plane[:, 1:], plane[:, -1:]], 1)
        plane = torch.stack([3 * plane + left, 3 * plane + right], 2).flatten(1)
    else:
        plane = 4 * plane
    # How libjpeg rounds halves, in turn.
    if of_columns == 2:
        odd = torch.arange(plane.shape[1]) % 2
        bias = 8 - odd if of_lines == 2 else 4 + 4 * odd
    else:
        odd = torch.arange(plane.shape[0])[:, None] % 2
        bias = 4 + 4 * odd if of_lines == 2 else 0 * odd
    return (plane + bias.to(plane.device)) >> 4
