"""Fused layers: neighbouring layers that run as one, and what they compute.

Unfused, each is a pass over the blob in memory. `fusion` finds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from caffe_dns import kernels
from caffe_dns.kernels.postponed import Postponed, Sampling
from caffe_dns.layers import sparse_gradients
from caffe_dns.layers.batch_norm import BatchNorm, Fused
from caffe_dns.layers.convolution import BaseConvolution
from caffe_dns.layers.masked import WeightedLayer
from caffe_dns.layers.normalized_convolution import normalized_convolution
from caffe_dns.layers.normalized_convolution import suits as is_by_channels
from caffe_dns.layers.pooled_convolution import pooled_convolution
from caffe_dns.layers.pooling import Pooling
from caffe_dns.layers.rectified_convolution import rectified_convolution, rectify, suits
from caffe_dns.layers.sampled_convolution import sampled, sampled_convolution
from caffe_dns.layers.summed_convolution import summed_convolution
from caffe_dns.mask_rules import stand_in
from caffe_dns.net.joining import Share
from caffe_dns.net.wiring import Step

if TYPE_CHECKING:
    from caffe_dns.kernels.batch_norm import Normalization


class FusedLayers(Protocol):
    """Neighbouring layers that run as one."""

    @property
    def steps(self) -> list[Step]:
        """The layers, in order."""
        ...

    @property
    def bottoms(self) -> list[str]:
        """The blobs that the first layer reads."""
        return self.steps[0].bottoms

    def run(self, *bottoms: Tensor) -> Sequence[Tensor]:
        """Compute the tops of the last layer from the bottoms."""
        ...


@dataclass(frozen=True)
class RectifiedSum(FusedLayers):
    """An Eltwise that adds two blobs, and the ReLU after it."""

    eltwise: Step
    relu: Step

    @property
    def steps(self) -> list[Step]:
        return [self.eltwise, self.relu]

    def run(self, *bottoms: Tensor) -> Sequence[Tensor]:
        first, second = bottoms
        if kernels.suit(first) and first.dtype == second.dtype:
            from caffe_dns.kernels import sum_relu

            return (sum_relu.RectifiedSum.apply(first, second),)
        return ((first + second).relu_(),)


@dataclass(frozen=True)
class Chain(FusedLayers):
    """A convolution, an inner product or a BatchNorm, and layers after it.

    All but the first layer and the pooling work in place. A chain that only adds a bias and
    rectifies may write its share of a Concat's top.
    """

    weighted: Step | None
    batch_norm: Step | None
    scale: Step | None
    relu: Step | None
    pool: Step | None
    share: Share | None = None
    #: The normalisation that is left to the reader of the top, and the one left by the bottom's
    #: producer.
    postponed: Postponed | None = None
    before: Postponed | None = None
    #: The sample of its bottom that a strided convolution reads, which may be all that exists.
    sampling: Sampling | None = None

    @property
    def steps(self) -> list[Step]:
        members = (self.weighted, self.batch_norm, self.scale, self.relu, self.pool)
        return [step for step in members if step is not None]

    @property
    def bottoms(self) -> list[str]:
        beside = [self.share.first[0]] if self.share and self.share.first else []
        return super().bottoms + beside

    @property
    def only_rectifies(self) -> bool:
        """Whether only a bias and a ReLU follow a convolution or inner product."""
        return self.relu is not None and self.batch_norm is None and self.pool is None

    @cached_property
    def has_sparse_gradients(self) -> bool:
        """Whether most gradients from the pooling to the convolution are zeros to be skipped."""
        if self.weighted is None or self.pool is None or self.batch_norm is not None:
            return False
        layer, pooling = self.weighted.layer, self.pool.layer
        if not (isinstance(layer, BaseConvolution) and isinstance(pooling, Pooling)):
            return False
        return sparse_gradients.pays(layer, pooling)

    def _rectified_convolution(self) -> BaseConvolution | None:
        """The convolution, if only a bias and a ReLU follow, and all may run as one."""
        layer = self.weighted.layer if self.weighted is not None else None
        alone = self.only_rectifies and self.share is None
        return layer if alone and isinstance(layer, BaseConvolution) and suits(layer) else None

    def run(self, *bottoms: Tensor) -> Sequence[Tensor]:
        bottom, *beside = bottoms
        left = self.before.take() if self.before is not None else None
        if left is not None:
            top = self._convolve_normalized(bottom, left)
            if top is not None:
                return (top,)
            bottom = stand_in(bottom, left.top())
        if self.pool is not None:
            assert isinstance(self.pool.layer, Pooling)
            return (self._pool(bottom, self.pool.layer),)
        convolution = self._rectified_convolution()
        fits = convolution is not None and not convolution.outreaches(bottom)
        if convolution is not None and fits and kernels.suit(bottom):
            return (rectified_convolution(convolution, bottom),)
        if self.batch_norm is None:
            bottom, bias = self._weigh(bottom)
            return (_rectify(bottom, bias, self.share, *beside),)
        values, fused = self._before_normalizing(bottom)
        return (self._normalizing().normalize(values, replace(fused, postponed=self.postponed)),)

    def run_and_add(
        self,
        bottom: Tensor,
        addend: Tensor,
        copies: int,
        postponed: Postponed | None,
        sampling: Sampling | None,
    ) -> Sequence[Tensor]:
        """relu(the chain's top + addend), `copies` times, for a chain that ends by normalising.

        With a `sampling`, perhaps only that sample of it.
        """
        values, fused = self._before_normalizing(bottom)
        return self._normalizing().normalize_and_add(
            values, addend, fused, postponed=postponed, sampling=sampling, copies=copies
        )

    def _pool(self, bottom: Tensor, pooling: Pooling) -> Tensor:
        """The maxima of the convolution's or the BatchNorm's top."""
        relu = self.relu is not None
        if self.batch_norm is not None:
            values, fused = self._before_normalizing(bottom)
            return self._normalizing().normalize_and_pool(values, pooling, fused)
        layer = self.weighted.layer if self.weighted is not None else None
        if isinstance(layer, BaseConvolution) and layer.fixed_product is None:
            if self.has_sparse_gradients:
                return sparse_gradients.pool(layer, pooling, bottom, relu=relu)
            maxima = pooled_convolution(layer, pooling, bottom, relu=relu)
            if maxima is not None:
                return maxima
        bottom, bias = self._weigh(bottom)
        return pooling.pool_biased(bottom, bias, relu=relu)

    def _convolve_normalized(self, bottom: Tensor, left: Normalization) -> Tensor | None:
        """The top for a bottom whose normalisation is `left` to do, if a kernel does both."""
        assert self.weighted is not None and isinstance(self.weighted.layer, BaseConvolution)
        assert self.before is not None
        return normalized_convolution(
            self.weighted.layer, self._normalizing(), bottom, left, self._fused(), self.before
        )

    @property
    def takes_normalization(self) -> bool:
        """Whether the convolution may normalise its bottom while reading it."""
        layer = self.weighted.layer if self.weighted is not None else None
        right = isinstance(layer, BaseConvolution) and is_by_channels(layer)
        return right and self.batch_norm is not None and self.pool is None

    def _weigh(self, bottom: Tensor) -> tuple[Tensor, Tensor | None]:
        """The top of the convolution or inner product, if any, without bias; and the bias."""
        if self.weighted is None:
            return bottom, None
        convolution = self._sampled_convolution()
        if convolution is not None:
            return sampled_convolution(convolution, bottom)
        assert isinstance(self.weighted.layer, WeightedLayer)
        return self.weighted.layer.without_bias(bottom)

    def _sampled_convolution(self) -> BaseConvolution | None:
        """The convolution, if only the sample that it reads of its bottom exists in this pass."""
        if self.sampling is None or not self.sampling.is_done or self.weighted is None:
            return None
        assert isinstance(self.weighted.layer, BaseConvolution)
        return self.weighted.layer

    def _before_normalizing(self, bottom: Tensor) -> tuple[Tensor, Fused]:
        """The BatchNorm's bottom, and what is fused with it.

        These include sums of the bottom if a convolution has computed them.
        """
        layer = self.weighted.layer if self.weighted is not None else None
        if isinstance(layer, BaseConvolution) and self._normalizing().wants_sums:
            is_sampled = self._sampled_convolution() is not None
            found = summed_convolution(layer, bottom, sampled(layer) if is_sampled else None)
            if found is not None:
                values, bias, sums = found
                return values, replace(self._fused(), bias=bias, sums=sums)
        values, bias = self._weigh(bottom)
        return values, replace(self._fused(), bias=bias)

    def _normalizing(self) -> BatchNorm:
        assert self.batch_norm is not None
        assert isinstance(self.batch_norm.layer, BatchNorm)
        return self.batch_norm.layer

    def _fused(self) -> Fused:
        """The factor, the shift and the ReLU after the BatchNorm."""
        factor, shift, *_ = (*self.scale.layer.blobs, None) if self.scale else (None, None)
        return Fused(factor=factor, shift=shift, relu=self.relu is not None)


@dataclass(frozen=True)
class Residual(FusedLayers):
    """A chain that ends by normalising, a RectifiedSum of its top and another blob, and a Split."""

    chain: Chain
    sum: RectifiedSum
    split: Step | None
    #: The normalisation of the other blob, left to this.
    before: Postponed | None = None
    #: The sample that all readers use, if not everything, and the readers.
    sampling: Sampling | None = None
    readers: tuple[BaseConvolution, ...] = ()

    @property
    def steps(self) -> list[Step]:
        return [*self.chain.steps, *self.sum.steps, *([self.split] if self.split else [])]

    @property
    def bottoms(self) -> list[str]:
        own = self.chain.steps[-1].tops
        return self.chain.bottoms + [blob for blob in self.sum.bottoms if blob not in own]

    def run(self, *bottoms: Tensor) -> Sequence[Tensor]:
        bottom, addend = bottoms
        copies, sampling = len(self.steps[-1].tops), self.sampling
        if sampling is not None:
            sampling.is_done = False
            if any(reader.fixed_product is not None for reader in self.readers):
                sampling = None
        return self.chain.run_and_add(bottom, addend, copies, self.before, sampling)


def _rectify(
    top: Tensor, bias: Tensor | None, share: Share | None, beside: Tensor | None = None
) -> Tensor:
    """relu(top + bias); may write over `top`, or to its share of a Concat's top."""
    assert bias is not None
    place = share.place(top, beside) if share is not None and kernels.suit(top) else None
    return rectify(top, bias, place)
