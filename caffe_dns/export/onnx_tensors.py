"""Layers of Synopsys' fork as ONNX nodes; most have an operator of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from caffe_dns.export.onnx_forks import resize
from caffe_dns.export.onnx_graph import Bottoms, converts
from caffe_dns.layers.forks.resize import Resize
from caffe_dns.layers.forks.tensors import DepthToSpace, Squeeze


@converts("Add", "Mul", "HardSwish")
def same(at: Bottoms) -> list[str]:
    return [at.add(at.layer.type, *at.values)]


@converts("Squeeze")
def squeeze(at: Bottoms) -> list[str]:
    axes = cast(Squeeze, at.layer).axes(at.shapes[0])
    at.graph.fixed_batch |= 0 in axes
    return [at.add("Squeeze", at.values[0], at.integers("axes", axes))]


@converts("Pad")
def pad(at: Bottoms) -> list[str]:
    settings = at.layer.param.pad_param
    amounts = at.integers("paddings", [*settings.paddings[::2], *settings.paddings[1::2]])
    value = at.number("value", settings.constant_values)
    at.graph.fixed_batch |= bool(settings.paddings[0] or settings.paddings[1])
    return [at.add("Pad", at.values[0], amounts, value)]


def _channels_second(at: Bottoms, axis: int, convert: Callable[[str], str]) -> list[str]:
    """What is made of the images with their channels, which lie in that axis, in the second."""
    if axis == 1:
        return [convert(at.values[0])]
    value = convert(at.add("Transpose", at.values[0], perm=[0, 3, 1, 2]))
    return [at.add("Transpose", value, perm=[0, 2, 3, 1])]


@converts("DepthToSpace")
def depth_to_space(at: Bottoms) -> list[str]:
    layer = cast(DepthToSpace, at.layer)
    settings = {"blocksize": layer.side, "mode": "CRD" if layer.by_channel else "DCR"}
    return _channels_second(
        at, layer.channel_axis, lambda value: at.add("DepthToSpace", value, **settings)
    )


@converts("ResizeNearestNeighbor", "ResizeBilinear")
def resize_images(at: Bottoms) -> list[str]:
    layer = cast(Resize, at.layer)
    nearest = layer.type == "ResizeNearestNeighbor"
    if nearest and layer.way == "half_pixel_centers":
        raise at.unsupported("a ResizeNearestNeighbor with half_pixel_centers")
    mode = {
        "": "asymmetric",
        "half_pixel_centers": "half_pixel",
        "half_pixel_onnx": "half_pixel",
    }.get(layer.way, layer.way)
    settings = {"mode": "linear", "coordinate_transformation_mode": mode}
    if nearest:
        rounding = "round_prefer_ceil" if mode == "align_corners" else "floor"
        settings |= {"mode": "nearest", "nearest_mode": rounding}
    channels = 3 if layer.axes == (1, 2) else 1
    size = [at.top_shapes[0][axis] for axis in layer.axes]
    return _channels_second(at, channels, lambda value: resize(at, value, size, **settings))
