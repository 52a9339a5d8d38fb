"""The renewal of the masks of several layers at once, by the thresholds in force.

Which layers are due when is the surgeon's business, and the rules are in `surgery` and, for a GPU,
in `kernels.surgery`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.layers.masked import MagnitudeMasks
from caffe_dns.surgery.masked_layers import MaskedLayer, Patient, Replayed

if TYPE_CHECKING:
    from caffe_dns.kernels.surgery import Masked, MaskKernel


class Renewal:
    """Renews the masks of some patients, those that are due, by the thresholds that they have now.

    On a GPU that is a replayed CUDA graph of two kernels, whoever is due; elsewhere one patient is
    renewed after the other. Masks, parameters and moments have to stay in place.
    """

    def __init__(self, patients: Sequence[Patient]) -> None:
        self._numbers = {patient: number for number, patient in enumerate(patients)}
        self._kernel = _make_kernel(patients)
        if self._kernel is not None:
            self._replayed = Replayed(self._kernel.run, patients[0].device)

    @torch.no_grad()
    def run(self, due: Sequence[Patient]) -> None:
        """Renew the masks of these patients."""
        if self._kernel is None:
            for patient in due:
                patient.renew()
        elif due:
            self._kernel.choose([self._numbers[patient] for patient in due])
            self._replayed()


def _make_kernel(patients: Sequence[Patient]) -> MaskKernel | None:
    """One kernel for all patients, where it can be had."""
    if not patients or not kernels.wanted(patients[0].device):
        return None
    from caffe_dns.kernels.surgery import MaskKernel

    masked = [entry for number, patient in enumerate(patients) for entry in _list(number, patient)]
    return MaskKernel(masked) if all(e.mask.dtype == torch.float32 for e in masked) else None


def _list(number: int, patient: Patient) -> Iterator[Masked]:
    from caffe_dns.kernels.surgery import Masked

    layer = patient.layer
    moments = layer.moments if isinstance(layer, MagnitudeMasks) else None
    for index, mask in enumerate(layer.mask_blobs()):
        weight = partial(_blob, layer, index)
        yield Masked(weight, mask, patient.setting, moments, patient.spliced, number)


def _blob(layer: MaskedLayer, index: int) -> Tensor:
    return layer.blobs[index].detach()
