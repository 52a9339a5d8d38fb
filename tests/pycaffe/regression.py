"""A solver of linear regression for the tests of the pycaffe interface, and the same by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import caffe_dns.pycaffe as caffe

NET = """
    layer { name: 'in' type: 'Input' top: 'x' top: 'y'
      input_param { shape { dim: 4 dim: 3 } shape { dim: 4 dim: 2 } } }
    layer { name: 'ip' type: 'InnerProduct' bottom: 'x' top: 'ip' param { lr_mult: 1 }
      param { lr_mult: 2 decay_mult: 0 } inner_product_param { num_output: 2 } }
    layer { name: 'loss' type: 'EuclideanLoss' bottom: 'ip' bottom: 'y' top: 'loss' }"""
SETTINGS = """net: 'net.prototxt' base_lr: 0.1 lr_policy: 'step' gamma: 0.5 stepsize: 2
    momentum: 0.9 weight_decay: 0.1 max_iter: 4 snapshot_prefix: 'snap' random_seed: 1 """


def build(settings: str = SETTINGS) -> caffe.SGDSolver:
    """A solver of linear regression on four records."""
    caffe.set_surgery(False)
    Path("net.prototxt").write_text(NET)
    Path("solver.prototxt").write_text(settings)
    solver = caffe.SGDSolver("solver.prototxt")
    fill(solver.net)
    return solver


def fill(net: caffe.Net) -> None:
    generator = np.random.default_rng(2)
    for name in ("x", "y"):
        net.blobs[name].data[...] = generator.standard_normal(net.blobs[name].shape)


class Regression:
    """The same by hand, in float64."""

    def __init__(self, solver: caffe.SGDSolver) -> None:
        blobs = [*solver.net.params["ip"]]
        self.values = [blob.data.astype(np.float64) for blob in blobs]
        self.history = [np.zeros_like(value) for value in self.values]
        self.x, self.y = (solver.net.blobs[name].data.astype(np.float64) for name in ("x", "y"))
        self.loss = 0.0

    def gradients(self) -> list[np.ndarray]:
        weight, bias = self.values
        error = self.x @ weight.T + bias - self.y
        self.loss = float((error**2).sum() / len(error) / 2)
        return [error.T @ self.x / len(error), error.sum(0) / len(error)]

    def step(self, rate: float) -> None:
        gradients = self.gradients()
        gradients[0] += 0.1 * self.values[0]
        for index, lr_mult in enumerate((1, 2)):
            self.history[index] *= 0.9
            self.history[index] += rate * lr_mult * gradients[index]
            self.values[index] = self.values[index] - self.history[index]
