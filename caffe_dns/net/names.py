"""Finds layers that share a name.

Models, states and random draws know a layer by its name. Caffe builds such nets without a word;
from its models, the first layer of a name gets the weights of the last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.layers.batch_data import BatchDataLayer
from caffe_dns.net.places import Places
from caffe_dns.net.wiring import Step
from caffe_dns.proto.caffe_pb2 import NetParameter


def check_names(steps: Sequence[Step], param: NetParameter, places: Places) -> None:
    """Warn of layers with the same name; raise CaffeError if one of them has weights or reads data.

    `param` is the definition before splits were inserted.
    """
    kept: dict[str, str] = {}
    for step in steps:
        if step.layer.blobs or isinstance(step.layer, BatchDataLayer):
            kept.setdefault(step.layer.name, "has weights" if step.layer.blobs else "reads data")
    check_names_of(param, kept, places)


def check_names_of(param: NetParameter, kept: Mapping[str, str], places: Places) -> None:
    """The same for a definition that is not built; `kept` says what a layer of each name has."""
    counts = Counter(layer.name for layer in param.layer)
    for name, count in counts.items():
        if count > 1:
            _check(name, count, kept.get(name), places.lines(name))


def _check(name: str, count: int, what: str | None, lines: Sequence[int]) -> None:
    message = f"{count} layers have {'this' if name else 'no'} name"
    if len(lines) == count:
        message += f" (lines {', '.join(map(str, lines[:-1]))} and {lines[-1]})"
    if what is not None:
        raise CaffeError(
            f"{message}, and one of them {what}: models and states know layers by their names; "
            "rename all but one",
            layer=name,
            line=lines[1] if len(lines) == count else None,
        )
    log.warning(f"layer '{name}': {message}")
