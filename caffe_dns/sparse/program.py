"""Compiles a sequence of layers into one program, and runs it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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
    Several threads may run it at once.
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
        self._size = whole(tables.largest * self._images + SLACK)
        #: What `kernels.run` is given the addresses of.
        self._tables = (
            np.stack(tables.rows),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.concatenate([*tables.places, []]).astype(np.int32),
            np.concatenate([*tables.weights, []]).astype(np.float32),
            np.array(tables.biases, np.float32),
        )
        self._find_addresses()

    def _find_addresses(self) -> None:
        addresses = [number for array in self._tables for number in (array.ctypes.data, array.size)]
        self._arrays = np.array([*addresses, self._size], np.int64)
        self._address = self._arrays.ctypes.data
        #: Two buffers each, which nobody uses at the moment, and their address.
        self._free: list[tuple[Tensor, int]] = []

    def __getstate__(self) -> dict[str, Any]:
        """All but addresses, which are others in a copy."""
        made = ("_arrays", "_address", "_free")
        return {name: value for name, value in vars(self).items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._find_addresses()

    def __call__(self, bottom: Tensor) -> Tensor:
        """The top of a float32 bottom, N images."""
        num = bottom.shape[0]
        if bottom.dtype is not torch.float32 or not bottom.is_contiguous():
            bottom = bottom.float().contiguous()
        top = torch.empty(num, *self._top)
        if num <= self._images:
            self._run(bottom, top)
        else:
            self._run_in_shares(bottom, top)
        return top

    def _run(self, images: Tensor, top: Tensor) -> None:
        """At most as many images as a buffer holds."""
        try:
            buffers = self._free.pop()
        except IndexError:
            new = torch.zeros((2, self._size))  # aligned, as NumPy's are not
            buffers = new, new.data_ptr()
        kernels.run(self._address, buffers[1], images.data_ptr(), top.data_ptr(), len(images))
        self._free.append(buffers)

    def _run_in_shares(self, images: Tensor, top: Tensor) -> None:
        """So many images at a time as buffers hold, by as many threads as PyTorch has."""
        shares = [slice(i, i + self._images) for i in range(0, len(images), self._images)]
        threads = min(len(shares), torch.get_num_threads())

        def work(thread: int) -> None:
            for share in shares[thread::threads]:
                self._run(images[share], top[share])

        if threads == 1:
            work(0)
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
