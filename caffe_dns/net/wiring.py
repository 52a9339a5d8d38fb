"""Connects layers while a net is built: which blobs exist, and who may still read them.

It also decides where gradients have to go. Restates `Net::AppendBottom`, `Net::AppendTop` and the
backward pass over the layers in `Net::Init` (net.cpp). It handles names only, no tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Layer, Shape
from caffe_dns.net.definition import unknown_bottom


@dataclass
class Step:
    """One layer of the forward pass with the names of its blobs."""

    layer: Layer
    bottoms: list[str] = field(default_factory=list)
    tops: list[str] = field(default_factory=list)
    loss_weights: list[float] = field(default_factory=list)
    #: Whether the gradient goes on to each bottom.
    bottom_backward: list[bool] = field(default_factory=list)
    #: Whether each blob of the layer asks for a gradient.
    param_backward: list[bool] = field(default_factory=list)
    needs_backward: bool = False


class Wiring:
    """The blobs of a net under construction."""

    def __init__(self) -> None:
        self.shapes: dict[str, Shape] = {}
        self._available: set[str] = set()
        self._needs_backward: dict[str, bool] = {}

    @property
    def outputs(self) -> list[str]:
        """The blobs that no layer reads, in Caffe's order (by name)."""
        return sorted(self._available)

    def append_bottoms(self, step: Step) -> None:
        """Connect the bottoms of a layer; raises CaffeError for one that is not there."""
        param = step.layer.param
        if param.propagate_down and len(param.propagate_down) != len(param.bottom):
            raise step.layer.error(
                f"given {len(param.propagate_down)} times for {len(param.bottom)} bottom(s); "
                "once per bottom, or not at all, would be right",
                "propagate_down",
            )
        for index, blob in enumerate(param.bottom):
            if blob not in self._available:
                raise unknown_bottom(blob, param.name, index)
            log.info(f"{param.name} <- {blob}")
            step.bottoms.append(blob)
            self._available.discard(blob)
            wanted = self._needs_backward[blob]
            step.needs_backward |= wanted
            if param.propagate_down:
                wanted = param.propagate_down[index]
            step.bottom_backward.append(wanted)

    def append_tops(self, step: Step) -> None:
        """Name the tops of a layer; raises CaffeError for a blob that exists already."""
        layer = step.layer
        for index, blob in enumerate(layer.param.top):
            in_place = index < len(layer.param.bottom) and blob == layer.param.bottom[index]
            if in_place:
                log.info(f"{layer.name} -> {blob} (in-place)")
            elif blob in self.shapes:
                raise CaffeError(
                    f"Top blob '{blob}' produced by multiple sources", layer=layer.name, field="top"
                )
            else:
                log.info(f"{layer.name} -> {blob}")
                self._needs_backward[blob] = False
                self.shapes[blob] = ()
            self._available.add(blob)
            step.tops.append(blob)
        for index in range(len(layer.param.top), layer.num_tops):
            # Nobody may read these, so the name cannot clash with one from a definition.
            log.info(f"{layer.name} -> (automatic)")
            blob = f"(automatic) {layer.name} {index}"
            self._needs_backward[blob] = False
            step.tops.append(blob)

    def mark_tops(self, step: Step) -> None:
        """Tell the readers of a layer that needs backward that they need it, too."""
        if step.needs_backward:
            for blob in step.tops:
                self._needs_backward[blob] = True


def find_backward(steps: list[Step]) -> None:
    """Narrow `needs_backward` and `bottom_backward` to what lies under a loss, and log it."""
    under_loss: set[str] = set()
    skipped: set[str] = set()
    for step in reversed(steps):
        contributes = any(
            weight or blob in under_loss
            for blob, weight in zip(step.tops, step.loss_weights, strict=True)
        )
        if step.needs_backward and all(blob in skipped for blob in step.tops):
            step.needs_backward = False
            step.bottom_backward = [False] * len(step.bottoms)
        if not contributes:
            step.needs_backward = False
            step.bottom_backward = [False] * len(step.bottoms)
        verb = "needs" if step.needs_backward else "does not need"
        log.info(f"{step.layer.name} {verb} backward computation.")
        for blob, wanted in zip(step.bottoms, step.bottom_backward, strict=True):
            if contributes:
                under_loss.add(blob)
            if not wanted:
                skipped.add(blob)


def find_overwritten_losses(steps: list[Step]) -> set[str]:
    """The blobs with a loss weight that a layer reads and sends a gradient to.

    In Caffe that gradient takes the place of the loss weight, which stands where the blob's
    gradient is put: the blob counts in the loss that is shown, not in what is minimised.
    """
    losses: set[str] = set()
    overwritten: set[str] = set()
    for step in steps:
        if step.needs_backward:
            read = zip(step.bottoms, step.bottom_backward, strict=True)
            overwritten |= {blob for blob, wanted in read if wanted and blob in losses}
        for blob, weight in zip(step.tops, step.loss_weights, strict=True):
            if weight:
                losses.add(blob)
                overwritten.discard(blob)
    return overwritten


def find_last_uses(steps: list[Step], kept: Iterable[str]) -> list[list[str]]:
    """For each step the blobs that it is the last to read, but for those that are `kept`."""
    wanted = set(kept)
    uses = []
    for step in reversed(steps):
        uses.append(sorted({*step.bottoms} - wanted))
        wanted.update(step.bottoms)
    return uses[::-1]
