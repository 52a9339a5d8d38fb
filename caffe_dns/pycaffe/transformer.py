"""From images to the blobs of a net, and back (`caffe.io.Transformer`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from caffe_dns.errors import BadValue, CaffeError
from caffe_dns.pycaffe.images import resize_image
from caffe_dns.pycaffe.net import Net


def image_input(net: Net, file: str) -> tuple[str, tuple[int, ...]]:
    """The name and the shape [N, K, H, W] of a net's first input.

    Raises CaffeError, about the net's definition in `file`, where images cannot be given to it.
    """
    name = next(iter(net.inputs), None)
    if name is None:
        raise CaffeError(
            "has no input for images; dns deploy makes a definition with one", file=file
        )
    shape = tuple(net.blobs[name].shape)
    if len(shape) != 4:
        raise CaffeError(
            f"its input '{name}' has the shape {shape}; images need four axes (N, channels, "
            "height, width)",
            file=file,
        )
    return name, shape


class Transformer:
    """How to make inputs of images: `inputs` gives the shape [N, K, H, W] of each input blob.

    The steps, each only if set: resize, transpose, swap channels, raw scale, mean, input scale.
    Setters raise BadValue for an input that is not there and for settings that do not fit;
    `preprocess` does for an image without the channels to swap.
    """

    def __init__(self, inputs: Mapping[str, Sequence[int]]) -> None:
        self.inputs = {name: tuple(shape) for name, shape in inputs.items()}
        self.transpose: dict[str, Sequence[int]] = {}
        self.channel_swap: dict[str, Sequence[int]] = {}
        self.raw_scale: dict[str, float] = {}
        self.mean: dict[str, np.ndarray] = {}
        self.input_scale: dict[str, float] = {}

    @classmethod
    def of(
        cls,
        in_: str,
        shape: Sequence[int],
        mean: np.ndarray | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
    ) -> Transformer:
        """For one input of this shape, from images [H, W, K], with the settings that are given."""
        made = cls({in_: shape})
        made.set_transpose(in_, (2, 0, 1))
        if mean is not None:
            made.set_mean(in_, mean)
        if input_scale is not None:
            made.set_input_scale(in_, input_scale)
        if raw_scale is not None:
            made.set_raw_scale(in_, raw_scale)
        if channel_swap is not None:
            made.set_channel_swap(in_, channel_swap)
        return made

    def preprocess(self, in_: str, data: np.ndarray) -> np.ndarray:
        """The image `data` [H, W, K] as [K, H, W] for the input `in_`; a new float32 array."""
        size = self._shape(in_)[2:]
        image = data.astype(np.float32)
        if size and image.shape[:2] != size:
            image = resize_image(image, size)
        if in_ in self.transpose:
            image = image.transpose(self.transpose[in_])
        if in_ in self.channel_swap:
            image = _swapped(image, self.channel_swap[in_])
        image = image * np.float32(self.raw_scale.get(in_, 1))
        if in_ in self.mean:
            image = image - self.mean[in_]
        scaled = image * np.float32(self.input_scale.get(in_, 1))
        return np.asarray(scaled, np.float32)

    def deprocess(self, in_: str, data: np.ndarray) -> np.ndarray:
        """`preprocess` backwards, but for the size: a blob [K, H, W] as the image [H, W, K].

        Of the blob's type, whatever that of the mean is.
        """
        self._shape(in_)
        image = data.squeeze() / np.float32(self.input_scale.get(in_, 1))
        if in_ in self.mean:
            image = (image + self.mean[in_]).astype(image.dtype)
        image = image / np.float32(self.raw_scale.get(in_, 1))
        if in_ in self.channel_swap:
            image = image[np.argsort(self.channel_swap[in_])]
        if in_ in self.transpose:
            image = image.transpose(np.argsort(self.transpose[in_]))
        return image

    def set_transpose(self, in_: str, order: Sequence[int]) -> None:
        """The order of the image's axes in the blob: (2, 0, 1) makes [K, H, W] of [H, W, K]."""
        self._check_length("order", order, len(self._shape(in_)) - 1)
        self.transpose[in_] = order

    def set_channel_swap(self, in_: str, order: Sequence[int]) -> None:
        """The order of channels: (2, 1, 0) makes BGR of RGB. Channels must be the first axis."""
        self._check_length("order", order, self._shape(in_)[1])
        self.channel_swap[in_] = order

    def set_raw_scale(self, in_: str, scale: float) -> None:
        """What to multiply the image by, before the mean: 255 for a net of pixel values."""
        self._shape(in_)
        self.raw_scale[in_] = scale

    def set_input_scale(self, in_: str, scale: float) -> None:
        """What to multiply by last."""
        self._shape(in_)
        self.input_scale[in_] = scale

    def set_mean(self, in_: str, mean: np.ndarray) -> None:
        """What to subtract: a value for each channel, [H, W], or [K, H, W], which is resized."""
        channels, *size = self._shape(in_)[1:]
        if mean.ndim == 1:
            self._check_length("mean", mean, channels)
            mean = mean[:, np.newaxis, np.newaxis]
        elif mean.ndim in (2, 3):
            mean = mean.reshape(-1, *mean.shape[-2:])
            if len(mean) not in (1, channels):
                raise BadValue(f"the mean has {len(mean)} channels, the input {channels}")
            if mean.shape[1:] != tuple(size):
                mean = resize_image(mean.transpose(1, 2, 0), size).transpose(2, 0, 1)
        else:
            raise BadValue(f"a mean has 1 to 3 axes, not {mean.ndim}")
        self.mean[in_] = mean

    def _shape(self, in_: str) -> tuple[int, ...]:
        if in_ not in self.inputs:
            raise BadValue(f"'{in_}' is not one of the net inputs: {', '.join(self.inputs)}")
        return self.inputs[in_]

    def _check_length(self, what: str, values: Sequence[int] | np.ndarray, length: int) -> None:
        if len(values) != length:
            raise BadValue(f"the {what} needs {length} entries, not {len(values)}")


def _swapped(image: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """The channels, the first axis, in this order; one may occur several times or not at all."""
    channels = len(image)
    for channel in order:
        if not -channels <= channel < channels:
            raise BadValue(f"there is no channel {channel} in an image of {channels} channels")
    return image[list(order)]
