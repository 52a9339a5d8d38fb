"""A row of layers as one compiled program, and running it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from caffe_dns.kernels.on_cpu.vectors import LANES, SLACK
from caffe_dns.layers.base import Layer, Shape
from caffe_dns.sparse import kernels
from caffe_dns.sparse.operations import adder
from caffe_dns.sparse.tables import CACHED, Planes, Tables, whole

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
            (top,) = set(layer.top_shapes([top]))
        tables.finish()
        self._top = tuple(top[1:])
        images = max(1, min(MOST_IMAGES, CACHED // tables.largest))
        # Whole vectors of images lie where vectors are read fastest.
        self._images = images // LANES * LANES or images
        counts = [len(weights) for weights in tables.weights]
        #: What `kernels.run` is given the addresses of, and for each thread two buffers.
        self._tables = (
            np.stack(tables.rows),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.concatenate([*tables.places, []]).astype(np.int32),
            np.concatenate([*tables.weights, []]).astype(np.float32),
            np.array(tables.biases, np.float32),
        )
        size = whole(tables.largest * self._images + SLACK)
        self._buffers = [torch.zeros((2, size))]  # aligned, as NumPy's are not
        addresses = [number for array in self._tables for number in (array.ctypes.data, array.size)]
        self._arrays = np.array([*addresses, size], np.int64)
        self._addresses = self._arrays.ctypes.data, self._buffers[0].data_ptr()

    def __call__(self, bottom: Tensor) -> Tensor:
        """The top of a float32 bottom, N images."""
        num = bottom.shape[0]
        if bottom.dtype is not torch.float32 or not bottom.is_contiguous():
            bottom = bottom.float().contiguous()
        top = torch.empty(num, *self._top)
        if num <= self._images:
            kernels.run(*self._addresses, bottom.data_ptr(), top.data_ptr(), num)
        else:
            self._run_in_shares(bottom, top)
        return top

    def _run_in_shares(self, images: Tensor, top: Tensor) -> None:
        """So many images at a time as buffers hold, by as many threads as PyTorch has."""
        shares = [slice(i, i + self._images) for i in range(0, len(images), self._images)]
        threads = min(len(shares), torch.get_num_threads())
        while len(self._buffers) < threads:
            self._buffers.append(torch.zeros_like(self._buffers[0]))

        def work(thread: int) -> None:
            buffers = self._buffers[thread].data_ptr()
            for share in shares[thread::threads]:
                own, tops = images[share], top[share]
                kernels.run(self._addresses[0], buffers, own.data_ptr(), tops.data_ptr(), len(own))

        if threads == 1:
            work(0)
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
