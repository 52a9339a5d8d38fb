"""Convolutions in TF32 whose weights get their gradients from factors in half precision, on a GPU.

Which has as many digits. That is taken where it is faster than cuDNN, which is found by trying,
once for each shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.device.trial import Trials
from caffe_dns.layers.weight_gradients import Convolved

#: For which of them that is faster.
_trials = Trials()


@dataclass(frozen=True)
class Halved(Convolved):
    """A convolution, of images with their channels innermost."""

    def has_own_gradients(self, x: Tensor) -> bool:
        return True

    def weight_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return self._by_the_faster(gradient, x, w, others=super().weight_gradient)

    def gradients(
        self, gradient: Tensor, x: Tensor, w: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        gradient = gradient.contiguous(memory_format=torch.channels_last)

        def by_cudnn(gradient: Tensor, x: Tensor, w: Tensor) -> Tensor:
            return self._backward(gradient, x, w, (False, True, False))[1]

        # This first: it gives back as much memory as the other takes.
        along = self._by_the_faster(gradient, x, w, others=by_cudnn) if wanted[1] else None
        return self.bottom_gradient(gradient, x, w) if wanted[0] else None, along

    def _by_the_faster(self, *blobs: Tensor, others: Callable[..., Tensor]) -> Tensor:
        """The gradient of w from (gradient, x, w), by a kernel of our own or by `others`."""
        ours = self._ours(*blobs)
        case = (blobs[1].device, *(blob.shape for blob in blobs))
        if ours is None or not _trials.is_faster(case, ours, partial(others, *blobs)):
            return others(*blobs)
        return ours()

    def _ours(self, gradient: Tensor, x: Tensor, w: Tensor) -> Callable[[], Tensor] | None:
        """What computes it by kernels of our own, if they can."""
        if {*self.stride, *self.dilation, self.group} != {1} or not kernels.suit(x):
            return None
        from caffe_dns.kernels import half_factors

        blobs, (pad_h, pad_w) = (gradient, x, w), self.pad
        if not half_factors.fits(*blobs, (pad_h, pad_w)):
            return None
        return partial(half_factors.weight_gradient, *blobs, (pad_h, pad_w))
