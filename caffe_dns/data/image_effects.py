"""Changes an image's colours and pixels but leaves every object in its place.

SSD has two kinds: random distortions, and noise (`im_transforms.cpp`). Images are bytes [height,
width, channels] in BGR, or [height, width, 1]; a result may be a new array.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from caffe_dns.data.datum import Image
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import DistortionParameter, NoiseParameter

_DISTORTIONS = ("brightness", "contrast", "saturation", "hue", "random_order")
#: Side of the blur's kernel, and its deviation in pixels.
_BLUR, _BLUR_DEVIATION = 7, 1.5
#: How often the commonest level of a local histogram may come.
_CLIP_LIMIT = 4
#: Levels that posterizing makes one.
_POSTER = 64


def distort(image: Image, param: DistortionParameter, draws: np.random.Generator) -> Image:
    """Random brightness, contrast, saturation, hue and order of channels (`ApplyDistort`).

    Contrast comes second or, as often, fourth.
    """
    contrast_first = draws.uniform() > 0.5
    image = _brightness(image, param, draws)
    if contrast_first:
        image = _contrast(image, param, draws)
    if draws.uniform() < param.saturation_prob:
        factor = draws.uniform(param.saturation_lower, param.saturation_upper)
        image = _in_hsv(image, 1, _scaled(factor, 0))
    if draws.uniform() < param.hue_prob:
        shift = draws.uniform(-param.hue_delta, param.hue_delta)
        image = _in_hsv(image, 0, _scaled(1, shift))
    if not contrast_first:
        image = _contrast(image, param, draws)
    if draws.uniform() < param.random_order_prob:
        image = image[:, :, draws.permutation(image.shape[2])]
    return image


def in_ssd_form(param: DistortionParameter) -> DistortionParameter:
    """The same distortions with a probability for each, where DeepDetect gives one for all.

    Raises CaffeError, with the field, for settings of both kinds.
    """
    result = DistortionParameter()
    result.CopyFrom(param)
    if not is_of_deepdetect(param):
        return result
    for kind in _DISTORTIONS:
        name = f"{kind}_prob"
        if param.HasField(name):
            raise CaffeError("cannot be given with settings of DeepDetect, as prob is", field=name)
        if getattr(param, kind) or param.all_effects:
            setattr(result, name, param.prob)
    return result


def is_of_deepdetect(param: DistortionParameter) -> bool:
    """Whether distortions are asked for as DeepDetect does."""
    return any(param.HasField(name) for name in ("prob", "all_effects", *_DISTORTIONS))


def check_distortion(param: DistortionParameter, channels: int) -> None:
    """Raise CaffeError, with the field, for what cannot be done to images of so many channels."""
    for name in ("contrast", "saturation"):
        low, high = getattr(param, f"{name}_lower"), getattr(param, f"{name}_upper")
        if not 0 <= low <= high:
            raise CaffeError(
                f"from {low:g} to {high:g} is no range of factors", field=f"{name}_upper"
            )
    for name in ("brightness", "hue"):
        if getattr(param, f"{name}_delta") < 0:
            raise CaffeError("must not be negative", field=f"{name}_delta")
    for name in ("saturation", "hue", "random_order"):
        if getattr(param, f"{name}_prob") > 0 and channels != 3:
            raise CaffeError(
                f"takes images of 3 channels, these have {channels}", field=f"{name}_prob"
            )


def _brightness(image: Image, param: DistortionParameter, draws: np.random.Generator) -> Image:
    if draws.uniform() >= param.brightness_prob:
        return image
    shift = draws.uniform(-param.brightness_delta, param.brightness_delta)
    return _looked_up(image, _scaled(1, shift))


def _contrast(image: Image, param: DistortionParameter, draws: np.random.Generator) -> Image:
    if draws.uniform() >= param.contrast_prob:
        return image
    factor = draws.uniform(param.contrast_lower, param.contrast_upper)
    return _looked_up(image, _scaled(factor, 0))


def _scaled(factor: float, shift: float) -> Image:
    """For each of 256 levels, factor * level + shift, rounded and kept within bytes."""
    levels = np.float32(factor) * np.arange(256, dtype=np.float32) + np.float32(shift)
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _looked_up(image: Image, table: Image) -> Image:
    """Every level in place of which the table has another one."""
    import cv2  # here, because importing it takes long and most runs do not need it

    return cv2.LUT(image, table).reshape(image.shape)


def _in_hsv(image: Image, channel: int, table: Image) -> Image:
    """The image with one channel of hue, saturation and value changed by a table."""
    import cv2

    tables = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    tables[0, :, channel] = table
    hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2HSV)
    return cv2.cvtColor(cv2.LUT(hsv, tables), cv2.COLOR_HSV2BGR)


# Noise ------------------------------------------------------------------------------------------


def add_noise(image: Image, param: NoiseParameter, draws: np.random.Generator) -> Image:
    """The image after all that `param` names (`ApplyNoise`).

    In DeepDetect's form each happens with probability `prob`, and nothing if that is 0.
    """
    if _is_off(param):
        return image

    def happens(field: str) -> bool:
        if not param.HasField("all_effects"):
            return bool(getattr(param, field))
        return _is_asked_for(param, field) and draws.uniform() < param.prob

    for field, effect in _EFFECTS.items():
        if happens(field):
            image = _with_channels(effect(np.ascontiguousarray(image)))
    if param.jpeg > 0:
        image = _compressed(image, int(param.jpeg))
    for field, effect in _LATE_EFFECTS.items():
        if happens(field):
            image = _with_channels(effect(np.ascontiguousarray(image)))
    if happens("saltpepper"):
        image = _peppered(image, param, draws)
    for field, convert in _CONVERSIONS.items():
        if happens(field):
            image = convert(np.ascontiguousarray(image))
    return image


def _is_off(param: NoiseParameter) -> bool:
    return param.HasField("all_effects") and param.prob <= 0


def _is_asked_for(param: NoiseParameter, field: str) -> bool:
    return bool(getattr(param, field)) or param.all_effects


def check_noise(param: NoiseParameter, channels: int) -> None:
    """Raise CaffeError, with the field, for what cannot be done to images of so many channels."""
    if _is_off(param):
        return
    if param.convert_to_lab and not param.HasField("all_effects"):
        raise CaffeError("is not supported: its values are no bytes", field="convert_to_lab")
    values = len(param.saltpepper_param.value)
    if _is_asked_for(param, "saltpepper") and values not in (1, channels):
        raise CaffeError(
            f"given {values} times for images of {channels} channel(s); one, or one for each "
            "channel, would be right",
            field="saltpepper_param.value",
        )
    for field in ("decolorize", *_CONVERSIONS):
        if _is_asked_for(param, field) and channels != 3:
            raise CaffeError(f"takes images of 3 channels, these have {channels}", field=field)


def _with_channels(image: Image) -> Image:
    """The image with an axis for its channels, which OpenCV leaves out where there is one."""
    return image if image.ndim == 3 else image[:, :, None]


def _decolorized(image: Image) -> Image:
    import cv2

    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)


def _blurred(image: Image) -> Image:
    import cv2

    return cv2.GaussianBlur(image, (_BLUR, _BLUR), _BLUR_DEVIATION)


def _equalized(image: Image) -> Image:
    import cv2

    return _with_luminance(image, cv2.equalizeHist)


def _locally_equalized(image: Image) -> Image:
    import cv2

    return _with_luminance(image, cv2.createCLAHE(clipLimit=_CLIP_LIMIT).apply)


def _with_luminance(image: Image, change: Callable[[Image], Image]) -> Image:
    """The image with its brightness changed, and its colours kept."""
    import cv2

    if image.shape[2] == 1:
        return change(image)
    planes = cv2.cvtColor(image, cv2.COLOR_BGR2YCrCb)
    planes[:, :, 0] = change(np.ascontiguousarray(planes[:, :, 0]))
    return cv2.cvtColor(planes, cv2.COLOR_YCrCb2BGR)


def _compressed(image: Image, quality: int) -> Image:
    """What comes back of a JPEG of this quality: three channels, as there."""
    import cv2

    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    back: Image = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
    return back


def _eroded(image: Image) -> Image:
    import cv2

    return cv2.erode(image, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3), (1, 1)))


def _posterized(image: Image) -> Image:
    return _looked_up(image, (np.arange(256) // _POSTER * _POSTER + _POSTER // 2).astype(np.uint8))


def _inverted(image: Image) -> Image:
    return 255 - image


def _to_hsv(image: Image) -> Image:
    import cv2

    return cv2.cvtColor(image, cv2.COLOR_BGR2HSV)


def _to_lab(image: Image) -> Image:
    """L, a and b as they are, in bytes: what is below 0 becomes 0."""
    import cv2

    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_BGR2LAB)
    return np.clip(np.rint(lab), 0, 255).astype(np.uint8)


def _peppered(image: Image, param: NoiseParameter, draws: np.random.Generator) -> Image:
    """The image with some pixels, drawn one by one, of one colour."""
    height, width, channels = image.shape
    settings = param.saltpepper_param
    count = int(np.float32(settings.fraction) * height * width)
    colour = [int(value) & 255 for value in settings.value]
    image = image.copy()
    columns, rows = draws.integers(width, size=count), draws.integers(height, size=count)
    image[rows, columns] = np.resize(colour, channels)
    return image


#: What is done before an image is compressed, and after it, by the fields that ask for it.
_EFFECTS = {
    "decolorize": _decolorized,
    "gauss_blur": _blurred,
    "hist_eq": _equalized,
    "clahe": _locally_equalized,
}
_LATE_EFFECTS = {"erode": _eroded, "posterize": _posterized, "inverse": _inverted}
#: What is done at the end, to colours as a whole.
_CONVERSIONS = {"convert_to_hsv": _to_hsv, "convert_to_lab": _to_lab}
