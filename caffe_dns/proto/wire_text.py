"""Parses and serialises messages: with a limit on memory, and strings that are not UTF-8.

A message of a few bytes can take hundreds in memory, so its size is estimated before it is parsed.
protobuf returns strings that are not UTF-8 as bytes, or raises. So they are converted in the wire
format, field by field according to the message's descriptor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from caffe_dns import encoding
from caffe_dns.errors import CaffeError
from caffe_dns.proto.fields import memory_of
from caffe_dns.proto.wire import LENGTH, Field, Malformed, read_fields, tag, varint

_Convert = Callable[[bytes], bytes]

#: What all messages in a file may take, without strings and blobs: 20,000 layers take less.
_MOST_MEMORY = 80 << 20
#: Bytes for a field, with what is made of it further on, and for a number of a packed field.
_FIELD, _NUMBER = 64, 16
#: Types of numbers that may have a byte each in a packed field.
_VARINTS = (
    FieldDescriptor.TYPE_BOOL,
    FieldDescriptor.TYPE_ENUM,
    FieldDescriptor.TYPE_INT32,
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_SINT32,
    FieldDescriptor.TYPE_SINT64,
    FieldDescriptor.TYPE_UINT32,
    FieldDescriptor.TYPE_UINT64,
)
#: As deep as protobuf reads messages inside one another.
_DEEPEST = 100


def parse(message: Message, raw: bytes, renumber: _Convert | None = None) -> None:
    """Read `message` from its wire format.

    `renumber` puts its fields under our numbers, after a look at how many these are.
    Raises DecodeError, and CaffeError where what it consists of would take too much memory.
    """
    kind = message.DESCRIPTOR
    try:
        raw = _survey(raw, kind)
        if renumber is not None and (renumbered := renumber(raw)) is not raw:
            raw = _survey(renumbered, kind)
    except Malformed:
        raise DecodeError("a field is cut short") from None
    message.ParseFromString(raw)


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


def _survey(raw: bytes, kind: Descriptor) -> bytes:
    """A message of that kind, looked through, with all its strings in UTF-8. Raises Malformed."""
    if _has_text(kind) or len(raw) * _memory_of_byte(kind) > _MOST_MEMORY:
        survey = _Survey()
        survey.look_at(memoryview(raw), kind)
        if not survey.is_utf_8:
            return _rewrite(memoryview(raw), kind, _to_message)
    return raw


class _Survey:
    """A look through a serialised message before it is parsed, as far as its fields are known."""

    def __init__(self) -> None:
        #: How much more memory what it looks at may take.
        self.left = _MOST_MEMORY
        #: Whether all strings so far are.
        self.is_utf_8 = True

    def look_at(self, message: memoryview, descriptor: Descriptor, depth: int = 0) -> None:
        """Look at a message of this type and those in it.

        Raises Malformed, and CaffeError where they would take too much memory.
        """
        if depth > _DEEPEST:
            raise Malformed
        self._take(memory_of(descriptor))
        for found in read_fields(message):
            self._take(_FIELD)
            field = descriptor.fields_by_number.get(found.number)
            if field is None or found.wire_type != LENGTH:
                continue
            if field.message_type is not None:
                self.look_at(message[found.value : found.end], field.message_type, depth + 1)
            elif field.type == FieldDescriptor.TYPE_STRING:
                self.is_utf_8 = self.is_utf_8 and _is_utf_8(message[found.value : found.end])
            elif field.type in _VARINTS:
                self._take(_NUMBER * (found.end - found.value))

    def _take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise CaffeError(
                f"consists of so many messages, fields and numbers that these would take more "
                f"than {_MOST_MEMORY >> 20} MB of memory beside its strings and blobs"
            )


def _is_utf_8(raw: memoryview) -> bool:
    try:
        str(raw, "utf-8")
    except UnicodeDecodeError:
        return False
    return True


@cache
def _memory_of_byte(message: Descriptor) -> int:
    """The most that a byte counts in a message of this type; a field has two at least.

    A record of a database is one of thousands, and to look through each would take longer than all
    else, so it is known of short ones beforehand.
    """
    inner = (field.message_type for field in message.fields if field.message_type is not None)
    return max((_FIELD + memory_of(message)) // 2, _NUMBER, *map(_memory_of_byte, inner))


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
