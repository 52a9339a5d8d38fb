"""Datums: parsed without protobuf, against protobuf; decoded as Caffe does."""

from __future__ import annotations

import struct
from zlib import compress, crc32

import cv2
import numpy as np
import pytest

from caffe_dns.data.datum import decode_image, parse_alike, parse_datum
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import AnnotatedDatum, Datum


def random_datum(generator: np.random.Generator) -> Datum:
    channels, height, width = generator.integers(1, 5, 3).tolist()
    size = channels * height * width
    datum = Datum(channels=channels, height=height, width=width)
    datum.label = int(generator.integers(-(2**31), 2**31))
    if generator.random() < 0.5:
        datum.data = generator.bytes(size)
    else:
        datum.float_data.extend(generator.standard_normal(size).tolist())
    if generator.random() < 0.5:
        datum.encoded = False
    return datum


def test_parses_what_protobuf_writes() -> None:
    generator = np.random.default_rng(1)
    for _ in range(200):
        datum = random_datum(generator)
        parsed = parse_datum(memoryview(datum.SerializeToString()))
        assert (parsed.label, parsed.encoded) == (datum.label, datum.encoded)
        image = parsed.image()
        assert image.shape == (datum.channels, datum.height, datum.width)
        if datum.data:
            assert image.dtype == np.uint8
            assert image.tobytes() == datum.data
        else:
            assert image.dtype == np.float32
            assert image.ravel().tolist() == list(datum.float_data)


def test_parses_packed_floats_and_fields_in_any_order() -> None:
    floats = np.arange(6, dtype="<f4")
    packed = b"\x32\x18" + floats.tobytes()
    header = Datum(channels=1, height=2, width=3, label=9).SerializeToString()
    parsed = parse_datum(packed + header)
    assert parsed.label == 9
    assert parsed.image().tolist() == floats.reshape(1, 2, 3).tolist()


def test_skips_unknown_fields() -> None:
    datum = Datum(channels=1, height=1, width=2, data=b"ab", label=3).SerializeToString()
    unknown = b"\x78\x85\x01" + b"\x7a\x02xy" + b"\x7d\x00\x00\x00\x00" + b"\x79" + b"\x00" * 8
    parsed = parse_datum(unknown + datum + unknown)
    assert parsed.image().tobytes() == b"ab"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"\x22\x05ab", "its data are cut short"),
        (b"\x08", "it ends within a field"),
        (b"\x79\x00", "it ends within a field"),
        (b"\x35\x00", "float_data is cut short"),
        (b"\x32\x03abc", "float_data is cut short"),
        (b"\x0b", "wire type 3"),
        (b"\x08" + b"\xff" * 11, "a number is too long"),
        (b"\x28\x01" * 1001, "it has more than 1000 fields"),
    ],
)
def test_refuses_what_is_no_datum(value: bytes, message: str) -> None:
    with pytest.raises(CaffeError, match=f"a record is not a Datum: .*{message}"):
        parse_datum(value)


def test_what_a_detector_reads_is_told_apart() -> None:
    record = AnnotatedDatum(datum=Datum(channels=1, height=1, width=1, data=b"a"))
    with pytest.raises(CaffeError, match="an AnnotatedDatum, as it seems"):
        parse_datum(record.SerializeToString())


def test_refuses_data_that_do_not_fit_the_shape() -> None:
    short = Datum(channels=1, height=2, width=3, data=b"abcde").SerializeToString()
    with pytest.raises(CaffeError, match=r"a record of 1x2x3 .* holds 5 values"):
        parse_datum(short).image()
    with pytest.raises(CaffeError, match="neither data nor float_data"):
        parse_datum(Datum(channels=1, height=2, width=3).SerializeToString()).image()


def raw_datums(labels: list[int], more: bytes = b"") -> list[bytes]:
    generator = np.random.default_rng(2)
    return [
        Datum(
            channels=2, height=3, width=5, data=generator.bytes(30), label=label
        ).SerializeToString()
        + more
        for label in labels
    ]


@pytest.mark.parametrize("more", [b"", Datum(encoded=False).SerializeToString()])
def test_parses_alike_datums_at_once(more: bytes) -> None:
    values = raw_datums([7, 0, 127, 7], more)
    result = parse_alike([memoryview(value) for value in values])
    assert result is not None
    images, labels = result
    assert images.shape == (4, 2, 3, 5)
    for image, label, value in zip(images, labels, values, strict=True):
        parsed = parse_datum(value)
        assert image.tolist() == parsed.image().tolist()
        assert label == parsed.label


def test_leaves_others_to_be_parsed_one_by_one() -> None:
    alike = raw_datums([7, 0])
    assert parse_alike([*alike, *raw_datums([128])]) is None  # a longer label
    assert parse_alike(raw_datums([200, 300])) is None
    turned = Datum(channels=2, height=5, width=3, data=bytes(30), label=1).SerializeToString()
    assert parse_alike([*alike, turned]) is None
    assert parse_alike([turned[:-2], turned[:-2]]) is None  # no label at all
    floats = Datum(channels=1, height=1, width=1, float_data=[1], label=1).SerializeToString()
    assert parse_alike([floats, floats]) is None


def test_decodes_as_stored_in_colour_and_in_gray() -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (4, 6, 3), np.uint8)
    colour = cv2.imencode(".png", pixels)[1].tobytes()
    gray = cv2.imencode(".png", pixels[:, :, 0])[1].tobytes()
    assert np.array_equal(decode_image(colour), pixels.transpose(2, 0, 1))
    assert np.array_equal(decode_image(gray), pixels[None, :, :, 0])
    repeated = np.repeat(pixels[None, :, :, 0], 3, axis=0)
    assert np.array_equal(decode_image(gray, color=True), repeated)
    assert decode_image(colour, gray=True).shape == (1, 4, 6)


def test_refuses_images_that_cannot_be_used() -> None:
    for data in (b"", b"no image"):
        with pytest.raises(CaffeError, match="an encoded image cannot be decoded"):
            decode_image(data)
    deep = cv2.imencode(".png", np.zeros((2, 3), np.uint16))[1].tobytes()
    with pytest.raises(CaffeError, match="uint16 pixels; only 8 bits"):
        decode_image(deep)


def png(width: int, height: int) -> bytes:
    """A PNG that claims to be so large, of as many zeros as anybody likes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = compress(bytes(1 << 20), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_images_that_claim_too_much_are_refused_by_their_header() -> None:
    extent = 60_000
    with pytest.raises(CaffeError, match="claims to have 60000x60000 pixels"):
        parse_datum(Datum(data=png(extent, extent), encoded=True).SerializeToString()).image()
