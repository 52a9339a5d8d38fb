"""Questions about message fields, which protobuf releases from 4.25 to 7 answer differently."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from caffe_dns.encoding import decode
from caffe_dns.errors import CaffeError
from caffe_dns.proto import values
from caffe_dns.proto.tokens import is_string

#: From here on, a number becomes infinite as a float.
_BEYOND_FLOAT = 2.0**128 - 2.0**103
_NUMBER, _STRING = 24, 48


@cache
def is_repeated(field: FieldDescriptor) -> bool:
    # `label` is gone in later releases, `is_repeated` missing in earlier ones.
    if hasattr(field, "is_repeated"):
        return bool(field.is_repeated)
    return bool(field.label == FieldDescriptor.LABEL_REPEATED)


def is_required(field: FieldDescriptor) -> bool:
    if hasattr(field, "is_required"):
        return bool(field.is_required)
    return bool(field.label == FieldDescriptor.LABEL_REQUIRED)


@dataclass(frozen=True, slots=True)
class KnownField:
    """What the parser asks of a field of a message, thousands of times."""

    descriptor: FieldDescriptor
    name: str
    repeated: bool
    is_message: bool
    #: For fields of numbers, booleans and enums.
    read: values.Reader | None

    @property
    def memory(self) -> int:
        """About how many bytes protobuf takes for each of many values, its spare room with them."""
        return _NUMBER if self.read is not None else _STRING

    def read_one(self, text: str, negative: bool) -> Any:
        """The value of one token, behind a minus sign or none. Raises ValueError if it has none."""
        if self.read is not None:
            return self.read(text, negative)
        if negative or not is_string(text):
            raise ValueError("expected a string in quotes")
        return self.from_bytes(values.read_string(text))

    def from_bytes(self, raw: bytes) -> str | bytes:
        """The value of strings that mean these bytes."""
        return raw if self.descriptor.type == FieldDescriptor.TYPE_BYTES else decode(raw)


def is_usual(value: Any) -> bool:
    """Whether a value is finite as a float, if it is one."""
    return not isinstance(value, float) or abs(value) < _BEYOND_FLOAT


@cache
def known_fields(message: Descriptor) -> dict[str, KnownField]:
    """The fields of a message by their names."""
    return {
        field.name: KnownField(
            field,
            field.name,
            is_repeated(field),
            field.message_type is not None,
            values.reader(field),
        )
        for field in message.fields
    }


@cache
def required_names(message: Descriptor) -> tuple[str, ...]:
    """The fields without which a message of this type is not complete."""
    return tuple(field.name for field in message.fields if is_required(field))


@cache
def memory_of(message: Descriptor) -> int:
    """About how many bytes protobuf takes for a message of this type in which nothing is set."""
    return 8 * len(message.fields)


def refuse_fields(
    settings: Message, place: str, owners: Mapping[str, Iterable[str]], own: str = ""
) -> None:
    """Raise CaffeError for the first field given that only other layer types than `own` read.

    `owners` has the types and what they alone read; `place` is the name of the settings in a layer.
    """
    given = {field.name for field, _ in settings.ListFields()}
    for types, names in owners.items():
        for name in names:
            if types != own and name in given:
                raise CaffeError(f"is for layers of type {types} only", field=f"{place}.{name}")
