"""Questions about message fields, which protobuf releases from 4.25 to 7 answer differently."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from caffe_dns.errors import CaffeError
from caffe_dns.proto import values


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
