"""A row of layers as one compiled program, and running it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from caffe_dns.layers.base import Layer, Shape
from caffe_dns.sparse import kernels
from caffe_dns.sparse.operations import adder
from caffe_dns.sparse.tables import Planes, Tables
from caffe_dns.sparse.vectors import SLACK

#: Numbers in the larger of two buffers up to which they stay in a cache that is not shared.
CACHED = 1 << 17
#: The most images that a buffer holds, however small they are.
MOST_IMAGES = 64


class Program:
    """Layers, one after the other, on images of one shape: channels, or those, height and width.

    For a test pass: gradients do not come through, and weights that change later do not count.
    """

    def __init__(self, layers: Sequence[Layer], shape: Shape) -> None:
        tables = Tables(Planes.dense(*shape))
        top: Shape = (1, *shape)
        for layer in layers:
            add = adder(layer, top)
            assert add is not None
            add(layer, tables)
            (top,) = set(layer.reshape([top]))
        tables.finish()
        self._top = tuple(top[1:])
        self._images = max(1, min(MOST_IMAGES, CACHED // tables.largest))
        counts = [len(places) for places in tables.places]
        self._tables = (
            np.stack(tables.rows),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.concatenate([*map(np.ravel, tables.places), []]).astype(np.int32),
            np.concatenate([*tables.weights, []]).astype(np.float32),
            np.array(tables.biases, np.float32),
        )
        self._lowest = np.float32(torch.finfo(torch.float32).min)
        #: One for each thread.
        size = tables.largest * self._images + SLACK
        self._buffers = [np.zeros((2, size), np.float32)]

    def __call__(self, bottom: Tensor) -> Tensor:
        """The top of a float32 bottom, N images."""
        images, num = bottom.float().contiguous(), bottom.shape[0]
        top = torch.empty(num, *self._top)
        if num <= self._images:
            self._run(images, top, num, 0)
        else:
            self._run_in_shares(images, top)
        return top

    def _run_in_shares(self, images: Tensor, top: Tensor) -> None:
        """So many images at a time as buffers hold, by as many threads as PyTorch has."""
        shares = [slice(i, i + self._images) for i in range(0, len(images), self._images)]
        threads = min(len(shares), torch.get_num_threads())
        while len(self._buffers) < threads:
            self._buffers.append(np.zeros_like(self._buffers[0]))

        def work(thread: int) -> None:
            for share in shares[thread::threads]:
                own = images[share]
                self._run(own, top[share], len(own), thread)

        if threads == 1:
            work(0)
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))

    def _run(self, images: Tensor, top: Tensor, num: int, thread: int) -> None:
        buffers = self._buffers[thread]
        kernels.run(*self._tables, buffers, images.data_ptr(), top.data_ptr(), num)
