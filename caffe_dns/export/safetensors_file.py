"""A model without masks as a .safetensors file: weights under PyTorch's names."""

from __future__ import annotations

from caffe_dns.errors import CaffeError
from caffe_dns.export.formats import export_format
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.export.torch_names import named_arrays


@export_format("safetensors", ".safetensors")
def to_safetensors(model: UnmaskedModel) -> bytes:
    """The bytes of a .safetensors file, with the definition among its metadata."""
    try:
        from safetensors.numpy import save
    except ImportError:
        raise CaffeError(
            "this needs the package safetensors: pip install 'caffe-dns[safetensors]'"
        ) from None
    return save(named_arrays(model), {"format": "pt", "prototxt": model.definition.to_text()})
