"""A model without masks as a .caffemodel for stock Caffe, OpenCV and others."""

from __future__ import annotations

from caffe_dns.errors import CaffeError
from caffe_dns.export.formats import export_format
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.proto.text import MAX_BYTES


@export_format("caffemodel", ".caffemodel")
def to_caffemodel(model: UnmaskedModel) -> bytes:
    """The bytes of a .caffemodel. Raises CaffeError for more than protobuf can read."""
    pieces = model.to_pieces()
    if sum(map(len, pieces)) > MAX_BYTES:
        raise CaffeError(
            "more than 2 GiB, which protobuf cannot read; a .safetensors file would be right"
        )
    return b"".join(pieces)
