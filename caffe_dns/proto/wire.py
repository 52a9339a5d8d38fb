"""Protobuf's wire format, where bytes are handled before or without being parsed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

#: A part of a message: bytes, or the memory of an array in their place.
Piece = bytes | memoryview

#: Wire types: a varint, and so many bytes behind a length.
VARINT = 0
LENGTH = 2
#: Wire types of so many bytes.
_FIXED = {1: 8, 5: 4}


class Malformed(ValueError):
    """The bytes are no message: they end within a field, or hold what proto2 messages do not."""


class Field(NamedTuple):
    """Where a field lies: its tag at `start`, its value from `value` up to `end`."""

    number: int
    wire_type: int
    start: int
    value: int
    end: int


def read_fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message, one after the other. Raises Malformed."""
    at = 0
    while at < len(message):
        start = at
        key, at = read_varint(message, at)
        wire_type = key & 7
        if wire_type == VARINT:
            _, end = read_varint(message, at)
        elif wire_type == LENGTH:
            length, at = read_varint(message, at)
            end = at + length
        elif wire_type in _FIXED:
            end = at + _FIXED[wire_type]
        else:
            raise Malformed
        if key < 8 or end > len(message):  # no field has the number 0
            raise Malformed
        yield Field(key >> 3, wire_type, start, at, end)
        at = end


def read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """The varint at `at`, and where it ends. Raises Malformed."""
    if at < len(message) and message[at] < 128:  # most are of one byte
        return message[at], at + 1
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
    raise Malformed


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def embedded(number: int, pieces: Sequence[Piece]) -> list[Piece]:
    """A field whose value has a length, and consists of these pieces."""
    return [tag(number, LENGTH) + varint(sum(map(len, pieces))), *pieces]


def tag(number: int, wire_type: int) -> bytes:
    """What stands in front of a field's value, or of the value's length."""
    return varint(number << 3 | wire_type)
