"""Strings in serialized messages that are not UTF-8, from and to the form that messages have.

protobuf takes no such strings and gives bytes in their place, or raises. So they are exchanged in
the wire format, field by field as the descriptor of a message says; blobs are passed by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from caffe_dns import encoding
from caffe_dns.proto.fields import is_repeated
from caffe_dns.proto.wire import LENGTH, Field, Malformed, read_fields, tag, varint

_Convert = Callable[[bytes], bytes]


def parse(message: Message, raw: bytes) -> None:
    """Read `message` from its wire format. Raises DecodeError."""
    try:
        message.ParseFromString(raw)
        readable = all(isinstance(text, str) for text in _texts(message))
    except UnicodeDecodeError:
        readable = False
    if not readable:
        try:
            message.ParseFromString(_rewrite(memoryview(raw), message.DESCRIPTOR, _to_message))
        except Malformed:
            raise DecodeError("a field is cut short") from None


def serialize(message: Message) -> bytes:
    """The wire format of `message`, its strings with the bytes that they had."""
    raw: bytes = message.SerializeToString()
    if encoding.MARK.search(raw):
        return _rewrite(memoryview(raw), message.DESCRIPTOR, _from_message)
    return raw


def _to_message(raw: bytes) -> bytes:
    return encoding.decode(raw).encode()


def _from_message(raw: bytes) -> bytes:
    return encoding.encode(raw.decode())


def _texts(message: Message) -> Iterator[object]:
    """All strings of a message; of one that is no text, protobuf gives the bytes, or raises."""
    for field, value in message.ListFields():
        values = value if is_repeated(field) else (value,)
        if field.type == FieldDescriptor.TYPE_STRING:
            yield from values
        elif field.message_type is not None and _has_text(field.message_type):
            for each in values:
                yield from _texts(each)


@cache
def _has_text(message: Descriptor) -> bool:
    """Whether a message of this type can have strings in it."""
    return any(
        field.type == FieldDescriptor.TYPE_STRING
        or (field.message_type is not None and _has_text(field.message_type))
        for field in message.fields
    )


def _rewrite(message: memoryview, descriptor: Descriptor, convert: _Convert) -> bytes:
    """A message of this type with all its strings converted. Raises Malformed."""
    parts: list[bytes | memoryview] = []
    for found in read_fields(message):
        content = _rewrite_field(message, found, descriptor, convert)
        if content is None:
            parts.append(message[found.start : found.end])
        else:
            parts += [tag(found.number, LENGTH), varint(len(content)), content]
    return b"".join(parts)


def _rewrite_field(
    message: memoryview, found: Field, descriptor: Descriptor, convert: _Convert
) -> bytes | None:
    """The new content of a field; None where it has no strings."""
    field = descriptor.fields_by_number.get(found.number)
    if field is None or found.wire_type != LENGTH:
        return None
    content = message[found.value : found.end]
    if field.type == FieldDescriptor.TYPE_STRING:
        return convert(bytes(content))
    if field.message_type is not None and _has_text(field.message_type):
        return _rewrite(content, field.message_type, convert)
    return None
