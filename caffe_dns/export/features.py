"""Blobs that a net computes, image by image, as the Datums of a database.

Restates what `tools/extract_features.cpp` writes; running the net is up to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Shape
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import Datum

_DATUM_AXES = 3


def check_blobs(net: Net, names: list[str], definition: str) -> None:
    """Raise CaffeError for a blob that the net lacks, or that no Datum can hold."""
    for name in names:
        if name not in net.blob_shapes:
            raise CaffeError(f"Unknown feature blob name {name} in the network", file=definition)
        shape = net.blob_shapes[name]
        if len(shape) > 1 + _DATUM_AXES:
            raise CaffeError(
                f"blob '{name}' has {len(shape)} axes; a Datum holds channels, height and width",
                file=definition,
            )


def feature_datums(blob: Tensor) -> Iterator[Datum]:
    """One Datum with float_data for each index of the first axis; a blob without axes gives one."""
    channels, height, width = _datum_shape(tuple(blob.shape))
    rows = blob.reshape(blob.shape[0] if blob.dim() else 1, -1).cpu().numpy()
    for row in rows:
        yield Datum(channels=channels, height=height, width=width, float_data=row.tolist())


def _datum_shape(shape: Shape) -> Shape:
    """Channels, height and width; axes that are missing at the end count 1 (`LegacyShape`)."""
    return (*shape[1:], 1, 1, 1)[:_DATUM_AXES]
