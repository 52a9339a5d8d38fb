"""The records of a small database, kept in memory once they have been read.

Finding and parsing records one by one would make a small net on a GPU wait.
"""

from __future__ import annotations

import math

import numpy as np

from caffe_dns.data.datum import Image, IntArray

#: Bytes of pixels up to which a database is small.
MOST_BYTES = 256 << 20


class KeptRecords:
    """Images of uint8 [channels, height, width] and labels of `count` records, once all are known.

    Their numbers go on after the last: record `count` is the first again. Where the images are too
    large or of several shapes, none is kept.
    """

    def __init__(self, count: int) -> None:
        self._labels: Image = np.zeros(count, np.uint8)
        self._known = np.zeros(count, bool)
        self._images: Image | None = None
        self._fits = True
        self.complete = False

    def put(self, records: IntArray, images: Image, labels: Image) -> None:
        """Keep images [N, channels, height, width] and labels [N] of these records."""
        shape = (len(self._known), *images.shape[1:])
        self._fits &= math.prod(shape) <= MOST_BYTES
        if self._images is None and self._fits:
            self._images = np.empty(shape, np.uint8)
        if self._images is None or self._images.shape != shape:
            self._images, self._fits = None, False
            return
        places = records % len(self._known)
        self._images[places] = images
        self._labels[places] = labels
        self._known[places] = True
        self.complete = bool(self._known.all())

    def get(self, records: IntArray) -> tuple[Image, Image]:
        """Images [N, channels, height, width] and labels [N] of these records."""
        assert self._images is not None
        places = records % len(self._known)
        in_a_row = bool((np.diff(places) == 1).all())  # then nothing is copied
        some = slice(places[0], places[-1] + 1) if in_a_row else places
        return self._images[some], self._labels[some]
