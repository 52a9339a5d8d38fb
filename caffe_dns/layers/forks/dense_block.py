"""DenseBlock: a block of a DenseNet as one layer (caffe_ocr)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import ALL_BOTTOMS, Layer, Shape, count, layer_types
from caffe_dns.layers.batch_statistics import normalize_batch
from caffe_dns.layers.checks import check_positive
from caffe_dns.proto.caffe_pb2 import FillerParameter

_FIELD = "denseblock_param"
#: What is added to variances.
EPS = 1e-5
#: Settings that have to be as the fork's proto has them.
_ONLY_DEFAULT = (
    "pad_h", "pad_w", "conv_verticalStride", "conv_horizentalStride", "filter_H", "filter_W",
    "use_dropout", "use_BC",
)  # fmt: skip


@layer_types.register("DenseBlock")
class DenseBlock(Layer):
    """`numTransition` times: all channels are normalised, rectified and convolved, 3 x 3.

    Each time this gives `growthRate` channels, which are put behind those that there are. Bottom
    N x C x H x W, top N x (C + numTransition * growthRate) x H x W. Blobs, of each kind one for
    every transition: filters, factors, shifts, running means, running variances; last a number of
    no account. As `DenseBlock_layer.cu`: a batch counts `moving_average_fraction` in the running
    statistics, and its variance there is the unbiased one.
    """

    needs_numbers = ALL_BOTTOMS

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings, shape = self.param.denseblock_param, bottom_shapes[0]
        check_positive(self, _FIELD, ("numTransition", "growthRate"))
        for name in _ONLY_DEFAULT:
            field = settings.DESCRIPTOR.fields_by_name[name]
            if getattr(settings, name) != field.default_value:
                wanted = str(field.default_value).lower()
                raise self.error(f"is not supported; {wanted} would do", f"{_FIELD}.{name}")
        if len(shape) != 4:
            raise self.error(f"the bottom needs 4 axes, it has {len(shape)}", "bottom")
        self.channels, self.growth = shape[1], settings.growthRate
        self.transitions = settings.numTransition
        numbers = [self.channels + i * self.growth for i in range(self.transitions)]
        for number in numbers:
            self.add_parameter((self.growth, number, 3, 3), settings.Filter_Filler)
        for filler in (settings.BN_Scaler_Filler, settings.BN_Bias_Filler):
            for number in numbers:
                self.add_parameter((1, number, 1, 1), filler)
        for value in (0, 1):
            for number in numbers:
                self.add_buffer((1, number, 1, 1), FillerParameter(value=value))
        self.add_buffer((1,), FillerParameter())
        self.fixed_blobs = tuple(range(3 * self.transitions, len(self.blobs)))

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = tuple(bottom_shapes[0])
        if len(shape) != 4 or shape[1] != self.channels:
            what = f"is {shape}; N x {self.channels} x H x W would be right"
            raise self.error(what, "bottom")
        return [(shape[0], shape[1] + self.transitions * self.growth, *shape[2:])]

    def transition(self, index: int) -> list[Tensor]:
        """Filter, factor, shift, running mean and running variance of one."""
        return self.blobs[index : 5 * self.transitions : self.transitions]

    def forward(self, *bottoms: Tensor) -> Tensor:
        (top,) = bottoms
        for index in range(self.transitions):
            filters, factor, shift, *running = self.transition(index)
            normalized = self._normalize(top, factor.flatten(), shift.flatten(), running)
            top = torch.cat([top, F.conv2d(F.relu(normalized), filters, padding=1)], 1)
        return top

    def _normalize(
        self, values: Tensor, factor: Tensor, shift: Tensor, running: Sequence[Tensor]
    ) -> Tensor:
        if not self.training:
            mean, variance = (blob.flatten() for blob in running)
            return F.batch_norm(values, mean, variance, factor, shift, eps=EPS)
        normalized, mean, variance = normalize_batch(values, factor, shift, EPS)
        numbers = values.shape[0] * count(tuple(values.shape[2:]))
        unbiased = variance * (numbers / max(numbers - 1, 1))
        share = self.param.denseblock_param.moving_average_fraction
        for old, new in zip(running, (mean, unbiased), strict=True):
            old.mul_(1 - share).add_(new.view(old.shape), alpha=share)
        return normalized
