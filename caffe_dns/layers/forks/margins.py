"""Layers for face recognition: scores with margins, weights of length 1, centres of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import ALL_BOTTOMS, Layer, LossLayer, Shape, count, layer_types
from caffe_dns.layers.checks import check_labels
from caffe_dns.proto.caffe_pb2 import MarginInnerProductParameter


def margin_curve(kind: int, cosine: Tensor) -> tuple[Tensor, Tensor]:
    """What stands for a cosine c with this margin, and its derivative.

    The cosine of m times the angle where that falls, and below where it would rise again:
    (-1)^k cos(m * angle) - 2k in the k-th of m parts of the half circle.
    """
    square = cosine * cosine
    if kind == MarginInnerProductParameter.SINGLE:
        return cosine, torch.ones_like(cosine)
    sign = cosine.sign()
    if kind == MarginInnerProductParameter.DOUBLE:
        return 2 * sign * square - 1, 4 * sign * cosine
    if kind == MarginInnerProductParameter.TRIPLE:
        outer = (cosine.abs() - 0.5).sign()
        value = outer * (4 * square - 3) * cosine + sign * (1 + outer) - 2
        return value, outer * (12 * square - 3)
    outer = sign * (2 * square - 1).sign()
    value = outer * (8 * square * square - 8 * square + 1) + 2 * sign + outer - 3
    return value, outer * (32 * square - 16) * cosine


class Products(Layer):
    """Inner products without masks: a weight [num_output, K] for everything from `axis` on."""

    #: The name of the settings.
    field: ClassVar[str]

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.options = getattr(self.param, self.field)
        if self.options.num_output < 1:
            raise self.error("must be given and positive", f"{self.field}.num_output")
        shape = bottom_shapes[0]
        self.first_axis = self.axis(self.options.axis, len(shape), f"{self.field}.axis")
        self.num_inputs = count(tuple(shape[self.first_axis :]))
        weight = self.options.num_output, self.num_inputs
        self.add_parameter(weight, self.options.weight_filler, "weight")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = tuple(bottom_shapes[0])
        inputs = count(shape[self.first_axis :])
        if inputs != self.num_inputs:
            raise self.error(f"the weight takes {self.num_inputs} inputs, the bottom has {inputs}")
        return [(*shape[: self.first_axis], self.options.num_output)]


class MarginProduct(Products):
    """What both have in common: no bias, and the share of margins.

    Bottoms: N x ..., of which everything from `axis` on is multiplied, and N labels. Tops: scores,
    and what the scores without margin weigh beside those with.
    """

    bottoms = (2, 2)
    tops = (1, 2)
    no_force_backward = (1,)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        (scores,) = super().reshape(bottom_shapes)
        items, labels = count(scores[:-1]), count(tuple(bottom_shapes[1]))
        if labels != items:
            raise self.error(f"has {labels} labels for {items} items", "bottom")
        return [scores, (1,)][: self.num_tops]

    def forward(self, *bottoms: Tensor) -> list[Tensor]:
        rows = bottoms[0].flatten(self.first_axis).reshape(-1, self.num_inputs)
        labels = bottoms[1].flatten().long()
        check_labels(self, labels, self.options.num_output)
        share = self._share(self.options.iteration + self.context.passes + 1)
        top = self.scores(rows, labels, share)
        # From the host, as it changes: a CUDA graph would go on with the first one.
        tops = [top.view(*bottoms[0].shape[: self.first_axis], -1), top.new_tensor([share])]
        return tops[: self.num_tops]

    def _share(self, number: int) -> float:
        """What scores without margin weigh in iteration `number`, counted from 1."""
        options = self.options
        try:
            share = options.base * math.pow(1 + options.gamma * number, -options.power)
        except (ValueError, OverflowError):
            what = f"(1 + gamma * {number}) ^ -power is no number, or too large"
            raise self.error(what, f"{self.field}.gamma") from None
        return max(share, options.lambda_min)

    def scores(self, rows: Tensor, labels: Tensor, share: float) -> Tensor:
        """The scores N x num_output of rows N x K; `share` is what those without margin weigh."""
        raise NotImplementedError


@layer_types.register("LargeMarginInnerProduct")
class LargeMarginInnerProduct(MarginProduct):
    """Inner products, an item's own class with a margin (`largemargin_inner_product_layer.cpp`)."""

    field = "largemargin_inner_product_param"

    def scores(self, rows: Tensor, labels: Tensor, share: float) -> Tensor:
        weight = self.blobs[0]
        plain = F.linear(rows, weight)
        own = plain.gather(1, labels[:, None])
        norms = rows.norm(dim=1, keepdim=True) * weight[labels].norm(dim=1, keepdim=True) + 1e-9
        value, _ = margin_curve(self.options.type, own / norms)
        with_margin = (norms * value + share * own) / (1 + share)
        return plain.scatter(1, labels[:, None], with_margin)


@layer_types.register("MarginInnerProduct")
class MarginInnerProduct(MarginProduct):
    """Inner products with weights of length 1, an item's own class with a margin.

    As `margin_inner_product_layer.cpp`: the rows of the weight are brought to length 1 where they
    are stored; their gradient is that of inner products, and the bottom's has, for the own class,
    the direction that the margin gives, but a length as without it.
    """

    field = "margin_inner_product_param"

    def scores(self, rows: Tensor, labels: Tensor, share: float) -> Tensor:
        weight = self.blobs[0]
        with torch.no_grad():
            weight.div_(weight.norm(dim=1, keepdim=True))
        scores: Tensor = _AngularScores.apply(rows, weight, labels, self.options.type, share)
        return scores


class _AngularScores(torch.autograd.Function):
    """N x C scores of rows N x K by weights C x K of length 1, with the gradients of SphereFace."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, labels: Tensor, kind: int, share: float
    ) -> Tensor:
        ctx.save_for_backward(rows, weight, labels)
        ctx.kind, ctx.share = kind, share
        top = F.linear(rows, weight)
        own = top.gather(1, labels[:, None])
        lengths = rows.norm(dim=1, keepdim=True)
        value, _ = margin_curve(kind, own / lengths)
        return top.scatter(1, labels[:, None], (lengths * value + share * own) / (1 + share))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, labels = ctx.saved_tensors
        of_weight = gradient.t() @ rows if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, of_weight, None, None, None
        of_rows = gradient @ weight
        if ctx.kind != MarginInnerProductParameter.SINGLE:
            own = weight[labels]
            lengths = rows.norm(dim=1, keepdim=True)
            cosine = (rows * own).sum(1, keepdim=True) / lengths
            value, slope = margin_curve(ctx.kind, cosine)
            along = (value - cosine * slope) / lengths
            norm = (slope * slope + along * along).sqrt()
            direction = (slope * own + along * rows) / norm
            asked = gradient.gather(1, labels[:, None]) / (1 + ctx.share)
            of_rows = of_rows + asked * (direction - own)
        return of_rows, of_weight, None, None, None


@layer_types.register("NormalizedInnerProduct")
class NormalizedInnerProduct(Products):
    """An InnerProduct with `normalize: true`: the weights of each output have length 1 (happynear).

    They are brought to it where they are stored, with 1e-6 added to the square, and their gradient
    is that of inner products (`inner_product_layer.cpp`). Blobs as an InnerProduct's, without mask.
    """

    field = "inner_product_param"

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        super().build(bottom_shapes)
        if self.options.transpose:
            what = "is not supported with normalize: true; false would do"
            raise self.error(what, f"{self.field}.transpose")
        if self.options.bias_term:
            self.add_parameter((self.options.num_output,), self.options.bias_filler, "bias")

    def forward(self, *bottoms: Tensor) -> Tensor:
        weight, *bias = self.blobs
        with torch.no_grad():
            weight.div_((weight.square().sum(1, keepdim=True) + 1e-6).sqrt())
        rows = bottoms[0].reshape(*bottoms[0].shape[: self.first_axis], self.num_inputs)
        return F.linear(rows, weight, *bias)


@layer_types.register("LabelSpecificAdd")
class LabelSpecificAdd(Layer):
    """While training, the score of an item's own class plus `bias`, where it is above its negative.

    Bottoms: scores N x C and N labels. Tops: the scores, whose gradient passes through, and the
    bias (`label_specific_add.cpp` of happynear). In a test pass nothing is added.
    """

    needs_numbers = ALL_BOTTOMS
    bottoms = (2, 2)
    tops = (1, 2)
    no_force_backward = (1,)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        scores, labels = map(tuple, bottom_shapes)
        if not scores or count(labels) != scores[0]:
            raise self.error(f"has {count(labels)} labels for scores of {scores}", "bottom")
        tops: list[Shape] = [scores, (1,)]
        return tops[: self.num_tops]

    def forward(self, *bottoms: Tensor) -> list[Tensor]:
        scores, labels = bottoms[0], bottoms[1].flatten().long()
        rows = scores.reshape(len(labels), -1)
        check_labels(self, labels, rows.shape[1])
        bias = self._bias(scores)
        if self.training:
            own = rows.gather(1, labels[:, None])
            rows = rows.scatter(1, labels[:, None], torch.where(own > -bias, own + bias, own))
        return [rows.view(scores.shape), bias][: self.num_tops]

    def _bias(self, like: Tensor) -> Tensor:
        settings = self.param.label_specific_add_param
        if not self.training or not settings.HasField("bias_base"):
            return like.new_full((1,), settings.bias if self.training else 0)
        number = settings.iteration + self.context.passes
        try:
            growth = math.pow(1 + settings.bias_gamma * number, settings.bias_power) - 1
        except (ValueError, OverflowError):
            what = f"(1 + bias_gamma * {number}) ^ bias_power is no number, or too large"
            raise self.error(what, "label_specific_add_param.bias_gamma") from None
        bias = min(max(settings.bias_base + growth, settings.bias_min), settings.bias_max)
        # From the host, as it changes: a CUDA graph would go on with the first one.
        return like.new_tensor([bias])


@layer_types.register("CenterLoss")
class CenterLoss(LossLayer):
    """Half the mean squared distance of items from the centre of their class (caffe-face).

    Bottoms N x ..., of which everything from `axis` on counts, and N labels. One blob, the centres
    [num_output, K]. Their gradient, as in `center_loss_layer.cpp`, is for each class the sum of the
    distances of its items, divided by one more than there are, whatever the loss weighs.
    """

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.center_loss_param
        if settings.num_output < 1:
            raise self.error("must be given and positive", "center_loss_param.num_output")
        shape = bottom_shapes[0]
        first = self.axis(settings.axis, len(shape), "center_loss_param.axis")
        self.num_inputs = count(tuple(shape[first:]))
        self.add_parameter((settings.num_output, self.num_inputs), settings.center_filler, "center")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        items, labels = bottom_shapes
        if count(items) != items[0] * self.num_inputs:
            raise self.error(
                f"centres have {self.num_inputs} numbers, an item {count(items[1:])}", "bottom"
            )
        if count(labels) != items[0]:
            raise self.error(f"has {count(labels)} labels for {items[0]} items", "bottom")
        return super().reshape(bottom_shapes)

    def forward(self, *bottoms: Tensor) -> Tensor:
        labels = bottoms[1].flatten().long()
        check_labels(self, labels, self.param.center_loss_param.num_output)
        rows = bottoms[0].reshape(len(labels), -1)
        loss: Tensor = _CenterDistance.apply(rows, self.blobs[0], labels)
        return loss


class _CenterDistance(torch.autograd.Function):
    """Half the mean squared distance of rows N x K from centres C x K."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, centers: Tensor, labels: Tensor) -> Tensor:
        distance = rows - centers[labels]
        ctx.save_for_backward(distance, labels)
        ctx.classes = len(centers)
        return distance.square().sum() / len(rows) / 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        distance, labels = ctx.saved_tensors
        total = distance.new_zeros(ctx.classes, distance.shape[1])
        total.index_add_(0, labels, -distance)
        number = distance.new_ones(ctx.classes, 1)
        number.index_add_(0, labels, torch.ones_like(distance[:, :1]))
        return gradient * distance / len(distance), total / number, None
