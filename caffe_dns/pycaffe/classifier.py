"""`caffe.Classifier`: class probabilities of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from caffe_dns.proto.caffe_pb2 import TEST
from caffe_dns.pycaffe.images import oversample as ten_crops
from caffe_dns.pycaffe.images import resize_image
from caffe_dns.pycaffe.net import Net
from caffe_dns.pycaffe.transformer import Transformer, image_input


class Classifier(Net):
    """A net in the phase TEST whose first input takes images and whose first output scores them.

    `image_dims` is the size to which images are resized before they are cropped to the input's
    size; by default the input's size. The other settings are Transformer's. Raises CaffeError
    for a net that takes no images.
    """

    def __init__(
        self,
        model_file: str | Path,
        pretrained_file: str | Path,
        image_dims: Sequence[int] | None = None,
        mean: np.ndarray | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model_file, TEST, weights=pretrained_file)
        name, shape = image_input(self, str(model_file))
        self.transformer = Transformer.of(name, shape, mean, input_scale, raw_scale, channel_swap)
        self.crop_dims = np.array(shape[2:])
        self.image_dims = self.crop_dims if image_dims is None else tuple(image_dims)

    def predict(self, inputs: Sequence[np.ndarray], oversample: bool = True) -> np.ndarray:
        """The scores [N, classes] of N images [H, W, K].

        With `oversample` they are means over the four corners, the centre and their mirror images;
        without, they are the scores of the centre.
        """
        images = [resize_image(image, self.image_dims) for image in inputs]
        crops = ten_crops(images, self.crop_dims)
        if not oversample:
            crops = crops[4::10]
        name = self.inputs[0]
        blob = np.stack([self.transformer.preprocess(name, crop) for crop in crops])
        scores = self.forward_all(**{name: blob})[self.outputs[0]]
        return scores.reshape(len(images), len(crops) // len(images), -1).mean(axis=1)
