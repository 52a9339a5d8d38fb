"""WindowData: windows drawn from images, some on objects and some not (`window_data_layer.cpp`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe_dns import log
from caffe_dns.data.batches import Share
from caffe_dns.data.datum import Image
from caffe_dns.data.random_resizing import refuse_resizing
from caffe_dns.data.transform import RecordDraws, read_mean, refuse_of_others
from caffe_dns.data.window_batches import WindowBatches, WindowSettings
from caffe_dns.data.windows import read_window_file
from caffe_dns.layers.base import Shape, layer_types
from caffe_dns.layers.batch_data import BatchDataLayer

#: What images are decoded to.
_CHANNELS = 3


@layer_types.register("WindowData")
class WindowData(BatchDataLayer):
    """A fixed share of each batch is foreground; windows are drawn with replacement."""

    tops = (2, 2)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.window_data_param
        self.batch_size = settings.batch_size
        self.check_batch_size("window_data_param.batch_size")
        self._settings = self._read_settings()
        if not settings.source:
            raise self.error("must name a window file", "window_data_param.source")
        log.info(
            "Window data layer:\n"
            f"  foreground (object) overlap threshold: {log.number(settings.fg_threshold)}\n"
            f"  background (non-object) overlap threshold: {log.number(settings.bg_threshold)}\n"
            f"  foreground sampling fraction: {log.number(settings.fg_fraction)}\n"
            f"  cache_images: {int(settings.cache_images)}\n"
            f"  root_folder: {settings.root_folder}"
        )
        self._windows = read_window_file(
            settings.source, settings.root_folder, settings.fg_threshold, settings.bg_threshold
        )
        if self._windows.channels != _CHANNELS:
            raise self.error(
                f"is about images of {self._windows.channels} channels; they are decoded to 3",
                "window_data_param.source",
            )
        log.info(f"Amount of context padding: {settings.context_pad}")
        log.info(f"Crop mode: {settings.crop_mode}")
        size = self._settings.crop_size
        log.info(f"output data size: {self.batch_size},{_CHANNELS},{size},{size}")
        self._mean = self._read_mean()

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        size = self._settings.crop_size
        return [(self.batch_size, _CHANNELS, size, size), (self.batch_size,)]

    def reader(self, share: Share, *, pin: bool) -> WindowBatches:
        draws = RecordDraws(self.context.seed, f"windows/{self.name}")
        return WindowBatches(self._windows, self._settings, self._mean, draws, share, pin=pin)

    def _read_settings(self) -> WindowSettings:
        param, transform = self.param.window_data_param, self.param.transform_param
        refuse_of_others(transform)
        refuse_resizing(transform)
        crop_size = transform.crop_size
        if crop_size < 1:
            raise self.error("must be given, and be positive", "transform_param.crop_size")
        if 2 * param.context_pad >= crop_size:
            raise self.error(
                f"{param.context_pad} on both sides leaves nothing of crop_size {crop_size}",
                "window_data_param.context_pad",
            )
        if transform.HasField("scale"):
            log.warning("WindowData takes scale from window_data_param, not from transform_param")
        return WindowSettings(
            batch_size=self.batch_size,
            foreground_per_batch=int(np.float32(self.batch_size) * np.float32(param.fg_fraction)),
            crop_size=crop_size,
            context_pad=param.context_pad,
            square=param.crop_mode == "square",
            mirror=transform.mirror,
            scale=param.scale,
            cache_images=param.cache_images,
        )

    def _read_mean(self) -> Image | None:
        """The mean image or the mean values, [3, height, width]."""
        transform = self.param.transform_param
        values = np.array(transform.mean_value, np.float32)
        if transform.HasField("mean_file"):
            if values.size:
                raise self.error(
                    "has both mean_file and mean_value; give one of them", "transform_param"
                )
            log.info(f"Loading mean file from: {transform.mean_file}")
            mean: Image = read_mean(transform.mean_file).numpy()
            size = self._settings.crop_size
            offset = (mean.shape[2] - size) // 2
            if mean.shape[0] != _CHANNELS or offset < 0 or offset + size > mean.shape[1]:
                raise self.error(
                    f"is of shape {mean.shape}; needed are 3 channels that hold the crop",
                    "transform_param.mean_file",
                )
            return mean
        if values.size not in (0, 1, _CHANNELS):
            raise self.error(
                f"is given {values.size} times; give one value, or one for each of 3 channels",
                "transform_param.mean_value",
            )
        return np.resize(values, (_CHANNELS, 1, 1)) if values.size else None
