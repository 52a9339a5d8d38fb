"""A batch for a GPU that decodes its JPEGs itself."""

from __future__ import annotations

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
from caffe_dns.device.nvjpeg import jpeg_units

#: Bytes of planes that are decoded at a time, at most.
_MOST_AT_ONCE = 1 << 29


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
    """A `CroppedBatch` of which some images are JPEGs that have not been decoded yet.

    `decode` gives the image of a place, decoded on the host, where the GPU cannot; it may raise
    CaffeError.
    """

    def __init__(self, *settings: Any, decode: Callable[[int], Image], **named: Any) -> None:
        super().__init__(*settings, **named)
        self._decode = decode
        self._jpegs: list[Jpegs] = []

    def put_jpegs(self, jpegs: Jpegs) -> None:
        """Fill places with JPEGs, which are decoded later."""
        if self.cuts is not None:
            self.cuts.numpy()[jpegs.places] = jpegs.cuts
        self._jpegs.append(jpegs)

    def pixels_on(self, device: torch.device) -> Tensor:
        pixels = torch.empty_like(self.pixels, device=device)
        here = np.ones(len(pixels), bool)
        for jpegs in self._jpegs:
            for portion in jpegs.portions():
                here[portion.places] = False
                here[self._decode_into(pixels, portion)] = True
        if here.any():
            places = torch.from_numpy(here.nonzero()[0])
            pixels[places.to(device)] = self.pixels[places].to(device)
        return pixels

    def _decode_into(self, pixels: Tensor, jpegs: Jpegs) -> list[int]:
        """Put crops into `pixels`; the places of those that the GPU cannot decode.

        Those are put into their places here, on the host.
        """
        layout, size = jpeg_planes.lay_out(jpegs.kinds)
        memory = torch.empty(size, dtype=torch.uint8, device=pixels.device)
        targets = np.zeros((len(jpegs), 8), np.uint64)
        targets[:, :3] = layout[:, :3] + memory.data_ptr()
        targets[:, 4:7] = layout[:, [3, 4, 4]]
        done = jpeg_units(pixels.device).decode(jpegs.data.astype(np.uint64), targets)
        if done.any():
            corners = np.column_stack([jpegs.cuts[:, :2], jpegs.places])
            jpeg_planes.pixels(memory, np.hstack([layout, corners])[done], pixels)
        if len(jpegs) > 1:  # it does not say which one it was
            single = (jpegs.part(slice(n, n + 1)) for n in (~done).nonzero()[0].tolist())
            return [place for jpeg in single for place in self._decode_into(pixels, jpeg)]
        if done.all():
            return []
        (place,), ((top, left, mirrored),) = jpegs.places.tolist(), jpegs.cuts.tolist()
        self.put(place, self._decode(place), Cut(top, left, bool(mirrored)))
        return [place]
