"""Builds the tables that `kernels` read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from caffe_dns.kernels.on_cpu.vectors import LANES, MOST_VECTORS, READS_LINES
from caffe_dns.sparse import kernels

Pair = tuple[int, int]
#: Numbers that stay in the nearest cache, and in one that is not shared with other cores.
NEAR, CACHED = 12288 if READS_LINES else 6144, 1 << 18
#: How many times as long rows may become for their vectors to be whole.
LONGER = 1.25


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


@dataclass
class Sums:
    """Channels of which each number adds up numbers of an image, as a convolution's do.

    What a channel reads is given for its first number, in the image with zeros around it.
    """

    channels: int
    height: int
    width: int
    #: How many channels of the image each reads.
    reads: int
    pad: Pair = (0, 0)
    stride: Pair = (1, 1)
    #: For each channel the places that it reads: channel, row and column of each.
    taps: list[np.ndarray] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)
    biases: list[float] = field(default_factory=list)
    relu: bool = False

    def append(
        self, weights: np.ndarray, bias: float, first: int = 0, dilation: Sequence[int] = (1, 1)
    ) -> None:
        """The next channel, which weighs channels x rows x columns from channel `first` on."""
        self.taps.append(np.argwhere(weights) * (1, *dilation) + (first, 0, 0))
        self.weights.append(weights[weights != 0])
        self.biases.append(float(bias))

    def add_line(self, factor: np.ndarray, shift: np.ndarray) -> None:
        """A factor and then a shift for each channel."""
        for at, number in enumerate(factor):
            self.weights[at] = self.weights[at] * number
            self.biases[at] = self.biases[at] * float(number) + float(shift[at])


class Tables:
    """The rows of operations, and for each plane that sums make, what it adds up."""

    def __init__(self, planes: Planes) -> None:
        self._planes = planes
        #: What comes next, unless the next layers have a part in it.
        self._sums: Sums | None = None
        self.rows: list[np.ndarray] = []
        self.places: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []
        self.biases: list[float] = []
        self.largest = planes.size

    @property
    def planes(self) -> Planes:
        """How the image lies that the operations so far make."""
        self._add_pending()
        return self._planes

    @planes.setter
    def planes(self, planes: Planes) -> None:
        self._planes = planes

    @property
    def channels(self) -> int:
        return (self._sums or self._planes).channels

    @property
    def size(self) -> Pair:
        """Height and width of the image that the operations so far make."""
        image = self._sums or self._planes
        return image.height, image.width

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

    def add_sums(self, sums: Sums) -> None:
        self._add_pending()
        self._sums = sums

    def rectify(self) -> None:
        """A ReLU."""
        if self._sums is not None:
            self._sums.relu = True
            return
        if not self.rows or self.rows[-1][kernels.KIND] != kernels.LINE:
            self.add_copy()
        self.rows[-1][kernels.RELU] = 1

    def add_line(self, factor: np.ndarray, shift: np.ndarray) -> None:
        """A factor and then a shift for each channel; into the sums before, if they are last."""
        sums = self._sums
        if sums is not None and not sums.relu:
            sums.add_line(factor, shift)
            return
        self._add_line(factor, shift)

    def add_copy(self) -> None:
        """What leaves all numbers as they are."""
        self._add_line(np.ones(self.channels), np.zeros(self.channels))

    def finish(self) -> None:
        """To be called once, after the last layer."""
        self._add_pending()
        if not self.rows:
            self.add_copy()

    def _add_line(self, factor: np.ndarray, shift: np.ndarray) -> None:
        self.add(kernels.LINE, self.planes)
        for number, offset in zip(factor, shift, strict=True):
            self._append(np.zeros(1, np.int64), np.array([number]), float(offset))

    def _append(self, places: np.ndarray, weights: np.ndarray, bias: float) -> None:
        self.places.append(places)
        self.weights.append(weights)
        self.biases.append(bias)

    def _add_pending(self) -> None:
        """The sums that no other layer has a part in any more.

        The image is split into one for each row and column of a step: what the next number of a
        channel reads then always lies one place further on.
        """
        sums = self._sums
        if sums is None:
            return
        self._sums = None
        copies = self._split(sums)
        split = self._planes
        pitch = split.pitch if sums.height > 1 else sums.width
        plane, pieces = sums.height * pitch, self._pieces(sums, copies)
        if pieces > 1 or copies > 1:
            # Whole vectors: sums that are taken up again must not be overwritten by the plane
            # before, and each vector of them lies as its first.
            plane = whole(plane)
        planes = Planes(sums.channels, sums.height, sums.width, pitch, plane)
        self.add(kernels.SUMS, planes, relu=int(sums.relu), pieces=pieces)
        (step_h, step_w) = sums.stride
        for piece in range(pieces):
            for taps, weights, bias in zip(sums.taps, sums.weights, sums.biases, strict=True):
                own = taps[:, 0] % sums.reads * pieces // sums.reads == piece
                channels, rows, columns = taps[own].T
                part = (channels * step_h + rows % step_h) * step_w + columns % step_w
                further = columns // step_w
                if copies > 1:
                    part, further = part * copies + further, np.zeros_like(further)
                places = part * split.plane + rows // step_h * split.pitch + further
                self._append(places, weights[own], 0 if piece else bias)

    def _pieces(self, sums: Sums, copies: int) -> int:
        """In how many pieces to read the image, so that what is read again is still near."""
        if sums.height * sums.width == 1:
            return 1
        reach = max((taps[:, 1].max(initial=0) for taps in sums.taps), default=0)
        read = copies * sums.reads * (MOST_VECTORS * LANES + int(reach) * self._planes.pitch)
        return min(sums.reads, -(-read // NEAR))

    def _split(self, sums: Sums) -> int:
        """Split the image; returns how many copies there are of each part (`kernels`)."""
        image, (pad_h, pad_w), (step_h, step_w) = self._planes, sums.pad, sums.stride
        parts = image.channels * step_h * step_w
        height = -(-(image.height + 2 * pad_h) // step_h)
        width = -(-(image.width + 2 * pad_w) // step_w)
        reach = max((taps[:, 2].max(initial=0) for taps in sums.taps), default=0)
        copies = 1 + int(reach) // step_w
        if copies > 1 and self._is_worth_copies(sums, width):
            planes = Planes(parts * copies, height, width, whole(width), height * whole(width))
        elif pad_h or pad_w or (step_h, step_w) != (1, 1):
            copies, planes = 1, Planes.dense(parts, height, width)
        else:
            return 1
        settings = {"pad_h": pad_h, "pad_w": pad_w, "stride_h": step_h, "stride_w": step_w}
        self.add(kernels.SPLIT, planes, **settings, copies=copies)
        return copies

    def _is_worth_copies(self, sums: Sums, width: int) -> bool:
        """Whether to copy an image for each column of a kernel, so that vectors are read whole.

        Others lie in two lines of the cache. Vectors of many images are whole anyway; and rows must
        not become much longer.
        """
        size = sums.channels * sums.height * width
        return READS_LINES and size * LANES > CACHED and whole(width) <= LONGER * width


def whole(count: int) -> int:
    """As many numbers, or so many more that it is whole vectors."""
    return -(-count // LANES) * LANES
