"""caffe.Classifier: crops in, scores out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import caffe_dns.pycaffe as caffe
from tests.oracle import assert_close

NET = """
    layer { name: 'in' type: 'Input' top: 'data'
      input_param { shape { dim: 3 dim: 3 dim: 4 dim: 5 } } }
    layer { name: 'ip' type: 'InnerProduct' bottom: 'data' top: 'ip'
      inner_product_param { num_output: 6 weight_filler { type: 'xavier' } } }
    layer { name: 'prob' type: 'Softmax' bottom: 'ip' top: 'prob' }"""


def test_predictions() -> None:
    Path("net.prototxt").write_text(NET)
    caffe.Net("net.prototxt", caffe.TEST).save("net.caffemodel")
    mean = np.array([1.0, 2.0, 3.0])
    classifier = caffe.Classifier(
        "net.prototxt",
        "net.caffemodel",
        image_dims=(8, 9),
        mean=mean,
        raw_scale=255,
        input_scale=0.01,
        channel_swap=(2, 1, 0),
    )
    images = [np.random.default_rng(i).uniform(size=(10, 12, 3)).astype(np.float32) for i in (0, 1)]
    weight, bias = (blob.data for blob in classifier.params["ip"][:2])

    def scores(crop: np.ndarray) -> np.ndarray:
        blob = (255 * crop[:, :, ::-1].transpose(2, 0, 1) - mean.reshape(3, 1, 1)) * 0.01
        powers = np.exp(weight @ blob.ravel() + bias)
        return powers / powers.sum()

    resized = [caffe.io.resize_image(image, (8, 9)) for image in images]
    centres = np.stack([scores(image[2:6, 2:7]) for image in resized])
    assert_close(classifier.predict(images, oversample=False), centres.astype(np.float32), "centre")
    np.testing.assert_array_equal(classifier.crop_dims / 2, [2, 2.5])  # as programs compute
    crops = caffe.io.oversample(resized, (4, 5))
    means = np.stack([scores(crop) for crop in crops]).reshape(2, 10, 6).mean(1)
    assert_close(classifier.predict(images), means.astype(np.float32), "ten crops")
