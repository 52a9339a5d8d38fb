"""Where images are cropped, and the cropping itself; does not need PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from caffe_dns.data.datum import Image, IntArray

ImageShape: TypeAlias = "tuple[int, int, int]"


@dataclass
class Cut:
    """How one image is cropped and whether it is mirrored."""

    top: int
    left: int
    mirrored: bool


@dataclass(frozen=True)
class Cutter:
    """Crops of `crop_size`, or whole images for 0: at random or in the middle, mirrored or not."""

    crop_size: int
    random_crop: bool
    mirror: bool

    def cut(self, shape: ImageShape, draw: list[int]) -> Cut:
        """Where an image of `shape` is cropped, and whether it is mirrored.

        `draw` has three random numbers, for mirror, top and left.
        """
        mirrored = self.mirror and bool(draw[0] & 1)
        if not self.crop_size:
            return Cut(0, 0, mirrored)
        spare_rows, spare_columns = shape[1] - self.crop_size, shape[2] - self.crop_size
        if self.random_crop:
            return Cut(draw[1] % (spare_rows + 1), draw[2] % (spare_columns + 1), mirrored)
        return Cut(spare_rows // 2, spare_columns // 2, mirrored)

    def cuts(self, shape: ImageShape, draws: IntArray) -> IntArray:
        """What `cut` says of each of N images of one `shape`: top, left and mirrored, [N, 3]."""
        return self.cuts_of(np.array(shape[1:]), draws)

    def cuts_of(self, sizes: IntArray, draws: IntArray) -> IntArray:
        """The same of images of several heights and widths, [N, 2], or of one, [2]."""
        cuts = np.zeros((len(draws), 3), np.int64)
        if self.random_crop:
            cuts[:, :2] = draws[:, 1:] % (sizes - self.crop_size + 1)
        elif self.crop_size:
            cuts[:, :2] = (sizes - self.crop_size) // 2
        if self.mirror:
            cuts[:, 2] = draws[:, 0] & 1
        return cuts


def crop(images: Image, cut: Cut, size: int) -> Image:
    """The `size` x `size` part at `cut` of [..., height, width]; all of it for size 0."""
    if not size:
        return images
    return images[..., cut.top : cut.top + size, cut.left : cut.left + size]


def crop_all(images: Image, cuts: IntArray, size: int) -> Image:
    """The `size` x `size` parts of images [N, channels, height, width], each at its place.

    `cuts` [N, 3] begins with top and left of each.
    """
    if not size:
        return images
    if (cuts[:, :2] == cuts[0, :2]).all():  # then nothing is copied
        return crop(images, Cut(int(cuts[0, 0]), int(cuts[0, 1]), False), size)
    windows = sliding_window_view(images, (size, size), axis=(2, 3))
    crops: Image = windows[np.arange(len(images)), :, cuts[:, 0], cuts[:, 1]]
    return crops


def copy_planes(image: Image, target: Image) -> None:
    """Copy an image [channels, height, width] to where its planes lie in one piece each.

    A decoded image has its channels innermost. OpenCV parts them several times faster than numpy,
    and without the interpreter's lock, for which threads that decode would have to queue.
    """
    channels = len(image)
    interleaved = channels > 1 and image.dtype == np.uint8 and image.strides[0] == 1
    if interleaved and image.strides[2] == channels and target.dtype == np.uint8:
        import cv2  # here, because importing it takes long; but whoever decodes has done so

        cv2.split(image.transpose(1, 2, 0), tuple(target))
    else:
        target[:] = image
