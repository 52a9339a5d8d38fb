"""MemoryData: arrays that a program provides (`memory_data_layer.cpp`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.layers.base import Layer, Shape, layer_types


@layer_types.register("MemoryData")
class MemoryData(Layer):
    """Batches from the arrays given to `set_input`, in an endless loop."""

    bottoms = (0, 0)
    tops = (2, 2)
    is_source = True

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        param = self.param.memory_data_param
        self._shape = (param.batch_size, param.channels, param.height, param.width)
        if min(self._shape) < 1:
            raise self.error(
                "batch_size, channels, height and width must be given, and be positive",
                "memory_data_param",
            )
        self._data: np.ndarray | None = None
        self._labels: np.ndarray | None = None
        self._next = 0
        self._label_shape: Shape = self._shape[:1]

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return [self._shape, self._label_shape]

    def set_input(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Take `data` [N, channels, height, width] and `labels` [N], N a multiple of batch_size.

        They are used as they are: there is no transform. Arrays of float32 are not copied before
        their batch is needed, so later changes by the program count. Raises CaffeError
        for other shapes.
        """
        batch_size = self._shape[0]
        if data.shape[1:] != self._shape[1:] or len(data) == 0 or len(data) % batch_size:
            raise self.error(
                f"is given data of shape {data.shape}; needed are a multiple of {batch_size} "
                f"records of {self._shape[1:]}"
            )
        if labels.size != len(data):
            raise self.error(f"is given {labels.size} labels for {len(data)} records")
        if self.param.HasField("transform_param"):
            log.warning("MemoryData does not transform array data on Reset()")
        self._data = np.asarray(data, np.float32)
        self._labels = np.asarray(labels, np.float32).reshape(-1)
        self._next = 0

    def forward(self, *bottoms: Tensor) -> Sequence[Tensor]:
        if self._data is None or self._labels is None:
            raise self.error("has no data yet; call set_input first")
        chosen = slice(self._next, self._next + self._shape[0])
        self._next = chosen.stop % len(self._data)
        # Set up with one axis, labels leave each forward pass with four.
        self._label_shape = (self._shape[0], 1, 1, 1)
        labels = self._on_device(self._labels[chosen])
        return self._on_device(self._data[chosen]), labels.reshape(self._label_shape)

    def _on_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.copy()).to(self.context.device)
