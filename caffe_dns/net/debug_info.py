"""`debug_info: true`: mean absolute values of every blob and gradient of one pass, in Caffe's
lines.

Restates `Net::ForwardDebugInfo`, `Net::BackwardDebugInfo` and the end of `Net::Backward` (net.cpp).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.layers.base import Layer
from caffe_dns.net.net import Net
from caffe_dns.net.wiring import Step


class DebugInfo:
    """A context in which a net's forward passes are logged, layer by layer."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self._bottoms: dict[int, list[Tensor]] = {}
        #: How many layers have each parameter. Those of several, and how each layer sees them, by
        #: the layer and the place among its blobs, in the net's order.
        self._users = Counter(id(blob) for step in net.steps for blob in step.layer.parameters())
        self._views: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        #: The parameters that the current layer has views of.
        self._replaced: list[tuple[Layer, int, Tensor]] = []

    def __enter__(self) -> DebugInfo:
        self.net.observer = self
        return self

    def __exit__(self, *error: object) -> None:
        self.net.observer = None
        self._restore()

    def before(self, step: Step, bottoms: list[Tensor]) -> list[Tensor]:
        """Give the layer separate bottoms, so that their gradients are those that it computes."""
        if not torch.is_grad_enabled():
            return bottoms
        watched = [
            _watchable(bottom) if wanted else bottom
            for bottom, wanted in zip(bottoms, step.bottom_backward, strict=True)
        ]
        self._bottoms[id(step)] = watched
        for index, parameter in self._shared_parameters(step):
            # A separate view, so that its gradient is this layer's part.
            view = parameter.view_as(parameter)
            view.retain_grad()
            self._views[id(step), index] = parameter, view
            step.layer.see_parameter_as(index, view)
            self._replaced.append((step.layer, index, parameter))
        return watched

    def after(self, step: Step, tops: Sequence[Tensor]) -> None:
        """Log the values of a layer's tops and parameters."""
        names = list(step.layer.param.top)
        names += ["(automatic)"] * (len(tops) - len(names))
        for name, top in zip(names, tops, strict=True):
            _line("Forward", step.layer, f"top blob {name} data", top)
        for index, blob in enumerate(step.layer.blobs):
            name = _display_name(step.layer, index)
            _line("Forward", step.layer, f"param blob {name} data", blob)
        self._restore()

    def backward(self) -> None:
        """Log the gradients of all bottoms and parameters, and the norms of all parameters.

        A gradient that several layers add to is logged after each of them.
        """
        gradients = self._gradients_by_layer()
        for step in reversed(self.net.steps):
            if not step.needs_backward:
                continue
            bottoms = self._bottoms.get(id(step), [])
            for name, bottom, wanted in zip(
                step.bottoms, bottoms, step.bottom_backward, strict=True
            ):
                if wanted:
                    _line("Backward", step.layer, f"bottom blob {name} diff", bottom.grad)
            for index, wanted in enumerate(step.param_backward):
                if wanted:
                    total = self.net.table.owner(step.layer, index).tensor.grad
                    gradient = gradients.get((id(step), index), total)
                    _line("Backward", step.layer, f"param blob {index} diff", gradient)
        self._norms()

    def _restore(self) -> None:
        """Replace the layers' views by their parameters again."""
        for layer, index, parameter in self._replaced:
            layer.see_parameter_as(index, parameter)
        self._replaced.clear()

    def _shared_parameters(self, step: Step) -> list[tuple[int, Tensor]]:
        """The parameters that a layer shares with others, by their index among its blobs."""
        owners = [
            self.net.table.owner(step.layer, index).tensor for index in range(len(step.layer.blobs))
        ]
        return [
            (index, owner)
            for index, owner in enumerate(owners)
            if self._users[id(owner)] > 1 and owner.requires_grad
        ]

    def _gradients_by_layer(self) -> dict[tuple[int, int], Tensor]:
        """The gradient of each shared parameter after backward has passed each layer."""
        found: dict[tuple[int, int], Tensor] = {}
        left: dict[int, Tensor] = {}
        # The layer that backward reaches last comes first.
        for place, (parameter, view) in self._views.items():
            total = left.get(id(parameter), parameter.grad)
            if total is not None:
                found[place] = total
                left[id(parameter)] = total if view.grad is None else total - view.grad
        return found

    def _norms(self) -> None:
        tensors = [param.tensor.detach() for param in self.net.learnable_params]
        gradients = [
            param.tensor.grad
            for param in self.net.learnable_params
            if param.tensor.grad is not None
        ]
        l1 = [sum(float(t.abs().sum()) for t in group) for group in (tensors, gradients)]
        l2 = [sum(float(t.square().sum()) for t in group) ** 0.5 for group in (tensors, gradients)]
        log.error(
            "    [Backward] All net params (data, diff): "
            f"L1 norm = ({log.number(l1[0])}, {log.number(l1[1])}); "
            f"L2 norm = ({log.number(l2[0])}, {log.number(l2[1])})"
        )


def _watchable(bottom: Tensor) -> Tensor:
    """The same values in a tensor that keeps its gradient."""
    if not bottom.requires_grad:
        return bottom.detach().requires_grad_()
    own = bottom.view_as(bottom)
    own.retain_grad()
    return own


def _display_name(layer: Layer, index: int) -> str:
    specs = layer.param.param
    return (specs[index].name if index < len(specs) else "") or str(index)


def _line(direction: str, layer: Layer, what: str, values: Tensor | None) -> None:
    """One line; missing values count as zeros."""
    mean = 0.0 if values is None or not values.numel() else float(values.detach().abs().mean())
    log.info(f"    [{direction}] Layer {layer.name}, {what}: {log.number(mean)}")
