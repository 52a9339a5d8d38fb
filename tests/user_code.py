"""Modules that users write, in a folder of their own, for tests of Python layers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Layers that the tests share, as a user would write them.
LAYERS = '''\
import caffe
import numpy as np


class Euclidean(caffe.Layer):
    def setup(self, bottom, top):
        assert len(bottom) == 2

    def reshape(self, bottom, top):
        self.difference = np.zeros_like(bottom[0].data)
        top[0].reshape()

    def forward(self, bottom, top):
        self.difference[...] = bottom[0].data - bottom[1].data
        top[0].data[...] = (self.difference**2).sum() / bottom[0].num / 2

    def backward(self, top, propagate_down, bottom):
        for i, sign in enumerate((1, -1)):
            if propagate_down[i]:
                bottom[i].diff[...] = sign * top[0].diff * self.difference / bottom[i].num


class Times(caffe.Layer):
    """Every bottom times the parameter."""

    def setup(self, bottom, top):
        self.factor = float(self.param_str)

    def reshape(self, bottom, top):
        for source, target in zip(bottom, top):
            target.reshape(*source.shape)

    def forward(self, bottom, top):
        for source, target in zip(bottom, top):
            target.data[...] = self.factor * source.data

    def backward(self, top, propagate_down, bottom):
        for source, target in zip(bottom, top):
            source.diff[...] = self.factor * target.diff


class Slopes(caffe.Layer):
    """A learnable factor and a learnable offset for each channel."""

    def setup(self, bottom, top):
        self.blobs.add_blob(bottom[0].channels, 1)
        self.blobs.add_blob(bottom[0].channels, 1)
        self.blobs[0].data[...] = 1

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data * self.blobs[0].data + self.blobs[1].data

    def backward(self, top, propagate_down, bottom):
        self.blobs[0].diff[...] += (top[0].diff * bottom[0].data).sum((0, 2))[:, None]
        self.blobs[1].diff[...] += top[0].diff.sum((0, 2))[:, None]
        if propagate_down[0]:
            bottom[0].diff[...] = top[0].diff * self.blobs[0].data


class Counter(caffe.Layer):
    """Data: batches that grow, from 1 row of 3 on."""

    def setup(self, bottom, top):
        self.rows = 0
        top[0].reshape(1, 3)
        top[1].reshape(1)

    def forward(self, bottom, top):
        self.rows += 1
        top[0].reshape(self.rows, 3)
        top[0].data[...] = np.arange(3 * self.rows).reshape(-1, 3)
        top[1].reshape(self.rows)
        top[1].data[...] = self.rows
'''


@contextmanager
def fresh_imports() -> Iterator[None]:
    """Forget what is imported meanwhile, and where it was looked for."""
    path, finders, modules = list(sys.path), list(sys.meta_path), set(sys.modules)
    yield
    sys.path[:], sys.meta_path[:] = path, finders
    for name in set(sys.modules) - modules:
        # All of our own stay, as a second copy of a module would have other classes.
        if not name.startswith("caffe_dns"):
            module = sys.modules[name]
            origin = getattr(module, "__file__", None) or ""
            if name.partition(".")[0] == "caffe" or Path(origin).parent == Path.cwd():
                del sys.modules[name]
