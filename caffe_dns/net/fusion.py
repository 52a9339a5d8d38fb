"""Plans the fusion of layers: which layers of a net run as one.

These are layers that normalise or rectify in place what another layer computes, sums among them,
and the masks of all layers; fewer on a CPU than on a GPU. Caffe has a layer for each step, and each
is a pass over the blob in memory. `fused` has what the groups compute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile

import torch

from caffe_dns.kernels.postponed import Postponed, Sampling
from caffe_dns.layers.arithmetic import Eltwise
from caffe_dns.layers.base import Context, Layer
from caffe_dns.layers.batch_norm import BatchNorm
from caffe_dns.layers.convolution import BaseConvolution
from caffe_dns.layers.masked import MasksTogether, WeightedLayer
from caffe_dns.layers.sampled_convolution import stride_of
from caffe_dns.net.fused import Chain, FusedLayers, RectifiedSum, Residual
from caffe_dns.net.joining import Joined, shares
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

#: Where all of it is faster.
DEVICES = ("cuda",)
#: Numbers in a weight from which on its layer applies the mask by itself: the product then need not
#: be kept for longer than from the layer's forward to its backward pass.
LARGE = 1 << 20


@dataclass(frozen=True)
class Fusion:
    """Which layers of a net run as one."""

    #: Groups of layers by their first: for passes that return every blob (True), and for those that
    #: return only outputs and losses (False).
    layers: dict[bool, dict[Layer, FusedLayers]]
    #: The masks that are applied together before the first layer runs.
    masks: MasksTogether | None


def plan_fusion(steps: Sequence[Step], context: Context) -> Fusion:
    """Plan what runs as one on the device of `context`."""
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
    found |= {**_joined(steps, found), **_postponing(steps, found)}
    return {**found, **_sampling(steps, found)}


def _postponing(
    steps: Sequence[Step], found: Mapping[Layer, FusedLayers]
) -> dict[Layer, FusedLayers]:
    """Chains among those found whose normalised top has one reader that can normalise, and it."""
    takers: dict[Layer, FusedLayers] = {}
    for group in found.values():
        if isinstance(group, Residual):
            takers[group.sum.eltwise.layer] = group
        elif isinstance(group, Chain) and group.takes_normalization:
            takers[group.steps[0].layer] = group
    changed: dict[Layer, FusedLayers] = {}

    def change(group: FusedLayers, **fields: Postponed) -> None:
        first = group.steps[0].layer
        changed[first] = replace(changed.get(first, group), **fields)  # type: ignore[type-var]

    for group in found.values():
        if not isinstance(group, Chain) or group.batch_norm is None or group.pool is not None:
            continue
        (top,) = group.steps[-1].tops
        readers = [step for step in steps if top in step.bottoms and step not in group.steps]
        taker = takers.get(readers[0].layer) if len(readers) == 1 else None
        if isinstance(taker, Residual) and (group.relu or taker.bottoms[1] != top):
            continue
        if taker is not None:
            postponed = Postponed()
            change(group, postponed=postponed)
            change(taker, before=postponed)
    return changed


def _sampling(
    steps: Sequence[Step], found: Mapping[Layer, FusedLayers]
) -> dict[Layer, FusedLayers]:
    """Sums among those found of which all readers are chains that look at the same few pixels."""
    changed: dict[Layer, FusedLayers] = {}
    for group in found.values():
        if not isinstance(group, Residual):
            continue
        tops = group.steps[-1].tops
        readers = [step for step in steps if {*step.bottoms} & {*tops} and step not in group.steps]
        chains = [found.get(step.layer) for step in readers]
        convolutions = [each for chain in chains for each in _strided(chain)]
        strides = {stride_of(each) for each in convolutions}
        # A top without a reader is a loss.
        if len(convolutions) < max(len(tops), len(readers)) or len(strides) > 1 or strides == {1}:
            continue
        sampling = Sampling(strides.pop())
        first = group.steps[0].layer
        changed[first] = replace(group, sampling=sampling, readers=tuple(convolutions))
        for chain in chains:
            assert isinstance(chain, Chain)
            changed[chain.steps[0].layer] = replace(chain, sampling=sampling)
    return changed


def _strided(group: FusedLayers | None) -> list[BaseConvolution]:
    """The convolution that a chain begins with, if a BatchNorm follows and nothing is pooled."""
    if not isinstance(group, Chain) or group.batch_norm is None or group.pool is not None:
        return []
    layer = group.weighted.layer if group.weighted is not None else None
    return [layer] if isinstance(layer, BaseConvolution) else []


def _group_at(steps: Sequence[Step], inner: bool) -> FusedLayers | None:
    """The group that begins with the first of these, if one does."""
    residual = None if inner else _residual_at(steps)
    return residual or _chain_at(steps, inner) or _sum_at(steps)


def _scaled_at(steps: Sequence[Step], inner: bool) -> FusedLayers | None:
    """The same where our own kernels do not run.

    PyTorch applies a factor and a shift while normalising. A convolution adds its bias itself.
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
    """The masks that are applied together, and the conversions for activations of another type.

    Large ones are excluded, unless there are such activations.
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
        """The next step, if it matches and, except for the first, is in place."""
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
    # Without a bias, a ReLU alone is no faster than PyTorch's.
    biased = weighted is not None and has_bias(weighted)
    relu = take(is_relu) if batch_norm or biased else None
    pool = None
    if (biased or batch_norm) and not inner:
        pool = take(partial(is_max_pool, taken[-1]), in_place=False)
    return Chain(weighted, batch_norm, scale, relu, pool) if len(taken) > 1 else None


def _residual_at(steps: Sequence[Step]) -> Residual | None:
    """A chain that ends by normalising and what adds a blob to its top, if these begin so."""
    chain = _chain_at(steps, inner=False)
    if chain is None or chain.batch_norm is None or chain.relu or chain.pool:
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
