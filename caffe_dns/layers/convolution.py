"""Convolution, Deconvolution and CConvolution over one, two or three spatial axes.

Restates `base_conv_layer.cpp`, `conv_layer.cpp`, `deconv_layer.cpp` and, for CConvolution,
yiwenguo's `compress_conv_layer.cpp`. The arithmetic is torch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import lt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import ALL_BOTTOMS, Shape, add_bias, check_shape, count, layer_types
from caffe_dns.layers.half_precision import HalfGradients
from caffe_dns.layers.masked import DeviationMasks, MagnitudeMasks, WeightedLayer
from caffe_dns.layers.pointwise import Pointwise
from caffe_dns.layers.products import Convolved, FewChannels, Produced
from caffe_dns.layers.spatial import MOST, missing, sides, spatial_setting
from caffe_dns.layers.strided import ALIGNMENT, StridedConvolution
from caffe_dns.layers.weight_gradients import LARGE
from caffe_dns.proto.caffe_pb2 import CConvolutionParameter, ConvolutionParameter
from caffe_dns.proto.fields import refuse_fields

#: Multiply-accumulates per pass above which channels-last is faster (measured on two cores).
LARGE_CONVOLUTION = 10_000_000

#: The most channels of bottom and top for which our own kernel computes the weight's gradient.
FEW_CHANNELS = 64

#: Types for which convolutions of few channels are transformed: Tensor Cores need many.
MATRIX_DEVICES = ("cuda",)

#: Layer types of forks, whose own fields `proto/upgrade_forks` converts to Caffe's.
_OF_THEIR_OWN = {
    "Convolution3D and Deconvolution3D": (
        "kernel_depth",
        "temporal_stride",
        "temporal_pad",
        "filter_group",
    ),
    "NdConvolution": ("kernel_shape", "stride_shape", "pad_shape"),
    "Convolution": ("hole",),
}

_CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_DECONVOLVE: dict[int, Any] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


class BaseConvolution(WeightedLayer):
    """Settings and shapes of convolutions. Every bottom is convolved with the same weight."""

    needs_numbers = ALL_BOTTOMS

    bottoms = (1, None)
    tops = (1, None)
    equal_bottoms_and_tops = True

    #: The smallest padding of a side.
    least_pad = 0

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.convolution_param
        refuse_fields(settings, "convolution_param", _OF_THEIR_OWN)
        shape = bottom_shapes[0]
        self.channel_axis = self.axis(settings.axis, len(shape), "convolution_param.axis")
        self.output_axis = self.channel_axis
        self.num_spatial_axes = len(shape) - self.channel_axis - 1
        if self.num_spatial_axes > 3:
            raise self.error(
                f"{self.num_spatial_axes} spatial axes; at most 3 are supported",
                "convolution_param.axis",
            )
        axes = self.num_spatial_axes
        self.kernel = spatial_setting(self, axes, "kernel_size", ("kernel_h", "kernel_w"))
        self.stride = spatial_setting(self, axes, "stride", ("stride_h", "stride_w"), default=1)
        self.pad, self.beyond = self._paddings()
        self.dilation = spatial_setting(
            self, axes, "dilation", ("dilation_h", "dilation_w"), default=1
        )
        if axes == 0:  # torch has no convolution without a spatial axis; forward adds one
            self.stride, self.pad, self.dilation = (1,), (0,), (1,)
        self._least = [self.reach(i) - sum(self.padding(i)) for i in range(axes)]
        self.num_output, self.group = self.outputs_and_groups(shape[self.channel_axis])
        self._check_channels(shape[self.channel_axis])
        self.channels = shape[self.channel_axis]
        self.add_weights(self.weight_shape(), (self.num_output,), settings)
        self.products = self._count_products(shape)
        self.channels_last = self._pays_channels_last(shape)
        if self.channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.strided = self._as_strided()
        self.convolved = self._as_convolved(shape)

    def _paddings(self) -> tuple[Sequence[int], Sequence[int]]:
        """The symmetric padding of each axis, and the rest in the form of `F.pad`.

        Two axes may have a separate padding for each side (Synopsys).
        """
        axes = self.num_spatial_axes
        pad = spatial_setting(self, axes, "pad", ("pad_h", "pad_w"), default=0, least=0)
        left, right, top, bottom = given = sides(self, "convolution_param", self.least_pad)
        if not any(given):
            return pad, [0] * 2 * axes
        if axes != 2:
            raise self.error("is for 2 spatial axes only", "convolution_param.pad_l")
        pad = max(min(top, bottom), 0), max(min(left, right), 0)
        return pad, [side - pad[axis] for axis, side in zip((1, 1, 0, 0), given, strict=True)]

    def padding(self, spatial_axis: int) -> tuple[int, int]:
        """The padding before and after a spatial axis."""
        last_first = 2 * (self.num_spatial_axes - 1 - spatial_axis)
        before, behind = self.beyond[last_first : last_first + 2]
        return self.pad[spatial_axis] + before, self.pad[spatial_axis] + behind

    def missing(self, spatial: Sequence[int]) -> list[int]:
        """How many zeros are added after each axis of a padded bottom so that the kernel fits."""
        return [
            missing(extent + sum(self.padding(i)), self.reach(i), self.stride[i])
            for i, extent in enumerate(spatial)
        ]

    def outreaches(self, bottom: Tensor) -> bool:
        """Whether the kernel exceeds the padded bottom, N x C x spatial axes."""
        return any(map(lt, bottom.shape[2:], self._least))

    def reach(self, spatial_axis: int) -> int:
        """How many entries of a spatial axis the dilated kernel spans."""
        return self.dilation[spatial_axis] * (self.kernel[spatial_axis] - 1) + 1

    def outputs_and_groups(self, channels: int) -> tuple[int, int]:
        """How many channels the top has, and in how many groups."""
        settings = self.param.convolution_param
        return settings.num_output, settings.group

    def weight_shape(self) -> Shape:
        return (self.num_output, self.channels // self.group, *self.kernel)

    def output_extent(self, extent: int, spatial_axis: int) -> int:
        """The output size along a spatial axis for an input size."""
        reach, stride = self.reach(spatial_axis), self.stride[spatial_axis]
        padded = extent + sum(self.padding(spatial_axis))
        return (padded + missing(padded, reach, stride) - reach) // stride + 1

    def convolve(self, bottom: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        function = _CONVOLVE[max(self.num_spatial_axes, 1)]
        result: Tensor = function(
            bottom, weight, bias, self.stride, self.pad, self.dilation, self.group
        )
        return result

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        first = bottom_shapes[0]
        if any(tuple(shape) != tuple(first) for shape in bottom_shapes):
            raise self.error("all bottom blobs must have the same shape")
        if first[self.channel_axis] != self.channels:
            raise self.error(f"the weight is for {self.channels} channels, not {first}")
        spatial = first[self.channel_axis + 1 :]
        outputs = tuple(self.output_extent(extent, i) for i, extent in enumerate(spatial))
        if any(extent <= 0 for extent in outputs):
            raise self.error(
                f"the kernel {self.kernel} is larger than the padded input {tuple(spatial)}",
                "convolution_param.kernel_size",
            )
        padded = (extent + sum(self.padding(i)) for i, extent in enumerate(spatial))
        check_shape((*first[: self.channel_axis + 1], *padded), "the padded bottom")
        top = (*first[: self.channel_axis], self.num_output, *outputs)
        return [top] * len(bottom_shapes)

    def forward(self, *bottoms: Tensor) -> list[Tensor]:
        weight, bias = self.effective(self.context.activations)
        return [self.apply_to(bottom, weight, bias) for bottom in bottoms]

    def apply_to(self, bottom: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # All axes before the channels are batch axes; torch needs exactly one, and a spatial axis.
        leading = bottom.shape[: self.channel_axis]
        if self.strided is None:
            bottom = bottom.to(weight.dtype)
        if self.channel_axis != 1:
            bottom = bottom.reshape(-1, *bottom.shape[self.channel_axis :])
        if self.num_spatial_axes == 0:
            bottom, weight = bottom.unsqueeze(-1), weight.unsqueeze(-1)
        bottom = self.pad_bottom(bottom)
        if self.strided is not None:
            top = self.strided.convolve(bottom, weight)
        else:
            if self.channels_last:
                bottom = bottom.contiguous(memory_format=torch.channels_last)
            apart = self.apply_apart(self.convolved, bottom, weight, bias)
            if apart is not None:
                return apart
            own = self.convolved is not None and self.convolved.has_own_gradients(bottom)
            if self.channels_last and not own:
                return self.convolve(bottom, weight, bias)
            if own:
                top = Produced.apply(bottom, weight, self.convolved)
            else:
                top = self.convolve(bottom, weight, None)
        if bias is not None:
            # After the sum over the window, as in Caffe; a fused call would round differently.
            top.add_(bias.view(-1, *[1] * (top.dim() - 2)))
        if self.num_spatial_axes == 0:
            top = top.squeeze(-1)
        return top if self.channel_axis == 1 else top.reshape(*leading, *top.shape[1:])

    def pad_bottom(self, bottom: Tensor) -> Tensor:
        """The bottom with the padding beyond `pad`."""
        beyond = list(self.beyond)
        if self.outreaches(bottom):
            for i, more in enumerate(self.missing(bottom.shape[2:])):
                beyond[-1 - 2 * i] += more
        return F.pad(bottom, beyond) if any(beyond) else bottom

    def _pays_channels_last(self, bottom_shape: Shape) -> bool:
        """Whether to use channels-last memory.

        On a CPU, oneDNN then takes two thirds of the time for a large convolution; for small ones
        it is no faster. On a GPU, Tensor Cores need it. fp32 does not use them; there it makes
        depthwise convolutions five times as fast, and speeds up the layers after them.
        """
        if self.num_spatial_axes != 2 or self.channel_axis != 1:
            return False
        exact = self.context.activations is None and not torch.backends.cudnn.allow_tf32
        if self.context.device.type != "cpu" and exact and not self._is_by_channels():
            return False
        return bottom_shape[0] * self.products >= LARGE_CONVOLUTION

    def _count_products(self, bottom_shape: Shape) -> int:
        """The number of multiply-accumulates for an image."""
        spatial = bottom_shape[self.channel_axis + 1 :]
        outputs = count(tuple(self.output_extent(extent, i) for i, extent in enumerate(spatial)))
        leading = count(tuple(bottom_shape[1 : self.channel_axis]))
        return leading * outputs * count(self.weight_shape())

    def _as_convolved(self, bottom_shape: Shape) -> Convolved | None:
        """The layer as a plain convolution, if it is one."""
        if self.num_spatial_axes == 0 or self.channel_axis != 1 or any(self.beyond):
            return None
        kind = FewChannels if self._has_few_channels(bottom_shape) else Convolved
        if kind is Convolved and self._is_of_pixels():
            kind = Pointwise
        elif kind is Convolved and self._is_for_matrix_units():
            kind = HalfGradients
        return kind(self.stride, self.pad, self.dilation, self.group)

    def _has_few_channels(self, bottom_shape: Shape) -> bool:
        """Whether it has few and odd channels on a GPU, and does not fill it."""
        channels = (self.channels, self.num_output)
        plain = self.group == 1 and {*self.dilation, *self.stride} == {1}
        odd = any(number % ALIGNMENT for number in channels) and max(channels) <= FEW_CHANNELS
        small = bottom_shape[0] * self.products < LARGE
        fits = self.context.device.type in MATRIX_DEVICES
        return fits and self.num_spatial_axes == 2 and plain and odd and small

    def _is_by_channels(self) -> bool:
        """Whether it is a depthwise convolution."""
        return 1 < self.group == self.channels

    def _is_of_pixels(self) -> bool:
        """Whether it is a 1x1 convolution on a GPU that does not use Tensor Cores.

        With them, cuDNN is as fast as matrix products.
        """
        plain = self.group == 1 and {*self.kernel, *self.stride} == {1} and not any(self.pad)
        other = self.context.device.type in MATRIX_DEVICES and not self.channels_last
        return plain and other and self.num_spatial_axes == 2

    def _is_for_matrix_units(self) -> bool:
        """Whether it convolves channels-last images in float32 on a GPU."""
        single = self.context.activations is None and self.num_spatial_axes == 2
        return single and self.channels_last and self.context.device.type in MATRIX_DEVICES

    def _as_strided(self) -> StridedConvolution | None:
        """How to compute a strided convolution on Tensor Cores, if that is worth it."""
        if not self.channels_last or self.context.device.type not in MATRIX_DEVICES:
            return None
        (height, width), stride = self.kernel, self.stride[0]
        pad_h, pad_w = self.pad
        strided = StridedConvolution(self.channels, (height, width), stride, (pad_h, pad_w))
        plain = self.group == 1 and set(self.dilation) == {1} and self.stride[1] == stride
        return strided if plain and strided.pays else None

    def _check_channels(self, channels: int) -> None:
        if self.num_output < 1:
            raise self.error("must be given and positive", "convolution_param.num_output")
        for what, number in (("bottom's channels", channels), ("num_output", self.num_output)):
            if self.group < 1 or number % self.group:
                raise self.error(
                    f"group {self.group} does not divide the {what} ({number})",
                    "convolution_param.group",
                )


@layer_types.register("Convolution")
class Convolution(DeviationMasks, BaseConvolution):
    """Convolution with a weight mask unless `sparsity_term: false`."""

    def mask_settings(self) -> ConvolutionParameter:
        return self.param.convolution_param


@layer_types.register("Deconvolution")
class Deconvolution(DeviationMasks, BaseConvolution):
    """Transposed convolution. It is pruned only on request: `sparsity_term: true`."""

    least_pad = -MOST

    def mask_settings(self) -> ConvolutionParameter:
        return self.param.convolution_param

    def wants_mask(self) -> bool:
        settings = self.param.convolution_param
        return settings.HasField("sparsity_term") and settings.sparsity_term

    @property
    def input_axis(self) -> int | None:  # type: ignore[override]
        return 0 if self.group == 1 else None

    def weight_shape(self) -> Shape:
        return (self.channels, self.num_output // self.group, *self.kernel)

    def output_extent(self, extent: int, spatial_axis: int) -> int:
        whole = self.stride[spatial_axis] * (extent - 1) + self.reach(spatial_axis)
        return whole - sum(self.padding(spatial_axis))

    def missing(self, spatial: Sequence[int]) -> list[int]:
        """A deconvolution pads nothing."""
        return [0] * len(spatial)

    def convolve(self, bottom: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        function = _DECONVOLVE[max(self.num_spatial_axes, 1)]
        uneven = any(self.beyond)
        result: Tensor = function(
            bottom,
            weight,
            None if uneven else bias,
            self.stride,
            self.pad,
            0,
            self.group,
            self.dilation,
        )
        if not uneven:
            return result
        result = F.pad(result, [-side for side in self.beyond])
        return result if bias is None else add_bias(result, bias)

    def pad_bottom(self, bottom: Tensor) -> Tensor:
        return bottom

    def _is_by_channels(self) -> bool:
        """None, for the purpose of choosing a memory format."""
        return False

    def _as_strided(self) -> None:
        """None: its stride has another meaning."""

    def _as_convolved(self, bottom_shape: Shape) -> None:
        """It is not."""


@layer_types.register("CConvolution")
class CConvolution(MagnitudeMasks, BaseConvolution):
    """Convolution with masks by magnitude on weight and bias (official surgery)."""

    def mask_settings(self) -> CConvolutionParameter:
        return self.param.cconvolution_param
