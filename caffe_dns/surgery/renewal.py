"""Renews the masks of several layers together, by the current thresholds.

When a layer is due is the surgeon's business. The rules are in `mask_rules` and, for a GPU, in
`kernels.surgery`, for a CPU in `kernels.on_cpu.masks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.kernels import on_cpu
from caffe_dns.kernels.masked import Masked
from caffe_dns.layers.masked import MagnitudeMasks
from caffe_dns.surgery.filters import Filters
from caffe_dns.surgery.masked_layers import LayerWithMasks, MaskedLayer, Replayed

if TYPE_CHECKING:
    from caffe_dns.kernels.on_cpu.masks import MaskKernel as CPUMaskKernel
    from caffe_dns.kernels.surgery import MaskKernel

#: Masks of at least this size are renewed by a compiled kernel on a CPU: importing numba takes a
#: second.
LEAST_COMPILED = 4096


class Renewal:
    """Renews the masks of the layers that are due, by their current thresholds.

    On a GPU this is a replayed CUDA graph of two kernels, whichever layers are due; on a CPU, for
    large masks, a compiled kernel; otherwise, and in patterns, layers are renewed one by one.
    Masks, parameters and moments must stay in place.
    """

    def __init__(
        self, masked_layers: Sequence[MaskedLayer], filters: Filters | None = None
    ) -> None:
        self._filters = filters
        # The kernel does not support patterns.
        plain = [masked_layer for masked_layer in masked_layers if masked_layer.pattern is None]
        self._kernel = _make_kernel(plain)
        self._numbers: dict[MaskedLayer, int] = {}
        if self._kernel is not None:
            self._numbers = {masked_layer: number for number, masked_layer in enumerate(plain)}
            self._replayed = Replayed(self._kernel.run, plain[0].device)

    @torch.no_grad()
    def run(self, due: Sequence[MaskedLayer]) -> None:
        """Renew the masks of these masked layers."""
        numbers = [self._numbers[layer] for layer in due if layer in self._numbers]
        if self._kernel is not None and numbers:
            self._kernel.choose(numbers)
            self._replayed()
        whole = [layer for layer in due if self._filters and layer in self._filters.masked_layers]
        if self._filters is not None and whole:
            self._filters.renew(whole)
        for masked_layer in due:
            if masked_layer not in self._numbers and masked_layer not in whole:
                masked_layer.renew()


def _make_kernel(masked_layers: Sequence[MaskedLayer]) -> MaskKernel | CPUMaskKernel | None:
    """One kernel for all masked layers, if there is one."""
    masked = [
        entry
        for number, masked_layer in enumerate(masked_layers)
        for entry in _list(number, masked_layer)
    ]
    if not masked or any(entry.mask.dtype != torch.float32 for entry in masked):
        return None
    device = masked[0].mask.device
    if kernels.wanted(device):
        from caffe_dns.kernels.surgery import MaskKernel

        return MaskKernel(masked)
    large = max(entry.mask.numel() for entry in masked) >= LEAST_COMPILED
    if device.type == "cpu" and large and on_cpu.works():
        from caffe_dns.kernels.on_cpu.masks import MaskKernel as CPUMaskKernel

        return CPUMaskKernel(masked)
    return None


def _list(number: int, masked_layer: MaskedLayer) -> Iterator[Masked]:
    layer = masked_layer.layer
    moments = layer.moments if isinstance(layer, MagnitudeMasks) else None
    for index, mask in enumerate(layer.mask_blobs()):
        weight = partial(_blob, layer, index)
        yield Masked(weight, mask, masked_layer.setting, moments, masked_layer.spliced, number)


def _blob(layer: LayerWithMasks, index: int) -> Tensor:
    return layer.blobs[index].detach()
