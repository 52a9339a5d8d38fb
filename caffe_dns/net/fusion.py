"""What runs as one: layers that normalise or rectify in place what another has made, sums among
them, and the masks of all layers. On a CPU it is less than on a GPU.

Caffe has a layer for each step of it, and each is a pass over the blob in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.kernels.postponed import Postponed
from caffe_dns.layers import sparse_gradients
from caffe_dns.layers.arithmetic import Eltwise
from caffe_dns.layers.base import Context, Layer
from caffe_dns.layers.batch_norm import BatchNorm
from caffe_dns.layers.convolution import BaseConvolution
from caffe_dns.layers.masked import MasksTogether, WeightedLayer
from caffe_dns.layers.pooled_convolution import pooled_convolution
from caffe_dns.layers.pooling import Pooling
from caffe_dns.layers.rectified_convolution import rectified_convolution, rectify, suits
from caffe_dns.layers.summed_convolution import summed_convolution
from caffe_dns.net.joining import Joined, Share, shares
from caffe_dns.net.kinds import (
    has_bias,
    is_affine,
    is_max_pool,
    is_plain,
    is_relu,
    is_weighted,
    joins_channels,
    works_in_place,
)
from caffe_dns.net.wiring import Step

if TYPE_CHECKING:
    from caffe_dns.kernels.channel_statistics import Sums

#: Where all of it is faster.
DEVICES = ("cuda",)
#: Numbers in a weight from which on its layer applies the mask by itself: the product then need not
#: be kept for longer than from the layer's forward to its backward pass.
LARGE = 1 << 20


class FusedLayers(Protocol):
    """Neighbouring layers that run as one."""

    @property
    def steps(self) -> list[Step]:
        """Its members in their order."""
        ...

    @property
    def bottoms(self) -> list[str]:
        """The blobs that it reads: those of the first."""
        return self.steps[0].bottoms

    def run(self, *bottoms: Tensor) -> Sequence[Tensor]:
        """The tops of the last from the bottoms."""
        ...


@dataclass(frozen=True)
class RectifiedSum(FusedLayers):
    """An Eltwise that adds two blobs, and the ReLU on it."""

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
    """Layers of which all but the first and the pooling work in place.

    First is a convolution or an inner product, or else the BatchNorm. What only adds a bias and
    rectifies may make its share of a Concat's top.
    """

    weighted: Step | None
    batch_norm: Step | None
    scale: Step | None
    relu: Step | None
    pool: Step | None
    share: Share | None = None
    #: What is left to who adds its top to another blob.
    postponed: Postponed | None = None

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
        """Whether a bias and a ReLU are all that follows on a convolution or inner product."""
        return self.relu is not None and self.batch_norm is None and self.pool is None

    @cached_property
    def has_sparse_gradients(self) -> bool:
        """Whether most gradients that a pooling hands to a convolution need not be multiplied."""
        if self.weighted is None or self.pool is None:
            return False
        layer, pooling = self.weighted.layer, self.pool.layer
        if not (isinstance(layer, BaseConvolution) and isinstance(pooling, Pooling)):
            return False
        return sparse_gradients.pays(layer, pooling)

    def _rectified_convolution(self) -> BaseConvolution | None:
        """The convolution, where it may run as one with the bias and the ReLU, which is all."""
        layer = self.weighted.layer if self.weighted is not None else None
        alone = self.only_rectifies and self.share is None
        return layer if alone and isinstance(layer, BaseConvolution) and suits(layer) else None

    def run(self, *bottoms: Tensor) -> Sequence[Tensor]:
        bottom, *beside = bottoms
        if self.pool is not None:
            assert isinstance(self.pool.layer, Pooling)
            return (self._pool(bottom, self.pool.layer),)
        convolution = self._rectified_convolution()
        if convolution is not None and kernels.suit(bottom):
            return (rectified_convolution(convolution, bottom),)
        if self.batch_norm is None:
            bottom, bias = self._weigh(bottom)
            return (_rectify(bottom, bias, self.share, *beside),)
        layer, *affine = self._affine()
        bottom, bias, sums = self._add_up(bottom, layer)
        relu = self.relu is not None
        top = layer.normalize(
            bottom, *affine, bias=bias, relu=relu, sums=sums, postponed=self.postponed
        )
        return (top,)

    def run_and_add(
        self, bottom: Tensor, addend: Tensor, copies: int, postponed: Postponed | None
    ) -> Sequence[Tensor]:
        """relu(what it makes of the bottom + addend), so many times, if it ends by normalising."""
        layer, *affine = self._affine()
        bottom, bias, sums = self._add_up(bottom, layer)
        return layer.normalize_and_add(
            bottom, addend, *affine, bias=bias, sums=sums, postponed=postponed, copies=copies
        )

    def _pool(self, bottom: Tensor, pooling: Pooling) -> Tensor:
        """The maxima of what the convolution makes of it."""
        relu = self.relu is not None
        layer = self.weighted.layer if self.weighted is not None else None
        if isinstance(layer, BaseConvolution) and layer.fixed_product is None:
            if self.has_sparse_gradients:
                return sparse_gradients.pool(layer, pooling, bottom, relu=relu)
            maxima = pooled_convolution(layer, pooling, bottom, relu=relu)
            if maxima is not None:
                return maxima
        bottom, bias = self._weigh(bottom)
        return pooling.pool_biased(bottom, bias, relu=relu)

    def _weigh(self, bottom: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the convolution or inner product, if there is one, makes of it, and its bias."""
        if self.weighted is None:
            return bottom, None
        assert isinstance(self.weighted.layer, WeightedLayer)
        return self.weighted.layer.without_bias(bottom)

    def _add_up(
        self, bottom: Tensor, batch_norm: BatchNorm
    ) -> tuple[Tensor, Tensor | None, Sums | None]:
        """The same, and its sums for the BatchNorm if they have been added up as it was made."""
        layer = self.weighted.layer if self.weighted is not None else None
        if isinstance(layer, BaseConvolution) and batch_norm.wants_sums:
            found = summed_convolution(layer, bottom)
            if found is not None:
                return found
        return (*self._weigh(bottom), None)

    def _affine(self) -> tuple[BatchNorm, Tensor | None, Tensor | None]:
        """The BatchNorm, and its factor and shift."""
        assert self.batch_norm is not None
        assert isinstance(self.batch_norm.layer, BatchNorm)
        factor, shift, *_ = (*self.scale.layer.blobs, None) if self.scale else (None, None)
        return self.batch_norm.layer, factor, shift


@dataclass(frozen=True)
class Residual(FusedLayers):
    """A chain that ends by normalising, a RectifiedSum of its top and another blob, and a Split."""

    chain: Chain
    sum: RectifiedSum
    split: Step | None
    #: What has been left to it by who made the other blob.
    postponed: Postponed | None = None

    @property
    def steps(self) -> list[Step]:
        return [*self.chain.steps, *self.sum.steps, *([self.split] if self.split else [])]

    @property
    def bottoms(self) -> list[str]:
        own = self.chain.steps[-1].tops
        return self.chain.bottoms + [blob for blob in self.sum.bottoms if blob not in own]

    def run(self, *bottoms: Tensor) -> Sequence[Tensor]:
        bottom, addend = bottoms
        return self.chain.run_and_add(bottom, addend, len(self.steps[-1].tops), self.postponed)


@dataclass(frozen=True)
class Fusion:
    """What runs as one in a net."""

    #: Groups of layers by their first one: for passes after which every blob is to be there (True),
    #: and for those after which only outputs and losses are (False).
    layers: dict[bool, dict[Layer, FusedLayers]]
    #: The masks that are applied together before the first layer runs.
    masks: MasksTogether | None


def plan_fusion(steps: Sequence[Step], context: Context) -> Fusion:
    """What is to run as one on the device of `context`."""
    fused = {inner: _find_fused_layers(steps, context.device, inner) for inner in (False, True)}
    return Fusion(fused, _find_masks(steps, context))


def _find_fused_layers(
    steps: Sequence[Step], device: torch.device, inner: bool
) -> dict[Layer, FusedLayers]:
    """The groups of layers that run as one, by their first; with `inner`, every blob is there."""
    found: dict[Layer, FusedLayers] = {}
    rest = list(steps)
    while rest:
        group = (_group_at if device.type in DEVICES else _scaled_at)(rest, inner)
        if group is not None:
            found[rest[0].layer] = group
        del rest[: len(group.steps) if group is not None else 1]
    if inner:
        return found
    return {**found, **_joined(steps, found), **_postponing(steps, found)}


def _postponing(
    steps: Sequence[Step], found: Mapping[Layer, FusedLayers]
) -> dict[Layer, FusedLayers]:
    """Chains among those found whose normalised top is only added, and who adds it."""
    sums = {each.bottoms[1]: each for each in found.values() if isinstance(each, Residual)}
    changed: dict[Layer, FusedLayers] = {}
    for group in found.values():
        if not isinstance(group, Chain) or group.batch_norm is None or group.relu is not None:
            continue
        (top,) = group.steps[-1].tops
        readers = [step for step in steps if top in step.bottoms and step not in group.steps]
        if top in sums and readers == [sums[top].sum.eltwise]:
            postponed = Postponed()
            changed[group.steps[0].layer] = replace(group, postponed=postponed)
            added = sums[top]
            changed[added.steps[0].layer] = replace(added, postponed=postponed)
    return changed


def _group_at(steps: Sequence[Step], inner: bool) -> FusedLayers | None:
    """The group that begins with the first of these, if one does."""
    residual = None if inner else _residual_at(steps)
    return residual or _chain_at(steps, inner) or _sum_at(steps)


def _scaled_at(steps: Sequence[Step], inner: bool) -> FusedLayers | None:
    """The same where kernels of our own do not run.

    PyTorch applies a factor and a shift as it normalises. A convolution adds its bias itself.
    """
    chain = _chain_at(steps, inner)
    if chain is None:
        return _sum_at(steps)
    scaled = chain.weighted is None and chain.scale is not None
    return chain if scaled or chain.has_sparse_gradients else _sum_at(steps)


def _joined(steps: Sequence[Step], found: Mapping[Layer, FusedLayers]) -> dict[Layer, FusedLayers]:
    """Concats of channels, and the chains among those found that make all of their bottoms."""
    makers = {
        group.steps[-1].tops[0]: (order, group)
        for order, group in enumerate(found.values())
        if isinstance(group, Chain) and group.only_rectifies
    }
    joined: dict[Layer, FusedLayers] = {}
    for step in steps:
        chains = [makers[blob] for blob in step.bottoms if blob in makers]
        if not joins_channels(step) or len(chains) < len(step.bottoms):
            continue
        convolutions = [chain.steps[0].layer for _, chain in chains]
        widths = [each.num_output for each in convolutions if isinstance(each, BaseConvolution)]
        if len(widths) < len(chains):
            continue
        parts = shares(step, widths, [order for order, _ in chains])
        for (_, chain), share in zip(chains, parts, strict=True):
            joined[chain.steps[0].layer] = replace(chain, share=share)
        joined[step.layer] = Joined(step)
    return joined


def _find_masks(steps: Sequence[Step], context: Context) -> MasksTogether | None:
    """The masks that are applied together, and with them what activations of another type need.

    Large ones are not among them, unless there are such activations.
    """
    rounded = context.activations is not None
    if context.device.type not in DEVICES:
        return None
    layers = [step.layer for step in steps if isinstance(step.layer, WeightedLayer)]
    chosen = [
        layer
        for layer in layers
        if rounded or (layer.mask_indices and layer.blobs[0].numel() < LARGE)
    ]
    return MasksTogether(chosen, context.activations) if chosen else None


def _chain_at(steps: Sequence[Step], inner: bool) -> Chain | None:
    """The chain that begins with the first of these, if one does."""
    candidates = list(takewhile(is_plain, steps[:5]))
    taken: list[Step] = []

    def take(is_right: Callable[[Step], bool], *, in_place: bool = True) -> Step | None:
        """The next step, if it is right and, but for the first, in place."""
        step = candidates[len(taken)] if len(taken) < len(candidates) else None
        if step is None or not is_right(step):
            return None
        if in_place and taken and not works_in_place(step, taken[-1]):
            return None
        taken.append(step)
        return step

    weighted = take(is_weighted)
    batch_norm = take(lambda step: isinstance(step.layer, BatchNorm))
    scale = take(partial(is_affine, batch_norm)) if batch_norm else None
    # Where there is no bias to add, a ReLU alone is no more than PyTorch's.
    biased = weighted is not None and has_bias(weighted)
    relu = take(is_relu) if batch_norm or biased else None
    pool = None
    if biased and not batch_norm and not inner:
        pool = take(partial(is_max_pool, taken[-1]), in_place=False)
    return Chain(weighted, batch_norm, scale, relu, pool) if len(taken) > 1 else None


def _residual_at(steps: Sequence[Step]) -> Residual | None:
    """A chain that ends by normalising and what adds a blob to its top, if these begin so."""
    chain = _chain_at(steps, inner=False)
    if chain is None or chain.batch_norm is None or chain.relu is not None:
        return None
    rest = steps[len(chain.steps) :]
    added = _sum_at(rest)
    if added is None or chain.steps[-1].tops[0] not in added.bottoms:
        return None
    after = rest[len(added.steps)] if len(rest) > len(added.steps) else None
    splits = after is not None and after.layer.type == "Split" and after.bottoms == added.relu.tops
    return Residual(chain, added, after if splits else None)


def _sum_at(steps: Sequence[Step]) -> RectifiedSum | None:
    """A sum and its ReLU, if these begin so."""
    if len(steps) < 2 or not is_plain(steps[0], bottoms=2) or not is_plain(steps[1]):
        return None
    eltwise, relu = steps[:2]
    is_sum = isinstance(eltwise.layer, Eltwise) and eltwise.layer.is_plain_sum
    if is_sum and is_relu(relu) and relu.bottoms == relu.tops == eltwise.tops:
        return RectifiedSum(eltwise, relu)
    return None


def _rectify(
    top: Tensor, bias: Tensor | None, share: Share | None, beside: Tensor | None = None
) -> Tensor:
    """relu(top + bias); may write over `top`, or to its share of a Concat's top."""
    assert bias is not None
    place = share.place(top, beside) if share is not None and kernels.suit(top) else None
    return rectify(top, bias, place)
