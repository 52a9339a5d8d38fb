"""Losses that compare predictions with labels: class numbers, or a target for each prediction.

Labels are numbers in float blobs, truncated to integers as in Caffe, and never get a gradient.
Losses between two predictions are in `loss_pairs`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns import kernels, log
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import LossLayer, Shape, count, layer_types
from caffe_dns.layers.checks import check_labels
from caffe_dns.proto.blobs import blob_to_array
from caffe_dns.proto.caffe_pb2 import BlobProto, HingeLossParameter, LossParameter
from caffe_dns.proto.text import read_binary

#: The largest loss of an example, 87.3365: softmax probabilities are clamped at FLT_MIN.
MOST_SOFTMAX_LOSS = -math.log(torch.finfo(torch.float32).tiny)
#: With more classes, a row does not fit into a program of the kernel.
MOST_KERNEL_CLASSES = 16384
#: The smallest probability for InfogainLoss and MultinomialLogisticLoss (`kLOG_THRESHOLD`).
LEAST_PROBABILITY = 1e-20


class Clamp(torch.autograd.Function):
    """`values` clamped between `least` and `most`, with the gradient of `values` itself.

    Caffe clamps only in forward: its gradients do not vanish where it clamped.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, least: float | None, most: float | None) -> Tensor:
        return values.clamp(least, most)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


class NormalizedLoss(LossLayer):
    """What the losses with a `loss_param` share: a label to ignore, and the normalisation."""

    #: The mode if the definition gives neither `normalization` nor `normalize`.
    default_normalization = LossParameter.VALID

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.loss_param
        self.ignore_label = settings.ignore_label if settings.HasField("ignore_label") else None
        if settings.HasField("normalization"):
            self.normalization = settings.normalization
        elif settings.HasField("normalize"):
            legacy = LossParameter.VALID if settings.normalize else LossParameter.BATCH_SIZE
            self.normalization = legacy
        else:
            self.normalization = self.default_normalization

    def class_labels(self, label: Tensor, classes: int) -> Tensor:
        """`label` as integers. Raises WrongLabel for one that is neither a class nor ignored."""
        labels = label.long()
        check_labels(self, labels, classes, self.ignore_label)
        return labels

    def normalize(self, total: Tensor, labels: Tensor, outer: int) -> Tensor:
        """`total` normalised as the definition says, by at least 1 (`get_normalizer`).

        `labels` are integers, one for each term of the loss; `outer` is the batch size.
        """
        if self.normalization == LossParameter.VALID and self.ignore_label is not None:
            return total / (labels != self.ignore_label).sum().clamp(min=1)
        return total / self.divisor(labels, outer)

    def divisor(self, labels: Tensor, outer: int) -> float:
        """The normaliser if no label is ignored."""
        divisors: dict[int, float] = {
            LossParameter.FULL: labels.numel(),
            LossParameter.VALID: labels.numel(),
            LossParameter.BATCH_SIZE: outer,
            LossParameter.NONE: 1,
            LossParameter.PRE_FIXED: self.param.loss_param.pre_fixed_normalizer,
        }
        return max(1, divisors[self.normalization])


class SoftmaxBasedLoss(NormalizedLoss):
    """A loss on the softmax along one axis, and one label for each place on the other axes.

    The second top, if any, gets the probabilities, in the first bottom's shape.
    """

    tops = (1, 2)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        log.info(f"Creating layer {self.name}")  # Caffe's line for the Softmax layer inside
        super().build(bottom_shapes)

    def class_axis(self, num_axes: int) -> int:
        """The axis of the classes, counted from the front."""
        raise NotImplementedError

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        super().reshape(bottom_shapes)
        shape = bottom_shapes[0]
        axis = self.class_axis(len(shape))
        places = count(shape[:axis]) * count(shape[axis + 1 :])
        if count(bottom_shapes[1]) != places:
            raise self.error(
                f"{places} predictions need as many labels, not {count(bottom_shapes[1])}: one for "
                f"each place on the data blob's axes other than {axis}",
                "bottom",
            )
        return [(), tuple(shape)][: self.num_tops]

    def forward(self, *bottoms: Tensor) -> Tensor | Sequence[Tensor]:
        loss = self.row_loss(*self.rows(*bottoms[:2]), *bottoms[2:])
        scores = bottoms[0].detach()
        if self.num_tops == 1:
            return loss
        return loss, torch.softmax(scores, self.class_axis(scores.dim()))

    def rows(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The bottoms as B x C x ... and B x ..., as PyTorch's losses need them."""
        axis = self.class_axis(scores.dim())
        rows = scores.flatten(0, axis - 1) if axis > 1 else scores
        rows = rows.unsqueeze(0) if axis == 0 else rows
        return rows, labels.reshape(rows.shape[0], *rows.shape[2:])

    def row_loss(self, rows: Tensor, labels: Tensor, *extra: Tensor) -> Tensor:
        """The normalised loss; `rows` is B x C x ..., `labels` is B x ..., not yet integers."""
        whole = self.class_labels(labels, rows.shape[1])
        total = self.total_loss(F.log_softmax(rows, 1), whole, *extra)
        return self.normalize(total, whole, rows.shape[0])

    def total_loss(self, log_probabilities: Tensor, labels: Tensor, *extra: Tensor) -> Tensor:
        """The sum over all labels; `log_probabilities` is B x C x ..., `labels` is B x ..."""
        raise NotImplementedError


@layer_types.register("SoftmaxWithLoss")
class SoftmaxWithLoss(SoftmaxBasedLoss):
    """Cross entropy of the softmax along `axis` (`softmax_loss_layer.cpp`).

    Bottoms: scores, and as many labels as there are places on the axes other than `axis`. With the
    `weight_by_label_freqs` of SegNet's fork, each label costs `class_weighting` times as much.
    """

    #: The weight of each class, or None.
    class_weights: Tensor | None

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        super().build(bottom_shapes)
        settings = self.param.loss_param
        weights = None
        if settings.weight_by_label_freqs:
            weights = torch.tensor(settings.class_weighting, device=self.context.device)
        elif settings.class_weighting:
            raise self.error("needs weight_by_label_freqs: true", "loss_param.class_weighting")
        self.register_buffer("class_weights", weights, persistent=False)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        tops = super().reshape(bottom_shapes)
        shape = bottom_shapes[0]
        classes = shape[self.class_axis(len(shape))]
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise self.error(
                f"has {len(self.class_weights)} values for {classes} classes",
                "loss_param.class_weighting",
            )
        return tops

    def class_axis(self, num_axes: int) -> int:
        return self.axis(self.param.softmax_param.axis, num_axes, "softmax_param.axis")

    def row_loss(self, rows: Tensor, labels: Tensor, *extra: Tensor) -> Tensor:
        if not self._fits_kernel(rows):
            return super().row_loss(rows, labels, *extra)
        from caffe_dns.kernels.softmax_loss import SoftmaxLoss

        scale = 1 / self.divisor(labels, rows.shape[0])
        result: Tensor = SoftmaxLoss.apply(rows, labels, scale, MOST_SOFTMAX_LOSS)
        return result

    def _fits_kernel(self, rows: Tensor) -> bool:
        return (
            rows.dim() == 2
            and rows.shape[1] <= MOST_KERNEL_CLASSES
            and rows.dtype == torch.float32
            and self.ignore_label is None
            and self.class_weights is None
            and kernels.wanted(rows.device)
        )

    def total_loss(self, log_probabilities: Tensor, labels: Tensor, *extra: Tensor) -> Tensor:
        return self.losses(log_probabilities, labels).sum()

    def losses(self, log_probabilities: Tensor, labels: Tensor) -> Tensor:
        """The loss of each label, 0 if it is ignored; in the labels' shape."""
        # PyTorch's default, -100, is an ordinary label here.
        ignored = self.ignore_label if self.ignore_label is not None else -(2**62)
        losses = F.nll_loss(log_probabilities, labels, ignore_index=ignored, reduction="none")
        clamped: Tensor = Clamp.apply(losses, None, MOST_SOFTMAX_LOSS)
        if self.class_weights is None:
            return clamped
        if self.ignore_label is not None:
            labels = labels.masked_fill(labels == self.ignore_label, 0)
        return clamped * self.class_weights[labels]


@layer_types.register("InfogainLoss")
class InfogainLoss(SoftmaxBasedLoss):
    """-sum of H[label, l] * log(probability of l), over labels and l (`infogain_loss_layer.cpp`).

    Bottoms: scores, labels, and H with C * C elements, unless `source` names a file with H, a
    binary BlobProto.
    """

    bottoms = (2, 3)
    no_force_backward = (1, 2)

    infogain: Tensor

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        super().build(bottom_shapes)
        if self.param.loss_param.HasField("normalize"):
            raise self.error("is out of use here; give normalization", "loss_param.normalize")
        if len(bottom_shapes) < 3:
            self.register_buffer("infogain", self._read_matrix(), persistent=False)

    def class_axis(self, num_axes: int) -> int:
        return self.axis(self.param.infogain_loss_param.axis, num_axes, "infogain_loss_param.axis")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        tops = super().reshape(bottom_shapes)
        shape = bottom_shapes[0]
        classes = shape[self.class_axis(len(shape))]
        given = count(bottom_shapes[2]) if len(bottom_shapes) > 2 else self.infogain.numel()
        if given != classes * classes:
            raise self.error(
                f"the infogain matrix has {given} elements; {classes} classes need "
                f"{classes} x {classes}",
                "bottom" if len(bottom_shapes) > 2 else "infogain_loss_param.source",
            )
        return tops

    def total_loss(self, log_probabilities: Tensor, labels: Tensor, *extra: Tensor) -> Tensor:
        classes = log_probabilities.shape[1]
        matrix = (extra[0].detach() if extra else self.infogain).reshape(classes, classes)
        if self.ignore_label is not None:
            # A row of zeros for the labels to ignore.
            matrix = F.pad(matrix, (0, 0, 0, 1))
            labels = labels.masked_fill(labels == self.ignore_label, classes)
        weights = matrix[labels].movedim(-1, 1)
        clamped = Clamp.apply(log_probabilities, math.log(LEAST_PROBABILITY), None)
        return -(weights * clamped).sum()

    def _read_matrix(self) -> Tensor:
        source = self.param.infogain_loss_param.source
        if not source:
            raise self.error(
                "must name the file of the infogain matrix, or a third bottom must give it",
                "infogain_loss_param.source",
            )
        try:
            matrix = blob_to_array(read_binary(source, BlobProto))
        except CaffeError as error:
            raise error.locate(file=source) from None
        return torch.from_numpy(matrix).to(self.context.device)


@layer_types.register("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(NormalizedLoss):
    """Cross entropy of the sigmoid with a target in [0, 1] for each element.

    Both bottoms have the same number of elements (`sigmoid_cross_entropy_loss_layer.cpp`).
    """

    default_normalization = LossParameter.BATCH_SIZE

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        check_targets(self, bottom_shapes)
        return super().reshape(bottom_shapes)

    def forward(self, *bottoms: Tensor) -> Tensor:
        scores = bottoms[0]
        targets = bottoms[1].detach().reshape(scores.shape)
        labels = targets.trunc()
        counted = None if self.ignore_label is None else (labels != self.ignore_label).to(scores)
        total = F.binary_cross_entropy_with_logits(scores, targets, counted, reduction="sum")
        return self.normalize(total, labels, scores.shape[0])


def check_targets(layer: LossLayer, bottom_shapes: Sequence[Shape]) -> None:
    """Raise CaffeError if there is not one target, in the second bottom, for each score."""
    scores, targets = count(bottom_shapes[0]), count(bottom_shapes[1])
    if scores != targets:
        raise layer.error(f"{scores} scores need as many targets, not {targets}", "bottom")


class OneLabelLoss(LossLayer):
    """A loss on scores N x ... with one label for each of the N."""

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        if not bottom_shapes[0]:
            raise self.error("the scores have no axis of examples", "bottom")
        examples, labels = bottom_shapes[0][0], count(bottom_shapes[1])
        if labels != examples:
            raise self.error(f"{examples} examples need as many labels, not {labels}", "bottom")
        return super().reshape(bottom_shapes)

    def rows_and_labels(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [N, classes] and labels [N, 1], which index the scores' columns."""
        rows = scores.reshape(labels.numel(), -1)
        columns = labels.reshape(-1, 1).long()
        check_labels(self, columns, rows.shape[1])
        return rows, columns


@layer_types.register("MultinomialLogisticLoss")
class MultinomialLogisticLoss(OneLabelLoss):
    """-log(probability of the label), averaged over the batch.

    Bottoms: probabilities N x ..., one label for each of the N
    (`multinomial_logistic_loss_layer.cpp`).
    """

    def forward(self, *bottoms: Tensor) -> Tensor:
        rows, labels = self.rows_and_labels(*bottoms)
        chosen = Clamp.apply(rows.gather(1, labels), LEAST_PROBABILITY, None)
        return -chosen.log().sum() / rows.shape[0]


@layer_types.register("HingeLoss")
class HingeLoss(OneLabelLoss):
    """One class against all others, each with a margin of 1, averaged over the batch.

    Bottoms: scores N x ..., one label for each of the N (`hinge_loss_layer.cpp`). The margins'
    violations are summed (L1) or squared and summed (L2).
    """

    def forward(self, *bottoms: Tensor) -> Tensor:
        rows, labels = self.rows_and_labels(*bottoms)
        signs = torch.ones_like(rows).scatter_(1, labels, -1)
        violations = F.relu(1 + signs * rows)
        if self.param.hinge_loss_param.norm == HingeLossParameter.L2:
            violations = violations.square()
        return violations.sum() / rows.shape[0]
