"""Prints a net as text in a compact layout: whatever fits on a line stands on one.

`caffe_dns.proto.text.to_text` prints as protobuf does, one field a line; a reader of a large net
wants less of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from caffe_dns.proto.fields import is_repeated
from caffe_dns.proto.values import print_value

WIDTH = 100


def compact_text(message: Message) -> str:
    """The text form of a message, in lines of at most WIDTH characters where that can be."""
    return "".join(f"{line}\n" for line in _lines(message, ""))


def _lines(message: Message, indent: str) -> Iterator[str]:
    row = ""
    for field, value in _fields(message):
        entry = _flat(field, value)
        fits = len(indent) + len(row) + 1 + len(entry) <= WIDTH
        if field.message_type is None and row and fits:
            row += f" {entry}"
            continue
        if row:
            yield indent + row
        row = ""
        if field.message_type is None:
            row = entry
        elif len(indent) + len(entry) <= WIDTH:
            yield indent + entry
        else:
            yield f"{indent}{field.name} {{"
            yield from _lines(value, indent + "  ")
            yield f"{indent}}}"
    if row:
        yield indent + row


def _flat(field: FieldDescriptor, value: Any) -> str:
    """A field on one line, however long."""
    if not isinstance(value, Message):
        return f"{field.name}: {print_value(field, value)}"
    inside = " ".join(_flat(*entry) for entry in _fields(value))
    return f"{field.name} {{ {inside} }}"


def _fields(message: Message) -> Iterator[tuple[FieldDescriptor, Any]]:
    for field, value in message.ListFields():
        for item in value if is_repeated(field) else (value,):
            yield field, item
