"""1x1 convolutions as matrix products, on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from caffe_dns.device.trial import Trials, Way
from caffe_dns.layers.products import Convolved

#: For which of them matrix products are faster.
_trials = Trials()


@dataclass(frozen=True)
class Pointwise(Convolved):
    """A 1x1 convolution; for channels-last images, a matrix product where that is faster.

    Which is faster is tried for each of the three products: top and both gradients.
    """

    def has_own_gradients(self, x: Tensor) -> bool:
        return is_channels_last(x)

    def top(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        others = super().top
        ours = partial(_pointwise_product, x, w)
        if not is_channels_last(x) or not self._pays("top", x, w, ours, lambda: others(x, w, None)):
            return others(x, w, b)
        top = ours()
        return top if b is None else top.add_(b.view(-1, 1, 1))

    def bottom_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor:
        others = partial(super().bottom_gradient, gradient, x, w)
        if not is_channels_last(x):
            return others()
        ours = partial(_pointwise_product, gradient, w.transpose(0, 1))
        return ours() if self._pays("bottom", x, w, ours, others) else others()

    def weight_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor:
        others = partial(super().weight_gradient, gradient, x, w)
        if not is_channels_last(x):
            return others()

        def ours() -> Tensor:
            rows, columns = (blob.permute(0, 2, 3, 1).flatten(0, 2) for blob in (gradient, x))
            return (rows.t() @ columns).view(w.shape)

        return ours() if self._pays("weight", x, w, ours, others) else others()

    def gradients(
        self, gradient: Tensor, x: Tensor, w: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        below = self.bottom_gradient(gradient, x, w) if wanted[0] else None
        return below, self.weight_gradient(gradient, x, w) if wanted[1] else None

    def _pays(self, of: str, x: Tensor, w: Tensor, ours: Way, others: Way) -> bool:
        exact = not torch.backends.cudnn.allow_tf32
        return _trials.is_faster((of, x.device, x.shape, w.shape, x.dtype, exact), ours, others)


def _pointwise_product(x: Tensor, w: Tensor) -> Tensor:
    """The 1x1 convolution of channels-last images x with weight w.

    Not a view, because a bias and a ReLU may be written over it.
    """
    shape, last = (len(x), len(w), *x.shape[2:]), torch.channels_last
    top = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=last)
    rows, columns = (blob.permute(0, 2, 3, 1).flatten(0, 2) for blob in (top, x))
    torch.mm(columns, w.flatten(1).t(), out=rows)
    return top


def is_channels_last(images: Tensor) -> bool:
    """Whether images of several pixels are channels-last, without gaps."""
    last = images.is_contiguous(memory_format=torch.channels_last)
    return last and not images.is_contiguous()
