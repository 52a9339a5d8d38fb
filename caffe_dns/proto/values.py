"""Scalar values in protobuf's text format: from tokens to Python values, and back to text.

Accepted spellings and printed forms are those of C++ protobuf (`TextFormat`). Each reader raises
ValueError with a phrase that says what would be right.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from functools import cache, partial
from typing import TypeAlias

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from caffe_dns.encoding import encode
from caffe_dns.proto.tokens import is_number

#: Takes a token and whether a minus sign stood before it; raises ValueError.
Reader: TypeAlias = "Callable[[str, bool], int | float]"

_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: range(-(2**31), 2**31),
    FieldDescriptor.CPPTYPE_UINT32: range(2**32),
    FieldDescriptor.CPPTYPE_INT64: range(-(2**63), 2**63),
    FieldDescriptor.CPPTYPE_UINT64: range(2**64),
}
_BOOLS = {
    **dict.fromkeys(("true", "True", "t", "1"), True),
    **dict.fromkeys(("false", "False", "f", "0"), False),
}
#: Digits, or none, that mean the same in both.
_SAME_IN_OCTAL = ("", *"1234567")
_NOT_FINITE = ("inf", "infinity", "nan")
#: Of more values of an enum than this, errors count the rest.
_MOST_NAMED = 12
_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b", b"f": b"\f"}
_ESCAPES |= {b"v": b"\v", b"\\": b"\\", b"'": b"'", b'"': b'"', b"?": b"?"}
_ESCAPE = re.compile(
    rb"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL
)
#: How bytes are printed that are not printed as they are.
_PRINTED = {byte: f"\\{byte:03o}" for byte in (*range(32), *range(127, 256))}
_PRINTED |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}
_PRINTED |= {ord('"'): '\\"', ord("'"): "\\'", ord("\\"): "\\\\"}


def reader(field: FieldDescriptor) -> Reader | None:
    """What reads the values of a field of numbers, booleans or an enum; None for other fields."""
    if field.enum_type is not None:
        return partial(_read_enum, field.enum_type)
    if field.cpp_type in _RANGES:
        return partial(_read_integer, _RANGES[field.cpp_type])
    return _READERS.get(field.cpp_type)


@cache
def numbers_of(enum: EnumDescriptor) -> dict[str, int]:
    """The numbers of an enum's values by their names.

    Protobuf's own table leaves an error behind when it is asked for a name that is not UTF-8.
    """
    return {value.name: value.number for value in enum.values}


def _read_integer(numbers: range, text: str, negative: bool) -> int:
    try:
        octal = text.startswith("0") and text.isdigit()
        value = int(text, 8) if octal else int(text, 0)
    except ValueError:
        raise ValueError("expected a whole number") from None
    value = -value if negative else value
    if value not in numbers:
        raise ValueError(f"expected a whole number from {numbers[0]} to {numbers[-1]}")
    return value


def _read_float(text: str, negative: bool) -> float:
    try:
        if not is_number(text) and text.lower() not in _NOT_FINITE:
            raise ValueError
        # To Caffe's protobuf 010 was 8, later ones refuse it.
        if text.isdigit() and text.startswith("0") and text.lstrip("0") not in _SAME_IN_OCTAL:
            raise ValueError
        value = float(text.rstrip("fF") if is_number(text) else text)
    except ValueError:
        raise ValueError("expected a decimal number") from None
    return -value if negative else value


def _read_bool(text: str, negative: bool) -> bool:
    if negative or text not in _BOOLS:
        raise ValueError("expected true or false")
    return _BOOLS[text]


def _read_enum(enum: EnumDescriptor, text: str, negative: bool) -> int:
    """The number of an enum's value, given by its name or its number."""
    if is_number(text):
        number = _read_integer(range(-(2**31), 2**31), text, negative)
        if number in enum.values_by_number:
            return number
    elif text in numbers_of(enum) and not negative:
        return numbers_of(enum)[text]
    names = list(enum.values_by_name)
    if len(names) > _MOST_NAMED:
        names[_MOST_NAMED:] = [f"{len(names) - _MOST_NAMED} more"]
    article = "an" if enum.name[0] in "AEIO" else "a"
    raise ValueError(f"expected {article} {enum.name} ({', '.join(names)})")


_READERS: dict[int, Reader] = {
    FieldDescriptor.CPPTYPE_BOOL: _read_bool,
    FieldDescriptor.CPPTYPE_FLOAT: _read_float,
    FieldDescriptor.CPPTYPE_DOUBLE: _read_float,
}


def read_string(text: str) -> bytes:
    """The bytes that a string token means. They need not be text by themselves."""
    raw = encode(text[1:-1])
    if b"\\" not in raw:
        return raw
    pieces, end = bytearray(), 0
    for match in _ESCAPE.finditer(raw):
        pieces += raw[end : match.start()]
        pieces += _unescape_one(match)
        end = match.end()
    pieces += raw[end:]
    return bytes(pieces)


def _unescape_one(match: re.Match[bytes]) -> bytes:
    octal, hexadecimal, short, long, letter = match.groups()
    if octal:
        return bytes([int(octal, 8) & 255])
    if hexadecimal:
        return bytes([int(hexadecimal, 16)])
    if short or long:
        code = int(short or long, 16)
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise ValueError(f"expected a character of Unicode instead of {match.group().decode()}")
        return chr(code).encode()
    if letter not in _ESCAPES:
        raise ValueError(f"expected a known escape instead of {match.group().decode('latin-1')}")
    return _ESCAPES[letter]


def print_value(field: FieldDescriptor, value: bool | int | float | str | bytes) -> str:
    """A scalar as C++ protobuf prints it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if field.enum_type is not None:
        return str(field.enum_type.values_by_number[value].name)
    if isinstance(value, float):
        return _print_float(value, field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT)
    if isinstance(value, int):
        return str(value)
    raw = encode(value) if isinstance(value, str) else value
    return '"' + raw.decode("latin-1").translate(_PRINTED) + '"'


def _print_float(value: float, single: bool) -> str:
    """The fewest digits, 6 at least (15 for doubles), that give the same value when read again."""
    for digits in range(6, 9) if single else range(15, 17):
        text = f"{value:.{digits}g}"
        again = struct.unpack("f", struct.pack("f", float(text)))[0] if single else float(text)
        if again == value:
            return text
    return f"{value:.{9 if single else 17}g}"
