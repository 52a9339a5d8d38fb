"""Patterns for masks: weights that are cut together, or at most so many weights in each group.

This says what the masks of a pattern look like, on a matrix with a row for each output; the
strengths by which weights are cut are the business of `mask_rules`.

The columns of a row are its inputs, with the input channels innermost: a convolution's weight [out,
C, kh, kw] has rows in the order kh, kw, C. This is the order of channels-last kernels and of sparse
Tensor Cores: where C is a multiple of M, a group of N:M is M input channels at one place of the
kernel.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from caffe_dns.errors import BadValue


@dataclass(frozen=True)
class Pattern:
    """Keep at most `most` of each `group` neighbours in a row; cut `unit` neighbours together.

    Groups and units do not continue in the next row. The last of a row may be shorter, as if the
    row were padded with zeros: `most` are kept of a shorter group, too.
    """

    unit: int = 1
    most: int = 1
    group: int = 1
    #: A unit at least as long as any row.
    ROW: ClassVar[int] = 1 << 62

    @property
    def is_filter(self) -> bool:
        """Whether all weights of an output are cut together."""
        return self.unit == self.ROW

    def unit_size(self, length: int) -> int:
        """How many weights of a row of this length are cut together."""
        return min(self.unit, length)

    def distances(self, distances: Tensor) -> Tensor:
        """The distances of the units, rows x units, from those of the weights, rows x columns.

        A unit's distance is the root mean square of its weights', so that one threshold suits units
        of all sizes.
        """
        if self.unit == 1:
            return distances
        squares = self._split(distances.square(), self.unit_size(distances.shape[1]), 0.0)
        return (squares.sum(2) / self.sizes(distances)).sqrt()

    def kept(self, mask: Tensor) -> Tensor:
        """The mask of the units: a unit is kept if any of its weights is."""
        if self.unit == 1:
            return mask
        return self._split(mask, self.unit_size(mask.shape[1]), 0.0).amax(2)

    def in_place(self, strengths: Tensor) -> Tensor:
        """The strengths of units; minus infinity for those beyond the `most` of their group."""
        if self.group == 1:
            return strengths
        grouped = self._split(strengths, self.group, -math.inf)
        surplus = grouped.sort(descending=True, stable=True).indices[..., self.most :]
        grouped = grouped.scatter(2, surplus, -math.inf)
        return grouped.flatten(1)[:, : strengths.shape[1]]

    def sizes(self, weights: Tensor) -> Tensor:
        """How many weights each unit of a row has; `weights` is rows x columns."""
        length = weights.shape[1]
        size = self.unit_size(length)
        starts = torch.arange(0, length, size, device=weights.device)
        return (length - starts).clamp(max=size)

    def weights(self, units: Tensor, length: int) -> Tensor:
        """The values of units, repeated for each of their weights: rows x `length`."""
        return units.repeat_interleave(self.unit_size(length), 1)[:, :length]

    @staticmethod
    def _split(rows: Tensor, size: int, filling: float) -> Tensor:
        """Rows x parts x size, with the last part padded."""
        return pad(rows, (0, -rows.shape[1] % size), value=filling).unflatten(1, (-1, size))


def parse_pattern(text: str) -> Pattern:
    """The pattern with this name. Raises BadValue for anything else."""
    if found := re.fullmatch(r"(\d{1,9}):(\d{1,9})", text):
        most, group = map(int, found.groups())
        if 0 < most < group:
            return Pattern(most=most, group=group)
    elif (found := re.fullmatch(r"1x(\d{1,9})", text)) and int(found[1]) > 1:
        return Pattern(unit=int(found[1]))
    elif text == "filter":
        return Pattern(unit=Pattern.ROW)
    raise BadValue(
        f"'{text}' is no pattern; known: N:M, at most N of M neighbours are kept (2:4); 1xK, K "
        "neighbours are cut as one (1x4); filter, all that an output has"
    )


def to_rows(weight: Tensor, input_axis: int) -> Tensor:
    """A weight as a matrix, outputs x inputs, `input_axis` the innermost."""
    return weight.movedim(input_axis, -1).flatten(1)


def from_rows(rows: Tensor, weight: Tensor, input_axis: int) -> Tensor:
    """The inverse of `to_rows`: a matrix in the weight's shape."""
    return rows.reshape(weight.movedim(input_axis, -1).shape).movedim(-1, input_axis)
