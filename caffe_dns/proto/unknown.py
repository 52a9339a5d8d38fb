"""Collects the unknown fields of a definition while it is read, and reports them in one error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import (
    LayerParameter,
    NetParameter,
    SolverParameter,
    V1LayerParameter,
)
from caffe_dns.proto.known_forks import forks_with_layer
from caffe_dns.proto.positions import Positions
from caffe_dns.proto.upgrade_forks import READ_AS_OTHERS
from caffe_dns.proto.values import numbers_of
from caffe_dns.registry import is_missing

#: The enum of the layer types of 2014.
OLD_TYPES = V1LayerParameter.LayerType.DESCRIPTOR
_TYPE = LayerParameter.DESCRIPTOR.fields_by_name["type"]

#: How many are named; the rest is counted.
_MOST_NAMED, _MOST_OWNERS = 12, 3


@dataclass(frozen=True)
class Unknown:
    """Something unknown: its name, its line, and the forks that have it, if any."""

    name: str
    line: int | None
    forks: str | None = None

    def __str__(self) -> str:
        parts = [] if self.line is None else [f"line {self.line}"]
        parts += [self.forks] if self.forks else []
        return self.name + (f" ({', '.join(parts)})" if parts else "")


class UnknownNames:
    """What a text has and dns does not: the error for the first, and the names of the others.

    Making an error, with a suggestion, takes long, so only the first one is made.
    """

    #: With this many names, or occurrences, it is another kind of file.
    MOST, MOST_TIMES = 1000, 100_000

    def __init__(self) -> None:
        self.first_error: CaffeError | None = None
        self._others: dict[str, Unknown] = {}
        self._times = 0

    def note(
        self, make: Callable[[], CaffeError], name: str, line: Callable[[], int], forks: str | None
    ) -> None:
        """Note that `name` is unknown. Raises the first error if there are too many."""
        self._times += 1
        if self.first_error is None:
            self.first_error = make()
        elif len(self._others) == self.MOST or self._times == self.MOST_TIMES:
            raise self.first_error
        elif name not in self._others:
            self._others[name] = Unknown(name, line(), forks)

    def complain(self, message: Message, text: str) -> None:
        """Raise one error for all, including layers of forks in `message`, if there are any."""
        if self.first_error is not None:
            layers = foreign_layers(message, Positions(text))
            raise with_others(self.first_error, [*self._others.values(), *layers])


#: What a file is whose outermost fields are those of another kind.
_OTHER_KINDS: dict[str, tuple[Descriptor, str]] = {
    "NetParameter": (
        SolverParameter.DESCRIPTOR,
        "this is the definition of a solver, not of a net",
    ),
    "SolverParameter": (
        NetParameter.DESCRIPTOR,
        'this is the definition of a net; a solver\'s names it, net: "FILE"',
    ),
}


def other_kind(message: str, field: str) -> str | None:
    """What a file is if that field shows that it is another kind of message, or None."""
    if message not in _OTHER_KINDS:
        return None
    other, what = _OTHER_KINDS[message]
    return what if field in other.fields_by_name else None


def owners(field: str, around: Sequence[Descriptor]) -> str:
    """` (x_param has it)`: the messages with such a field, in the innermost one or beside it.

    `around` are the messages that are open, the innermost last. Nothing where there are none.
    """
    for message in reversed(around[-2:]):
        having = [
            inner.name
            for inner in message.fields
            if inner.message_type is not None and field in inner.message_type.fields_by_name
        ]
        if having:
            verb = "have" if having[1:] else "has"
            if having[_MOST_OWNERS:]:
                having[_MOST_OWNERS:] = [f"{len(having) - _MOST_OWNERS} more"]
            return f" ({', '.join(having)} {verb} it)"
    return ""


def misquoted(field: FieldDescriptor, text: str) -> str:
    """A hint for a value with quotes that should have none, or the other way round."""
    if field.enum_type is None:
        of_old = field == _TYPE and text in numbers_of(OLD_TYPES)
        return "; types without quotes are for 'layers', not 'layer'" if of_old else ""
    if field.enum_type == OLD_TYPES and text[:1] in ("'", '"'):
        return "; types in quotes are for 'layer', not 'layers'"
    name = text.strip("'\"")
    known = name in numbers_of(field.enum_type)
    return f"; {name} without quotes would be right" if known else ""


def foreign_layers(message: Message, positions: Positions) -> list[Unknown]:
    """The layers of a net with a type that only forks have, or nobody."""
    layers = message.layer if isinstance(message, NetParameter) else ()
    types = [(layer.type, positions.layer_line(index)) for index, layer in enumerate(layers)]
    return [
        Unknown(f"layer type '{type}'", line, forks)
        for type, line in types
        if type not in ("", *READ_AS_OTHERS)
        and ((forks := forks_with_layer(type)) or is_missing("layer type", type))
    ]


def with_others(first: CaffeError, others: Iterable[Unknown]) -> CaffeError:
    """The error for the first unknown name, which lists the others once each."""
    by_name: dict[str, Unknown] = {}
    for other in sorted(others, key=lambda other: other.line or 0):
        by_name.setdefault(other.name, other)
    names = [str(other) for other in by_name.values()]
    if len(names) > _MOST_NAMED:
        names[_MOST_NAMED:] = [f"{len(names) - _MOST_NAMED} more"]
    if names:
        first.message += f"; also unknown: {', '.join(names)}"
    return first
