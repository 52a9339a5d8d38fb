"""MultiBoxLoss: the loss of SSD's detectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Shape, count, layer_types
from caffe_dns.layers.checks import check_indices
from caffe_dns.layers.detection.boxes import overlaps
from caffe_dns.layers.detection.ground_truth import GroundTruth, match
from caffe_dns.layers.detection.mining import Candidates, mine
from caffe_dns.layers.detection.predictions import PredictionLayer
from caffe_dns.layers.loss import MOST_SOFTMAX_LOSS
from caffe_dns.proto.caffe_pb2 import LossParameter, MultiBoxLossParameter


@layer_types.register("MultiBoxLoss")
class MultiBoxLoss(PredictionLayer):
    """The loss of locations and of scores, over a number of boxes (`multibox_loss_layer.cpp`).

    Bottoms: locations N x (P * L * 4), scores N x (P * C), prior boxes 1 x 2 x (P * 4), objects
    1 x 1 x G x 8 (see `GroundTruth`). The sum of both losses is divided as the loss_param says; for
    VALID, by the number of boxes with an object. A bottom with `propagate_down: false` does not
    count. Two further bottoms are RefineDet's (DeepDetect's fork): scores N x (P * 2), of which the
    second says whether a box is an object's, so that boxes below `objectness_score` are no negative
    examples; and codes N x (P * 4) by which the prior boxes are moved first. Neither learns.
    """

    field = "multibox_loss_param"
    bottoms = (4, 6)
    auto_tops = True
    is_loss = True
    no_force_backward = (2, 3, 4, 5)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        super().build(bottom_shapes)
        options = self.options
        self.mining = options.mining_type != MultiBoxLossParameter.NONE
        if options.HasField("do_neg_mining"):
            log.warning("do_neg_mining is deprecated, use mining_type instead.")
            if options.do_neg_mining != self.mining:
                raise self._wrong("do_neg_mining", "contradicts mining_type")
        if self.mining and not options.share_location:
            raise self._wrong("share_location", "has to be true, or mining_type NONE")
        if options.sample_size < 1:
            raise self._wrong("sample_size", f"is {options.sample_size}; at least 1 would be right")
        softmax = options.conf_loss_type == MultiBoxLossParameter.SOFTMAX
        if softmax and self.background >= self.classes:
            raise self._wrong(
                "background_label_id",
                f"is {self.background}; 0 to {self.classes - 1} would be right",
            )
        if options.map_object_to_agnostic and self.classes != 2:
            raise self._wrong(
                "num_classes", f"is {self.classes}; map_object_to_agnostic takes 2 classes"
            )
        self.normalization = _normalization(self.param.loss_param)
        #: Whether the prior boxes are moved, for each image by itself.
        self.moves = len(bottom_shapes) > 5
        if len(bottom_shapes) > 4:
            self._check_refinable()

    def _check_refinable(self) -> None:
        """Raise for what does not go with the further bottoms, or has other boxes in the fork."""
        options = self.options
        if options.HasField("nms_param"):
            raise self._wrong("nms_param", "is not for five bottoms")
        if not self.moves:
            return
        if not options.share_location or not options.use_prior_for_matching:
            name = "use_prior_for_matching" if options.share_location else "share_location"
            raise self._wrong(name, "has to be true for six bottoms")
        if options.mining_type == MultiBoxLossParameter.HARD_EXAMPLE:
            raise self._wrong("mining_type", "is HARD_EXAMPLE; any other is for six bottoms")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        self.check_shapes(bottom_shapes)
        self.check_refinement(bottom_shapes, 4)
        if not bottom_shapes[3] or bottom_shapes[3][-1] != 8:
            raise self.error(f"the objects are 1 x 1 x G x 8, not {bottom_shapes[3]}", "bottom")
        return [()]

    def forward(self, *bottoms: Tensor) -> Tensor:
        images, boxes = len(bottoms[0]), count(bottoms[2].shape[2:]) // 4
        codes = bottoms[0].reshape(images, boxes, self.box_classes, 4).transpose(1, 2)
        scores = bottoms[1].reshape(images, boxes, self.classes)
        priors = self.priors(bottoms[2])
        if self.moves:
            moves = bottoms[5].reshape(images, 1, boxes, 4)
            priors = self._decode(moves, priors), priors[1]
        truth = self._truth(bottoms[3], images)
        with torch.no_grad():
            by_priors = self.options.use_prior_for_matching
            seen = priors[0].expand_as(codes) if by_priors else self._decode(codes, priors)
            reaching_out = ((seen < 0) | (seen > 1)).any(-1)
            ignored = reaching_out & self.options.ignore_cross_boundary_bbox
            matched, overlap = self._match(truth, seen, ignored)
        location_loss = self._location_losses(codes, truth, matched, priors, seen)
        score_loss = self._score_losses(scores, truth, matched)
        positive = matched >= 0
        if self.mining:
            loss = score_loss.detach()
            if self.options.mining_type == MultiBoxLossParameter.HARD_EXAMPLE:
                loss = loss + location_loss.detach()[:, 0]
            left_out = ignored[:, 0]
            if len(bottoms) > 4:
                likely = bottoms[4].reshape(images, boxes, 2)[..., 1]
                left_out = left_out | (likely < self.options.objectness_score)
            found = Candidates(
                positive[:, 0], left_out, overlap[:, 0], loss, truth.has_objects(images)
            )
            matches, negatives = mine(self.options, found, self._boxes_to_mine(codes, priors))
            score_loss = score_loss.where(matches | negatives, 0)
            positive = matches[:, None]
        location_loss = location_loss.where(positive, 0)
        divisor = self._divisor(images, boxes, positive.sum())
        return self._sum(location_loss, score_loss) / divisor

    # Objects ------------------------------------------------------------------------------------

    def _truth(self, bottom: Tensor, images: int) -> GroundTruth:
        if not bottom.numel():
            bottom = bottom.new_full((1, 8), -1)
        truth = GroundTruth.read(bottom, images, difficult=self.options.use_difficult_gt)
        if bottom.device.type == "cpu" and bool(
            (truth.label[truth.counts] == self.background).any()
        ):
            raise self.error(f"an object has the background's label {self.background}", "bottom")
        if self.options.map_object_to_agnostic:
            return replace(truth, label=torch.full_like(truth.label, self.background + 1))
        labels = truth.label.where(truth.counts, 0)
        check_indices(self, labels, self.classes, "label")
        return replace(truth, label=labels)

    def _match(self, truth: GroundTruth, seen: Tensor, ignored: Tensor) -> tuple[Tensor, Tensor]:
        """The object of each box, -1 for none, and the largest overlap, [N, L, P] (`FindMatches`).

        `seen` are the boxes [N, L, P, 4]. Those of a class match objects of that class only.
        """
        images, box_classes, boxes = ignored.shape
        options = self.options
        per_prediction = options.match_type == MultiBoxLossParameter.PER_PREDICTION
        threshold = options.overlap_threshold if per_prediction else None
        if options.use_prior_for_matching:
            own = seen[truth.image, 0] if self.moves else seen[:1, 0]
            overlap = overlaps(truth.boxes[:, None], own)
            group, ignored = truth.image, ignored[:, 0]
        else:
            group = truth.image * box_classes + (truth.label if box_classes > 1 else 0)
            overlap = overlaps(truth.boxes[:, None], seen.flatten(0, 1)[group])
            ignored = ignored.flatten(0, 1)
        matched, most = match(overlap.where(truth.counts[:, None], 0), group, ignored, threshold)
        matched, most = (each.view(images, -1, boxes) for each in (matched, most))
        if matched.shape[1] < box_classes:
            label = torch.arange(box_classes, device=matched.device)[:, None]
            matched = matched.where(truth.label[matched.clamp(min=0)] == label, -1)
        return matched, most

    def _decode(self, codes: Tensor, priors: tuple[Tensor, Tensor]) -> Tensor:
        return self.code(self.options.encode_variance_in_target).decode(codes.detach(), *priors)

    def _boxes_to_mine(self, codes: Tensor, priors: tuple[Tensor, Tensor]) -> Tensor | None:
        """The boxes [N, P, 4] of which those that overlap are thinned out; None if none are."""
        options = self.options
        if not options.HasField("nms_param") or options.nms_param.nms_threshold <= 0:
            return None
        if options.use_prior_for_nms:
            return priors[0].expand(len(codes), -1, 4)
        return self._decode(codes, priors)[:, 0]

    # Losses -------------------------------------------------------------------------------------

    def _location_losses(
        self,
        codes: Tensor,
        truth: GroundTruth,
        matched: Tensor,
        priors: tuple[Tensor, Tensor],
        seen: Tensor,
    ) -> Tensor:
        """What the location of each box costs, [N, L, P]; 0 without an object."""
        in_target = self.options.encode_variance_in_target
        with torch.no_grad():
            boxes = truth.boxes[matched.clamp(min=0)]
            target = self.code(in_target).encode(boxes, *priors)
            counts = (matched >= 0)[..., None]
            if self.options.bp_inside:
                counts = counts & (seen >= 0) & (seen <= 1)
            target = target.where(counts, codes.detach())
        difference = codes - target
        if in_target:
            difference = difference / priors[1]
        if self.options.loc_loss_type == MultiBoxLossParameter.L2:
            return difference.square().sum(-1) / 2
        return F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none").sum(-1)

    def _score_losses(self, scores: Tensor, truth: GroundTruth, matched: Tensor) -> Tensor:
        """What the scores of each box cost, [N, P]."""
        labels = truth.label[matched.clamp(min=0)].where(matched >= 0, -1)
        free = (labels < 0).all(1)
        if self.options.conf_loss_type == MultiBoxLossParameter.SOFTMAX:
            label = labels.amax(1).where(~free, self.background)
            loss = -F.log_softmax(scores, -1).gather(2, label[..., None])[..., 0]
            # What is shown is bounded, its gradient is not, as in SoftmaxWithLoss.
            return loss + (loss.clamp(max=MOST_SOFTMAX_LOSS) - loss).detach()
        classes = torch.arange(self.classes, device=scores.device)
        target = (labels[..., None] == classes).any(1)
        if self.mining:
            target = target | (free[..., None] & (classes == self.background))
        loss = F.binary_cross_entropy_with_logits(scores, target.to(scores.dtype), reduction="none")
        return loss.sum(-1)

    def _sum(self, location_loss: Tensor, score_loss: Tensor) -> Tensor:
        wanted = self.param.propagate_down or (True, True)
        total = location_loss.new_zeros(())
        if wanted[0]:
            total = total + self.options.loc_weight * location_loss.sum()
        if wanted[1]:
            total = total + score_loss.sum()
        return total

    def _divisor(self, images: int, boxes: int, matches: Tensor) -> Tensor | int:
        """What to divide by, at least 1 (`LossLayer::GetNormalizer`)."""
        if self.normalization == LossParameter.VALID:
            return matches.clamp(min=1)
        divisors = {
            LossParameter.FULL: images * boxes,
            LossParameter.BATCH_SIZE: images,
            LossParameter.NONE: 1,
        }
        return divisors[self.normalization]

    def _wrong(self, name: str, message: str) -> CaffeError:
        return self.error(message, f"{self.field}.{name}")


def _normalization(settings: LossParameter) -> LossParameter.NormalizationMode:
    """The mode, also where it is given in its old form."""
    if settings.HasField("normalize") and not settings.HasField("normalization"):
        return LossParameter.VALID if settings.normalize else LossParameter.BATCH_SIZE
    return settings.normalization
