"""Which JPEGs are left to a GPU."""

from __future__ import annotations

import struct
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from caffe_dns.data.plain_jpegs import PlainJpegs

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 37, 3), np.uint8)
FACTOR = cv2.IMWRITE_JPEG_SAMPLING_FACTOR


def jpeg(*settings: int, pixels: np.ndarray = PIXELS) -> bytes:
    return bytes(cv2.imencode(".jpg", pixels, settings)[1])


def with_segment(marker: int, content: bytes) -> bytes:
    """A JPEG with one more segment behind its first."""
    plain = jpeg()
    end = 4 + struct.unpack_from(">H", plain, 4)[0]
    return plain[:end] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + plain[end:]


def changed(old: bytes, new: bytes) -> bytes:
    plain = jpeg()
    assert plain.count(old) == 1
    return plain.replace(old, new)


def tables(*, together: bool) -> bytes:
    """A JPEG with its tables of each kind in one segment; or without those of quantities."""
    plain, found, rest = jpeg(), {0xDB: b"", 0xC4: b""}, b""
    at = 2
    while plain[at + 1] != 0xDA:
        marker, length = struct.unpack_from(">xBH", plain, at)
        segment, at = plain[at : at + 2 + length], at + 2 + length
        if marker in found:
            found[marker] += segment[4:]
        else:
            rest += segment
    if not together:
        del found[0xDB]
    heads = (struct.pack(">BBH", 0xFF, m, len(c) + 2) + c for m, c in found.items())
    return plain[:2] + rest + b"".join(heads) + plain[at:]


ADOBE = b"Adobe\0\x64\0\0\0\0"
PLAIN = {
    "as OpenCV writes it": jpeg(),
    "of another quality": jpeg(cv2.IMWRITE_JPEG_QUALITY, 40),
    "4:4:4": jpeg(FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
    "4:2:2": jpeg(FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422),
    "4:4:0": jpeg(FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440),
    "with marks to begin anew": jpeg(cv2.IMWRITE_JPEG_RST_INTERVAL, 1),
    "a camera's": with_segment(0xE1, b"Exif\0\0MM"),
    "Adobe's": with_segment(0xEE, ADOBE + b"\1"),
    "with all tables of a kind together": tables(together=True),
    "with a comment": with_segment(0xFE, b"hello"),
    "with a fourth table of quantities": with_segment(0xDB, b"\3" + bytes(range(1, 65))),
}
#: Of how many rows and columns there is one colour, where these are not two and two.
COLOURS = {"4:4:4": (1, 1), "4:2:2": (1, 2), "4:4:0": (2, 1)}
FRAME = b"\x08\x00\x18\x00\x25\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01"
SCAN = b"\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0\x3f\0"
#: Those of Y's first coefficients, without what they stand for.
CODES = b"\xff\xc4\0\x1f\0\0\1\5\1\1\1\1\1\1" + bytes(7)
OTHER = {
    "progressive": jpeg(cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "4:1:1": jpeg(FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411),
    "gray": jpeg(pixels=PIXELS[..., 0]),
    "cut short": jpeg()[:-7],
    "RGB": with_segment(0xEE, ADOBE + b"\0"),
    "RGB by its channels' names": changed(FRAME, FRAME.replace(b"\1\x22", b"R\x22")),
    "of 12 bits": changed(FRAME, b"\x0c" + FRAME[1:]),
    "without a height": changed(FRAME, b"\x08\0\0" + FRAME[3:]),
    "of more pixels than a GPU's memory is for": changed(FRAME, b"\x08\x20\0\x20\1" + FRAME[5:]),
    "of few pixels": jpeg(pixels=PIXELS[:7]),
    "with something between segments": changed(b"\xff\xdb\0\x43\0", b"\0\xff\xdb\0\x43\0"),
    "without quantities": tables(together=False),
    "with quantities of two bytes": changed(b"\xff\xdb\0\x43\0", b"\xff\xdb\0\x43\x10"),
    "with codes of all ones": changed(CODES, CODES[:5] + b"\2" + CODES[6:]),
    "with a fifth table of codes": with_segment(0xC4, b"\4\0\1" + bytes(15)),
    "with a fifth table of quantities": with_segment(0xDB, b"\4" + bytes(range(1, 65))),
    "with too many bits": changed(CODES + bytes(range(12)), CODES + bytes(range(11)) + b"\x10"),
    "of other codes than there are": changed(SCAN, SCAN.replace(b"\3\x11", b"\3\x12")),
    "of some coefficients": changed(SCAN, SCAN.replace(b"\x3f", b"\x3e")),
    "with two frames": changed(b"\xff\xda", b"\xff\xc0\0\x11" + FRAME + b"\xff\xda"),
    "with a segment that nobody knows": with_segment(0xF0, b""),
    "with a wrong interval": with_segment(0xDD, b"\0"),
    "a PNG": bytes(cv2.imencode(".png", PIXELS)[1]),
    "only its ends": b"\xff\xd8\xff\xd9",
    "nothing": b"",
}


@pytest.mark.parametrize("name", PLAIN)
def test_those_are_left_to_it(name: str) -> None:
    jpegs, kind = PlainJpegs(upright=False), (24, 37, *COLOURS.get(name, (2, 2)))
    assert jpegs.look_at(PLAIN[name]) == kind
    assert jpegs.look_at(memoryview(PLAIN[name])) == kind


@pytest.mark.parametrize("name", OTHER)
def test_others_are_not(name: str) -> None:
    jpegs = PlainJpegs(upright=False)
    assert jpegs.look_at(OTHER[name]) is None
    assert jpegs.look_at(OTHER[name]) is None


def test_a_camera_may_say_that_an_image_is_to_be_turned() -> None:
    assert PlainJpegs(upright=True).look_at(PLAIN["a camera's"]) is None
    assert PlainJpegs(upright=True).look_at(PLAIN["Adobe's"]) == (24, 37, 2, 2)


@pytest.mark.parametrize("order", [sorted, lambda names: sorted(names, reverse=True)])
def test_what_one_is_does_not_say_what_the_next_is(
    order: Callable[[list[str]], list[str]],
) -> None:
    jpegs = PlainJpegs(upright=False)
    for name in order([*PLAIN, *OTHER]):
        for _ in range(2):
            kind = (24, 37, *COLOURS.get(name, (2, 2))) if name in PLAIN else None
            assert jpegs.look_at({**PLAIN, **OTHER}[name]) == kind
    tall = jpeg(pixels=PIXELS.transpose(1, 0, 2))
    assert jpegs.look_at(jpeg()) == (24, 37, 2, 2)
    assert jpegs.look_at(tall) == (37, 24, 2, 2)


def test_what_libjpeg_refuses_is_not_left_to_it() -> None:
    plain, generator = jpeg(), np.random.default_rng(1)
    left = 0
    for place in range(2, plain.index(SCAN) + len(SCAN)):
        for value in generator.integers(0, 256, 3):
            damaged = np.frombuffer(plain, np.uint8).copy()
            damaged[place] = value
            if PlainJpegs(upright=True).look_at(damaged.tobytes()) is not None:
                left += 1
                assert cv2.imdecode(damaged, cv2.IMREAD_UNCHANGED) is not None
    assert left > 500
