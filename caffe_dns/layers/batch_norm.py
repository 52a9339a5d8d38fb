"""BatchNorm: normalises by the statistics of the batch or by the stored ones.

It has no learnable scale or shift; Caffe leaves that to a Scale layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.kernels.postponed import Postponed, Sampling
from caffe_dns.layers.base import ALL_BOTTOMS, SameShape, Shape, add_bias, layer_types
from caffe_dns.layers.batch_statistics import normalize_batch
from caffe_dns.layers.pixels import is_innermost
from caffe_dns.mask_rules import stand_in
from caffe_dns.proto.caffe_pb2 import FillerParameter

if TYPE_CHECKING:
    from caffe_dns.kernels.batch_norm import Normalization
    from caffe_dns.kernels.channel_statistics import Statistics, Sums
    from caffe_dns.layers.pooling import Pooling

#: Smaller eps are raised to it, as cuDNN asks.
_LEAST_NVCAFFE_EPS = 1e-5


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
        """Take the statistics of a torch.nn.BatchNorm as well: averages of one batch."""
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
        """Whether the blobs' statistics count, not the batch's: in TEST unless the file says so."""
        settings = self.param.batch_norm_param
        if settings.HasField("use_global_stats"):
            return settings.use_global_stats
        return not self.training

    def forward(self, *bottoms: Tensor) -> Tensor:
        return self.normalize(bottoms[0])

    def normalize(
        self,
        values: Tensor,
        factor: Tensor | None = None,
        shift: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        relu: bool = False,
        sums: Sums | None = None,
        postponed: Postponed | None = None,
    ) -> Tensor:
        """The top, and with it what stands around the layer, each given for the channels.

        `bias` is added before; after it come a factor, a shift and a ReLU. The mean takes a bias
        away again, so in training its gradient is 0. `sums` are those of the values, if the layer
        `wants_sums` and they are there. With `postponed`, the kernel leaves the values as they are
        to who adds them to others.
        """
        bottom = values if values.dim() > 1 else values.unsqueeze(1)
        if self.scale_bias:
            factor, shift = self._with_own(factor, shift)
        if self.images and not self.use_global_stats:
            parts = bottom.split(self.images)
            top = torch.cat([self._normalize(part, factor, shift, bias, relu) for part in parts])
        else:
            top = self._normalize(bottom, factor, shift, bias, relu, sums, postponed)
        return top.view_as(values)

    def normalize_and_add(
        self,
        values: Tensor,
        addend: Tensor,
        factor: Tensor | None = None,
        shift: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        sums: Sums | None = None,
        postponed: Postponed | None = None,
        sampling: Sampling | None = None,
        copies: int,
    ) -> Sequence[Tensor]:
        """relu(what `normalize` gives + addend), so many times: each has a gradient of its own.

        What has been `postponed` of the addend is done as well. With a `sampling`, the kernel makes
        no other pixels.
        """
        left = postponed.take() if postponed is not None else None
        if self._suits_kernel(values) and not self.images and addend.dtype == values.dtype:
            factor, shift = _both(factor, shift)
            own = (values, addend, factor, shift, bias, self._statistics(), self.eps, copies, sums)
            return _sum(*own, left, sampling=sampling)
        if left is not None:
            addend = stand_in(addend, left.top())
        top = torch.relu(self.normalize(values, factor, shift, bias=bias, sums=sums) + addend)
        return [top.view_as(top) for _ in range(copies)]

    def normalize_and_pool(
        self,
        values: Tensor,
        pooling: Pooling,
        factor: Tensor | None = None,
        shift: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        relu: bool,
        sums: Sums | None = None,
    ) -> Tensor:
        """The maxima of what `normalize` gives, of images."""
        image = values.shape[2], values.shape[3]
        window = pooling.window(image)
        if self.wants_sums and kernels.suit(values) and is_innermost(values):
            from caffe_dns.kernels.normalized_pool import NormalizedMaxPool, fits

            if fits(values, window.output_size(image), window.kernel, window.stride, window.pad):
                factor, shift = _both(factor, shift)
                top: Tensor = NormalizedMaxPool.apply(
                    values, factor, shift, bias, self._statistics(), self.eps, relu, sums,
                    window.output_size(image), (*window.kernel, *window.stride, *window.pad),
                )  # fmt: skip
                return top
        top = self.normalize(values, factor, shift, bias=bias, relu=relu, sums=sums)
        return pooling.pool_biased(top, None, relu=False)

    def normalize_convolved(
        self,
        values: Tensor,
        weight: Tensor,
        stride: int,
        left: Normalization,
        factor: Tensor | None = None,
        shift: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        relu: bool,
        postponed: Postponed,
    ) -> Tensor:
        """What `normalize` gives of a convolution of each channel by itself, by a kernel.

        Convolved is what becomes of the values by the normalisation that is `left`.
        """
        from caffe_dns.kernels.normalized import NormalizedConvolution

        factor, shift = _both(factor, shift)
        top: Tensor = NormalizedConvolution.apply(
            values, weight, factor, shift, bias, self._statistics(), self.eps, relu, stride, left,
            postponed,
        )  # fmt: skip
        return top

    def _normalize(
        self,
        bottom: Tensor,
        factor: Tensor | None,
        shift: Tensor | None,
        bias: Tensor | None,
        relu: bool,
        sums: Sums | None = None,
        postponed: Postponed | None = None,
    ) -> Tensor:
        """The top for images that share statistics."""
        if self._suits_kernel(bottom):
            return self._normalize_in_kernel(bottom, factor, shift, bias, relu, sums, postponed)
        if bias is not None:
            bottom = add_bias(bottom, bias)
        top = self._normalize_in_torch(bottom, factor, shift)
        return top.relu_() if relu else top

    def _with_own(
        self, factor: Tensor | None, shift: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The layer's own scale and bias, and after them a factor and a shift."""
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

    def _normalize_in_kernel(
        self,
        bottom: Tensor,
        factor: Tensor | None,
        shift: Tensor | None,
        bias: Tensor | None,
        relu: bool,
        sums: Sums | None,
        postponed: Postponed | None,
    ) -> Tensor:
        from caffe_dns.kernels.normalized import NormalizedBatch

        factor, shift = _both(factor, shift)
        top: Tensor = NormalizedBatch.apply(
            bottom, factor, shift, bias, self._statistics(), self.eps, relu, sums, postponed
        )
        return top

    @property
    def wants_sums(self) -> bool:
        """Whether it can do with sums of its bottom, all of whose images share statistics."""
        return not (self.use_global_stats or self.scale_bias or self.images)

    def _suits_kernel(self, bottom: Tensor) -> bool:
        """Whether our kernel normalises this: N x C x any, by the statistics of a batch."""
        own = self.use_global_stats or self.scale_bias
        return not own and bottom.dim() > 1 and kernels.suit(bottom)

    def _statistics(self) -> Statistics:
        """What a kernel takes a batch into."""
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
        """Take in a batch with `elements` numbers to each channel."""
        mean_sum, variance_sum, batches = self.blobs[:3]
        unbias = elements / (elements - 1) if elements > 1 else 1.0
        if self.scale_bias:
            # The first batch counts whole.
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


def _both(factor: Tensor | None, shift: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """A shift, too, where there is a factor."""
    return factor, torch.zeros_like(factor) if factor is not None and shift is None else shift


def _sum(values: Tensor, *given: Any, sampling: Sampling | None) -> Sequence[Tensor]:
    """A normalised sum by a kernel, which makes but a sample where it can and is to."""
    from caffe_dns.kernels import sampled_sum
    from caffe_dns.kernels.normalized import NormalizedSum

    tops: Sequence[Tensor]
    if sampling is not None and sampled_sum.fits(values):
        sampling.is_done = True
        tops = sampled_sum.SampledSum.apply(values, *given, sampling.stride)
    else:
        tops = NormalizedSum.apply(values, *given)
    return tops
