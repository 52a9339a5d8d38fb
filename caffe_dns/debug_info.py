"""`debug_info: true`: mean absolute values of every blob and gradient of one pass, in Caffe's
lines.

Restates `Net::ForwardDebugInfo`, `Net::BackwardDebugInfo` and the end of `Net::Backward` (net.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from caffe_dns import log
from caffe_dns.layers.base import Layer
from caffe_dns.net import Net


class DebugInfo:
    """Watches the next forward and backward pass of a net."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self._bottoms: dict[int, Sequence[Tensor]] = {}
        self._tops: dict[int, Sequence[Tensor]] = {}
        self._hooks = [
            step.layer.register_forward_hook(self._watch)
            for step in net.steps
            if step.layer.type != "Input"
        ]

    def forward(self, blobs: Mapping[str, Tensor]) -> None:
        """Log the values of all tops and parameters, and stop watching."""
        for hook in self._hooks:
            hook.remove()
        for step in self.net.steps:
            tops = self._tops.get(id(step.layer), [blobs[name] for name in step.tops])
            for name, top in zip(step.tops, tops, strict=True):
                self._line("Forward", step.layer, f"top blob {name} data", top)
            for index, blob in enumerate(step.layer.blobs):
                name = self._display_name(step.layer, index)
                self._line("Forward", step.layer, f"param blob {name} data", blob)

    def backward(self) -> None:
        """Log the gradients of all bottoms and parameters, and the norms of all parameters."""
        for step in reversed(self.net.steps):
            if not step.needs_backward:
                continue
            bottoms = self._bottoms.get(id(step.layer), [])
            for name, bottom, wanted in zip(
                step.bottoms, bottoms, step.bottom_backward, strict=True
            ):
                if wanted and bottom.grad is not None:
                    self._line("Backward", step.layer, f"bottom blob {name} diff", bottom.grad)
            for index, blob in enumerate(step.layer.blobs):
                if blob.requires_grad and blob.grad is not None:
                    self._line("Backward", step.layer, f"param blob {index} diff", blob.grad)
        self._norms()

    def _watch(self, layer: nn.Module, bottoms: tuple[Tensor, ...], tops: Any) -> Any:
        if isinstance(tops, Tensor):
            tops = (tops,)
        # A tensor that several layers read needs an identity for each reader's own gradient.
        tops = tuple(top.view_as(top) for top in tops)
        for tensor in (*bottoms, *tops):
            if tensor.requires_grad and not tensor.is_leaf:
                tensor.retain_grad()
        self._bottoms[id(layer)] = bottoms
        self._tops[id(layer)] = tops
        return tops

    def _display_name(self, layer: Layer, index: int) -> str:
        specs = layer.param.param
        return (specs[index].name if index < len(specs) else "") or str(index)

    def _line(self, direction: str, layer: Layer, what: str, values: Tensor) -> None:
        mean = float(values.detach().abs().mean()) if values.numel() else 0.0
        log.info(f"    [{direction}] Layer {layer.name}, {what}: {log.number(mean)}")

    def _norms(self) -> None:
        tensors = [param.tensor.detach() for param in self.net.learnable_params]
        gradients = [
            torch.zeros_like(param.tensor) if param.tensor.grad is None else param.tensor.grad
            for param in self.net.learnable_params
        ]
        l1 = [sum(float(t.abs().sum()) for t in group) for group in (tensors, gradients)]
        l2 = [sum(float(t.square().sum()) for t in group) ** 0.5 for group in (tensors, gradients)]
        log.error(
            "    [Backward] All net params (data, diff): "
            f"L1 norm = ({log.number(l1[0])}, {log.number(l1[1])}); "
            f"L2 norm = ({log.number(l2[0])}, {log.number(l2[1])})"
        )
