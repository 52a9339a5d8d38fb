"""The tables that `kernels` work through, while they are made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from caffe_dns.sparse import kernels


@dataclass(frozen=True)
class Planes:
    """How an image lies in a buffer: see `kernels`. `width` of a row's `pitch` places count."""

    channels: int
    height: int
    width: int
    pitch: int
    plane: int

    @classmethod
    def dense(cls, channels: int, height: int = 1, width: int = 1) -> Planes:
        return cls(channels, height, width, width, height * width)

    @property
    def size(self) -> int:
        return self.channels * self.plane

    def places(self) -> np.ndarray:
        """Where each number is, channels x height x width."""
        channels, rows, columns = np.ogrid[: self.channels, : self.height, : self.width]
        return channels * self.plane + rows * self.pitch + columns


class Tables:
    """The rows of operations, and for each plane that sums make, what it adds up."""

    def __init__(self, planes: Planes) -> None:
        self.planes = planes
        self.rows: list[np.ndarray] = []
        self.places: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []
        self.biases: list[float] = []
        self.largest = planes.size

    def add(self, kind: int, planes: Planes, **settings: int) -> None:
        """An operation that makes `planes` of those that are there."""
        row = np.zeros(kernels.COLUMNS, np.int64)
        row[kernels.KIND] = kind
        for first, image in ((kernels.CHANNELS, self.planes), (kernels.OUT_CHANNELS, planes)):
            row[first : first + 5] = (
                image.channels,
                image.height,
                image.width,
                image.pitch,
                image.plane,
            )
        for name, value in settings.items():
            row[getattr(kernels, name.upper())] = value
        row[kernels.FIRST] = len(self.biases)
        self.rows.append(row)
        self.planes = planes
        self.largest = max(self.largest, planes.size)

    def add_sums(
        self, kind: int, planes: Planes, matrix: np.ndarray, places: np.ndarray, bias: np.ndarray
    ) -> None:
        """Sums by a matrix with a row for each channel; `places` says where its columns read."""
        for weights, number in zip(matrix, bias, strict=True):
            (kept,) = np.nonzero(weights)
            self.places.append(places[kept])
            self.weights.append(weights[kept])
            self.biases.append(float(number))

    def add_line(self, factor: np.ndarray, shift: np.ndarray) -> None:
        """A factor and then a shift for each channel; into the sums before, if they are last."""
        channels = self.planes.channels
        last = self.rows[-1] if self.rows else None
        in_sums = last is not None and last[kernels.KIND] in (kernels.SUMS, kernels.STRIDED_SUMS)
        if last is not None and in_sums and not last[kernels.RELU]:
            for channel in range(channels):
                at = channel - channels
                self.weights[at] = self.weights[at] * factor[channel]
                self.biases[at] = self.biases[at] * float(factor[channel]) + float(shift[channel])
            return
        self.add(kernels.LINE, self.planes)
        for number, offset in zip(factor, shift, strict=True):
            self.places.append(np.zeros(1, np.int64))
            self.weights.append(np.array([number]))
            self.biases.append(float(offset))
