"""A model without masks as a compact file (.dnsz), and the other way round."""

from __future__ import annotations

from pathlib import Path

from caffe_dns.export.deploy import Deployment
from caffe_dns.export.formats import export_format
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.weights.compact import ENDING, Contents, encode, read


@export_format("compact", ENDING)
def to_bytes(model: UnmaskedModel) -> bytes:
    """The model as the bytes of a compact file, bit for bit."""
    definition = model.definition
    contents = Contents(definition.param, definition.remarks, model.blobs)
    return encode(contents)


def of_contents(contents: Contents) -> UnmaskedModel:
    """What a compact file holds as a model."""
    return UnmaskedModel(Deployment(contents.definition, contents.remarks), contents.blobs)


def load(path: str | Path) -> UnmaskedModel:
    """The model in a compact file. Raises CaffeError when it is damaged or of another kind."""
    return of_contents(read(path))
