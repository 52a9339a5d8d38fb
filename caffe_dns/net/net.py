"""Net: builds the layers of a definition, runs them in order, and owns their parameters.

Autograd does backward. Reading weights is in `weights`, training in `solver`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.layers import layer_types
from caffe_dns.layers.base import Context, Layer, Shape, count, shape_text
from caffe_dns.net.definition import filter_layers, insert_splits
from caffe_dns.net.fusion import find_masked, find_rows
from caffe_dns.net.params import Param, ParamTable
from caffe_dns.net.wiring import (
    Step,
    Wiring,
    find_backward,
    find_last_uses,
    find_overwritten_losses,
)
from caffe_dns.proto.caffe_pb2 import LayerParameter, NetParameter, Phase
from caffe_dns.proto.positions import Positions
from caffe_dns.proto.text import to_text

BYTES_PER_VALUE = 4


class PassObserver(Protocol):
    """Whoever looks at every layer during forward passes."""

    def before(self, step: Step, bottoms: list[Tensor]) -> list[Tensor]:
        """Called with a layer's bottoms; returns what the layer is to take for them."""
        ...

    def after(self, step: Step, tops: Sequence[Tensor]) -> None:
        """Called with a layer's tops."""
        ...


class Net(nn.Module):
    """A network in the phase that `param.state` gives.

    `file` and `positions` (from `proto.text`) put the place into error messages. Raises
    CaffeError for whatever the definition has wrong.
    """

    def __init__(
        self,
        param: NetParameter,
        context: Context | None = None,
        *,
        file: str | None = None,
        positions: Positions | None = None,
    ) -> None:
        super().__init__()
        self.context = context or Context()
        self.phase = param.state.phase
        self.observer: PassObserver | None = None
        kept: list[int] = []
        try:
            filtered, kept = filter_layers(param)
            if not kept:
                raise CaffeError(_no_layers(param))
            log.info(f"Initializing net from parameters: \n{to_text(filtered)}")
            self.param = insert_splits(filtered)
            self._build()
        except CaffeError as error:
            line = None
            # An error about another file, a database say, has no place in this one.
            if positions is not None and error.layer is not None and error.file in (None, file):
                line = _find_line(param, kept, error.layer, positions)
            raise error.locate(file=file, line=line) from None

    # Building -----------------------------------------------------------------------------------

    def _build(self) -> None:
        self.name = self.param.name
        self.steps: list[Step] = []
        self.table = ParamTable()
        self.loss_weights: dict[str, float] = {}
        self._memory = 0
        wiring = Wiring()
        for layer_param in self.param.layer:
            self._append_layer(layer_param, wiring)
        find_backward(self.steps)
        if self.param.force_backward:
            for step in self.steps:
                _force_backward(step)
        self._overwritten_losses = find_overwritten_losses(self.steps)
        device = self.context.device
        self._rows = {inner: find_rows(self.steps, device, inner) for inner in (False, True)}
        self._masked = find_masked(self.steps, self.context)
        self.outputs = wiring.outputs
        self._last_uses = find_last_uses(self.steps, {*self.outputs, *self.loss_weights})
        for blob in self.outputs:
            log.info(f"This network produces output {blob}")
        self.blob_shapes = wiring.shapes
        self.layers = nn.ModuleList(step.layer for step in self.steps)
        self._freeze()
        log.info("Network initialization done.")

    def _append_layer(self, param: LayerParameter, wiring: Wiring) -> None:
        if not param.HasField("phase"):
            param.phase = self.phase
        log.info(f"Creating layer {param.name}")
        try:
            layer = layer_types[param.type](param, self.context)
        except CaffeError as error:
            raise error.locate(layer=param.name, field=None) from None
        log.info(f"Creating Layer {param.name}")
        step = Step(layer)
        wiring.append_bottoms(step)
        wiring.append_tops(step)
        shapes = layer.setup([wiring.shapes[blob] for blob in step.bottoms])
        step.loss_weights = _loss_weights(layer, len(step.tops))
        if layer.is_loss and not param.loss_weight:
            param.loss_weight.extend(step.loss_weights)  # models show it
        log.info(f"Setting up {param.name}")
        for blob, shape, weight in zip(step.tops, shapes, step.loss_weights, strict=True):
            wiring.shapes[blob] = tuple(shape)
            log.info(f"Top shape: {shape_text(shape)}")
            if weight:
                log.info(f"    with loss weight {log.number(weight)}")
                self.loss_weights[blob] = weight
            self._memory += count(shape) * BYTES_PER_VALUE
        log.info(f"Memory required for data: {self._memory}")
        step.param_backward = self.table.append(layer)
        step.needs_backward |= any(step.param_backward)
        wiring.mark_tops(step)
        self.steps.append(step)

    def _freeze(self) -> None:
        """Parameters that never learn get no gradient, unless the definition forces backward."""
        for param in self.table.owned:
            tensor = param.tensor
            if isinstance(tensor, nn.Parameter):
                tensor.requires_grad_(param.lr_mult != 0 or self.param.force_backward)

    # Looking ------------------------------------------------------------------------------------

    @property
    def inputs(self) -> list[str]:
        """The tops of the Input layers, in the definition's order."""
        return [top for step in self.steps if step.layer.type == "Input" for top in step.tops]

    @property
    def params(self) -> dict[str, list[Tensor]]:
        """Caffe's blobs in Caffe's order by layer name, for layers that have any."""
        return {step.layer.name: step.layer.blobs for step in self.steps if step.layer.blobs}

    @property
    def learnable_params(self) -> list[Param]:
        """The blobs that own themselves, masks and running statistics included."""
        return self.table.owned

    def layer(self, name: str) -> Layer | None:
        """The first layer of this name."""
        return next((step.layer for step in self.steps if step.layer.name == name), None)

    # Running ------------------------------------------------------------------------------------

    def forward(self, inputs: Mapping[str, Tensor | np.ndarray] | None = None) -> dict[str, Tensor]:
        """Run all layers; returns every blob by name (after in-place layers, their result).

        `inputs` gives the tops of the Input layers. Raises CaffeError when one is missing or
        unknown.
        """
        return self.compute({**self._take_inputs(inputs or {}), **self.read_sources()})

    def read_sources(self) -> dict[str, Tensor]:
        """The next batch of every layer that brings data into the net, by blob."""
        blobs: dict[str, Tensor] = {}
        for step in self.steps:
            if step.layer.is_source:
                self._run_step(step, blobs)
        return blobs

    def compute(self, given: Mapping[str, Tensor], *, inner: bool = True) -> dict[str, Tensor]:
        """Run all layers but those whose tops are given: Input layers and sources.

        Without `inner`, blobs that are neither outputs nor losses are given up as soon as no layer
        wants them any more.
        """
        with self._masked.applied(again=not inner) if self._masked else nullcontext():
            return self._compute(dict(given), inner)

    def _compute(self, blobs: dict[str, Tensor], inner: bool) -> dict[str, Tensor]:
        # An observer wants to see every layer's top.
        rows = {} if self.observer is not None else self._rows[inner]
        steps = zip(self.steps, self._last_uses, strict=True)
        for step, last_uses in steps:
            no_longer_read = list(last_uses)
            row = rows.get(step.layer)
            if row is not None:
                for _ in row.steps[1:]:
                    no_longer_read += next(steps)[1]
                blobs[row.steps[-1].tops[0]] = row.run(*(blobs[blob] for blob in step.bottoms))
            elif not step.layer.is_source and step.layer.type != "Input":
                self._run_step(step, blobs)
            if self.observer is not None:
                self.observer.after(step, [blobs[blob] for blob in step.tops])
            if not inner:
                for blob in no_longer_read:
                    blobs.pop(blob, None)
        if self.context.counts_passes:
            self.context.passes += 1
        return blobs

    def reshape(self, inputs: Mapping[str, Shape]) -> None:
        """Fit `blob_shapes` to inputs of these shapes (`Net::Reshape`).

        `forward` does it by itself. Raises CaffeError when a layer cannot take its new bottoms.
        """
        shapes = dict(inputs)
        for step in self.steps:
            if step.layer.type == "Input":
                continue
            try:
                tops = step.layer.reshape([shapes[blob] for blob in step.bottoms])
            except CaffeError as error:
                raise error.locate(layer=step.layer.name) from None
            shapes.update(zip(step.tops, tops, strict=True))
        self.blob_shapes = shapes

    def _run_step(self, step: Step, blobs: dict[str, Tensor]) -> None:
        bottoms = self._gather(step, blobs)
        if self.observer is not None:
            bottoms = self.observer.before(step, bottoms)
        activations = self.context.activations
        if activations is not None and not step.layer.keeps_type:
            bottoms = [b.float() if b.dtype == activations else b for b in bottoms]
        tops = step.layer(*bottoms)
        if isinstance(tops, Tensor):
            tops = (tops,)
        blobs.update(zip(step.tops, tops, strict=True))

    def loss(self, blobs: Mapping[str, Tensor]) -> Tensor:
        """The sum of all elements of the tops with a loss weight, each times its weight."""
        total: Tensor | None = None
        for blob, weight in self.loss_weights.items():
            top = blobs[blob]
            if blob in self._overwritten_losses:
                top = top.detach()
            term = top if top.dim() == 0 else top.sum()
            if weight != 1:
                term = term * weight
            total = term if total is None else total + term
        return torch.zeros((), device=self.context.device) if total is None else total

    def close(self) -> None:
        """Stop the layers' threads and finish their files."""
        with ExitStack() as stack:  # which goes on to the next layer when one of them fails
            for step in self.steps:
                close = getattr(step.layer, "close", None)
                if close is not None:
                    stack.callback(close)

    def _gather(self, step: Step, blobs: Mapping[str, Tensor]) -> list[Tensor]:
        if not step.layer.param.propagate_down:
            return [blobs[blob] for blob in step.bottoms]
        return [
            blobs[blob] if wanted else blobs[blob].detach()
            for blob, wanted in zip(step.bottoms, step.layer.param.propagate_down, strict=True)
        ]

    def _take_inputs(self, inputs: Mapping[str, Tensor | np.ndarray]) -> dict[str, Tensor]:
        expected = self.inputs
        unknown = sorted(set(inputs) - set(expected))
        missing = [blob for blob in expected if blob not in inputs]
        if unknown or missing:
            what = f"unknown input {unknown[0]!r}" if unknown else f"missing input {missing[0]!r}"
            raise CaffeError(f"{what}; the inputs of this net are {', '.join(expected) or 'none'}")
        blobs = {blob: self._to_blob(value) for blob, value in inputs.items()}
        shapes = {blob: tuple(value.shape) for blob, value in blobs.items()}
        if any(shape != self.blob_shapes[blob] for blob, shape in shapes.items()):
            self.reshape(shapes)
        return blobs

    def _to_blob(self, value: Tensor | np.ndarray) -> Tensor:
        """`value` on the net's device, in the number format of its parameters."""
        tensor = torch.as_tensor(value, device=self.context.device)
        parameter = next(self.parameters(), None)
        if parameter is not None:
            return tensor.to(parameter.dtype)
        return tensor if tensor.is_floating_point() else tensor.to(torch.float32)


def _force_backward(step: Step) -> None:
    step.needs_backward = True
    step.param_backward = [True] * len(step.param_backward)
    step.bottom_backward = [
        wanted or index not in step.layer.no_force_backward
        for index, wanted in enumerate(step.bottom_backward)
    ]


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


def _no_layers(param: NetParameter) -> str:
    if not param.layer:
        return "is not a net definition: it has no layers"
    return f"no layer is left for the phase {Phase.Name(param.state.phase)} and its stages"


def _find_line(
    param: NetParameter, kept: list[int], layer: str, positions: Positions
) -> int | None:
    """The line of the layer of this name, the one for this phase if there are several."""
    named = [i for i, candidate in enumerate(param.layer) if candidate.name == layer]
    index = next((i for i in named if i in kept), named[0] if named else None)
    return None if index is None else positions.layer_line(index)
