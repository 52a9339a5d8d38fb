"""Runs a net over blobs that programs read and write between any two layers.

Each layer is run separately, on leaves that share the blobs' memory, so that forward and backward
can start and end anywhere and use the current content of the blobs (`Net::ForwardFromTo`,
`Net::BackwardFromTo` in net.cpp). Passes that others run on the whole net are followed by hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from caffe_dns.blob import Blob, ParamBlob
from caffe_dns.layers.base import Shape
from caffe_dns.layers.dummy_data import DummyData
from caffe_dns.net import Net
from caffe_dns.net.fusion import plan_fusion
from caffe_dns.net.wiring import Step

#: Called with the number of the layer that is about to run, or has run.
LayerCallback = Callable[[int], object]


@dataclass
class Callbacks:
    """The callbacks for each layer in every pass (`Net::Callback`)."""

    before_forward: list[LayerCallback] = field(default_factory=list)
    after_forward: list[LayerCallback] = field(default_factory=list)
    before_backward: list[LayerCallback] = field(default_factory=list)
    after_backward: list[LayerCallback] = field(default_factory=list)


@dataclass
class _Record:
    """The graph of one layer's forward pass."""

    bottoms: list[Tensor]
    tops: list[Tensor]


class Execution:
    """A net with its blobs by name and the blobs of its layers, layer by layer."""

    def __init__(self, net: Net, blobs: dict[str, Blob], layer_blobs: list[Sequence[Blob]]) -> None:
        self.net = net
        self.blobs = blobs
        self.layer_blobs = layer_blobs
        self.callbacks = Callbacks()
        self._records: dict[int, _Record] = {}
        #: What in-place layers have overwritten in the last forward pass, if that was one of ours,
        #: by number and blob.
        self._overwritten: dict[tuple[int, str], Tensor] = {}
        self._shapes: dict[int, list[Shape]] = {}
        for step in net.steps:
            if isinstance(step.layer, DummyData):
                # Caffe fills constant tops once; what a program writes there is kept.
                for name, top in zip(step.tops, step.layer.forward(), strict=True):
                    blobs[name].hold(top)
            elif step.layer.type == "Split":
                self._store(step, [])

    # Passes -------------------------------------------------------------------------------------

    def forward(self, start: int, end: int) -> Tensor:
        """Run layers number `start` to `end`, both included; returns their loss (0-dim).

        A top contributes its data times its diff, which is its loss weight until a program writes
        there.
        """
        self.bring_writes()
        loss = torch.zeros((), device=self.net.context.device)
        for index in range(start, end + 1):
            step = self.net.steps[index]
            _tell(self.callbacks.before_forward, index)
            if not step.layer.is_input:
                self._records[index] = record = self._run(index, step)
                self._store(step, record.tops)
                loss += self._loss_of(step)
            _tell(self.callbacks.after_forward, index)
        if self.net.context.counts_passes:
            self.net.context.passes += 1
        return loss

    def _loss_of(self, step: Step) -> Tensor | float:
        tops = [
            self.blobs[name]
            for name, weight in zip(step.tops, step.loss_weights, strict=True)
            if weight
        ]
        return sum((top.data_tensor() * top.diff_tensor()).sum() for top in tops)

    def backward(self, start: int, end: int) -> None:
        """Run layers number `start` down to `end`, both included, from the tops' diffs.

        The diffs of bottoms are overwritten, those of the layers' blobs accumulated. A layer that
        has not been run forward uses the current values of its bottoms.
        """
        self.bring_writes()
        for index in range(start, end - 1, -1):
            step = self.net.steps[index]
            _tell(self.callbacks.before_backward, index)
            if step.needs_backward and (step.bottoms or self.layer_blobs[index]):
                record = self._records.get(index) or self._run_again(index, step)
                self._propagate(index, step, record)
            _tell(self.callbacks.after_backward, index)

    def reshape(self) -> None:
        """Propagate the shapes of the inputs through the net (`Net::Reshape`)."""
        for index, step in enumerate(self.net.steps):
            if not step.layer.is_input:
                self._reshape(index, step)
                self._store(step, [])

    def bring_writes(self) -> None:
        """Copy to the device what programs have written on the host."""
        for blob in self.blobs.values():
            blob.data_tensor()
        for param in self.params():
            param.data_tensor()

    def params(self) -> list[ParamBlob]:
        """The blobs of all layers, shared ones as often as they are used."""
        return [blob for blobs in self.layer_blobs for blob in blobs if isinstance(blob, ParamBlob)]

    def attach_diffs(self) -> None:
        """Make the diffs of all layers' blobs the gradients of the parameters."""
        for blob in self.params():
            blob.diff_tensor()

    def clear_param_diffs(self) -> None:
        """Set the diffs of all layers' blobs to zero (`Net::ClearParamDiffs`)."""
        for blob in self.params():
            blob.diff_tensor().zero_()

    def forget(self) -> None:
        """Drop the graphs of past forward passes, as the weights have changed."""
        self._records.clear()

    # One layer ----------------------------------------------------------------------------------

    def _run(self, index: int, step: Step, *, again: bool = False) -> _Record:
        """Run a layer forward; `again` on the values that it has overwritten in place."""
        if self._shapes.get(index) != [self.blobs[name].shape for name in step.bottoms]:
            self._reshape(index, step)
        bottoms = []
        for name, wanted in zip(step.bottoms, step.bottom_backward, strict=True):
            # Through .data: a later write into the blob is used by backward, as in Caffe, and not
            # taken for a mistake. An in-place layer is about to overwrite its bottom.
            values = self.blobs[name].data_tensor().data
            leaf = values
            if name in step.tops:
                last = self._overwritten.get((index, name)) if again else None
                fits = last is not None and last.shape == values.shape
                leaf = last.detach() if last is not None and fits else values.clone()
                self._overwritten[index, name] = leaf.detach()
            bottoms.append(leaf.requires_grad_(wanted and step.needs_backward))
        with torch.set_grad_enabled(step.needs_backward):
            # Not by calling the layer, as its hooks are for the passes of others.
            tops = step.layer.forward(*bottoms)
        return _Record(bottoms, [tops] if isinstance(tops, Tensor) else list(tops))

    def _run_again(self, index: int, step: Step) -> _Record:
        """Run a layer for a backward pass: it counts no batch, and its states do not go on."""
        before = {name: buffer.clone() for name, buffer in step.layer.named_buffers()}
        record = self._run(index, step, again=True)
        for name, buffer in step.layer.named_buffers():
            if name in before and buffer.shape == before[name].shape:
                buffer.data.copy_(before[name])
        return record

    def _reshape(self, index: int, step: Step) -> None:
        shapes = [self.blobs[name].shape for name in step.bottoms]
        for name, shape in zip(step.tops, step.layer.top_shapes(shapes), strict=True):
            self.blobs[name].reshape(*shape)
        self._shapes[index] = shapes

    def _store(self, step: Step, tops: Sequence[Tensor]) -> None:
        if step.layer.type == "Split":
            for name in step.tops:
                self.blobs[name].share_data(self.blobs[step.bottoms[0]])
            return
        for name, top in zip(step.tops, tops, strict=False):
            self.blobs[name].take(top)

    def _propagate(self, index: int, step: Step, record: _Record) -> None:
        params = [param for param in step.layer.parameters() if param.requires_grad]
        wanted = [leaf for leaf in record.bottoms if leaf.requires_grad] + params
        tops = [
            (top, self.blobs[name].diff_tensor())
            for name, top in zip(step.tops, record.tops, strict=True)
            if top.requires_grad
        ]
        if not wanted:
            return
        found: Sequence[Tensor]
        if tops:
            outputs, diffs = zip(*tops, strict=True)
            found = torch.autograd.grad(
                outputs,
                wanted,
                diffs,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        else:
            found = [torch.zeros_like(leaf) for leaf in wanted]
        gradients = iter(found)
        for name, leaf in zip(step.bottoms, record.bottoms, strict=True):
            if leaf.requires_grad:
                self.blobs[name].take_diff(next(gradients))
        for blob in self.layer_blobs[index]:
            blob.diff_tensor()  # becomes the gradient of the parameter, where it has none yet
        for param, gradient in zip(params, gradients, strict=True):
            assert param.grad is not None
            param.grad.add_(gradient)

    # Passes of others ---------------------------------------------------------------------------

    def follow(self) -> None:
        """From now on, feed passes that are run on the net itself, and keep what they make."""
        # Every layer by itself, as what runs as one does not call its members.
        self.net.fusion = plan_fusion([], self.net.context)
        self.net.register_forward_pre_hook(self._feed)
        for index, step in enumerate(self.net.steps):
            step.layer.register_forward_pre_hook(partial(self._begin, index))
            step.layer.register_forward_hook(partial(self._keep, index))

    def _feed(self, net: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        self.bring_writes()
        self.forget()
        self._overwritten.clear()
        for index, step in enumerate(self.net.steps):
            if step.layer.is_input:  # which no pass runs
                _tell(self.callbacks.before_forward, index)
                _tell(self.callbacks.after_forward, index)
        return ({name: self.blobs[name].data_tensor() for name in self.net.inputs},)

    def _begin(self, index: int, layer: nn.Module, bottoms: tuple[Tensor, ...]) -> None:
        _tell(self.callbacks.before_forward, index)

    def _keep(self, index: int, layer: nn.Module, bottoms: tuple[Tensor, ...], tops: Any) -> None:
        step = self.net.steps[index]
        tops = [tops] if isinstance(tops, Tensor) else list(tops)
        self._store(step, tops)
        for name, top in zip(step.tops, tops, strict=True):
            if top.requires_grad and not top.is_leaf:
                top.register_hook(self.blobs[name].take_diff)
        _tell(self.callbacks.after_forward, index)


def _tell(callbacks: Sequence[LayerCallback], index: int) -> None:
    for callback in callbacks:
        callback(index)
