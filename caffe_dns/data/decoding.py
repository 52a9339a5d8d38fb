"""Decoding images as Caffe's OpenCV does, from bytes that are in memory already.

`imread`, which Caffe calls for files, reads a JPEG that is cut short: libjpeg takes the end of the
file for the end of the image and makes what is missing gray. `imdecode` gives nothing for the same
bytes, so they are given the ends that libjpeg would put there.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from caffe_dns import log

Buffer: TypeAlias = "bytes | memoryview"
Image: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
#: More than the longest segment of a JPEG, which libjpeg fills with ends one after the other.
_MOST_ENDS = 1 << 15


def decode(data: Buffer, flag: int, what: str) -> Image | None:
    """The image in `data` as `imread` with this flag gives it, or None if it is no image.

    A warning names `what` where the image is a JPEG that is cut short.
    """
    import cv2  # here, because importing it takes long and most runs do not need it

    if not len(data):  # for which OpenCV raises
        return None
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if pixels is None and bytes(data[:2]) == _JPEG_START:
        pixels = cv2.imdecode(np.frombuffer(bytes(data) + _JPEG_END * _MOST_ENDS, np.uint8), flag)
        if pixels is not None:
            log.warning(f"{what} is a JPEG that is cut short; what is missing is gray")
    return pixels
