"""Builds the layers of a net from its definition, and connects them.

`build` goes over the layers of a definition once, in the file's order (`Net::Init`, net.cpp). How
names are connected is in `wiring`, who owns parameters in `params`; nothing here runs a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.layers import layer_types
from caffe_dns.layers.base import Context, Layer, Shape, count, shape_text
from caffe_dns.net.params import ParamTable
from caffe_dns.net.wiring import (
    Step,
    Wiring,
    find_backward,
    find_last_uses,
    find_overwritten_losses,
)
from caffe_dns.proto.caffe_pb2 import LayerParameter, NetParameter

BYTES_PER_VALUE = 4


@dataclass(frozen=True)
class Graph:
    """The layers of a net in execution order, and what is known before they run."""

    steps: list[Step]
    table: ParamTable
    #: The shape of every blob for the definition's batch size.
    blob_shapes: dict[str, Shape]
    #: The nonzero loss weights by blob.
    loss_weights: dict[str, float]
    #: The names of the blobs that no layer reads.
    outputs: list[str]
    #: Losses that are logged but not minimised.
    overwritten_losses: set[str]
    #: For each step the blobs that are not needed after it.
    last_uses: list[list[str]]


def build(param: NetParameter, context: Context) -> Graph:
    """Create, connect and set up all layers of a definition that is filtered and split.

    Writes Caffe's log lines. Layers' parameters in `param` are completed (phase, loss weights), as
    Caffe's models show them. Raises CaffeError, with the layer, for errors.
    """
    wiring, table = Wiring(), ParamTable()
    steps: list[Step] = []
    memory = 0
    for layer_param in param.layer:
        if not layer_param.HasField("phase"):
            layer_param.phase = param.state.phase
        step = Step(_create(layer_param, context))
        try:
            memory += BYTES_PER_VALUE * _connect(step, wiring)
        except CaffeError as error:
            raise _with_open_shapes(error, step, steps) from None
        log.info(f"Memory required for data: {memory}")
        step.param_backward = table.append(step.layer)
        step.needs_backward |= any(step.param_backward)
        wiring.mark_tops(step)
        steps.append(step)
    find_backward(steps)
    if param.force_backward:
        for step in steps:
            _force_backward(step)
    loss_weights = {
        blob: weight
        for step in steps
        for blob, weight in zip(step.tops, step.loss_weights, strict=True)
        if weight
    }
    for blob in wiring.outputs:
        log.info(f"This network produces output {blob}")
    return Graph(
        steps,
        table,
        wiring.shapes,
        loss_weights,
        wiring.outputs,
        find_overwritten_losses(steps),
        find_last_uses(steps, {*wiring.outputs, *loss_weights}),
    )


def _create(param: LayerParameter, context: Context) -> Layer:
    log.info(f"Creating layer {param.name}")
    try:
        layer = layer_types[param.type](param, context)
    except CaffeError as error:
        raise error.locate(layer=param.name) from None
    log.info(f"Creating Layer {param.name}")
    return layer


def _connect(step: Step, wiring: Wiring) -> int:
    """Connect a layer with those before it and set it up; returns the size of its tops."""
    layer = step.layer
    wiring.append_bottoms(step)
    wiring.append_tops(step)
    shapes = layer.setup([wiring.shapes[blob] for blob in step.bottoms])
    step.loss_weights = _loss_weights(layer, len(step.tops))
    if layer.is_loss and not layer.param.loss_weight:
        layer.param.loss_weight.extend(step.loss_weights)  # models show it
    log.info(f"Setting up {layer.name}")
    for blob, shape, weight in zip(step.tops, shapes, step.loss_weights, strict=True):
        wiring.shapes[blob] = tuple(shape)
        log.info(f"Top shape: {shape_text(shape)}")
        if weight:
            log.info(f"    with loss weight {log.number(weight)}")
    return sum(count(shape) for shape in shapes)


def _with_open_shapes(error: CaffeError, step: Step, before: Sequence[Step]) -> CaffeError:
    """The error of a layer, which also says which bottom is an input without a shape.

    In Caffe, the caller of the net may set the shape later, but layers fail before.
    """
    inputs: dict[str, str] = {}
    for source in before:
        if source.layer.is_input and not source.layer.param.input_param.shape:
            inputs.update((top, top) for top in source.tops)
        elif source.layer.type == "Split" and source.bottoms[0] in inputs:
            inputs.update(dict.fromkeys(source.tops, inputs[source.bottoms[0]]))
    blob = next((inputs[bottom] for bottom in step.bottoms if bottom in inputs), None)
    if blob is not None:
        error.message += (
            f" (input '{blob}' has no shape: give it one by input_param "
            "{ shape { dim: 1 dim: 3 dim: 227 dim: 227 } }, or --shape 3,227,227)"
        )
    return error


def _loss_weights(layer: Layer, num_tops: int) -> list[float]:
    """The weight of each top in the loss (`Layer::SetLossWeights`, `LossLayer::LayerSetUp`)."""
    given = list(layer.param.loss_weight)
    if given and len(given) != num_tops:
        raise layer.error(
            f"given {len(given)} time(s) for {num_tops} top(s); "
            "once per top, or not at all, would be right",
            "loss_weight",
        )
    if given:
        return given
    return [1.0 if layer.is_loss and index == 0 else 0.0 for index in range(num_tops)]


def _force_backward(step: Step) -> None:
    step.needs_backward = True
    step.param_backward = [True] * len(step.param_backward)
    step.bottom_backward = [
        wanted or index not in step.layer.no_force_backward
        for index, wanted in enumerate(step.bottom_backward)
    ]
