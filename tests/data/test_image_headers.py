"""What headers of images claim, against what OpenCV has written, and what is refused by it."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import cv2
import numpy as np
import pytest

from caffe_dns.data import decoding
from caffe_dns.data.datum import decode_image
from caffe_dns.data.image_headers import Claim, claim_of
from caffe_dns.errors import CaffeError

PIXELS = np.random.default_rng(0).integers(0, 256, (150, 170, 3)).astype(np.uint8)
ALPHA = np.dstack([PIXELS, PIXELS[..., :1]])
#: How an image is written, and how many bytes OpenCV takes for each of its pixels, both copies.
KINDS: dict[str, tuple[str, Sequence[int], np.ndarray, int]] = {
    "jpeg": (".jpg", [], PIXELS, 6),
    "jpeg in scans": (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], PIXELS, 9),
    "png": (".png", [], PIXELS, 6),
    "png of 16 bits": (".png", [], PIXELS.astype(np.uint16), 12),
    "png with alpha": (".png", [], ALPHA, 8),
    "bmp": (".bmp", [], PIXELS, 6),
    "gif": (".gif", [], PIXELS, 13),
    "avif": (".avif", [], PIXELS, 22),
    "avif with alpha": (".avif", [], ALPHA, 36),
    "webp": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 50], PIXELS, 6),
    "webp without losses": (".webp", [], PIXELS, 8),
    "webp with alpha": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 50], ALPHA, 8),
    "tiff": (".tiff", [], PIXELS, 6),
    "tiff of gray": (".tiff", [], PIXELS[..., 0], 6),
    "tiff of floats": (".tiff", [], PIXELS.astype(np.float32), 24),
    "jpeg 2000": (".jp2", [], PIXELS, 15),
    "radiance": (".hdr", [], PIXELS.astype(np.float32), 24),
    "sun raster": (".sr", [], PIXELS, 6),
}


def encoded(kind: str) -> bytes:
    ending, settings, pixels, _ = KINDS[kind]
    return bytes(cv2.imencode(ending, pixels, settings)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_claims_are_those_of_the_images(kind: str) -> None:
    data = encoded(kind)
    # Ten scans are what libjpeg makes.
    expected = Claim(170, 150, KINDS[kind][3], 10 if kind == "jpeg in scans" else 1)
    assert claim_of(data) == claim_of(memoryview(data)) == expected


def test_other_files_of_the_container_of_webp_claim_nothing() -> None:
    sound = b"RIFF\x24\x08\0\0WAVEfmt \x10\0\0\0\1\0\2\0\x22\x56\0\0" + bytes(99)
    assert claim_of(sound) is None


def test_segments_of_a_jpeg_in_front_of_its_size() -> None:
    data = encoded("jpeg")
    comment = b"\xff\xfe\xff\xff" + b"\xff\xc0" * 32766 + b"c"
    behind = data[:2] + comment * 3 + b"between\xff\0\xff\xff\xff" + data[3:]
    assert claim_of(behind) == Claim(170, 150)
    assert np.array_equal(decode_image(behind), decode_image(data))


def test_bitmaps_with_the_oldest_header() -> None:
    """They are those of OS/2 1.x; OpenCV writes none."""
    rows = PIXELS[::-1].reshape(150, -1)
    body = np.pad(rows, ((0, 0), (0, 2))).tobytes()  # rows of whole words
    header = struct.pack("<IHHHH", 12, 170, 150, 1, 24)
    data = b"BM" + struct.pack("<IHHI", 26 + len(body), 0, 0, 26) + header + body
    assert claim_of(data) == Claim(170, 150)
    assert np.array_equal(decode_image(data, color=True), PIXELS.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("ending", "bytes_each"), [(".png", 16), (".webp", 12), (".gif", 13), (".avif", 36)]
)
def test_frames_are_kept_beside_one_another(ending: str, bytes_each: int) -> None:
    animation = cv2.Animation()
    animation.frames, animation.durations = [ALPHA, 255 - ALPHA], [100, 100]
    data = bytes(cv2.imencodeanimation(ending, animation)[1])
    assert decode_image(data).shape[1:] == (150, 170)
    assert claim_of(data) == Claim(170, 150, bytes_each)


@pytest.mark.parametrize("order", "<>")
def test_tiffs_with_long_offsets(order: str) -> None:
    """OpenCV writes them only where they are larger than 4 GB."""
    gray = PIXELS[..., 0]
    tags = [(256, 3, 170), (257, 16, 150), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 16, 16)]
    tags += [(277, 3, 1), (278, 3, 150), (279, 16, gray.size)]
    entries = [
        struct.pack(f"{order}HHQ{'Q' if kind == 16 else 'H6x'}", tag, kind, 1, value)
        for tag, kind, value in tags
    ]
    signature = b"II" if order == "<" else b"MM"
    data = signature + struct.pack(f"{order}HHHQ", 43, 8, 0, 16 + gray.size) + gray.tobytes()
    data += struct.pack(f"{order}Q", len(tags)) + b"".join(entries) + bytes(8)
    assert claim_of(data) == Claim(170, 150)
    assert np.array_equal(decode_image(data), gray[None])
    for at in range(16):
        claim_of(data[:at] + b"\xff" + data[at + 1 :])


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_headers_claim_something_or_nothing(kind: str) -> None:
    data = encoded(kind)[:400]
    draw = random.Random(kind)
    for cut in range(0, len(data), 7):
        claim_of(data[:cut])
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(draw.randrange(1, 20)):
            damaged[draw.randrange(2, len(data))] = draw.choice([0, 1, 127, 255])
        claim = claim_of(bytes(damaged))
        assert claim is None or claim.memory >= 0


def test_what_takes_more_than_its_file_may_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded("png")
    needed = 6 * 170 * 150
    monkeypatch.setattr(decoding, "_SPARE", needed - 2 * len(data))
    decode_image(data)
    monkeypatch.setattr(decoding, "_SPARE", needed - 2 * len(data) - 1)
    with pytest.raises(CaffeError, match=r"claims to have 170x150 pixels.*OPENCV_IO_MAX_IMAGE"):
        decode_image(data)
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "99999999")
    decode_image(data)
