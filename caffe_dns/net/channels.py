"""Which outputs of layers with weights reach which inputs of others, through the layers between."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from caffe_dns.layers.arithmetic import Bias, Scale
from caffe_dns.layers.base import Layer, Shape
from caffe_dns.layers.convolution import BaseConvolution
from caffe_dns.layers.inner_product import BaseInnerProduct
from caffe_dns.layers.masked import WeightedLayer
from caffe_dns.layers.shape import Concat, Flatten
from caffe_dns.net.net import Net
from caffe_dns.net.wiring import Step

#: Elementwise layer types.
ENTRYWISE = (
    "AbsVal",
    "BNLL",
    "Clip",
    "Dropout",
    "ELU",
    "Eltwise",
    "Exp",
    "Insanity",
    "Log",
    "Mish",
    "Power",
    "ReLU",
    "ReLU6",
    "SeLu",
    "SeLuDropout",
    "Sigmoid",
    "Split",
    "Swish",
    "TanH",
    "Threshold",
)
#: Types that treat each channel, along the second axis, separately.
SECOND_AXIS = ("BatchNorm", "PReLU", "Pooling")


@dataclass
class ChannelFlow:
    """Where the outputs of some layers with weights go; outputs are numbered over all layers.

    `outputs` gives the numbers of each layer's outputs. `inputs` gives, for each layer and each of
    its inputs, the numbers of the outputs that reach it, inputs x the most of them; `nobody` stands
    for what no such layer made. `held` are the layers with an output that goes elsewhere, or
    through a layer that may mix channels.
    """

    outputs: dict[Layer, range]
    nobody: int
    inputs: dict[Layer, Tensor] = field(default_factory=dict)
    held: set[Layer] = field(default_factory=set)
    #: The outputs that reach the channels of the layers in between, as in `inputs`.
    between: dict[Layer, Tensor] = field(default_factory=dict)

    def added(self) -> Tensor:
        """For each output, the first of those that sums add to it; `nobody` for itself."""
        firsts = list(range(self.nobody + 1))

        def find(number: int) -> int:
            while firsts[number] != number:
                firsts[number] = number = firsts[firsts[number]]
            return number

        for channels in self.between.values():
            for numbers in channels.tolist():
                same = {find(number) for number in numbers}
                for first in same:
                    firsts[first] = min(same)
        return torch.tensor([find(number) for number in firsts])

    def hold(self, blobs: Iterable[Tensor | None]) -> None:
        """Hold the layers that make these channels."""
        for numbers in blobs:
            found = set() if numbers is None else set(numbers.unique().tolist())
            self.held |= {layer for layer, own in self.outputs.items() if found & set(own)}


def trace(net: Net, layers: Sequence[WeightedLayer]) -> ChannelFlow:
    """Follow the outputs of these layers, along the second axis, through the net.

    A layer with several bottoms or groups, or with a shared weight, is held, and so are those that
    it reads.
    """
    ends = list(accumulate((layer.num_output for layer in layers), initial=0))
    outputs: dict[Layer, range] = {
        layer: range(first, end) for layer, first, end in zip(layers, ends, ends[1:], strict=False)
    }
    flow = ChannelFlow(outputs, ends[-1])
    weighted = [step.layer for step in net.steps if isinstance(step.layer, WeightedLayer)]
    users = Counter(layer.blobs[0].data_ptr() for layer in weighted)
    unshared = {layer for layer in weighted if users[layer.blobs[0].data_ptr()] == 1}
    blobs: dict[str, Tensor] = {}
    for step in net.steps:
        # Each blob has one reader.
        arriving = [blobs.pop(name, None) for name in step.bottoms]
        layer = step.layer
        if layer in outputs and layer in unshared and _is_simple(step):
            shape = net.blob_shapes[step.bottoms[0]]
            (numbers,) = arriving
            flow.inputs[layer] = _spread(
                _known(numbers, shape, flow), _inputs_per_channel(step, shape)
            )
            blobs[step.tops[0]] = torch.tensor(outputs[layer]).view(-1, 1)
            continue
        passed = _passed(step, arriving, net.blob_shapes, flow)
        if isinstance(layer, WeightedLayer) and layer in outputs:
            flow.held.add(layer)
            inputs = layer.blobs[0].shape[layer.input_axis or 0]
            flow.inputs[layer] = torch.full((inputs, 1), flow.nobody)
        if passed is None:
            flow.hold(arriving)
        else:
            flow.between[layer] = passed
            blobs.update((top, passed) for top in step.tops)
    flow.hold(blobs.values())
    return flow


def _is_simple(step: Step) -> bool:
    """Whether a layer has one bottom whose channels it treats separately."""
    layer = step.layer
    if len(step.bottoms) != 1:
        return False
    if isinstance(layer, BaseConvolution):
        return layer.group == 1 and layer.channel_axis == 1
    return isinstance(layer, BaseInnerProduct) and layer.first_axis == 1


def _inputs_per_channel(step: Step, shape: Shape) -> int:
    """How many inputs of a layer read one channel of its bottom."""
    return math.prod(shape[2:]) if isinstance(step.layer, BaseInnerProduct) else 1


def _passed(
    step: Step, arriving: Sequence[Tensor | None], shapes: Mapping[str, Shape], flow: ChannelFlow
) -> Tensor | None:
    """The outputs that reach the channels of a layer's tops; None if unknown or if none do."""
    if all(numbers is None for numbers in arriving):
        return None
    layer, of_bottoms = step.layer, [shapes[name] for name in step.bottoms]
    blobs = [_known(*pair, flow) for pair in zip(arriving, of_bottoms, strict=True)]
    if layer.type in ENTRYWISE:
        # A sum is kept as long as one of its terms is.
        return None if any(a is None for a in arriving) else torch.cat(blobs, 1)
    if len(step.tops) != 1:
        return None
    if isinstance(layer, Concat) and layer.own_axis(len(of_bottoms[0])) == 1:
        most = max(numbers.shape[1] for numbers in blobs)
        return torch.cat([_widened(numbers, most) for numbers in blobs])
    if len(blobs) > 1:
        return None
    if isinstance(layer, Scale | Bias) and layer.blobs[0].dim() == 1:
        settings = layer.param.scale_param if isinstance(layer, Scale) else layer.param.bias_param
        return blobs[0] if settings.axis == 1 else None
    if isinstance(layer, Flatten):
        settings = layer.param.flatten_param
        whole = settings.axis == 1 and settings.end_axis in (-1, len(of_bottoms[0]) - 1)
        return _spread(blobs[0], math.prod(of_bottoms[0][2:])) if whole else None
    return blobs[0] if layer.type in SECOND_AXIS else None


def _known(numbers: Tensor | None, shape: Shape, flow: ChannelFlow) -> Tensor:
    """The numbers of a blob's channels; `nobody` where no layer made them."""
    if numbers is not None:
        return numbers
    return torch.full((shape[1] if len(shape) > 1 else 1, 1), flow.nobody)


def _spread(numbers: Tensor, places: int) -> Tensor:
    """The numbers of channels for each of so many places of a channel."""
    return numbers.repeat_interleave(places, 0)


def _widened(numbers: Tensor, most: int) -> Tensor:
    """Widen to this many numbers per channel by repeating one, which changes nothing."""
    return torch.cat([numbers, numbers[:, :1].expand(-1, most - numbers.shape[1])], 1)
