"""Which record a label comes from, for messages about labels that do not fit."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_dns.errors import CaffeError
from caffe_dns.layers.batch_data import BatchDataLayer
from caffe_dns.layers.checks import WrongLabel
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
