"""Reads the Datum messages in databases: from bytes to an array of pixels and a label.

Raw records are not copied: their pixels stay where the database has them. Encoded images are
decoded with OpenCV, as in Caffe. Datums are made by the message class itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from caffe_dns.data.decoding import Buffer, Image, decode
from caffe_dns.errors import CaffeError
from caffe_dns.files.finite import check_finite

IntArray: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"

_CHANNELS, _HEIGHT, _WIDTH, _DATA, _LABEL, _FLOAT_DATA, _ENCODED = range(1, 8)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
#: What a label begins with, and what is behind it in records as Caffe's tools write them.
LABEL_TAG, NOT_ENCODED, ENCODED = (
    bytes([_LABEL << 3]),
    *(bytes([_ENCODED << 3, encoded]) for encoded in (False, True)),
)
#: A Datum has seven; floats that follow one another count as one here.
_MOST_FIELDS = 1000
#: Records up to this size are worth a copy when that saves parsing them one by one.
SMALL = 16384
_FLOAT_ENTRY = np.dtype([("tag", "u1"), ("value", "<f4")])


@dataclass
class RawDatum:
    """The fields of one Datum; `data` is a view into the bytes it was parsed from."""

    channels: int = 0
    height: int = 0
    width: int = 0
    data: Buffer = b""
    #: Where `data` begins in those bytes.
    data_start: int = 0
    label: int = 0
    float_data: Image | None = None
    encoded: bool = False

    def image(self, *, color: bool = False, gray: bool = False) -> Image:
        """The pixels as [channels, height, width], uint8 or (from float_data) float32.

        Encoded images are decoded as stored, or in BGR, or in gray levels (`DecodeDatumToCVMat` in
        `util/io.cpp`). Raises CaffeError where the data do not fit the shape or cannot be decoded.
        """
        if self.encoded:
            return decode_image(self.data, color=color, gray=gray)
        shape = (self.channels, self.height, self.width)
        if len(self.data):
            values = np.frombuffer(self.data, np.uint8)
        elif self.float_data is not None:
            values = self.float_data
            check_finite(values, "float_data of a record")
        else:
            raise CaffeError("a record holds neither data nor float_data")
        if min(shape) < 1 or values.size != shape[0] * shape[1] * shape[2]:
            raise CaffeError(
                f"a record of {shape[0]}x{shape[1]}x{shape[2]} (channels, height, width) "
                f"holds {values.size} values"
            )
        return values.reshape(shape)


@dataclass(frozen=True)
class DatumDecoder:
    """Decodes Datums: encoded images as they are stored, or in colour, or gray."""

    color: bool = False
    gray: bool = False

    def decode(self, value: Buffer) -> tuple[Image, int]:
        """Pixels [channels, height, width] and label. Raises CaffeError for what has none."""
        datum = self.parse(value)
        return datum.image(color=self.color, gray=self.gray), datum.label

    def parse(self, value: Buffer) -> RawDatum:
        """The Datum in `value`. Raises CaffeError if it is not one."""
        datum = parse_datum(value)
        if datum.encoded and self.color and self.gray:
            raise CaffeError(
                "force_color and force_gray exclude each other", field="transform_param"
            )
        return datum


def parse_datum(value: Buffer) -> RawDatum:
    """The Datum in `value`, without copying its pixels. Raises CaffeError if it is not one."""
    datum = RawDatum()
    end = len(value)
    position = fields = 0
    try:
        while position < end:
            fields += 1
            if fields > _MOST_FIELDS:
                raise CaffeError(f"a record is not a Datum: it has more than {_MOST_FIELDS} fields")
            tag, position = _varint(value, position)
            field, wire = tag >> 3, tag & 7
            if wire == _VARINT:
                number, position = _varint(value, position)
                _set_number(datum, field, number)
            elif wire == _BYTES:
                size, position = _varint(value, position)
                if position + size > end:
                    raise CaffeError("a record is not a Datum: its data are cut short")
                if field == _DATA:
                    datum.data = value[position : position + size]
                    datum.data_start = position
                elif field == _FLOAT_DATA:
                    _add_packed_floats(datum, value[position : position + size])
                elif field == _CHANNELS:  # a message in the place of a number
                    raise CaffeError(
                        "a record is not a Datum, but an AnnotatedDatum, as it seems; "
                        'type: "AnnotatedData" reads those'
                    )
                position += size
            elif wire == _FIXED32 and field == _FLOAT_DATA:
                position = _add_floats(datum, value, position - 1)
            elif wire in (_FIXED32, _FIXED64):
                position += 4 if wire == _FIXED32 else 8
            else:
                raise CaffeError(f"a record is not a Datum: wire type {wire}")
    except IndexError:
        raise CaffeError("a record is not a Datum: it ends within a field") from None
    if position != end:
        raise CaffeError("a record is not a Datum: it ends within a field")
    return datum


def parse_alike(values: Sequence[Buffer]) -> tuple[Image, Image] | None:
    """Small raw Datums that differ in their pixels and labels only, all at once.

    Returns pixels [N, channels, height, width] and labels [N], both uint8, or None where the Datums
    are not of that kind and have to be parsed one by one, which takes ten times as long.
    """
    size = len(values[0])
    if size > SMALL or set(map(len, values)) != {size}:
        return None
    return parse_table(np.frombuffer(b"".join(values), np.uint8).reshape(len(values), size))


def parse_table(table: Image) -> tuple[Image, Image] | None:
    """What `parse_alike` makes of Datums that are rows [N, size] of uint8."""
    size = table.shape[1]
    if size > SMALL:
        return None
    first = parse_datum(table[0].tobytes())
    label_tag = first.data_start + len(first.data)
    if first.encoded or first.float_data is not None or label_tag + 2 > size:
        return None
    labels = table[:, label_tag + 1]
    one_byte = table[0, label_tag] == _LABEL << 3 and labels.max() < 0x80
    around = table[:, : first.data_start], table[:, label_tag], table[:, label_tag + 2 :]
    if not one_byte or any((part != part[0]).any() for part in around):
        return None
    pixels = table[:, first.data_start : label_tag]
    return pixels.reshape(len(table), *first.image().shape), labels


def decode_image(data: Buffer, *, color: bool = False, gray: bool = False) -> Image:
    """An encoded image as uint8 [channels, height, width], colours in the order BGR.

    Raises CaffeError where it cannot be decoded or has more than 8 bits a channel.
    """
    import cv2  # here, because importing it takes long and most runs do not need it

    flag = cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_UNCHANGED
    if color:
        flag = cv2.IMREAD_COLOR
    pixels = decode(data, flag, "an encoded record")
    if pixels is None:
        raise CaffeError("an encoded image cannot be decoded")
    return channels_first(pixels)


def channels_first(pixels: Image) -> Image:
    """OpenCV's [height, width] or [height, width, channels] as [channels, height, width]."""
    if pixels.dtype != np.uint8:
        raise CaffeError(f"an image has {pixels.dtype} pixels; only 8 bits a channel can be used")
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _varint(value: Buffer, position: int) -> tuple[int, int]:
    """The base-128 number at `position`, and the position after it."""
    byte = value[position]
    position += 1
    if byte < 0x80:
        return byte, position
    number = byte & 0x7F
    shift = 7
    while True:
        byte = value[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
        if shift > 63:
            raise CaffeError("a record is not a Datum: a number is too long")


def _set_number(datum: RawDatum, field: int, number: int) -> None:
    if field == _ENCODED:
        datum.encoded = bool(number)
        return
    signed = number & 0xFFFFFFFF
    signed -= (signed & 0x80000000) << 1
    if field == _CHANNELS:
        datum.channels = signed
    elif field == _HEIGHT:
        datum.height = signed
    elif field == _WIDTH:
        datum.width = signed
    elif field == _LABEL:
        datum.label = signed


def _add_packed_floats(datum: RawDatum, data: Buffer) -> None:
    if len(data) % 4:
        raise CaffeError("a record is not a Datum: float_data is cut short")
    _append_floats(datum, np.frombuffer(data, "<f4"))


def _add_floats(datum: RawDatum, value: Buffer, start: int) -> int:
    """Take the run of float_data entries at `start`; return the position after them."""
    possible = (len(value) - start) // _FLOAT_ENTRY.itemsize
    if possible == 0:
        raise CaffeError("a record is not a Datum: float_data is cut short")
    entries = np.frombuffer(value, _FLOAT_ENTRY, possible, start)
    others = np.flatnonzero(entries["tag"] != (_FLOAT_DATA << 3 | _FIXED32))
    run = int(others[0]) if others.size else possible
    _append_floats(datum, entries["value"][:run])
    return start + run * _FLOAT_ENTRY.itemsize


def _append_floats(datum: RawDatum, values: Image) -> None:
    if datum.float_data is None:
        datum.float_data = np.ascontiguousarray(values, np.float32)
    else:
        datum.float_data = np.concatenate([datum.float_data, values])
