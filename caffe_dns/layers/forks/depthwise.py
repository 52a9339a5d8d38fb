"""Depthwise convolutions under the names that MobileNets use."""

from __future__ import annotations

from caffe_dns.layers.base import layer_types
from caffe_dns.layers.convolution import Convolution


@layer_types.register("DepthwiseConvolution")
class DepthwiseConvolution(Convolution):
    """A Convolution with a group for each channel, and a weight mask as that one (yonghenglh6).

    Blobs: weight C x 1 x kernel, bias C, and the mask.
    """

    def outputs_and_groups(self, channels: int) -> tuple[int, int]:
        num_output, group = super().outputs_and_groups(channels)
        if (num_output, group) != (channels, channels):
            # There the GPU takes the weight as that of a group for each channel all the same.
            raise self.error(
                f"the bottom has {channels} channels: num_output and group have to be as many, "
                f"not {num_output} and {group}",
                "convolution_param.group",
            )
        return num_output, group


@layer_types.register("ConvolutionDepthwise")
class ConvolutionDepthwise(Convolution):
    """The same under farmingyard's name; num_output and group count for nothing."""

    def outputs_and_groups(self, channels: int) -> tuple[int, int]:
        return channels, channels
