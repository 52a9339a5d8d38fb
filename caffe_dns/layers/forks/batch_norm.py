"""BN of PSPNet and SegNet, with a slope and a bias of its own, and darknet's BatchNorm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import ALL_BOTTOMS, Layer, SameShape, Shape, layer_types
from caffe_dns.layers.batch_statistics import normalize_batch
from caffe_dns.proto.caffe_pb2 import BNParameter, FillerParameter
from caffe_dns.proto.fields import refuse_fields

#: What each fork's `bn_param` has.
_PSPNET = ("slope_filler", "bias_filler", "momentum", "eps", "frozen", "engine")
_SEGNET = ("scale_filler", "shift_filler", "bn_mode")
#: What of batch_norm_param BatchNorm alone reads.
_OF_BATCH_NORM = ("scale_filler", "bias_filler", "scale_bias", "filler", "stats_batch_size")
#: What SegNet adds to variances.
_SEGNET_EPS = 1e-9


def is_segnet(settings: BNParameter) -> bool:
    """Whether these are of SegNet's kind, not of PSPNet's."""
    return any(settings.HasField(name) for name in _SEGNET)


@layer_types.register("BN")
class BN(Layer):
    """slope * (x - mean) / sqrt(variance + eps) + bias for each channel, axis 1.

    PSPNet's kind has the blobs slope, bias, running mean and running variance, 1 x C x 1 x 1 each.
    In training it takes the batch's statistics and renews the running ones, unless it is `frozen`;
    in tests the running ones count. SegNet's kind has slope and bias (`scale` and `shift`) alone:
    LEARN takes the batch's statistics in tests, too; INFERENCE leaves them out. A second and a
    third top are the batch's mean and variance, without gradients. Without fields it is PSPNet's.
    """

    needs_numbers = ALL_BOTTOMS

    tops = (1, 3)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.bn_param
        segnet = is_segnet(settings)
        for name in _PSPNET:
            if segnet and settings.HasField(name):
                raise self.error(
                    f"is PSPNet's; of SegNet's kind are {', '.join(_SEGNET)}", f"bn_param.{name}"
                )
        if len(bottom_shapes[0]) < 2:
            raise self.error("the bottom needs at least 2 axes", "bottom")
        self.channels = bottom_shapes[0][1]
        shape = (1, self.channels, 1, 1)
        if segnet:
            self.eps = _SEGNET_EPS
            self.keeps_statistics = self.frozen = False
            self.add_parameter(shape, settings.scale_filler, "weight")
            self.add_parameter(shape, settings.shift_filler, "bias")
        else:
            self.eps, self.frozen = settings.eps, settings.frozen
            self.keeps_statistics = True
            self._add_running(shape, settings)
        self.affine_only = settings.bn_mode == BNParameter.INFERENCE
        if self.num_tops > 1 and (self.keeps_statistics or self.affine_only):
            raise self.error("only SegNet's kind in LEARN mode has more than one top", "top")

    def _add_running(self, shape: Shape, settings: BNParameter) -> None:
        add = self.add_buffer if self.frozen else self.add_parameter
        add(shape, settings.slope_filler, "weight")
        add(shape, settings.bias_filler, "bias")
        self.add_buffer(shape, FillerParameter(), "running_mean")
        variance = FillerParameter(value=1 if self.frozen else 0)
        self.add_buffer(shape, variance, "running_var")
        self.fixed_blobs = (0, 1, 2, 3) if self.frozen else (2, 3)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = tuple(bottom_shapes[0])
        if shape[1] != self.channels:
            raise self.error(
                f"is for {self.channels} channels, the bottom has {shape[1]}", "bottom"
            )
        return [shape, *[(1, self.channels, 1, 1)] * 2][: self.num_tops]

    def forward(self, *bottoms: Tensor) -> Tensor | Sequence[Tensor]:
        (bottom,) = bottoms
        slope, bias, *running = [blob.flatten() for blob in self.blobs]
        if self.affine_only:
            around = (1, -1, *[1] * (bottom.dim() - 2))
            return bottom * slope.view(around) + bias.view(around)
        if running and (self.frozen or not self.training):
            mean, variance = running
            return F.batch_norm(bottom, mean, variance, slope, bias, eps=self.eps)
        top, *statistics = normalize_batch(bottom, slope, bias, self.eps)
        if running:
            momentum = self.param.bn_param.momentum
            for old, new in zip(running, statistics, strict=True):
                old.mul_(momentum).add_(new, alpha=1 - momentum)
        if self.num_tops == 1:
            return top
        return [top, *(values.view(1, -1, 1, 1) for values in statistics)][: self.num_tops]


@layer_types.register("DarknetBatchNorm")
class DarknetBatchNorm(SameShape):
    """A BatchNorm that adds `eps` to the deviation, not to the variance (Synopsys, for darknet).

    (x - mean) / (sqrt(variance) + eps) for each channel, axis 1; blobs and statistics are those of
    BatchNorm.
    """

    needs_numbers = ALL_BOTTOMS

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        if len(bottom_shapes[0]) < 2:
            raise self.error("the bottom needs at least 2 axes", "bottom")
        settings = self.param.batch_norm_param
        refuse_fields(settings, "batch_norm_param", {"BatchNorm": _OF_BATCH_NORM})
        if settings.eps < 0:
            what = f"is {settings.eps:g}; at least 0 would be right"
            raise self.error(what, "batch_norm_param.eps")
        self.channels = bottom_shapes[0][1]
        for shape, name in ((self.channels, "mean"), (self.channels, "variance"), (1, "batches")):
            self.add_buffer((shape,), FillerParameter(), name)
        self.fixed_blobs = (0, 1, 2)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        if bottom_shapes[0][1] != self.channels:
            raise self.error(
                f"the statistics are of {self.channels} channels, the bottom has "
                f"{bottom_shapes[0][1]}",
                "bottom",
            )
        return super().reshape(bottom_shapes)

    def forward(self, *bottoms: Tensor) -> Tensor:
        (bottom,) = bottoms
        settings = self.param.batch_norm_param
        own = not self.training
        if settings.HasField("use_global_stats"):
            own = settings.use_global_stats
        mean_sum, variance_sum, batches = self.blobs
        around = (1, -1, *[1] * (bottom.dim() - 2))
        if own:
            scale = torch.where(batches == 0, 0, 1 / batches)
            mean, variance = mean_sum * scale, variance_sum * scale
        else:
            axes = [0, *range(2, bottom.dim())]
            variance, mean = torch.var_mean(bottom, axes, correction=0)
            self._update(mean.detach(), variance.detach(), bottom.numel() // self.channels)
        return (bottom - mean.view(around)) / (variance.sqrt() + settings.eps).view(around)

    def _update(self, mean: Tensor, variance: Tensor, number: int) -> None:
        mean_sum, variance_sum, batches = self.blobs
        fraction = self.param.batch_norm_param.moving_average_fraction
        unbiased = variance * (number / (number - 1) if number > 1 else 1)
        for old, new in ((mean_sum, mean), (variance_sum, unbiased), (batches, 1)):
            old.mul_(fraction).add_(new)
