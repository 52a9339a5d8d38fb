"""Convolutions in TF32 whose gradients are computed from factors in half precision, on a GPU.

Half precision has as many bits of mantissa. It is used where it is faster than cuDNN, which is
tried once for each shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.device.trial import Trials, Way
from caffe_dns.layers.pointwise import is_channels_last
from caffe_dns.layers.products import Convolved

#: The gradient of the top, x and w.
Blobs = tuple[Tensor, Tensor, Tensor]

#: From how many products in a forward pass on it is tried, where windows have several pixels. A GPU
#: with Tensor Cores reads other blobs for longer than it multiplies, and rounding reads them once
#: more; and for each new shape, kernels may have to be compiled.
LEAST = 1 << 33

#: For which of them this is faster.
_trials = Trials()


@dataclass(frozen=True)
class HalfGradients(Convolved):
    """A convolution of images, whose gradients our kernels compute where they are faster."""

    def has_own_gradients(self, x: Tensor) -> bool:
        return True

    def weight_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return self._along((gradient, x, w), super().weight_gradient)

    def gradients(
        self, gradient: Tensor, x: Tensor, w: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        if is_channels_last(x):
            gradient = gradient.contiguous(memory_format=torch.channels_last)
        blobs = gradient, x, w
        each = partial(self._each, blobs)
        if all(wanted):
            ours = self._ours(blobs, below=True)
            if ours is not None and self._pays("both", blobs, ours, lambda: each(wanted)):
                return ours()
        return each(wanted)

    def _each(self, blobs: Blobs, wanted: Sequence[bool]) -> tuple[Tensor | None, Tensor | None]:
        """One after the other, that of w first: it frees as much memory as the other takes."""
        along = self._along(blobs, self._by_cudnn) if wanted[1] else None
        return self.bottom_gradient(*blobs) if wanted[0] else None, along

    def _along(self, blobs: Blobs, others: Callable[..., Tensor]) -> Tensor:
        """The gradient of w, by kernels of our own or by `others`."""
        ours = self._ours(blobs, below=False)
        if ours is None or not self._pays("weight", blobs, ours, lambda: others(*blobs)):
            return others(*blobs)
        return ours()[1]

    def _by_cudnn(self, *blobs: Tensor) -> Tensor:
        gradient, x, w = blobs
        return self._backward(gradient, x, w, (False, True, False))[1]

    def _pays(self, of: str, blobs: Blobs, ours: Way, others: Way) -> bool:
        gradient, x, w = blobs
        return _trials.is_faster((of, x.device, gradient.shape, x.shape, w.shape), ours, others)

    def _ours(
        self, blobs: Blobs, *, below: bool
    ) -> Callable[[], tuple[Tensor | None, Tensor]] | None:
        """Computes the gradients of x, if `below`, and of w by our kernels; None if it cannot."""
        gradient, x, w = blobs
        if {*self.stride, *self.dilation, self.group} != {1} or not kernels.suit(x):
            return None
        if w[0, 0].numel() == 1 or gradient.numel() * w[0].numel() < LEAST:
            return None
        from caffe_dns.kernels import half_gradients

        pad_h, pad_w = self.pad
        if not half_gradients.fits(gradient, x, w, (pad_h, pad_w)):
            return None
        return partial(half_gradients.gradients, *blobs, (pad_h, pad_w), below=below)
