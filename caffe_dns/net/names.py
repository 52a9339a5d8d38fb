"""Layers that have a name in common.

Models, states and random draws know a layer by its name. Caffe builds such nets and says nothing;
from its models, the first layer of a name gets the weights of the last.
"""

from __future__ import annotations

from collections.abc import Sequence

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Layer
from caffe_dns.layers.batch_data import BatchDataLayer
from caffe_dns.net.wiring import Step
from caffe_dns.proto.caffe_pb2 import NetParameter


def check_names(steps: Sequence[Step], param: NetParameter, lines: Sequence[int | None]) -> None:
    """Warn of layers of one name; raise CaffeError where one of them has weights or reads data.

    `param` is the definition before splits were inserted, `lines` says where its layers stand.
    """
    layers: dict[str, list[Layer]] = {}
    for step in steps:
        layers.setdefault(step.layer.name, []).append(step.layer)
    places: dict[str, list[int | None]] = {}
    for layer, line in zip(param.layer, lines, strict=True):
        places.setdefault(layer.name, []).append(line)
    for name, places_of_name in places.items():
        if len(places_of_name) > 1:
            _check(name, layers[name], places_of_name)


def _check(name: str, layers: Sequence[Layer], lines: Sequence[int | None]) -> None:
    known = [str(line) for line in lines if line is not None]
    message = f"{len(lines)} layers have this name"
    if known:
        message += f" (lines {', '.join(known[:-1])} and {known[-1]})"
    for layer in layers:
        what = "has weights" if layer.blobs else "reads data"
        if layer.blobs or isinstance(layer, BatchDataLayer):
            raise CaffeError(
                f"{message}, and one of them {what}: models and states know layers by their names; "
                "rename all but one",
                layer=name,
                line=lines[1],
            )
    log.warning(f"layer '{name}': {message}")
