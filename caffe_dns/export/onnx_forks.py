"""Layers of forks as ONNX nodes. What computes in BVLC's Caffe is in `onnx_layers`."""

from __future__ import annotations

from typing import cast

from caffe_dns.export.onnx_graph import Bottoms, converts
from caffe_dns.layers.forks.roi import ROIPooling


@converts("ROIPooling")
def roi_pooling(at: Bottoms) -> list[str]:
    layer, regions = cast(ROIPooling, at.layer), at.values[1]
    if len(at.shapes[1]) != 2:
        regions = at.reshape(regions, [-1, 5])
    settings = {"pooled_shape": layer.size, "spatial_scale": layer.scale}
    return [at.add("MaxRoiPool", at.values[0], regions, **settings)]
