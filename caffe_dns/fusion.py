"""What runs as one on a GPU: a BatchNorm and the Scale after it, and the masks of all layers.

Caffe splits batch normalisation into two layers; a GPU does both in a single pass over the blob.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from caffe_dns.layers.arithmetic import Scale
from caffe_dns.layers.base import Context
from caffe_dns.layers.masked import WeightedLayer
from caffe_dns.layers.normalization import BatchNorm
from caffe_dns.wiring import Step

#: On a CPU none of it would be faster.
DEVICES = ("cuda",)


def find_scaled(steps: Sequence[Step], device: torch.device) -> dict[str, Step]:
    """For a BatchNorm, by its layer's name, the Scale that runs with it.

    That is the next layer, in place, with one factor for each channel; so nobody can see what
    BatchNorm alone would have made.
    """
    if device.type not in DEVICES:
        return {}
    return {
        first.layer.name: second
        for first, second in pairwise(steps)
        if _belong_together(first, second)
    }


def find_masked(steps: Sequence[Step], context: Context) -> list[WeightedLayer]:
    """The layers whose masks are applied together.

    Where activations have a type of their own, each product is rounded on its way, by itself.
    """
    if context.device.type not in DEVICES or context.activations is not None:
        return []
    layers = [step.layer for step in steps if isinstance(step.layer, WeightedLayer)]
    return [layer for layer in layers if layer.mask_indices]


def run_scaled(first: Step, second: Step, bottom: Tensor) -> Tensor:
    """The top of both layers."""
    assert isinstance(first.layer, BatchNorm)
    factor, *shift = second.layer.blobs
    return first.layer.normalize(bottom, factor, shift[0] if shift else None)


def _belong_together(first: Step, second: Step) -> bool:
    scale = second.layer
    if not isinstance(first.layer, BatchNorm) or not isinstance(scale, Scale):
        return False
    in_place = first.tops == second.bottoms == second.tops
    plain = not first.layer.param.propagate_down and not scale.param.propagate_down
    return (
        in_place
        and plain
        and scale.param.scale_param.axis == 1
        and all(blob.dim() == 1 and len(blob) == first.layer.channels for blob in scale.blobs)
    )
