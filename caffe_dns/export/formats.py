"""The formats of `dns export`: which there are, and how a model is written in each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from caffe_dns.errors import CaffeError, nearest
from caffe_dns.export import compact
from caffe_dns.export.model import BYTES_PER_VALUE, UnmaskedModel
from caffe_dns.export.onnx_file import to_onnx
from caffe_dns.export.torch_names import to_safetensors
from caffe_dns.proto.text import MAX_BYTES


def to_caffemodel(model: UnmaskedModel) -> bytes:
    """The bytes of a .caffemodel for stock Caffe."""
    proto = model.to_proto()
    if proto.ByteSize() > MAX_BYTES:
        raise CaffeError("more than 2 GiB, which protobuf cannot read")
    return proto.SerializeToString()


#: Format -> file ending, and the function that gives the file's bytes.
FORMATS: dict[str, tuple[str, Callable[[UnmaskedModel], bytes]]] = {
    "caffemodel": (".caffemodel", to_caffemodel),
    "onnx": (".onnx", to_onnx),
    "safetensors": (".safetensors", to_safetensors),
    "compact": (compact.ENDING, compact.to_bytes),
}


def find_format(output: str, name: str = "") -> str:
    """The format of this name, or else the one of the file's ending; raises CaffeError if none."""
    if name:
        if name not in FORMATS:
            known = ", ".join(FORMATS)
            raise CaffeError(
                f"unknown format '{name}'{nearest(name, list(FORMATS))}; known: {known}"
            )
        return name
    endings = {ending: known for known, (ending, _) in FORMATS.items()}
    ending = Path(output).suffix
    if ending not in endings:
        raise CaffeError(
            f"the ending tells no format; {', '.join(endings)} would, or --format", file=output
        )
    return endings[ending]


def size_table(model: UnmaskedModel, given: list[str], compact_bytes: int) -> list[str]:
    """Lines on the bytes of a model: as given, dense, pruned and compact."""
    dense = model.total * BYTES_PER_VALUE
    pruned = model.kept * BYTES_PER_VALUE
    rows = [(f"given: {Path(file).name}", Path(file).stat().st_size) for file in given]
    rows += [
        (f"dense: {model.total:,} weights of 4 bytes", dense),
        (f"pruned: {model.kept:,} of them not zero, without their places", pruned),
        ("compact: the same with places and definition, compressed", compact_bytes),
    ]
    width = max(len(name) for name, _ in rows)
    share = 100 / dense if dense else 0.0
    return [
        f"{name:<{width}} {size:>15,} bytes {size * share:9.2f} % of dense" for name, size in rows
    ]
