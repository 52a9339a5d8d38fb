"""JPEGs that are cut short, as `cv2.imread` reads them, which Caffe calls for files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe_dns.data.datum import decode_image
from caffe_dns.data.image_files import read_image
from caffe_dns.errors import CaffeError
from tests.nets import recorded_log

#: How a JPEG is stored: in one scan, in several, with marks in between.
KINDS = [[], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]]


def jpeg(settings: list[int]) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (60, 80, 3), np.uint8)
    return cv2.imencode(".jpg", cv2.GaussianBlur(pixels, (9, 9), 3), settings)[1].tobytes()


@pytest.mark.parametrize("settings", KINDS)
def test_reads_what_is_there_of_a_jpeg(tmp_path: Path, settings: list[int]) -> None:
    data = jpeg(settings)
    file = tmp_path / "cut.jpg"
    cuts = range(2, len(data), 37)
    read = 0
    for cut in cuts:
        file.write_bytes(data[:cut])
        expected = cv2.imread(str(file))
        with recorded_log() as messages:
            if expected is None:
                with pytest.raises(CaffeError, match="not an image that can be decoded"):
                    read_image(str(file))
                continue
            assert np.array_equal(read_image(str(file)), expected)
        assert np.array_equal(decode_image(data[:cut]), expected.transpose(2, 0, 1))
        assert messages == [f"{file} is a JPEG that is cut short; what is missing is gray"]
        read += 1
    assert len(cuts) / 2 < read < len(cuts)


def test_says_nothing_of_whole_images(tmp_path: Path) -> None:
    (tmp_path / "whole.jpg").write_bytes(jpeg([]))
    with recorded_log() as messages:
        read_image(f"{tmp_path}/whole.jpg")
    assert not messages


def test_a_png_whose_chunks_claim_more_than_there_is_is_not_given_to_opencv(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenCV takes the memory before it looks whether there is so much."""
    image = np.random.default_rng(1).integers(0, 256, (24, 20, 3)).astype(np.uint8)
    whole = bytes(cv2.imencode(".png", image)[1])
    assert np.array_equal(
        decode_image(whole + b"behind", color=True, gray=False), image.transpose(2, 0, 1)
    )
    monkeypatch.setattr(cv2, "imdecode", None)
    for chunk in (b"IHDR", b"IDAT", b"IEND"):
        at = whole.index(chunk) - 4
        for claim in (1, 1 << 30, (1 << 32) - 1):
            length = int.from_bytes(whole[at : at + 4], "big") + claim
            damaged = whole[:at] + min(length, (1 << 32) - 1).to_bytes(4, "big") + whole[at + 4 :]
            with pytest.raises(CaffeError, match="cannot be decoded"):
                decode_image(damaged, color=True, gray=False)
    for size in (8, 20, len(whole) - 1):
        with pytest.raises(CaffeError, match="cannot be decoded"):
            decode_image(whole[:size], color=True, gray=False)


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    settings = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    whole = cv2.imencode(".jpg", np.zeros((1000, 1000, 3), np.uint8), settings)[1].tobytes()
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    assert decode_image(memoryview(whole[:-2] + 3 * scan + whole[-2:])).shape == (3, 1000, 1000)
    with pytest.raises(CaffeError, match=r"1000x1000 pixels in 50\d\d scans"):
        decode_image(memoryview(whole[:-2] + 5000 * scan + whole[-2:]))


def test_nor_is_one_whose_channels_come_in_thousands_of_scans() -> None:
    """Not progressive: a channel may come again and again, here without a number in it."""
    whole = cv2.imencode(".jpg", np.zeros((1000, 1000, 3), np.uint8))[1].tobytes()
    head = whole[: whole.rindex(b"\xff\xda")]
    first, *others = (
        b"\xff\xda\0\x08\x01" + bytes([channel, tables]) + b"\0\x3f\0"
        for channel, tables in ((1, 0), (2, 0x11), (3, 0x11))
    )
    rest = b"".join(others) + b"\xff\xd9"
    assert decode_image(memoryview(head + 3 * first + rest)).shape == (3, 1000, 1000)
    with pytest.raises(CaffeError, match=r"1000x1000 pixels in 5002 scans"):
        decode_image(memoryview(head + 5000 * first + rest))
