"""Questions about message fields, which protobuf releases from 4.25 to 7 answer differently."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from caffe_dns.errors import CaffeError


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


@cache
def required_names(message: Descriptor) -> tuple[str, ...]:
    """The fields without which a message of this type is not complete."""
    return tuple(field.name for field in message.fields if is_required(field))


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
