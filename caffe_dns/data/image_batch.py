"""The memory that a batch of images is put into, image by image or all at once.

For a GPU, these are cropped bytes in pinned memory, with everything that the GPU needs to finish
them; for the CPU, finished images. Where the images come from is not known here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from caffe_dns.data.crops import Cut, ImageShape, copy_planes, crop, crop_all
from caffe_dns.data.datum import Image, IntArray
from caffe_dns.data.raw_records import RawRecords
from caffe_dns.data.transform import Transform

#: How many batches' memory is kept for those to come.
_MOST_FREE = 8


class BatchMemory:
    """Memory for one batch after the other, given out again when no tensor uses it any more.

    New memory would cost as much as reading into it does.
    """

    def __init__(self) -> None:
        self._free: deque[Image] = deque(maxlen=_MOST_FREE)

    def take(self, size: int) -> Image:
        """So many bytes, which are not set to anything. Threads may call it."""
        while self._free:
            memory = self._free.popleft()
            if len(memory) == size:
                return np.asarray(_Lent(memory, self._free))
        # numpy asks the kernel for huge pages, which come several times faster.
        return np.asarray(_Lent(np.empty(size, np.uint8), self._free))


class _Lent:
    """Memory that comes back when the last array or tensor of it is gone."""

    def __init__(self, memory: Image, free: deque[Image]) -> None:
        self.__array_interface__ = memory.__array_interface__
        self._memory = memory
        self._free = free

    def __del__(self) -> None:
        self._free.append(self._memory)


class ImageBatch(ABC):
    """Places for some images, and their labels [N]. Threads may fill them."""

    labels: Tensor

    @abstractmethod
    def put(self, index: int, image: Image, cut: Cut) -> None:
        """Fill place `index` with an image [channels, height, width] that is not cropped yet."""

    @abstractmethod
    def put_all(self, images: Image, cuts: IntArray) -> None:
        """Fill all places with images [N, channels, height, width] that are not cropped yet.

        `cuts` [N, 3] has top, left and whether it is mirrored of each.
        """

    @abstractmethod
    def tops(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images and labels on `device`, float32, transformed."""


class FinishedBatch(ImageBatch):
    """Images [N, channels, height, width] that are transformed while they are put in their places.

    For the CPU: the threads that read do it beside the net, an image at a time, in their caches.
    """

    def __init__(
        self,
        size: int,
        shape: ImageShape,
        transform: Transform,
        memory: BatchMemory | None = None,
    ) -> None:
        self.images = _memory((size, *shape), source=memory)
        self.labels = _memory((size,))
        self.transform = transform
        self._places = self.images.numpy()

    def put(self, index: int, image: Image, cut: Cut) -> None:
        target = self._places[index]
        self.transform.finish(crop(image, cut, self.transform.crop_size), cut, target)
        if cut.mirrored:
            target[:] = target[..., ::-1].copy()

    def put_all(self, images: Image, cuts: IntArray) -> None:
        target = self._places
        self.transform.finish_all(images, cuts, target)
        if self.transform.mirror:
            mirrored = cuts[:, 2].nonzero()
            target[mirrored] = target[mirrored][..., ::-1]

    def tops(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.images.to(device), self.labels.to(device)


class CroppedBatch(ImageBatch):
    """Cropped images [N, channels, height, width] of `dtype`, and how each was cut; for a GPU.

    Only what is used travels there, in the fewest bytes.
    """

    def __init__(
        self,
        size: int,
        shape: ImageShape,
        transform: Transform,
        dtype: torch.dtype,
        *,
        pin: bool,
        memory: BatchMemory | None = None,
    ) -> None:
        self.pixels = _memory((size, *shape), dtype, pin=pin, source=memory)
        self.labels = _memory((size,), pin=pin)
        self.cuts: Tensor | None = None
        if transform.is_random:
            self.cuts = _memory((size, 3), torch.int64, pin=pin)
        self.transform = transform
        self._places = self.pixels.numpy()
        self._places_of_labels = self.labels.numpy()
        self._places_of_cuts = None if self.cuts is None else self.cuts.numpy()

    def put(self, index: int, image: Image, cut: Cut) -> None:
        copy_planes(crop(image, cut, self.transform.crop_size), self._places[index])
        self.note(index, cut)

    def note(self, index: int, cut: Cut) -> None:
        """Say how the image of place `index` is cut."""
        if self._places_of_cuts is not None:
            self._places_of_cuts[index] = cut.top, cut.left, cut.mirrored

    def put_all(self, images: Image, cuts: IntArray) -> None:
        self.pixels.numpy()[:] = crop_all(images, cuts, self.transform.crop_size)
        if self.cuts is not None:
            self.cuts.numpy()[:] = cuts

    def places(self, some: slice) -> Image:
        """Where the crops of some images go, to be filled together with `put_notes`."""
        return self._places[some]

    def put_notes(self, some: slice, notes: IntArray) -> None:
        """Of crops that are in their places, [N, 4]: label, top, left and mirrored of each."""
        self._places_of_labels[some] = notes[:, 0]
        if self._places_of_cuts is not None:
            self._places_of_cuts[some] = notes[:, 1:]

    def begin_raw(self, records: RawRecords, cuts: IntArray) -> Callable[[range], None]:
        """Fill all places but for the pixels of `records`, one for each place; `cuts` is [N, 3].

        Returns what fills some places with these. Threads may call it.
        """
        self.labels.numpy()[:] = records.labels
        if self.cuts is not None:
            self.cuts.numpy()[:] = cuts
        return records.copying(cuts[:, :2], self.pixels)

    def tops(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.sent(device).tops()

    def sent(self, device: torch.device) -> SentBatch:
        """The same on `device`, to be transformed there."""
        pixels = self.pixels_on(device)
        cuts = None if self.cuts is None else self.cuts.to(device, non_blocking=True)
        return SentBatch(pixels, self.labels.to(device, non_blocking=True), cuts, self.transform)

    def pixels_on(self, device: torch.device) -> Tensor:
        """The cropped images on `device`."""
        return self.pixels.to(device, non_blocking=True)


@dataclass
class SentBatch:
    """What a `CroppedBatch` has, on the device where it is to be finished."""

    pixels: Tensor
    labels: Tensor
    cuts: Tensor | None
    transform: Transform

    def tops(self, into: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images and labels, float32, transformed; the images in `into` where they fit there."""
        return self.transform.apply(self.pixels, self.cuts, into), self.labels

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Let nobody else have its memory before `stream` is done with it."""
        for tensor in (self.pixels, self.labels, self.cuts):
            if tensor is not None:
                tensor.record_stream(stream)


def _memory(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    pin: bool = False,
    source: BatchMemory | None = None,
) -> Tensor:
    """A tensor on the host, to be filled."""
    if pin:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    memory = (source or BatchMemory()).take(math.prod(shape) * dtype.itemsize)
    return torch.from_numpy(memory).view(dtype).view(shape)
