"""A batch for a GPU that decodes its JPEGs itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_dns.data import jpeg_planes
from caffe_dns.data.crops import Cut
from caffe_dns.data.datum import Image, IntArray
from caffe_dns.data.image_batch import CroppedBatch
from caffe_dns.data.workers import available_cores
from caffe_dns.device.nvjpeg import Flags, JpegUnits, jpeg_units

#: Bytes of planes that are decoded at a time, at most.
_MOST_AT_ONCE = 1 << 29
#: How many threads feed a GPU's units: with four they decode more than with three.
_MOST_THREADS = 4


def units_of(device: torch.device) -> JpegUnits:
    """What decodes JPEGs on a GPU, for which half of the cores may wait.

    Raises CaffeError where it has none, or nvJPEG is missing.
    """
    return jpeg_units(device, max(1, min(_MOST_THREADS, available_cores() // 2)))


@dataclass
class Jpegs:
    """Some images that have not been decoded yet, and where their crops go.

    `data` [N, 2] has where each begins in memory, and how many bytes it has; `kinds` [N, 4] what
    `PlainJpeg` says of each; `cuts` [N, 3] top and left of its crop, and whether it is mirrored.
    """

    places: IntArray
    data: IntArray
    kinds: IntArray
    cuts: IntArray
    #: What owns that memory.
    owner: object

    def __len__(self) -> int:
        return len(self.places)

    def part(self, some: slice) -> Jpegs:
        """Some of them."""
        return Jpegs(
            self.places[some], self.data[some], self.kinds[some], self.cuts[some], self.owner
        )

    def portions(self) -> Iterator[Jpegs]:
        """All of them, as many at a time as are decoded together."""
        ends = np.cumsum(3 * self.kinds[:, 0] * self.kinds[:, 1])
        first = 0
        while first < len(self):
            limit = _MOST_AT_ONCE + (ends[first - 1] if first else 0)
            end = max(first + 1, int(np.searchsorted(ends, limit, "right")))
            yield self.part(slice(first, end))
            first = end


class JpegBatch(CroppedBatch):
    """A `CroppedBatch` of which some images are JPEGs, which a GPU decodes.

    It begins with them when `begin` is called, and `pixels_on` waits for them. `decode` gives the
    image of a place, decoded on the host, where the GPU cannot; it may raise CaffeError.
    """

    def __init__(
        self, *settings: Any, jpegs: Jpegs, decode: Callable[[int], Image], **named: Any
    ) -> None:
        super().__init__(*settings, **named)
        self._decode = decode
        self._places_of_jpegs = jpegs.places
        if self.cuts is not None:
            self.cuts.numpy()[jpegs.places] = jpegs.cuts
        #: Those that have not been begun, and those that have.
        self._portions = deque(jpegs.portions())
        self._begun: deque[_Begun] = deque()

    def begin(self, device: torch.device) -> None:
        """Let the GPU decode some of them from now on."""
        if self._portions:
            self._begun.append(_begin(self._portions.popleft(), device))

    def pixels_on(self, device: torch.device) -> Tensor:
        pixels = torch.empty_like(self.pixels, device=device)
        here = np.ones(len(pixels), bool)
        here[self._places_of_jpegs] = False
        while self._begun or self._portions:
            self.begin(device)
            here[self._finish(self._begun.popleft(), pixels)] = True
        if here.any():
            places = torch.from_numpy(here.nonzero()[0])
            pixels[places.to(device)] = self.pixels[places].to(device)
        return pixels

    def _finish(self, begun: _Begun, pixels: Tensor) -> list[int]:
        """Put crops into `pixels`; the places of those that the GPU cannot decode.

        Those are put into their places here, on the host.
        """
        jpegs, device = begun.jpegs, pixels.device
        done = begun.wait()
        if done.any():
            corners = np.column_stack([jpegs.cuts[:, :2], jpegs.places])
            jpeg_planes.pixels(begun.memory, np.hstack([begun.layout, corners])[done], pixels)
            if device.type == "cuda":  # or who comes next would get that memory too early
                begun.memory.record_stream(torch.cuda.current_stream(device))
        if len(jpegs) > 1:  # it does not say which one it was
            single = (jpegs.part(slice(n, n + 1)) for n in (~done).nonzero()[0].tolist())
            found = (self._finish(_begin(jpeg, device), pixels) for jpeg in single)
            return [place for places in found for place in places]
        if done.all():
            return []
        (place,), ((top, left, mirrored),) = jpegs.places.tolist(), jpegs.cuts.tolist()
        self.put(place, self._decode(place), Cut(top, left, bool(mirrored)))
        return [place]


@dataclass
class _Begun:
    """Some JPEGs that a GPU decodes: into what memory, laid out how, and what waits for the end."""

    jpegs: Jpegs
    memory: Tensor
    layout: IntArray
    wait: Callable[[], Flags]


def _begin(jpegs: Jpegs, device: torch.device) -> _Begun:
    """Let the GPU decode them from now on."""
    units = units_of(device)
    layout, size = jpeg_planes.lay_out(jpegs.kinds)
    with torch.cuda.stream(units.stream):  # or it could be memory that another has yet to read
        memory = torch.empty(size, dtype=torch.uint8, device=device)
    targets = np.zeros((len(jpegs), 8), np.uint64)
    targets[:, :3] = layout[:, :3] + memory.data_ptr()
    targets[:, 4:7] = layout[:, [3, 4, 4]]
    wait = units.start(jpegs.data.astype(np.uint64), targets, jpegs.owner, memory)
    return _Begun(jpegs, memory, layout, wait)
