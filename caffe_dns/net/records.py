"""Which record a label comes from, for messages about invalid labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from caffe_dns.errors import CaffeError
from caffe_dns.layers.batch_data import BatchDataLayer
from caffe_dns.layers.checks import WrongLabel
from caffe_dns.layers.python import Python
from caffe_dns.net.wiring import Step


def name_record(steps: Sequence[Step], step: Step, error: WrongLabel) -> CaffeError:
    """The error that `step` raised about its labels, the second bottom, with their record's place.

    As it is where the labels are not those that a layer of `steps` has read, one for each image.
    """
    makers = {top: maker for maker in steps for top in maker.tops}
    labels = step.bottoms[1]
    maker = makers.get(labels)
    while maker is not None and maker.layer.type == "Split":
        labels = maker.bottoms[0]
        maker = makers.get(labels)
    if maker is None or not isinstance(maker.layer, BatchDataLayer):
        return error
    return maker.layer.name_record(error, labels)


def find_misfit(steps: Sequence[Step], blobs: Mapping[str, Tensor]) -> CaffeError | None:
    """Why the first of these layers that its bottoms do not fit refuses them; None if all fit.

    Batches of a data layer may differ in shape, as images of a list do, and nobody asks the layers
    before each pass whether they fit. What an array of PyTorch's says of it names no layer.
    """
    shapes = {blob: tuple(array.shape) for blob, array in blobs.items()}
    for step in steps:
        if isinstance(step.layer, Python) or not shapes.keys() >= {*step.bottoms}:
            return None  # the user's code says itself what is wrong
        try:
            tops = step.layer.top_shapes([shapes[blob] for blob in step.bottoms])
        except CaffeError as misfit:
            return misfit
        shapes.update(zip(step.tops, tops, strict=True))
    return None
