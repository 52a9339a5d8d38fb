"""Layers of Synopsys' fork, most of which ONNX has as they are."""

from __future__ import annotations

from typing import cast

from caffe_dns.export.onnx_graph import Bottoms, converts
from caffe_dns.layers.forks.tensors import Squeeze


@converts("Squeeze")
def squeeze(at: Bottoms) -> list[str]:
    axes = cast(Squeeze, at.layer).axes(at.shapes[0])
    at.graph.fixed_batch |= 0 in axes
    return [at.add("Squeeze", at.values[0], at.integers("axes", axes))]
