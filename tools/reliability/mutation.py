"""Damage to files, drawn from a seed: to bytes, to protobuf's wire format, to text, to pages."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.proto.fields import is_repeated

#: Numbers at which something changes its size or its sign.
EDGES = [0, 1, 127, 128, 255, 256, 32767, 65535, 65536, 1 << 24, 2**31 - 1, 2**31, 2**32 - 1]
EDGES += [1 << 40, 1 << 62, 2**63 - 1, 2**64 - 1]
NUMBERS = [*map(str, EDGES), "-1", "-2147483648", "1000000", "0.0", "3.5", "1e308", "1e39", "1e-46"]
NUMBERS += ["18446744073709551616", "nan", "inf", "-inf", "0x10", "077", '"7"', "true", ""]
_LARGE = {"32767", "65535", "65536", "16777216", "1000000"}
_NOT_LARGE = [number for number in NUMBERS if number not in _LARGE]
WORDS = [*"{}<>:[],;\"'\\#\0é", "layer {", "}}", '"\\xff"', "top: 'data'", "dim: -1"]
WORDS += ["type: 'Python'", "type: 'Nothing'", "include { phase: TEST }", "loss_weight: nan"]
_BLANKS = [b"\t", b";", b"", b"  ", b"\0"]
STRINGS = ['""', '"/etc/passwd"', '"' + "A" * 5000 + '"', '"\\000"', '"."']
FLOATS = [float("nan"), float("inf"), -float("inf"), 3e38, 1e-45]
_LIMITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
#: Damages content by draws from a generator.
Damage = Callable[[bytes, random.Random], bytes]


def damage_bytes(head: int = 4096) -> Damage:
    """Damage of any kind, mostly to the first `head` bytes."""

    def damage(raw: bytes, draw: random.Random) -> bytes:
        content = bytearray(raw)
        kind = draw.choice(["cut", "flip", "flip", "flips", "insert", "delete", "number", "fill"])
        if kind == "cut":
            return raw[: draw.randrange(len(raw) + 1)]
        at = place(raw, draw, head)
        if kind in ("flip", "flips"):
            for _ in range(1 if kind == "flip" else draw.randrange(2, 30)):
                content[place(raw, draw, head)] ^= 1 << draw.randrange(8)
        elif kind == "insert":
            size = draw.choice([1, 2, 4, 8, 100, 4096])
            content[at:at] = draw.choice([draw.randbytes(size), raw[at : at + size]])
        elif kind == "delete":
            del content[at : at + draw.choice([1, 1, 2, 4, 8, 100, 4096])]
        elif kind == "number":
            put_number(content, at, draw)
        else:
            size = min(draw.choice([4, 16, 64, 512, 4096]), len(raw) - at)
            content[at : at + size] = draw.choice([b"\0", b"\xff"]) * size
        return bytes(content)

    return damage


def damage_pages(page_size: int = 4096) -> Damage:
    """Damage to a file of pages, half of it to their beginnings, where the structure is."""
    anywhere = damage_bytes()

    def damage(raw: bytes, draw: random.Random) -> bytes:
        if draw.random() < 0.5:
            return anywhere(raw, draw)
        content = bytearray(raw)
        pages = len(raw) // page_size
        for _ in range(draw.choice([1, 1, 2, 5])):
            page = draw.randrange(min(pages, draw.choice([2, 8, pages])))
            put_number(content, page * page_size + draw.randrange(draw.choice([16, 48, 160])), draw)
        return bytes(content)

    return damage


def place(raw: bytes, draw: random.Random, head: int) -> int:
    """An index into `raw`, mostly among the first `head`."""
    return draw.randrange(min(head, len(raw)) if draw.random() < 0.6 else len(raw))


def put_number(content: bytearray, at: int, draw: random.Random) -> None:
    """Write a number of some size there, or flip one bit."""
    size = draw.choice([1, 2, 4, 8])
    number = draw.choice(EDGES) & (1 << 8 * size) - 1
    if draw.random() < 0.3:
        content[at] ^= 1 << draw.randrange(8)
    else:
        content[at : at + size] = number.to_bytes(size, draw.choice(["little", "little", "big"]))


@dataclass
class Field:
    """A field of a message on the wire: where tag, value and the field itself end."""

    start: int
    value: int
    end: int
    #: Where the value begins behind its length, for those that have one.
    inside: int
    wire_type: int


def damage_message(descriptor: Descriptor) -> Damage:
    """Damage that knows where fields, lengths and numbers of this message are."""
    anywhere = damage_bytes()
    known: dict[bytes, list[Field]] = {}

    def damage(raw: bytes, draw: random.Random) -> bytes:
        if raw not in known:
            known[raw] = find_fields(raw, descriptor)
        if draw.random() < 0.2:
            return anywhere(raw, draw)
        return damage_field(raw, draw, known[raw])

    return damage


def damage_field(raw: bytes, draw: random.Random, fields: Sequence[Field]) -> bytes:
    content = bytearray(raw)
    kind = draw.choice(["drop", "repeat", "tag", "length", "length", "number", "shorter", "float"])
    with_length = [field for field in fields if field.wire_type == 2] or fields
    numbers = [field for field in fields if field.wire_type == 0] or fields
    if kind in ("drop", "repeat"):
        field = draw.choice(fields)
        times = 0 if kind == "drop" else draw.choice([2, 3, 50])
        content[field.start : field.end] = raw[field.start : field.end] * times
    elif kind == "tag":
        field = draw.choice(fields)
        content[field.start : field.value] = varint(draw.choice([0, 1, 8, 13, 34, *EDGES]))
    elif kind == "number":
        field = draw.choice(numbers)
        content[field.value : field.end] = varint(draw.choice([-1, -2, *EDGES]))
    else:
        field = draw.choice(with_length)
        size = field.end - field.inside
        if kind == "length":
            lengths = [0, 1, 3, size - 1, size + 1, size + 4, *EDGES]
            content[field.value : field.inside] = varint(draw.choice(lengths))
        elif kind == "shorter":
            left = draw.randrange(size + 1)
            kept = raw[field.inside : field.inside + left]
            content[field.value : field.end] = varint(left) + kept
        elif size >= 4:
            at = field.inside + 4 * draw.randrange(size // 4)
            content[at : at + 4] = struct.pack("<f", draw.choice(FLOATS))
    return bytes(content)


def find_fields(raw: bytes, descriptor: Descriptor | None, base: int = 0) -> list[Field]:
    """All fields of a message, and those of the messages in it."""
    found: list[Field] = []
    at = 0
    while at < len(raw):
        start = at
        tag, at = read_varint(raw, at)
        value = inside = at
        wire_type = tag & 7
        if wire_type == 0:
            _, at = read_varint(raw, at)
        elif wire_type == 2:
            size, inside = read_varint(raw, at)
            at = inside + size
            field = descriptor.fields_by_number.get(tag >> 3) if descriptor else None
            if field is not None and field.message_type is not None:
                found += find_fields(raw[inside:at], field.message_type, base + inside)
        else:
            at += 8 if wire_type == 1 else 4
        found.append(Field(base + start, base + value, base + at, base + inside, wire_type))
    return found


def read_varint(raw: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = raw[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at


def varint(number: int) -> bytes:
    number &= 2**64 - 1
    result = bytearray()
    while number > 127:
        result.append(number & 127 | 128)
        number >>= 7
    return bytes([*result, number])


def damage_text(raw: bytes, draw: random.Random) -> bytes:
    """Damage to a definition: to its numbers mostly, to its words, lines, letters and strings."""
    return _damage_text(raw, draw, NUMBERS)


def damage_small_text(raw: bytes, draw: random.Random) -> bytes:
    """The same, but no net becomes large by it that can still be built."""
    return _damage_text(raw, draw, _NOT_LARGE)


def _damage_text(raw: bytes, draw: random.Random, numbers: Sequence[str]) -> bytes:
    text = raw.decode()
    kind = draw.choice(
        ["number"] * 6 + ["cut", "drop", "line", "letter", "word", "token", "string"]
    )
    if kind == "cut":
        text = text[: draw.randrange(len(text))]
    elif kind == "number":
        for _ in range(draw.choice([1, 1, 2, 3])):
            text = replace_one(text, r"(?<=[ :])-?\d+\.?\d*(?=[ }\n])", numbers, draw)
    elif kind in ("drop", "line"):
        lines = text.split("\n")
        line = lines.pop(draw.randrange(len(lines)))
        if kind == "line":
            lines.insert(draw.randrange(len(lines) + 1), line)
        text = "\n".join(lines)
    elif kind == "letter":
        at = draw.randrange(len(text))
        letter = draw.choice(["", chr(draw.randrange(32, 127)), chr(draw.randrange(1, 0x2000))])
        text = text[:at] + letter + text[at + 1 :]
    elif kind == "word":
        at = draw.randrange(len(text))
        text = text[:at] + draw.choice(WORDS) + text[at:]
    elif kind == "token":
        text = replace_one(text, r'"[^"]*"|\w+|[^\s\w]', re.findall(r"\w+|[^\s\w]", text), draw)
    else:
        text = replace_one(text, r'"[^"]*"', [*re.findall(r'"[^"]*"', text), *STRINGS], draw)
    return text.encode()


def damage_fields(raw: bytes, draw: random.Random, *, small: bool = False) -> bytes:
    """Damage to a definition that stays one: settings of its layers become others.

    With `small`, no net becomes large by it that can still be built.
    """
    net = text_format.Parse(raw.decode(), NetParameter())
    numbers = [0, 1, 2, 3, 7, -1, -(2**31), *EDGES]
    if small:
        numbers = [number for number in numbers if not 7 < number < 2**31 - 1]
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        layer = draw.choice(net.layer)
        settings = [
            value
            for field, value in layer.ListFields()
            if field.message_type is not None and not is_repeated(field)
        ]
        _set_field(draw.choice([layer, *settings * 3]), numbers, draw, 3)
    return text_format.MessageToString(net).encode()


def _set_field(message: Message, numbers: Sequence[int], draw: random.Random, deepest: int) -> None:
    """Give a field of the message, or of one inside of it, a value that it may have."""
    field = draw.choice(message.DESCRIPTOR.fields)
    here = getattr(message, field.name)
    if field.message_type is not None:
        inside = here
        if is_repeated(field):
            inside = draw.choice(here) if len(here) and draw.random() < 0.7 else here.add()
        inside.SetInParent()
        if deepest:
            _set_field(inside, numbers, draw, deepest - 1)
        return
    value = _value(field, numbers, draw)
    if not is_repeated(field):
        setattr(message, field.name, value)
        return
    if draw.random() < 0.5:
        del here[:]
    here.append(value)


def _value(field: FieldDescriptor, numbers: Sequence[int], draw: random.Random) -> object:
    if field.enum_type is not None:
        return draw.choice(field.enum_type.values).number
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return draw.random() < 0.5
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return draw.choice([0.0, 0.5, -1.0, 2.0, 1e30, *FLOATS])
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        word = draw.choice(["", "x", "in0", "xavier", "msra"])
        return word.encode() if field.type == FieldDescriptor.TYPE_BYTES else word
    least, most = _LIMITS[field.cpp_type]
    return draw.choice([number for number in numbers if least <= number <= most])


def damage_lines(raw: bytes, draw: random.Random) -> bytes:
    """Damage to a list, a log or another file of lines and words, whatever they say."""
    kind = draw.choice(["bytes", "numbers", "repeat", "line", "long", "ends", "blanks", "coding"])
    lines = raw.split(b"\n")
    at = draw.randrange(len(lines))
    if kind == "bytes":
        return damage_bytes(600)(raw, draw)
    if kind == "numbers":
        others = [number.encode() for number in NUMBERS]
        share = draw.choice([0.02, 0.3])
        return re.sub(
            rb"\d+", lambda m: draw.choice(others) if draw.random() < share else m[0], raw
        )
    if kind == "ends":
        return raw.replace(b"\n", draw.choice([b"\r\n", b"\r", b" ", b"\x0c", b"\n\n"]))
    if kind == "blanks":
        return raw.replace(draw.choice([b" ", b",", b":", b'"', b"<"]), draw.choice(_BLANKS))
    if kind == "coding":
        return draw.choice([b"\xef\xbb\xbf" + raw, raw.decode("latin-1").encode("utf-16")])
    if kind == "repeat":
        lines[at:at] = lines[at : at + 1] * draw.choice([1, 2, 1000])
    elif kind == "line":
        lines[at] = draw.choice([b"", b" ", b"\0", b"\xff\xfe", b"#", b"\xc2\xb2"])
    else:
        lines[at] += draw.choice([b"9", b"a", b" -1", b'"', b"<a>", b"[", b"."]) * 5000
    return b"\n".join(lines)


def replace_one(text: str, pattern: str, others: Sequence[str], draw: random.Random) -> str:
    """The text with one match of the pattern replaced by one of the others."""
    matches = list(re.finditer(pattern, text))
    if not matches:
        return text
    match = draw.choice(matches)
    return text[: match.start()] + draw.choice(others) + text[match.end() :]
