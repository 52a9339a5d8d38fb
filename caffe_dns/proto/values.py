"""Scalar values in protobuf's text format: from tokens to Python values, and back to text.

What is accepted and how it is printed are those of C++ protobuf (`TextFormat`). Each reader raises
ValueError with a phrase that says what would be right.
"""

from __future__ import annotations

import re
import struct

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from caffe_dns.encoding import encode
from caffe_dns.proto.tokens import Token

_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_BOOLS = {
    **dict.fromkeys(("true", "True", "t", "1"), True),
    **dict.fromkeys(("false", "False", "f", "0"), False),
}
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


def read_number(field: FieldDescriptor, token: Token, negative: bool) -> int | float:
    """The value of a number field, with the minus sign that stood before the token."""
    if field.cpp_type in _RANGES:
        return _read_integer(token, negative, *_RANGES[field.cpp_type])
    value = _read_float(token)
    return -value if negative else value


def _read_integer(token: Token, negative: bool, low: int, high: int) -> int:
    text = token.text
    try:
        octal = text.startswith("0") and text.isdigit()
        value = int(text, 8) if octal else int(text, 0)
    except ValueError:
        raise ValueError("expected a whole number") from None
    value = -value if negative else value
    if not low <= value <= high:
        raise ValueError(f"expected a whole number from {low} to {high}")
    return value


def _read_float(token: Token) -> float:
    text = token.text
    if token.kind == "name" and text.lower() not in ("inf", "infinity", "nan"):
        raise ValueError("expected a number")
    try:
        return float(text.rstrip("fF") if token.kind == "number" else text)
    except ValueError:
        raise ValueError("expected a number") from None


def read_bool(token: Token, negative: bool) -> bool:
    if negative or token.text not in _BOOLS:
        raise ValueError("expected true or false")
    return _BOOLS[token.text]


def read_enum(enum: EnumDescriptor, token: Token, negative: bool) -> int:
    """The number of an enum's value, given by its name or its number."""
    if token.kind == "number":
        number = _read_integer(token, negative, -(2**31), 2**31 - 1)
        if number in enum.values_by_number:
            return number
    elif token.text in enum.values_by_name and not negative:
        return int(enum.values_by_name[token.text].number)
    names = list(enum.values_by_name)
    if len(names) > _MOST_NAMED:
        names[_MOST_NAMED:] = [f"{len(names) - _MOST_NAMED} more"]
    raise ValueError(f"expected a {enum.name} ({', '.join(names)})")


def append_string(pieces: bytearray, token: Token) -> None:
    """Add the bytes that a string token means. They need not be text by themselves."""
    raw = encode(token.text[1:-1])
    end = 0
    for match in _ESCAPE.finditer(raw):
        pieces += raw[end : match.start()]
        pieces += _unescape_one(match)
        end = match.end()
    pieces += raw[end:]


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
