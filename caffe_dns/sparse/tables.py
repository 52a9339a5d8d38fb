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

    def add_sums(self, matrix: np.ndarray, places: np.ndarray, bias: np.ndarray) -> None:
        """What the last operation sums up: a matrix has a row for each of its channels.

        `places` says what the columns read.
        """
        for weights, number in zip(matrix, bias, strict=True):
            (kept,) = np.nonzero(weights)
            self.places.append(places[kept])
            self.weights.append(weights[kept])
            self.biases.append(float(number))

    def add_line(self, factor: np.ndarray, shift: np.ndarray) -> None:
        """A factor and then a shift for each channel; into the sums before, if they are last."""
        if self._ends_in_sums():
            for at in range(-len(factor), 0):
                self.weights[at] = self.weights[at] * factor[at]
                self.biases[at] = self.biases[at] * float(factor[at]) + float(shift[at])
            return
        self._add_line(factor, shift)

    def add_copy(self) -> None:
        """What leaves all numbers as they are."""
        self._add_line(np.ones(self.planes.channels), np.zeros(self.planes.channels))

    def _add_line(self, factor: np.ndarray, shift: np.ndarray) -> None:
        self.add(kernels.LINE, self.planes)
        for number, offset in zip(factor, shift, strict=True):
            self.places.append(np.zeros(1, np.int64))
            self.weights.append(np.array([number]))
            self.biases.append(float(offset))

    def _ends_in_sums(self) -> bool:
        """Whether the last operation makes sums, of these very channels and not rectified."""
        if not self.rows:
            return False
        last = self.rows[-1]
        in_sums = last[kernels.KIND] in (kernels.SUMS, kernels.STRIDED_SUMS)
        same = last[kernels.OUT_CHANNELS] == self.planes.channels
        return bool(in_sums and same and not last[kernels.RELU])
