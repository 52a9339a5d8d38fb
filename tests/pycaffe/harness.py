"""A small net for the tests of the pycaffe interface, and what numpy makes of its scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import caffe_dns.pycaffe as caffe

NET = """
    force_backward: true
    layer { name: 'in' type: 'Input' top: 'x' input_param { shape { dim: 4 dim: 3 } } }
    layer { name: 'label' type: 'Input' top: 'y' input_param { shape { dim: 4 } } }
    layer { name: 'ip1' type: 'InnerProduct' bottom: 'x' top: 'ip1'
      inner_product_param { num_output: 5 weight_filler { type: 'xavier' } } }
    layer { name: 'tanh' type: 'TanH' bottom: 'ip1' top: 'ip1' }
    layer { name: 'ip2' type: 'InnerProduct' bottom: 'ip1' top: 'ip2'
      inner_product_param { num_output: 2 weight_filler { type: 'xavier' } } }
    layer { name: 'prob' type: 'Softmax' bottom: 'ip2' top: 'prob' }
    layer { name: 'loss' type: 'SoftmaxWithLoss' bottom: 'ip2' bottom: 'y' top: 'loss'
      loss_weight: 2 }"""


def build(text: str = NET, phase: int = caffe.TEST, **settings: object) -> caffe.Net:
    Path("net.prototxt").write_text(text)
    return caffe.Net("net.prototxt", phase, **settings)  # type: ignore[arg-type]


def filled() -> caffe.Net:
    """The net with inputs and weights from a generator."""
    caffe.set_surgery(False)
    net = build()
    generator = np.random.default_rng(3)
    net.blobs["x"].data[...] = generator.standard_normal((4, 3))
    net.blobs["y"].data[...] = [0, 1, 1, 0]
    for blobs in net.params.values():
        for blob in blobs:
            blob.data[...] = generator.standard_normal(blob.shape)
    return net


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
