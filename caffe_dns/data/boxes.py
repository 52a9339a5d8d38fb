"""Boxes on the host, as rows of (xmin, ymin, xmax, ymax): areas, overlaps, and other units.

The arithmetic of SSD (`bbox_util.cpp` of weiliu89/caffe). Boxes are in fractions of an image's
width and height, or in pixels; the sides of boxes in pixels are one pixel longer than the
differences of their corners. What layers do with boxes on any device is not here.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

from caffe_dns.proto.caffe_pb2 import ResizeParameter

Boxes: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

#: (height, width) in pixels.
Size: TypeAlias = "tuple[int, int]"


def areas(boxes: Boxes, *, in_pixels: bool = False) -> Boxes:
    """The area of each box [..., 4]; 0 for boxes that end before they begin."""
    return _products(boxes[..., 2:] - boxes[..., :2], in_pixels)


def intersections(first: Boxes, second: Boxes, *, in_pixels: bool = False) -> Boxes:
    """What two boxes have in common, an area."""
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., 2:], second[..., 2:])
    return _products(high - low, in_pixels)


def _products(sides: Boxes, in_pixels: bool) -> Boxes:
    width, height = sides[..., 0], sides[..., 1]
    # What a net sees before it has learned may be infinite; such a box has no area that counts.
    with np.errstate(invalid="ignore", over="ignore"):
        area = (width + in_pixels) * (height + in_pixels)
    return np.where((width < 0) | (height < 0), 0, area)


def overlaps(first: Boxes, second: Boxes) -> Boxes:
    """What two boxes [..., 4] have in common, as a share of what they cover (Jaccard)."""
    common = intersections(first, second)
    return shares(common, areas(first) + areas(second) - common)


def shares(parts: Boxes, wholes: Boxes) -> Boxes:
    """`parts` / `wholes`, 0 where there is no part."""
    return np.divide(parts, wholes, out=np.zeros_like(wholes), where=parts > 0)


def rounded(value: float | np.floating[Any]) -> int:
    """The nearest whole number, halves away from 0, as C's `round`."""
    number = float(value)  # one of single precision would stay so when 0.5 is added
    return int(math.copysign(math.floor(abs(number) + 0.5), number))


def clip(boxes: Boxes, size: Size = (1, 1)) -> Boxes:
    """The part of each box that lies within an image of this (height, width)."""
    height, width = size
    limits = np.array([width, height, width, height], boxes.dtype)
    return np.minimum(np.maximum(boxes, 0), limits)


def project(source: Boxes, boxes: Boxes) -> Boxes:
    """The boxes as shares of another one, `source` [4], and clipped to it (`ProjectBBox`)."""
    corners = boxes.reshape(*boxes.shape[:-1], 2, 2)
    shares = (corners - source[:2]) / (source[2:] - source[:2])
    return clip(shares.reshape(boxes.shape))


def touches(source: Boxes, boxes: Boxes) -> Boxes:
    """Whether each box has more than a border in common with `source` [4]."""
    apart = (boxes[..., :2] >= source[2:]) | (boxes[..., 2:] <= source[:2])
    return np.logical_not(apart.any(-1))


def to_pixels(boxes: Boxes, size: Size, resize: ResizeParameter | None) -> tuple[Boxes, Boxes]:
    """Boxes [N, 4] that a net sees, in pixels of the image of this size, and their areas [N].

    `resize` says how the image was made fit for the net, None that it was stretched
    (`OutputBBox`).
    """
    height, width = size
    scale = np.array([width, height, width, height], boxes.dtype)
    in_pixels = max(size) > 1
    if resize is None or resize.resize_mode == ResizeParameter.WARP:
        result = clip(boxes) * scale
    elif resize.resize_mode == ResizeParameter.FIT_LARGE_SIZE_AND_PAD:
        source = _within_padding(size, resize).astype(boxes.dtype)
        inside = touches(source, boxes)[:, None]
        result = clip(np.where(inside, project(source, boxes), boxes)) * scale
    elif resize.height_scale and resize.width_scale:
        counted = np.array([resize.width_scale, resize.height_scale] * 2, boxes.dtype)
        result = clip(boxes * counted, size)
        in_pixels = False  # as there
    else:
        result = clip(boxes) * scale
    return result, areas(result, in_pixels=in_pixels)


def _within_padding(size: Size, resize: ResizeParameter) -> Boxes:
    """Where an image of this size lies in one that was filled up to the size in `resize`."""
    aspect = size[1] / size[0]
    if aspect > resize.width / resize.height:
        border = (resize.height - resize.width / aspect) / 2 / resize.height
        return np.array([0, border, 1, 1 - border])
    border = (resize.width - resize.height * aspect) / 2 / resize.width
    return np.array([border, 0, 1 - border, 1])
