"""Questions about message fields that the protobuf releases from 4.25 to 7 answer differently."""

from __future__ import annotations

from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor


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
