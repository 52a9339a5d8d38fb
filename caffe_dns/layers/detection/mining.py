"""Hard example mining: which boxes a detector's loss takes into account."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from caffe_dns.layers.detection.boxes import areas, suppress
from caffe_dns.layers.detection.predictions import order_of
from caffe_dns.proto.caffe_pb2 import MultiBoxLossParameter, NonMaximumSuppressionParameter

#: Boxes with a smaller area take no part in non-maximum suppression.
LEAST_AREA = 1e-5


@dataclass(frozen=True)
class Candidates:
    """The P boxes of N images; all tensors are [N, P]."""

    #: Whether a box has an object, and whether it may have none.
    matched: Tensor
    ignored: Tensor
    #: The largest overlap with an object.
    overlap: Tensor
    #: What a box would cost.
    loss: Tensor
    #: Whether its image has objects at all, [N, 1].
    has_objects: Tensor


def mine(
    options: MultiBoxLossParameter, found: Candidates, boxes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The boxes that count with their object, and those that count as background.

    Both [N, P]. `boxes` [N, P, 4] are thinned out first where they overlap. Images without objects
    have neither (`MineHardExamples`).
    """
    hard = options.mining_type == MultiBoxLossParameter.HARD_EXAMPLE
    if hard:
        eligible = torch.ones_like(found.matched)
        wanted = eligible.sum(1, keepdim=True).clamp(max=options.sample_size)
    else:
        eligible = ~found.matched & ~found.ignored & (found.overlap < options.neg_overlap)
        positive = found.matched.sum(1, keepdim=True)
        wanted = (positive.float() * options.neg_pos_ratio).long()
        wanted = torch.minimum(wanted, eligible.sum(1, keepdim=True))
    order = order_of(found.loss.where(eligible, -torch.inf))
    takes_part = eligible.gather(1, order)
    if boxes is not None:
        takes_part = _thinned_out(options.nms_param, boxes, order, takes_part)
    # The rank of a box among those that take part.
    chosen = takes_part & (takes_part.cumsum(1) <= wanted)
    selected = torch.zeros_like(eligible).scatter(1, order, chosen)
    selected = selected & found.has_objects
    positives = found.matched & selected if hard else found.matched
    return positives, selected & ~found.matched & ~found.ignored


def _thinned_out(
    nms: NonMaximumSuppressionParameter, boxes: Tensor, order: Tensor, eligible: Tensor
) -> Tensor:
    """Which boxes, in this order, are left of those that overlap (`ApplyNMS`)."""
    most = order.shape[1]
    if nms.HasField("top_k") and nms.top_k > -1:
        most = min(most, nms.top_k)
    ranked = boxes.gather(1, order[:, :most, None].expand(-1, -1, 4))
    valid = eligible[:, :most] & (areas(ranked) >= LEAST_AREA)
    left = torch.zeros_like(eligible)
    left[:, :most] = suppress(ranked, valid, nms.nms_threshold)
    return left
