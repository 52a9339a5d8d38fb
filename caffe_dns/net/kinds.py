"""The kinds of layers that matter for fusion."""

from __future__ import annotations

from caffe_dns.layers.arithmetic import Scale
from caffe_dns.layers.batch_norm import BatchNorm
from caffe_dns.layers.masked import WeightedLayer
from caffe_dns.layers.neuron import ReLU
from caffe_dns.layers.pooling import Pooling
from caffe_dns.layers.shape import Concat
from caffe_dns.net.wiring import Step


def is_plain(step: Step, bottoms: int = 1) -> bool:
    return (
        (len(step.bottoms), len(step.tops)) == (bottoms, 1)
        and not step.layer.param.propagate_down
        and not any(step.loss_weights)
    )


def works_in_place(step: Step, before: Step) -> bool:
    return before.tops == step.bottoms == step.tops


def is_weighted(step: Step) -> bool:
    """Whether it has a weight, and its bias is for axis 1, that of the channels."""
    return isinstance(step.layer, WeightedLayer) and step.layer.output_axis == 1


def has_bias(step: Step) -> bool:
    return isinstance(step.layer, WeightedLayer) and step.layer.bias_term


def is_affine(batch_norm: Step, step: Step) -> bool:
    """Whether it is a Scale with a factor for each channel that the BatchNorm has."""
    scale, normalized = step.layer, batch_norm.layer
    return (
        isinstance(scale, Scale)
        and isinstance(normalized, BatchNorm)
        and scale.param.scale_param.axis == 1
        and all(blob.dim() == 1 and len(blob) == normalized.channels for blob in scale.blobs)
    )


def is_relu(step: Step) -> bool:
    return isinstance(step.layer, ReLU) and step.layer.negative_slope == 0


def joins_channels(step: Step) -> bool:
    """Whether it is a Concat along axis 1, that of the channels, however many axes there are."""
    if not isinstance(step.layer, Concat) or not is_plain(step, bottoms=len(step.bottoms)):
        return False
    settings = step.layer.param.concat_param
    return (settings.concat_dim if settings.HasField("concat_dim") else settings.axis) == 1


def is_max_pool(before: Step, step: Step) -> bool:
    """Whether it takes the maxima of what the step before has made."""
    return isinstance(step.layer, Pooling) and step.layer.is_max and step.bottoms == before.tops
