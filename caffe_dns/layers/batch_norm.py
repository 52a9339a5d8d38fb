"""BatchNorm: normalises by the statistics of the batch or by the stored ones.

It has no learnable scale or shift; Caffe leaves that to a Scale layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.kernels.postponed import Postponed, Sampling
from caffe_dns.layers.base import ALL_BOTTOMS, SameShape, Shape, add_bias, layer_types
from caffe_dns.layers.batch_statistics import normalize_batch
from caffe_dns.layers.pointwise import is_channels_last
from caffe_dns.mask_rules import stand_in
from caffe_dns.proto.caffe_pb2 import FillerParameter

if TYPE_CHECKING:
    from caffe_dns.kernels.batch_norm import Normalization
    from caffe_dns.kernels.channel_statistics import Statistics, Sums
    from caffe_dns.layers.pooling import Pooling

#: Smaller eps are raised to this, as cuDNN requires.
_LEAST_NVCAFFE_EPS = 1e-5


@dataclass(frozen=True)
class Fused:
    """What is computed in one pass with a BatchNorm; tensors have one number for each channel.

    `bias` is added to the bottom. The mean removes it again, so in training its gradient is 0.
    `factor`, `shift` and the ReLU follow the normalisation. `sums` are those of the bottom, if the
    layer `wants_sums` and they have been computed. With `postponed`, the kernel leaves the
    normalisation to the layer that reads the top.
    """

    bias: Tensor | None = None
    factor: Tensor | None = None
    shift: Tensor | None = None
    relu: bool = False
    sums: Sums | None = None
    postponed: Postponed | None = None

    @property
    def affine(self) -> tuple[Tensor | None, Tensor | None]:
        """Factor and shift: both or none."""
        if self.factor is not None and self.shift is None:
            return self.factor, torch.zeros_like(self.factor)
        return self.factor, self.shift


#: A BatchNorm by itself.
ALONE = Fused()


@layer_types.register("BatchNorm")
class BatchNorm(SameShape):
    """Zero mean and unit variance for each channel, axis 1 (`batch_norm_layer.cpp`).

    Blobs: the decayed sums of batch means and of unbiased batch variances, C numbers each, and the
    decayed number of batches, one number. A bottom with one axis is a single channel.

    With NVCaffe's `scale_bias` there are a scale and a bias as well, C numbers each, and the first
    two are moving averages; the number of batches is 1.
    """

    needs_numbers = ALL_BOTTOMS

    keeps_type = True

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.batch_norm_param
        self.fraction, self.eps = settings.moving_average_fraction, settings.eps
        #: How many images share the statistics of a batch; 0 for all (Intel Caffe).
        self.images = settings.stats_batch_size
        if not bottom_shapes[0]:
            raise self.error("the bottom needs at least 1 axis", "bottom")
        if self.eps < 0:
            raise self.error(f"is {self.eps:g}; at least 0 would be right", "batch_norm_param.eps")
        self.channels = _channels(bottom_shapes[0])
        for name in ("mean", "variance"):
            self.add_buffer((self.channels,), FillerParameter(), name)
        fillers = settings.HasField("scale_filler") or settings.HasField("bias_filler")
        self.scale_bias = settings.scale_bias or fillers
        filler = FillerParameter(value=1 if self.scale_bias else 0)
        self.add_buffer((1,), filler, "scale_factor")
        self.fixed_blobs = (0, 1, 2)
        if self.scale_bias:
            self._add_scale_and_bias()
        if settings.HasField("filler") and settings.filler != FillerParameter(value=1):
            raise self.error(
                "{ value: 1 } would be right where no Scale layer reads the top",
                "batch_norm_param.filler",
            )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Also load the statistics of a torch.nn.BatchNorm, as averages with a count of 1."""
        if f"{prefix}running_mean" in state_dict:
            state_dict.pop(f"{prefix}num_batches_tracked", None)
            state_dict[f"{prefix}scale_factor"] = torch.ones(1)
            for theirs, ours in (("running_mean", "mean"), ("running_var", "variance")):
                if f"{prefix}{theirs}" in state_dict:
                    state_dict[f"{prefix}{ours}"] = state_dict.pop(f"{prefix}{theirs}")
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _add_scale_and_bias(self) -> None:
        settings = self.param.batch_norm_param
        self.eps = max(self.eps, _LEAST_NVCAFFE_EPS)
        for field, value, name in (("scale_filler", 1, "weight"), ("bias_filler", 0, "bias")):
            given = settings.HasField(field)
            filler = getattr(settings, field) if given else FillerParameter(value=value)
            self.add_parameter((self.channels,), filler, name)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        channels = _channels(bottom_shapes[0])
        if channels != self.channels:
            raise self.error(
                f"the statistics are of {self.channels} channels, the bottom has {channels}",
                "bottom",
            )
        if self.images and not self.use_global_stats and bottom_shapes[0][0] % self.images:
            raise self.error(
                f"is {self.images}; a divisor of the batch size, {bottom_shapes[0][0]}, would be "
                "right",
                "batch_norm_param.stats_batch_size",
            )
        return super().reshape(bottom_shapes)

    @property
    def use_global_stats(self) -> bool:
        """Whether to use the stored statistics: by default in TEST."""
        settings = self.param.batch_norm_param
        if settings.HasField("use_global_stats"):
            return settings.use_global_stats
        return not self.training

    def forward(self, *bottoms: Tensor) -> Tensor:
        return self.normalize(bottoms[0])

    def normalize(self, values: Tensor, fused: Fused = ALONE) -> Tensor:
        """The top, together with what is fused."""
        bottom = values if values.dim() > 1 else values.unsqueeze(1)
        if self.scale_bias:
            factor, shift = self._with_own(fused.factor, fused.shift)
            fused = replace(fused, factor=factor, shift=shift)
        if self.images and not self.use_global_stats:
            single = replace(fused, sums=None, postponed=None)
            parts = bottom.split(self.images)
            top = torch.cat([self._normalize(part, single) for part in parts])
        else:
            top = self._normalize(bottom, fused)
        return top.view_as(values)

    def normalize_and_add(
        self,
        values: Tensor,
        addend: Tensor,
        fused: Fused,
        *,
        postponed: Postponed | None = None,
        sampling: Sampling | None = None,
        copies: int,
    ) -> Sequence[Tensor]:
        """relu(what `normalize` gives + addend), `copies` times: each has a gradient of its own.

        Also does what has been `postponed` of the addend. With a `sampling`, the kernel computes no
        other pixels.
        """
        left = postponed.take() if postponed is not None else None
        if self._suits_kernel(values) and not self.images and addend.dtype == values.dtype:
            statistics = self._statistics(), self.eps
            own = (values, addend, *fused.affine, fused.bias, *statistics, copies, fused.sums)
            return _sum(*own, left, sampling=sampling)
        if left is not None:
            addend = stand_in(addend, left.top())
        top = torch.relu(self.normalize(values, fused) + addend)
        return [top.view_as(top) for _ in range(copies)]

    def normalize_and_pool(self, values: Tensor, pooling: Pooling, fused: Fused) -> Tensor:
        """The maxima of what `normalize` gives, for images."""
        image = values.shape[2], values.shape[3]
        window = pooling.window(image)
        if self.wants_sums and kernels.suit(values) and is_channels_last(values):
            from caffe_dns.kernels.normalized_pool import NormalizedMaxPool, fits

            if fits(values, window.output_size(image), window.kernel, window.stride, window.pad):
                top: Tensor = NormalizedMaxPool.apply(
                    values, *fused.affine, fused.bias, self._statistics(), self.eps, fused.relu,
                    fused.sums, window.output_size(image),
                    (*window.kernel, *window.stride, *window.pad),
                )  # fmt: skip
                return top
        return pooling.pool_biased(self.normalize(values, fused), None, relu=False)

    def normalize_convolved(
        self,
        values: Tensor,
        weight: Tensor,
        stride: int,
        left: Normalization,
        fused: Fused,
        postponed: Postponed,
    ) -> Tensor:
        """What `normalize` gives for a depthwise convolution, by a kernel.

        The convolution's bottom is the values after the normalisation that is `left` to be done,
        which was `postponed`.
        """
        from caffe_dns.kernels.normalized import NormalizedConvolution

        top: Tensor = NormalizedConvolution.apply(
            values, weight, *fused.affine, fused.bias, self._statistics(), self.eps, fused.relu,
            stride, left, postponed,
        )  # fmt: skip
        return top

    def _normalize(self, bottom: Tensor, fused: Fused) -> Tensor:
        """The top for images that share statistics."""
        if self._suits_kernel(bottom):
            from caffe_dns.kernels.normalized import NormalizedBatch

            kernel_top: Tensor = NormalizedBatch.apply(
                bottom, *fused.affine, fused.bias, self._statistics(), self.eps, fused.relu,
                fused.sums, fused.postponed,
            )  # fmt: skip
            return kernel_top
        if fused.bias is not None:
            bottom = add_bias(bottom, fused.bias)
        top = self._normalize_in_torch(bottom, fused.factor, fused.shift)
        return top.relu_() if fused.relu else top

    def _with_own(
        self, factor: Tensor | None, shift: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The layer's own scale and bias, combined with a factor and a shift after them."""
        own_scale, own_bias = self.blobs[3:]
        if factor is None:
            return own_scale, own_bias
        bias = own_bias * factor
        return own_scale * factor, bias if shift is None else bias + shift

    def _normalize_in_torch(
        self, bottom: Tensor, factor: Tensor | None, shift: Tensor | None
    ) -> Tensor:
        if self.use_global_stats:
            return F.batch_norm(bottom, *self.global_stats(), factor, shift, eps=self.eps)
        top, mean, variance = normalize_batch(bottom, factor, shift, self.eps)
        # Also in TEST, when the definition says `use_global_stats: false`, as Caffe does.
        self._update(mean, variance, bottom.numel() // self.channels)
        return top

    @property
    def wants_sums(self) -> bool:
        """Whether it can use precomputed sums of its bottom, whose images must share statistics."""
        return not (self.use_global_stats or self.scale_bias or self.images)

    def _suits_kernel(self, bottom: Tensor) -> bool:
        """Whether our kernel can normalise this: N x C x any, by the batch's statistics."""
        own = self.use_global_stats or self.scale_bias
        return not own and bottom.dim() > 1 and kernels.suit(bottom)

    def _statistics(self) -> Statistics:
        """The stored statistics, which a kernel updates with a batch."""
        from caffe_dns.kernels.channel_statistics import Statistics

        mean_sum, variance_sum, batches = self.blobs[:3]
        return Statistics(mean_sum, variance_sum, batches, self.fraction)

    def global_stats(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel; zeros before the first training batch."""
        mean_sum, variance_sum, batches = self.blobs[:3]
        scale = torch.where(batches == 0, 0, 1 / batches)
        return mean_sum * scale, variance_sum * scale

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor, elements: int) -> None:
        """Update the stored statistics with a batch of `elements` values per channel."""
        mean_sum, variance_sum, batches = self.blobs[:3]
        unbias = elements / (elements - 1) if elements > 1 else 1.0
        if self.scale_bias:
            # The first batch is taken as it is.
            share = torch.where(variance_sum.any(), 1 - self.fraction, 1.0)
            for average, new in ((mean_sum, mean), (variance_sum, variance * unbias)):
                average.add_((new - average) * share)
            return
        torch._foreach_mul_([mean_sum, variance_sum, batches], self.fraction)
        mean_sum.add_(mean)
        variance_sum.add_(variance, alpha=unbias)
        batches.add_(1)


def _channels(shape: Shape) -> int:
    return shape[1] if len(shape) > 1 else 1


def _sum(values: Tensor, *given: Any, sampling: Sampling | None) -> Sequence[Tensor]:
    """A normalised sum by a kernel; only a sample of it if that is wanted and possible."""
    from caffe_dns.kernels import sampled_sum
    from caffe_dns.kernels.normalized import NormalizedSum

    tops: Sequence[Tensor]
    if sampling is not None and sampled_sum.fits(values):
        sampling.is_done = True
        tops = sampled_sum.SampledSum.apply(values, *given, sampling.stride)
    else:
        tops = NormalizedSum.apply(values, *given)
    return tops
