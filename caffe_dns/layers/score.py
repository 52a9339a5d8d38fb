"""Layers that judge or rank scores. No gradient passes through them.

Losses to train on are in the loss layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from caffe_dns.layers.base import ALL_BOTTOMS, Layer, Shape, count, layer_types
from caffe_dns.layers.checks import check_labels


@layer_types.register("Accuracy")
class Accuracy(Layer):
    """The share of labels whose score is among the `top_k` best; ties count against it.

    A second top gives the share for each class, 0 where a class has no label
    (`accuracy_layer.cpp`).
    """

    bottoms = (2, 2)
    tops = (1, 2)
    no_force_backward = (0, 1)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.accuracy_param
        self.top_k = settings.top_k
        self.ignored = settings.ignore_label if settings.HasField("ignore_label") else None

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        scores, labels = (tuple(shape) for shape in bottom_shapes)
        axis = self._class_axis(len(scores))
        if count(scores) != count(labels) * scores[axis]:
            raise self.error(
                f"labels of shape {labels} do not fit scores of shape {scores}: one label for each "
                f"score vector along axis {axis} would be right",
                "bottom",
            )
        if self.top_k > scores[axis]:
            raise self.error(
                f"is {self.top_k}, more than the {scores[axis]} classes", "accuracy_param.top_k"
            )
        return [(), (scores[axis],)][: self.num_tops]

    @torch.no_grad()
    def forward(self, *bottoms: Tensor) -> list[Tensor]:
        axis = self._class_axis(bottoms[0].dim())
        classes = bottoms[0].shape[axis]
        scores = bottoms[0].reshape(count(bottoms[0].shape[:axis]), classes, -1)
        if self.param.accuracy_param.min_is_better:
            scores = -scores
        labels = bottoms[1].long().reshape(len(scores), 1, -1)
        check_labels(self, labels, classes, self.ignored)
        counted = torch.ones_like(labels, dtype=torch.bool)
        if self.ignored is not None:
            counted = labels != self.ignored
            labels = labels.where(counted, 0)
        as_good = (scores >= scores.gather(1, labels)).sum(1, keepdim=True)
        # The label's own score is among those that are as good.
        correct = (as_good <= self.top_k) & counted & (self.top_k > 0)
        # Labels come in full precision, which counts exactly.
        weights = torch.stack([correct, counted]).flatten(1).to(bottoms[1].dtype)
        right, total = weights.sum(1)
        tops = [right / total.clamp(min=1)]
        if self.num_tops == 2:
            per_class = weights.new_zeros(2, classes).index_add(1, labels.flatten(), weights)
            tops.append(per_class[0] / per_class[1].clamp(min=1))
        return tops

    def _class_axis(self, num_axes: int) -> int:
        return self.axis(self.param.accuracy_param.axis, num_axes, "accuracy_param.axis")


@layer_types.register("ArgMax")
class ArgMax(Layer):
    """The places of the `top_k` largest entries, along `axis` or else of each whole item.

    With `out_max_val`, their values: instead of the places along an axis, beside them for whole
    items. Of equal entries the last comes first (`argmax_layer.cpp`).
    """

    needs_numbers = ALL_BOTTOMS

    no_force_backward = (0,)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.argmax_param
        self.top_k = settings.top_k
        self.values = settings.out_max_val
        self.whole_items = not settings.HasField("axis")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = tuple(bottom_shapes[0])
        if self.whole_items:
            if not shape:
                raise self.error("the bottom needs at least 1 axis", "bottom")
            candidates = count(shape[1:])
            trailing = (1,) * (len(shape) - 3)
            top = (shape[0], 2 if self.values else 1, self.top_k, *trailing)
        else:
            axis = self._class_axis(len(shape))
            candidates = shape[axis]
            top = (*shape[:axis], self.top_k, *shape[axis + 1 :])
        if not 1 <= self.top_k <= candidates:
            raise self.error(
                f"is {self.top_k}; 1 to {candidates} would be right", "argmax_param.top_k"
            )
        return [top]

    @torch.no_grad()
    def forward(self, *bottoms: Tensor) -> Tensor:
        bottom = bottoms[0]
        if not self.whole_items:
            values, places = self._best(bottom, self._class_axis(bottom.dim()))
            return values if self.values else places
        values, places = self._best(bottom.reshape(len(bottom), -1), 1)
        top = torch.stack([places, values], 1) if self.values else places
        return top.reshape(self.reshape([bottom.shape])[0])

    def _best(self, scores: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Values and places of the largest entries along an axis, best first."""
        # A stable sort of the reversed entries puts the last of equal ones first.
        values, order = scores.flip(axis).sort(dim=axis, descending=True, stable=True)
        places = scores.shape[axis] - 1 - order.narrow(axis, 0, self.top_k)
        return values.narrow(axis, 0, self.top_k), places.to(scores.dtype)

    def _class_axis(self, num_axes: int) -> int:
        return self.axis(self.param.argmax_param.axis, num_axes, "argmax_param.axis")
