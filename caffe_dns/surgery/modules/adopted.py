"""Parameters of a module as layers with masks, so that nets and modules share rules and schedule.

Such a layer computes nothing. It owns the masks, and its blobs are the module's own parameters.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from caffe_dns.layers.base import Context
from caffe_dns.layers.masked import DeviationMasks, MagnitudeMasks, WeightedLayer
from caffe_dns.proto.caffe_pb2 import (
    TRAIN,
    CInnerProductParameter,
    InnerProductParameter,
    LayerParameter,
)
from caffe_dns.surgery.modules.weights import PrunableWeight


class _Adopted(WeightedLayer):
    """The parameters as blobs, then a mask for each that the rule prunes."""

    def __init__(self, weight: PrunableWeight) -> None:
        param = LayerParameter(name=weight.name, type="Parameter", phase=TRAIN)
        super().__init__(param, Context(device=weight.weight.device))
        self.bias_term = weight.bias is not None
        self.input_axis = weight.input_axis
        for name in ("weight", "bias"):
            parameter = getattr(weight, name)
            if parameter is not None:
                self.register_parameter(self._next_name(name), parameter)

    def lay_out_masks(self) -> None:
        """Give each mask the type of its parameter's values, and their order in memory."""
        for index, parameter in zip(self.mask_indices, self.blobs, strict=False):
            mask = torch.ones_like(parameter, requires_grad=False)
            setattr(self, self._blob_names[index], mask)


class AdoptedByDeviation(_Adopted, DeviationMasks):
    """A weight that is pruned by standard deviation; its bias stays."""

    def __init__(self, weight: PrunableWeight, settings: InnerProductParameter) -> None:
        super().__init__(replace(weight, bias=None))
        self._settings = settings
        self.add_masks()
        self.lay_out_masks()

    def mask_settings(self) -> InnerProductParameter:
        return self._settings


class AdoptedByMagnitude(_Adopted, MagnitudeMasks):
    """A weight that is pruned by magnitude, and its bias with it."""

    def __init__(self, weight: PrunableWeight, settings: CInnerProductParameter) -> None:
        super().__init__(weight)
        self._settings = settings
        self.add_masks()
        self.lay_out_masks()

    def mask_settings(self) -> CInnerProductParameter:
        return self._settings


Adopted = AdoptedByDeviation | AdoptedByMagnitude
