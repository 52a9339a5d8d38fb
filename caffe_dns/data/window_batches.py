"""Batches of windows cropped from images and warped to one size (`window_data_layer.cpp`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from caffe_dns.data.batches import Share
from caffe_dns.data.boxes import rounded
from caffe_dns.data.datum import Image, IntArray
from caffe_dns.data.hdf5_rows import ArrayBatch
from caffe_dns.data.image_files import ImageFiles
from caffe_dns.data.transform import RecordDraws
from caffe_dns.data.windows import Window, WindowFile
from caffe_dns.data.workers import Workers, reading_threads
from caffe_dns.errors import CaffeError


@dataclass(frozen=True)
class WindowSettings:
    """How windows are chosen, warped and made into numbers."""

    batch_size: int
    foreground_per_batch: int
    crop_size: int
    context_pad: int
    square: bool
    mirror: bool
    scale: float
    cache_images: bool


@dataclass(frozen=True)
class Warp:
    """A part of an image, the size it is warped to, and where it is put: all in pixels."""

    left: int
    top: int
    right: int
    bottom: int
    width: int
    height: int
    pad_left: int
    pad_top: int


class WindowBatches:
    """Batches of drawn windows: background first, then foreground.

    `mean` is [3, height, width], at least as large as the crop, or [3, 1, 1], or None.
    """

    def __init__(
        self,
        windows: WindowFile,
        settings: WindowSettings,
        mean: Image | None,
        draws: RecordDraws,
        share: Share,
        *,
        pin: bool,
    ) -> None:
        self._windows = windows
        self._settings = settings
        self._mean = mean
        self._draws = draws
        self._numbers = share.batches(settings.batch_size)
        self._pin = pin
        self._workers = Workers(reading_threads(for_gpu=pin))
        self._files = ImageFiles(keep=settings.cache_images)

    def read(self) -> ArrayBatch:
        """The next batch. Raises CaffeError for images and windows that cannot be used."""
        size, crop_size = self._settings.batch_size, self._settings.crop_size
        images = torch.zeros((size, 3, crop_size, crop_size), pin_memory=self._pin)
        labels = torch.empty((size,), pin_memory=self._pin)
        draws = self._draws.of(next(self._numbers))

        def place(some: range) -> None:
            for index in some:
                labels[index] = self._place(index, draws[index], images[index].numpy())

        self._workers.run(place, range(size))
        return ArrayBatch([images, labels])

    def close(self) -> None:
        """Stop the decoding threads."""
        self._workers.close()

    def _place(self, index: int, draw: IntArray, target: Image) -> int:
        """Put a window, chosen by its draws, into `target`, and return its label."""
        settings = self._settings
        background = settings.batch_size - settings.foreground_per_batch
        chosen = self._windows.background if index < background else self._windows.foreground
        window = chosen[int(draw[1]) % len(chosen)]
        mirrored = settings.mirror and bool(draw[0] & 1)
        path = self._windows.images[window.image]
        image = self._files.read(path)
        try:
            warp = plan_warp(window, image.shape[0], image.shape[1], settings, mirrored)
        except CaffeError as error:
            raise error.locate(file=path) from None
        pixels = _warped(image, warp, mirrored)
        rows = slice(warp.pad_top, warp.pad_top + warp.height)
        columns = slice(warp.pad_left, warp.pad_left + warp.width)
        values = pixels.transpose(2, 0, 1).astype(np.float32)
        if self._mean is not None:
            values -= self._mean_at(rows, columns)
        target[:, rows, columns] = values * np.float32(settings.scale)
        return window.label

    def _mean_at(self, rows: slice, columns: slice) -> Image:
        """The part of the mean that lies under these rows and columns of the crop."""
        assert self._mean is not None
        if self._mean.shape[1:] == (1, 1):
            return self._mean
        # Caffe centres the crop by the mean's width alone, in both directions.
        offset = (self._mean.shape[2] - self._settings.crop_size) // 2
        return self._mean[
            :,
            rows.start + offset : rows.stop + offset,
            columns.start + offset : columns.stop + offset,
        ]


def plan_warp(
    window: Window, rows: int, columns: int, settings: WindowSettings, mirrored: bool
) -> Warp:
    """How a window in an image of `rows` x `columns` is warped.

    With context padding, or when it is made square, the window is first widened; what then lies
    outside of the image stays empty in the crop. Raises CaffeError for a window outside of it.
    """
    size = settings.crop_size
    if not settings.context_pad and not settings.square:
        warp = Warp(window.x1, window.y1, window.x2, window.y2, size, size, 0, 0)
    else:
        warp = _plan_padded(window, rows, columns, settings, mirrored)
    outside = warp.left < 0 or warp.top < 0 or warp.right >= columns or warp.bottom >= rows
    empty = warp.right < warp.left or warp.bottom < warp.top
    if outside or empty or warp.width < 1 or warp.height < 1:
        raise CaffeError(
            f"window ({window.x1}, {window.y1}) to ({window.x2}, {window.y2}) "
            f"does not lie in the image of {rows}x{columns} (height, width)"
        )
    return warp


def _plan_padded(
    window: Window, rows: int, columns: int, settings: WindowSettings, mirrored: bool
) -> Warp:
    """The plan with context. Single precision throughout, since Caffe rounds its results."""
    size = np.float32(settings.crop_size)
    context_scale = size / np.float32(settings.crop_size - 2 * settings.context_pad)
    half_height = np.float32(window.y2 - window.y1 + 1) / np.float32(2)
    half_width = np.float32(window.x2 - window.x1 + 1) / np.float32(2)
    centre_x = np.float32(window.x1) + half_width
    centre_y = np.float32(window.y1) + half_height
    if settings.square:
        half_width = half_height = max(half_width, half_height)
    x1 = rounded(centre_x - half_width * context_scale)
    x2 = rounded(centre_x + half_width * context_scale)
    y1 = rounded(centre_y - half_height * context_scale)
    y2 = rounded(centre_y + half_height * context_scale)
    scale_x, scale_y = size / np.float32(x2 - x1 + 1), size / np.float32(y2 - y1 + 1)

    # What of the widened window lies outside of the image, on each side.
    left, right = max(0, -x1), max(0, x2 - columns + 1)
    top, bottom = max(0, -y1), max(0, y2 - rows + 1)
    x1, x2, y1, y2 = x1 + left, x2 - right, y1 + top, y2 - bottom
    width = rounded(np.float32(x2 - x1 + 1) * scale_x)
    height = rounded(np.float32(y2 - y1 + 1) * scale_y)
    pad_left = rounded(np.float32(right if mirrored else left) * scale_x)
    pad_top = rounded(np.float32(top) * scale_y)
    width = min(width, settings.crop_size - pad_left)
    height = min(height, settings.crop_size - pad_top)
    return Warp(x1, y1, x2, y2, width, height, pad_left, pad_top)


def _warped(image: Image, warp: Warp, mirrored: bool) -> Image:
    import cv2  # here, because importing it takes long and most runs do not need it

    part = image[warp.top : warp.bottom + 1, warp.left : warp.right + 1]
    pixels = cv2.resize(part, (warp.width, warp.height), interpolation=cv2.INTER_LINEAR)
    return cv2.flip(pixels, 1) if mirrored else pixels
