"""Building data layers, which have to be closed, and reading batches from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_dns.errors import CaffeError
from caffe_dns.layers import Context, layer_types
from caffe_dns.layers.batch_data import BatchDataLayer
from caffe_dns.proto.caffe_pb2 import TEST, TRAIN, LayerParameter

Batch = list[np.ndarray]


@contextmanager
def data_layer(
    definition: str, *, tops: int = 2, train: bool = False, context: Context | None = None
) -> Iterator[BatchDataLayer]:
    """The layer of a definition without name and tops, set up, and closed at the end."""
    param = LayerParameter(name="layer", phase=TRAIN if train else TEST)
    text_format.Merge(definition, param)
    if not param.top:
        param.top.extend(["data", "label", "third"][:tops])
    layer = layer_types[param.type](param, context or Context())
    assert isinstance(layer, BatchDataLayer)
    try:
        layer.setup([])
        yield layer
    finally:
        layer.close()


def read(layer: BatchDataLayer, count: int) -> list[Batch]:
    """The tops of `count` forward passes."""
    return [[top.numpy().copy() for top in layer()] for _ in range(count)]


def labels(layer: BatchDataLayer, count: int) -> list[list[int]]:
    """The labels of `count` forward passes."""
    return [batch[1].astype(int).tolist() for batch in read(layer, count)]


def refused(definition: str, *, tops: int = 2, batches: int = 0) -> str:
    """The error that a definition makes in setup, or in one of so many forward passes."""
    with pytest.raises(CaffeError) as caught, data_layer(definition, tops=tops) as layer:
        read(layer, batches)
    text = str(caught.value)
    assert "layer 'layer'" in text
    assert "\n" not in text
    return text
