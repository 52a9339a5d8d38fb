"""Images in pycaffe's form: float32 arrays [H, W, K], RGB, values from 0 to 1."""

from __future__ import annotations

import io
from collections.abc import Sequence
from os import PathLike
from typing import BinaryIO

import numpy as np

from caffe_dns.data.decoding import decode
from caffe_dns.errors import BadValue, CaffeError
from caffe_dns.files.reading import read_file

#: How much red, green and blue count in a gray image.
_LUMINANCE = np.array([0.2125, 0.7154, 0.0721], np.float32)
#: Numbers of channels that are resized as photographs are: pixels are areas, black around them.
_PHOTOGRAPHS = (1, 3)


class UnreadableImage(CaffeError, OSError):
    """An OSError, too, which programs that pass over such images expect."""


def load_image(filename: str | PathLike[str] | BinaryIO, color: bool = True) -> np.ndarray:
    """The image as [H, W, 3] in RGB, or [H, W, 1] if not `color`, values from 0 to 1.

    `filename` may be a file that is open to be read, too, as skimage takes it. Transparency is left
    out. Raises UnreadableImage for a file that is missing or not an image.
    """
    pixels = _decode(filename)
    if np.issubdtype(pixels.dtype, np.integer):
        pixels = pixels / np.iinfo(pixels.dtype).max
    image = pixels.astype(np.float32)
    if image.ndim == 2:
        image = image[:, :, np.newaxis]
        return np.repeat(image, 3, axis=2) if color else image
    image = image[:, :, 2::-1]  # OpenCV has blue first, and transparency last
    return np.ascontiguousarray(image) if color else (image @ _LUMINANCE)[:, :, np.newaxis]


def to_npy(array: np.ndarray) -> bytes:
    """What numpy.save writes."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def resize_image(
    im: np.ndarray, new_dims: Sequence[int] | np.ndarray, interp_order: int = 1
) -> np.ndarray:
    """`im` [H, W, K] as [new height, new width, K] in float32.

    Interpolation is linear (`interp_order` 1) or by the nearest pixel (0), without smoothing. With
    1 or 3 channels, pixels are areas and beyond the edge lies the image's minimum; with others, the
    corner pixels stay in the corners. Raises ValueError for another order.
    """
    if interp_order not in (0, 1):
        raise ValueError(f"interp_order must be 0 or 1, not {interp_order}")
    as_areas = im.shape[-1] in _PHOTOGRAPHS
    rows, columns = (
        _interpolation(new, old, as_areas, nearest=interp_order == 0)
        for new, old in zip(new_dims, im.shape[:2], strict=True)
    )
    low = im.min()
    shifted = im.astype(np.float64) - low
    resized = np.einsum("ih,hwk,jw->ijk", rows, shifted, columns, optimize=True)
    return (resized + low).astype(np.float32)


def oversample(images: Sequence[np.ndarray], crop_dims: Sequence[int] | np.ndarray) -> np.ndarray:
    """Ten crops of each image [H, W, K]: four corners, centre, and the same mirrored.

    Returns [10 * N, crop height, crop width, K] in float32; the images have one size. Raises
    BadValue for crops that are larger than that.
    """
    height, width = images[0].shape[:2]
    crop_height, crop_width = (int(extent) for extent in crop_dims)
    if height < crop_height or width < crop_width:
        raise BadValue(
            f"images of {height} by {width} are smaller than the crops, {crop_height} by "
            f"{crop_width}"
        )
    bottom, right = height - crop_height, width - crop_width
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    crops = []
    for image in images:
        views = [image[y : y + crop_height, x : x + crop_width] for y, x in corners]
        crops += views + [view[:, ::-1] for view in views]
    return np.stack(crops).astype(np.float32)


def _decode(filename: str | PathLike[str] | BinaryIO) -> np.ndarray:
    import cv2  # here, because importing it takes long and most programs do not need it

    if isinstance(filename, str | PathLike):
        data, name = _read(filename), str(filename)
    else:
        data, name = filename.read(), str(getattr(filename, "name", "the open file"))
    # Unchanged is as a camera that was held sideways has it, but with any number of channels.
    pixels = decode(data, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH, name)
    if pixels is None:
        pixels = decode(data, cv2.IMREAD_UNCHANGED, name)
    if pixels is None:
        raise UnreadableImage("is not an image", file=name)
    return np.asarray(pixels)


def _read(filename: str | PathLike[str]) -> bytes:
    try:
        return read_file(str(filename))
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror}", file=str(filename)) from None


def _interpolation(new: int, old: int, as_areas: bool, nearest: bool) -> np.ndarray:
    """The weight [new, old] of each old pixel in each new one along an axis."""
    positions = np.arange(new, dtype=np.float64)
    if as_areas:
        positions = (positions + 0.5) * old / new - 0.5
    else:
        positions = positions * (old - 1) / max(new - 1, 1)
    if nearest:
        positions = np.floor(positions + 0.5)
    distances = np.abs(positions[:, np.newaxis] - np.arange(old))
    return np.maximum(1 - distances, 0)
