"""How the coordinates of one blob map to another, for crops that align them (`coord_map.py`).

Works on nets that are being written with `net_spec`. A map says of each spatial axis that
coordinate x of one blob is coordinate `scale * x + shift` of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from caffe_dns.errors import CaffeError
from caffe_dns.layers.spatial import SIDES
from caffe_dns.pycaffe.net_spec import Function, Top, layers

PASS_THROUGH_LAYERS = (
    *("AbsVal", "BatchNorm", "Bias", "BNLL", "Dropout", "Eltwise", "ELU", "Log", "LRN", "Exp"),
    *("MVN", "Power", "ReLU", "PReLU", "Scale", "Sigmoid", "Split", "TanH", "Threshold"),
)
_WINDOWS = ("Convolution", "Pooling", "Im2col")
_LEGACY = (
    tuple(f"{name}_{side}" for name in ("pad", "kernel", "stride", "dilation") for side in "hw")
    + SIDES
)


class UndefinedMapException(Exception):
    """A layer's tops have no coordinates in its bottoms."""


class AxisMismatchException(Exception):
    """Two maps start at different axes."""


class CropError(CaffeError, AssertionError):
    """One blob is not a crop of another."""


class CoordMap(NamedTuple):
    """`scale` and `shift` are arrays of a value for each spatial axis from `axis` on, or for all
    of them; `axis` is that before the first spatial one, or None where any would do.
    """

    axis: int | None
    scale: np.ndarray
    shift: np.ndarray


IDENTITY = CoordMap(None, np.ones(1), np.zeros(1))


def coord_map(fn: Function) -> CoordMap:
    """From the coordinates of a layer's bottom to those of its top.

    Raises UndefinedMapException for types without such a map, CaffeError for windows that are
    given by `kernel_h` and the like.
    """
    if fn.type_name in PASS_THROUGH_LAYERS:
        return IDENTITY
    if fn.type_name == "Crop":
        settings = fn.params.get("crop_param", fn.params)
        offset = np.atleast_1d(settings.get("offset", 0))
        return CoordMap(settings.get("axis", 2) - 1, np.ones(1), -offset)
    if fn.type_name not in (*_WINDOWS, "Deconvolution"):
        raise UndefinedMapException(fn.type_name)
    settings = fn.params.get("convolution_param", fn.params.get("pooling_param", fn.params))
    if any(name in settings for name in _LEGACY):
        raise CropError("coordinates do not support kernel_h, stride_h, pad_h and the like")
    if "kernel_size" not in settings:
        raise UndefinedMapException(f"{fn.type_name} without kernel_size")
    kernel, stride, pad, dilation = (
        np.atleast_1d(settings.get(name, default))
        for name, default in (("kernel_size", 1), ("stride", 1), ("pad", 0), ("dilation", 1))
    )
    reach = (kernel - 1) * dilation / 2 - pad  # from a window's first pixel to its middle
    axis = settings.get("axis", 1)
    if fn.type_name == "Deconvolution":
        return CoordMap(axis, stride, reach)
    return CoordMap(axis, 1 / stride, -reach / stride)


def compose(base_map: CoordMap, next_map: CoordMap) -> CoordMap:
    """`base_map` after `next_map`. Raises AxisMismatchException where their axes differ."""
    axes = {axis for axis in (base_map[0], next_map[0]) if axis is not None}
    if len(axes) > 1:
        raise AxisMismatchException(f"{base_map[0]} and {next_map[0]}")
    (_, scale, shift), (_, next_scale, next_shift) = base_map, next_map
    return CoordMap(next(iter(axes), None), scale * next_scale, scale * next_shift + shift)


def inverse(coord_map: CoordMap) -> CoordMap:
    """The inverse map."""
    axis, scale, shift = coord_map
    return CoordMap(axis, 1 / scale, -shift / scale)


def coord_map_from_to(top_from: Top, top_to: Top) -> CoordMap:
    """From the coordinates of `top_from` to those of `top_to`, by a blob that both depend on.

    Raises CaffeError when there is none that spatial layers lead to.
    """
    from_maps = _maps_to_ancestors(top_from)
    for top, to_map in _maps_to_ancestors(top_to).items():
        if top in from_maps:
            return compose(to_map, inverse(from_maps[top]))
    raise CaffeError("the tops have no ancestor in common that spatial layers lead to")


def crop(top_from: Top, top_to: Top) -> Top:
    """A Crop layer that aligns `top_from` with `top_to`.

    Raises CropError when their scales differ, or when it would begin outside or between pixels.
    """
    axis, scale, shift = coord_map_from_to(top_from, top_to)
    if not np.all(scale == 1):
        raise CropError(f"cannot crop blobs of different scale: {scale}")
    if np.any(shift > 0):
        raise CropError(f"cannot crop from outside of the blob: the offset is {-shift}")
    if np.any(shift != np.round(shift)):
        raise CropError(f"cannot crop between pixels: the offset is {-shift}")
    first = 2 if axis is None else axis + 1
    made: Top = layers.Crop(
        top_from, top_to, crop_param={"axis": first, "offset": [int(-value) for value in shift]}
    )
    return made


def _maps_to_ancestors(top: Top) -> dict[Top, CoordMap]:
    """The maps from all blobs that spatial layers lead to from `top`, itself first."""
    maps = {top: IDENTITY}
    waiting = [top]
    while waiting:
        current = waiting.pop()
        try:
            step = coord_map(current.fn)
        except UndefinedMapException:
            continue
        for bottom in _mapped_bottoms(current.fn):
            if bottom not in maps:
                maps[bottom] = compose(maps[current], step)
                waiting.append(bottom)
    return maps


def _mapped_bottoms(fn: Function) -> Sequence[Top]:
    """The bottoms that tops have coordinates in: of Crop the first, which is cropped."""
    return fn.inputs[:1] if fn.type_name == "Crop" else fn.inputs
