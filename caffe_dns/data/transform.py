"""Crops, mirrors, mean-subtracts and scales images (`data_transformer.cpp`).

Images are cropped while they are copied into their batch, so that images of several sizes fit one
batch and only what is used goes to the device; the rest is arithmetic on whole batches there.
Decoding is not done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from caffe_dns import kernels, log, rng
from caffe_dns.data.crops import Cut, Cutter, ImageShape, crop, crop_all
from caffe_dns.data.datum import Image, IntArray
from caffe_dns.errors import CaffeError
from caffe_dns.files.kinds import HEAD, other_kind
from caffe_dns.files.reading import read_file
from caffe_dns.proto.blobs import blob_to_array
from caffe_dns.proto.caffe_pb2 import TRAIN, BlobProto, TransformationParameter
from caffe_dns.proto.fields import refuse_fields
from caffe_dns.proto.forks import renumber_blob
from caffe_dns.proto.wire_text import parse

#: Records per random generator: one for each record would cost more than reading it.
_BLOCK = 4096
#: Layer types, and the fields of transform_param that only they read.
_OF_THEIR_OWN = {
    "AnnotatedData": (
        "resize_param",
        "noise_param",
        "emit_constraint",
        "crop_h",
        "crop_w",
        "distort_param",
        "expand_param",
    ),
    "ImageSegData": ("crop_height", "crop_width", "scale_factors"),
    "VideoData, of TSN": (
        "fix_crop",
        "more_fix_crop",
        "multi_scale",
        "scale_ratios",
        "max_distort",
        "is_flow",
    ),
}


class RecordDraws:
    """Three random numbers for each record.

    They depend only on the seed, the stream's name and the record's number, so they are the same
    however records are distributed over batches and ranks, and after a resume.
    """

    def __init__(self, seed: int, stream: str) -> None:
        self._seed = seed
        self._stream = stream
        self._block = lru_cache(maxsize=2)(self._draw_block)

    def of(self, records: IntArray) -> IntArray:
        """Numbers below 2**32, [N, 3], for N record numbers."""
        result = np.empty((len(records), 3), np.int64)
        blocks = records // _BLOCK
        for block in np.unique(blocks).tolist():
            chosen = blocks == block
            result[chosen] = self._block(block)[records[chosen] % _BLOCK]
        return result

    def _draw_block(self, block: int) -> IntArray:
        generator = rng.numpy_generator(self._seed, self._stream, block)
        return generator.integers(1 << 32, size=(_BLOCK, 3))


class Transform:
    """The settings of a layer's `transform_param`. Random choices come from the caller's draws."""

    def __init__(self, param: TransformationParameter, phase: int) -> None:
        refuse_of_others(param)
        self.crop_size = int(param.crop_size)
        self.mirror = bool(param.mirror)
        self.cutter = Cutter(self.crop_size, self.crop_size > 0 and phase == TRAIN, self.mirror)
        self.scale = float(param.scale)
        self.mean: Tensor | None = None
        self.mean_values = torch.tensor(list(param.mean_value), dtype=torch.float32)
        if param.HasField("mean_file"):
            if len(self.mean_values):
                raise CaffeError(
                    "has both mean_file and mean_value; give one of them", field="transform_param"
                )
            log.info(f"Loading mean file from: {param.mean_file}")
            self.mean = read_mean(param.mean_file)
        #: What `finish` subtracts: for a mean file, the part under the crop.
        self._host_mean: Image | None = None
        if self.mean is not None:
            self._host_mean = self.mean.numpy()
        elif len(self.mean_values):
            self._host_mean = self.mean_values.numpy().reshape(-1, 1, 1)

    @property
    def is_random(self) -> bool:
        """Whether records need random draws."""
        return self.mirror or self.cutter.random_crop

    def output_shape(self, shape: ImageShape) -> ImageShape:
        """The transformed shape of an image of `shape` (channels, height, width).

        Raises CaffeError if the crop or the mean do not fit it.
        """
        channels, height, width = shape
        size = self.crop_size
        if size > min(height, width):
            raise CaffeError(
                f"crop_size {size} is larger than an image of {height}x{width} (height, width)",
                field="transform_param.crop_size",
            )
        if self.mean is not None and tuple(self.mean.shape) != shape:
            raise CaffeError(
                f"the mean is of {shape_text(tuple(self.mean.shape))}, an image here of "
                f"{shape_text(shape)} (channels, height, width)",
                field="transform_param.mean_file",
            )
        if len(self.mean_values) not in (0, 1, channels):
            raise CaffeError(
                f"is given {len(self.mean_values)} times for images of {channels} channel(s); "
                f"give one value, or one for each channel",
                field="transform_param.mean_value",
            )
        return (channels, size, size) if size else shape

    def apply(self, pixels: Tensor, cuts: Tensor | None, into: Tensor | None = None) -> Tensor:
        """Mirror, subtract the mean and scale a batch, on its device.

        `pixels` is [N, channels, height, width], cropped, uint8 or float32; `cuts` [N, 3] gives
        top, left and mirrored of each image, None if all are cut alike and none is mirrored.
        Returns float32, in Caffe's order of operations, on a GPU in `into` if that fits.
        """
        mean = self._mean_on(pixels.device)
        if kernels.wanted(pixels.device):
            from caffe_dns.kernels.transform import transform

            return transform(pixels, cuts, mean, self._centre(), self.scale, into)
        mirrored = cuts[:, 2].bool() if self.mirror and cuts is not None else None
        if mirrored is not None:
            pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
        values = pixels.to(torch.float32)
        if mean is not None:
            values = values - self._part(mean, values.shape[2:], cuts, mirrored)
        return values * self.scale if self.scale != 1 else values

    def finish(self, images: Image, cut: Cut, target: Image) -> None:
        """Put images, cropped at `cut`, into `target`, mean subtracted and scaled.

        For the CPU, and bit for bit the same as `apply`, except for mirrors. Both arrays are
        [..., channels, height, width], the images uint8 or float32, `target` float32.
        """
        mean = self._host_mean
        if mean is not None and self.mean is not None:
            mean = crop(mean, cut, self.crop_size)
        self._finish(images, mean, target)

    def finish_all(self, images: Image, cuts: IntArray, target: Image) -> None:
        """`finish` for images [N, channels, height, width], each with its own crop.

        `cuts` is [N, 3]. Nothing is mirrored.
        """
        mean = self._host_mean
        if mean is not None and self.mean is not None:
            mean = np.broadcast_to(mean, (len(cuts), *mean.shape))
            mean = crop_all(mean, cuts, self.crop_size)
        self._finish(crop_all(images, cuts, self.crop_size), mean, target)

    def _finish(self, images: Image, mean: Image | None, target: Image) -> None:
        np.copyto(target, images)
        if mean is not None:
            np.subtract(target, mean, out=target)
        if self.scale != 1:
            np.multiply(target, np.float32(self.scale), out=target)

    def _mean_on(self, device: torch.device) -> Tensor | None:
        """The mean file [channels, height, width] or the mean values [channels or 1, 1, 1]."""
        if len(self.mean_values):
            self.mean_values = self.mean_values.to(device)
            return self.mean_values.view(-1, 1, 1)
        if self.mean is not None:
            self.mean = self.mean.to(device)
        return self.mean

    def _centre(self) -> tuple[int, int]:
        """Top and left of a central crop of images as large as the mean; 0 without a mean."""
        if self.mean is None:
            return 0, 0
        centre = self.cutter.cut((0, *self.mean.shape[1:]), [0, 0, 0])
        return centre.top, centre.left

    def _part(
        self, mean: Tensor, size: Sequence[int], cuts: Tensor | None, mirrored: Tensor | None
    ) -> Tensor:
        """What to subtract: the mean file's pixel for each source pixel, or the mean values."""
        if self.mean is None:
            return mean
        height, width = size
        if cuts is None:
            top, left = self._centre()
            return mean[:, top : top + height, left : left + width]
        rows = cuts[:, :1] + torch.arange(height, device=mean.device)
        columns = torch.arange(width, device=mean.device).expand(len(cuts), width)
        if mirrored is not None:
            columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        columns = columns + cuts[:, 1:2]
        return mean[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)


def refuse_of_others(param: TransformationParameter, own: str = "") -> None:
    """Raise CaffeError, with the field, for transformations of layer types other than `own`."""
    refuse_fields(param, "transform_param", _OF_THEIR_OWN, own)


def read_mean(path: str) -> Tensor:
    """The mean image in a binaryproto file, float32 [channels, height, width].

    The mean of clips, [channels, length, height, width], has the planes of all frames as channels.
    Raises CaffeError when the file cannot be read or holds no image.
    """
    field = "transform_param.mean_file"
    blob = BlobProto()
    try:
        raw = read_file(path)
        parse(blob, raw, lambda raw: renumber_blob(memoryview(raw)) or raw)
        values = blob_to_array(blob, "the mean")
    except OSError as error:
        raise CaffeError(f"{path} cannot be read: {error.strerror}", field=field) from None
    except DecodeError:
        kind = other_kind(bytes(raw[:HEAD]))
        reason = f": {kind}" if kind else ""
        raise CaffeError(f"{path} is not a BlobProto file{reason}", field=field) from None
    except CaffeError as error:
        raise CaffeError(f"{path}: {error.message}", field=field) from None
    shape = (1,) * (4 - values.ndim) + values.shape
    if len(shape) == 5:
        shape = (shape[0], shape[1] * shape[2], *shape[3:])
    if len(shape) != 4 or shape[0] != 1 or not values.size:
        raise CaffeError(
            f"{path} holds no single image, but values of {shape_text(shape)}", field=field
        )
    return torch.from_numpy(values.reshape(shape[1:]))


def shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(str(extent) for extent in shape)
