"""Reports all unknown layer types of a net in one error."""

from __future__ import annotations

from caffe_dns.errors import CaffeError, nearest
from caffe_dns.layers import layer_types
from caffe_dns.net.places import Places
from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.proto.known_forks import forks_with_layer, instead
from caffe_dns.proto.unknown import Unknown, with_others
from caffe_dns.registry import is_missing


def check_types(param: NetParameter, places: Places) -> None:
    """Raise CaffeError, with the layer, for the first of an unknown type; it names the others."""
    unknown = [layer for layer in param.layer if is_missing(layer_types.kind, layer.type)]
    if not unknown:
        return
    first, *others = unknown
    line, column = places.field(first.name, "type")
    error = CaffeError(_message(first.type, column), layer=first.name, line=line)
    seen = {first.type}
    named = []
    for layer in others:
        if layer.type not in seen:
            seen.add(layer.type)
            line, _ = places.field(layer.name, "type")
            named.append(Unknown(f"'{layer.type}'", line, forks_with_layer(layer.type)))
    raise with_others(error, named)


def _message(type: str, column: int | None) -> str:
    place = f" (column {column})" if column else ""
    forks = forks_with_layer(type)
    if forks is not None:
        return f"'{type}'{place} is a layer type of {forks}, which dns lacks{instead(type)}"
    if not type:
        return "the layer has no type"
    return f"unknown layer type '{type}'{place}{nearest(type, list(layer_types))}"
