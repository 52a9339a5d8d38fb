"""DetectionOutput: from a detector's predictions to boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.layers.base import Shape, layer_types
from caffe_dns.layers.detection.boxes import suppress
from caffe_dns.layers.detection.detection_files import DetectionFiles
from caffe_dns.layers.detection.predictions import PredictionLayer, order_of
from caffe_dns.proto.fields import refuse_fields

#: Values of a top's row: image, label, score, xmin, ymin, xmax, ymax.
ROW = 7


@layer_types.register("DetectionOutput")
class DetectionOutput(PredictionLayer):
    """The boxes left after non-maximum suppression in each class (`detection_output_layer.cpp`).

    Bottoms: locations N x (P * L * 4), scores N x (P * C), prior boxes 1 x 2 x (P * 4); a fourth,
    the images, is not looked at. With `objectness_score` (DeepDetect's RefineDet) the fourth says
    whether a prior box is an object's, N x (P * 2), by what comes second, and a fifth, N x (P * 4),
    moves the prior boxes first. Top 1 x 1 x boxes x 7: number of the image in the batch, label,
    score, and the box in shares of the image; ordered by image, label and score. Without any box,
    each image has a row with its number and -1 throughout. How many rows there are is known only in
    the forward pass; `reshape` says one. No gradient passes through.
    """

    field = "detection_output_param"
    bottoms: ClassVar[tuple[int, int | None]] = (3, 5)
    no_force_backward: ClassVar[tuple[int, ...]] = (0, 1, 2, 3, 4)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        super().build(bottom_shapes)
        options = self.options
        refuse_fields(options, self.field, {"DetectionOutputOfMaps": ("nbottom",)}, self.type)
        if options.visualize:
            raise self.error("showing boxes in a window is not possible", f"{self.field}.visualize")
        if options.nms_param.nms_threshold < 0:
            raise self._wrong("nms_threshold", options.nms_param.nms_threshold, "at least 0")
        if not 0 < options.nms_param.eta <= 1:
            raise self._wrong("eta", options.nms_param.eta, "more than 0 and at most 1")
        self.least_score = -math.inf
        if options.HasField("confidence_threshold"):
            self.least_score = options.confidence_threshold
        self.top_k = options.nms_param.top_k if options.nms_param.HasField("top_k") else -1
        self.refines = options.HasField("objectness_score")
        if len(bottom_shapes) == 5 and not self.refines:
            raise self.error("must be given for five bottoms", f"{self.field}.objectness_score")
        self.labels = [label for label in range(self.classes) if label != self.background]
        self.files = DetectionFiles.open(self, options.save_output_param, self.background)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        self.check_shapes(bottom_shapes)
        if self.refines:
            self.check_refinement(bottom_shapes, 3)
        return [(1, 1, 1, ROW)]

    @torch.no_grad()
    def forward(self, *bottoms: Tensor) -> Tensor:
        priors, variances = self.priors(bottoms[2])
        images, boxes = len(bottoms[0]), len(priors)
        codes = bottoms[0].reshape(images, boxes, self.box_classes, 4).transpose(1, 2)
        code = self.code(self.options.variance_encoded_in_target)
        if self.refines and len(bottoms) == 5:
            moves = bottoms[4].reshape(images, 1, boxes, 4)
            priors = code.decode(moves, priors, variances)
        decoded = code.decode(codes, priors, variances)
        scores = bottoms[1].reshape(images, boxes, self.classes).transpose(1, 2)
        if self.refines and len(bottoms) > 3:
            scores = self._of_objects(scores, bottoms[3].reshape(images, boxes, 2))
        labels = torch.tensor(self.labels, device=scores.device)
        if self.box_classes > 1:
            decoded = decoded[:, labels]
        rows = self._best(*self._candidates(decoded, scores[:, labels]))
        if self.files is not None:
            self.files.add(rows.cpu().numpy(), images)
        if not len(rows):
            log.info("Couldn't find any detections")
            rows = scores.new_full((images, ROW), -1)
            rows[:, 0] = torch.arange(images, device=rows.device)
        return rows.reshape(1, 1, -1, ROW)

    def _of_objects(self, scores: Tensor, objects: Tensor) -> Tensor:
        """Scores [N, classes, P] with those of class 0 alone where a prior box is no object's."""
        nothing = torch.zeros_like(scores)
        nothing[:, 0] = 1
        found = objects[:, None, :, 1] >= self.options.objectness_score
        return torch.where(found, scores, nothing)

    def _candidates(self, decoded: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and whether they stay, for each image and class the best ones first.

        `decoded` is [N, 1 or classes, P, 4], `scores` [N, classes, P]; returns [N, classes, K, 4]
        and twice [N, classes, K].
        """
        valid = scores > self.least_score
        most = int(valid.sum(-1).max()) if valid.numel() else 0
        if self.top_k > -1:
            most = min(most, self.top_k)
        order = order_of(scores.where(valid, -math.inf))[..., :most]
        wide = order.unsqueeze(-1).expand(*order.shape, 4)
        boxes = decoded.expand(*scores.shape, 4).gather(2, wide)
        nms = self.options.nms_param
        stays = suppress(
            boxes.flatten(0, 1),
            valid.gather(2, order).flatten(0, 1),
            nms.nms_threshold,
            nms.eta,
        )
        return boxes, scores.gather(2, order), stays.view(order.shape)

    def _best(self, boxes: Tensor, scores: Tensor, stays: Tensor) -> Tensor:
        """The rows of the top: of each image the `keep_top_k` best boxes, ordered."""
        most = self.options.keep_top_k
        if -1 < most < stays[0].numel():
            ranked = order_of(scores.where(stays, -math.inf).flatten(1))[:, most:]
            stays = stays.flatten(1).scatter(1, ranked, False).view(stays.shape)
        image, place, _ = found = stays.nonzero(as_tuple=True)
        label = torch.tensor(self.labels, device=scores.device)[place]
        columns = [image.to(scores.dtype), label.to(scores.dtype), scores[found]]
        return torch.cat([torch.stack(columns, 1), boxes[found]], 1)

    def _wrong(self, name: str, value: float, right: str) -> Exception:
        return self.error(f"is {value:g}; {right} would be right", f"{self.field}.nms_param.{name}")
