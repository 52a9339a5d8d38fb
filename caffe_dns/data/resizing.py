"""Resizes images and the boxes in them: SSD's ResizeParameter (`im_transforms.cpp`).

Images are [height, width, channels], sizes (height, width); boxes are in fractions of the image.
"""

from __future__ import annotations

import math

import numpy as np

from caffe_dns.data.boxes import Boxes, Size
from caffe_dns.data.datum import Image
from caffe_dns.data.image_files import resizing
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import ResizeParameter


def new_size(size: Size, param: ResizeParameter) -> Size:
    """The size that an image of this size gets (`InferNewSize`)."""
    if param.resize_mode != ResizeParameter.FIT_SMALL_SIZE:
        return param.height, param.width
    aspect = np.float32(size[1]) / np.float32(size[0])
    if aspect < np.float32(param.width) / np.float32(param.height):
        return int(np.float32(param.width) / aspect), param.width
    return param.height, int(aspect * np.float32(param.height))


def resize(image: Image, param: ResizeParameter, draws: np.random.Generator) -> Image:
    """The image in its new size, with a border if need be (`ApplyResize`).

    Of several interpolations, one is drawn. Raises CaffeError where OpenCV cannot do it.
    """
    import cv2  # here, because importing it takes long and most runs do not need it

    modes = param.interp_mode
    mode = modes[int(draws.integers(len(modes)))] if modes else ResizeParameter.LINEAR
    interpolation = {
        ResizeParameter.LINEAR: cv2.INTER_LINEAR,
        ResizeParameter.AREA: cv2.INTER_AREA,
        ResizeParameter.NEAREST: cv2.INTER_NEAREST,
        ResizeParameter.CUBIC: cv2.INTER_CUBIC,
        ResizeParameter.LANCZOS4: cv2.INTER_LANCZOS4,
    }[mode]
    padded = param.resize_mode == ResizeParameter.FIT_LARGE_SIZE_AND_PAD
    inner = _inner_size(image.shape[:2], param) if padded else new_size(image.shape[:2], param)
    try:
        with resizing(image):
            result = cv2.resize(image, inner[::-1], interpolation=interpolation)
    except CaffeError as error:
        raise error.locate(field="transform_param.resize_param") from None
    if padded:
        result = _with_border(result, param)
    return result if result.ndim == 3 else result[:, :, None]


def _inner_size(size: Size, param: ResizeParameter) -> Size:
    """The size of the image within its border."""
    aspect = np.float32(size[1]) / np.float32(size[0])
    if aspect > np.float32(param.width) / np.float32(param.height):
        return max(1, math.floor(np.float32(param.width) / aspect)), param.width
    return param.height, max(1, math.floor(aspect * np.float32(param.height)))


def _with_border(image: Image, param: ResizeParameter) -> Image:
    import cv2

    spare = param.height - image.shape[0], param.width - image.shape[1]
    top, left = spare[0] // 2, spare[1] // 2
    kind = {
        ResizeParameter.CONSTANT: cv2.BORDER_CONSTANT,
        ResizeParameter.MIRRORED: cv2.BORDER_REFLECT_101,
        ResizeParameter.REPEAT_NEAREST: cv2.BORDER_REPLICATE,
    }[param.pad_mode]
    colour = list(np.resize(list(param.pad_value) or [0.0], 4))
    return cv2.copyMakeBorder(image, top, spare[0] - top, left, spare[1] - left, kind, value=colour)


def resize_boxes(boxes: Boxes, size: Size, param: ResizeParameter) -> Boxes:
    """Where boxes [N, 4] of an image of this size are afterwards (`UpdateBBoxByResizePolicy`)."""
    if param.resize_mode != ResizeParameter.FIT_LARGE_SIZE_AND_PAD:
        return np.concatenate([np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, 2:], 1)], 1)
    wanted = np.array([param.width, param.height], np.float32)
    aspect = np.float32(size[1]) / np.float32(size[0])
    inner = wanted.copy()
    if aspect > wanted[0] / wanted[1]:
        inner[1] = wanted[0] / aspect
    else:
        inner[0] = wanted[1] * aspect
    border = (wanted - inner) / 2
    low = border + np.maximum(boxes[:, :2] * inner, 0)
    # Not above the whole, border included, as there.
    high = border + np.minimum(boxes[:, 2:] * inner, wanted)
    return (np.concatenate([low, high], 1) / np.tile(wanted, 2)).astype(boxes.dtype)


def count_by_scale(boxes: Boxes, size: Size, part: Boxes, param: ResizeParameter) -> Boxes:
    """Boxes [N, 4] in shares of height_scale and width_scale instead of in those of their part.

    For FIT_SMALL_SIZE, where both are given; `size` is the image's before it was resized
    (`ExtrapolateBBox`). Raises CaffeError for a part that is smaller than that.
    """
    fits_small = param.resize_mode == ResizeParameter.FIT_SMALL_SIZE
    if not (fits_small and param.height_scale and param.width_scale):
        return boxes
    height, width = float(param.height), float(param.width)
    aspect = size[1] / size[0]
    if aspect < width / height:
        height = width / aspect
    else:
        width = height * aspect
    height, width = height * (part[3] - part[1]), width * (part[2] - part[0])
    if height < param.height_scale or width < param.width_scale:
        raise CaffeError(
            f"is {param.height_scale}x{param.width_scale}, more than the crop's "
            f"{height:g}x{width:g} (height, width)",
            field="transform_param.resize_param.height_scale",
        )
    factors = [width / param.width_scale, height / param.height_scale]
    return (boxes * np.tile(factors, 2)).astype(boxes.dtype)


def check_resize(param: ResizeParameter, field: str) -> None:
    """Raise CaffeError, with the `field` that `param` is, unless the size is given."""
    if not (param.height and param.width):
        raise CaffeError("needs a height and a width", field=field)
