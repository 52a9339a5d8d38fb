"""Decodes images as Caffe's OpenCV does, from bytes in memory.

`imread`, which Caffe calls for files, reads a truncated JPEG: libjpeg takes the end of the file for
the end of the image and fills what is missing with gray. `imdecode` fails on the same bytes, so
they are completed as libjpeg would complete them.
"""

from __future__ import annotations

import os
from typing import Any, Protocol, TypeAlias

import numpy as np

from caffe_dns import log
from caffe_dns.data.image_headers import MOST_SCANNED, Buffer, claim_of
from caffe_dns.errors import CaffeError

Image: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG_START, _PNG_LAST = b"\x89PNG\r\n\x1a\n", b"IEND"
#: Memory that any image may take while it is decoded, beside twice the size of its file: what its
#: header claims costs nothing to write there.
_SPARE = 256 << 20
#: Pixels of an image in any case.
MOST_PIXELS = 1 << 26
# OpenCV looks at this when it is imported. Whoever has larger images may set it.
_LIMIT = "OPENCV_IO_MAX_IMAGE_PIXELS"
os.environ.setdefault(_LIMIT, str(MOST_PIXELS))
# At this as well. What it has to say of a damaged image is an error of ours, in one line.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
#: More than the longest segment of a JPEG, which libjpeg fills with ends one after the other.
_MOST_ENDS = 1 << 15


class Decoder(Protocol):
    """Decodes records that are in memory. It can be sent to other processes."""

    def decode(self, value: Buffer) -> tuple[Image, int]:
        """Pixels [channels, height, width] and label. Raises CaffeError."""
        ...


def decode(data: Buffer, flag: int, what: str) -> Image | None:
    """The image in `data` as `imread` with this flag gives it, or None if it is no image.

    A warning names `what` where the image is a JPEG that is cut short. Raises CaffeError for one
    that claims more than MOST_PIXELS, or more than a file of its size may.
    """
    if not len(data):  # for which OpenCV raises
        return None
    _check_claim(data, what)
    if bytes(data[: len(_PNG_START)]) == _PNG_START and not _is_whole_png(data):
        return None
    pixels = _imdecode(data, flag, what)
    if pixels is None and bytes(data[:2]) == _JPEG_START:
        pixels = _imdecode(bytes(data) + _JPEG_END * _MOST_ENDS, flag, what)
        if pixels is not None:
            log.warning(f"{what} is a JPEG that is cut short; what is missing is gray")
    return pixels


def decoding_memory(head: Buffer, size: int) -> int:
    """Bytes that it takes to decode an image of so many bytes that begins with `head`."""
    claim = claim_of(head)
    return 3 * size if claim is None else claim.memory


def _check_claim(data: Buffer, what: str) -> None:
    """Raise CaffeError where decoding would take too much memory, unless a limit was set."""
    claim = claim_of(data)
    if claim is None:
        return
    if claim.width * claim.height * claim.scans > MOST_SCANNED:
        raise CaffeError(
            f"{what} has {claim.width}x{claim.height} pixels in {claim.scans} scans, which would "
            "take minutes to decode; save it anew"
        )
    if claim.memory <= 2 * len(data) + _SPARE:
        return
    if os.environ[_LIMIT] == str(MOST_PIXELS):
        raise CaffeError(
            f"{what} has {len(data)} bytes and claims to have {claim.width}x{claim.height} pixels, "
            f"for which {claim.memory >> 20} MB are needed; set {_LIMIT} to the most pixels that "
            "an image may have to allow that"
        )


def _is_whole_png(data: Buffer) -> bool:
    """Whether the chunks of a PNG are there, to the last.

    OpenCV decodes no other, but takes as much memory as a chunk claims to be long.
    """
    at = len(_PNG_START)
    last = False
    while not last and at + 12 <= len(data):  # length, type and checksum
        last = data[at + 4 : at + 8] == _PNG_LAST
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return last and at <= len(data)


def _imdecode(data: Buffer, flag: int, what: str) -> Image | None:
    import cv2  # here, because importing it takes long and most runs do not need it

    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        if "PIXELS" not in str(error) and "IMAGE_" not in str(error):
            return None
        raise CaffeError(
            f"{what} claims to have more than {os.environ[_LIMIT]} pixels; {_LIMIT} can be set to "
            "allow more"
        ) from None
