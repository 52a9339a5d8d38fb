"""Which blobs of a net are learnable parameters, who owns the shared ones, and how fast they learn.

Restates `Net::AppendParam` (net.cpp). Masks stand in the list, because the forks' solver states
count them, but no solver updates them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Layer, count, shape_text
from caffe_dns.proto.caffe_pb2 import ParamSpec


@dataclass
class Param:
    """One blob that owns itself: blob `index` of `layer`."""

    layer: Layer
    index: int
    name: str
    lr_mult: float
    decay_mult: float
    is_mask: bool
    has_lr_mult: bool
    has_decay_mult: bool

    @property
    def tensor(self) -> Tensor:
        return self.layer.blobs[self.index]


class ParamTable:
    """All parameters of a net in Caffe's order, filled layer by layer.

    `owned` lists the blobs that own themselves (Caffe's learnable_params).
    """

    def __init__(self) -> None:
        self.owned: list[Param] = []
        self._by_name: dict[str, Param] = {}
        self._owners: dict[tuple[int, int], Param] = {}

    def owner(self, layer: Layer, index: int) -> Param:
        """The parameter that blob `index` of `layer` is, or shares."""
        return self._owners[id(layer), index]

    def is_owner(self, layer: Layer, index: int) -> bool:
        return self.owner(layer, index).layer is layer

    def append(self, layer: Layer) -> bool:
        """Enter a layer's blobs; returns whether any of them learns.

        Raises CaffeError for too many `param {}` and for sharers that do not agree.
        """
        specs = layer.param.param
        blobs = len(layer.blobs)
        if len(specs) > blobs + layer.spare_param_specs:
            raise layer.error(
                f"Too many params specified: {len(specs)} for {blobs} blob(s)", "param"
            )
        learns = False
        for index in range(blobs):
            spec = specs[index] if index < len(specs) else ParamSpec()
            is_mask = index in layer.mask_indices
            learns |= spec.lr_mult != 0 and not is_mask and not layer.lr_mult_forced_to_zero
            self._append_blob(layer, index, spec, is_mask)
        return learns

    def _append_blob(self, layer: Layer, index: int, spec: ParamSpec, is_mask: bool) -> None:
        owner = self._by_name.get(spec.name) if spec.name else None
        if owner is None and is_mask:
            # A shared weight has one mask, that of its owner.
            owner = self._owner_of_shared_mask(layer, index)
        if owner is None:
            frozen = is_mask or layer.lr_mult_forced_to_zero
            owner = Param(
                layer=layer,
                index=index,
                name=spec.name,
                lr_mult=0.0 if frozen else spec.lr_mult,
                decay_mult=spec.decay_mult,
                is_mask=is_mask,
                has_lr_mult=spec.HasField("lr_mult"),
                has_decay_mult=spec.HasField("decay_mult"),
            )
            self.owned.append(owner)
            if spec.name:
                self._by_name[spec.name] = owner
        else:
            self._share(layer, index, spec, owner)
        self._owners[id(layer), index] = owner

    def _owner_of_shared_mask(self, layer: Layer, index: int) -> Param | None:
        position = layer.mask_indices.index(index)
        masked = self._owners.get((id(layer), position))
        if masked is None or masked.layer is layer:
            return None
        masks = masked.layer.mask_indices
        if position >= len(masks):
            return None
        return self._owners[id(masked.layer), masks[position]]

    def _share(self, layer: Layer, index: int, spec: ParamSpec, owner: Param) -> None:
        name = spec.name or owner.name
        log.info(
            f"Sharing parameters '{name}' owned by layer '{owner.layer.name}', "
            f"param index {owner.index}"
        )
        self._check_shapes(layer, index, spec, owner)
        layer.share_blob(index, owner.layer, owner.index)
        if spec.HasField("lr_mult") and not owner.is_mask:
            if owner.has_lr_mult and spec.lr_mult != owner.lr_mult:
                raise layer.error(
                    f"Shared param '{name}' has mismatched lr_mult "
                    f"({owner.lr_mult:g} in layer '{owner.layer.name}', {spec.lr_mult:g} here)",
                    "param",
                )
            owner.lr_mult, owner.has_lr_mult = spec.lr_mult, True
        if spec.HasField("decay_mult"):
            if owner.has_decay_mult and spec.decay_mult != owner.decay_mult:
                raise layer.error(
                    f"Shared param '{name}' has mismatched decay_mult ({owner.decay_mult:g} in "
                    f"layer '{owner.layer.name}', {spec.decay_mult:g} here)",
                    "param",
                )
            owner.decay_mult, owner.has_decay_mult = spec.decay_mult, True

    def _check_shapes(self, layer: Layer, index: int, spec: ParamSpec, owner: Param) -> None:
        mine, theirs = tuple(layer.blobs[index].shape), tuple(owner.tensor.shape)
        permissive = spec.share_mode == ParamSpec.PERMISSIVE
        if mine == theirs or (permissive and count(mine) == count(theirs)):
            return
        raise CaffeError(
            f"Cannot share param '{spec.name}' owned by layer '{owner.layer.name}'; "
            f"{'count' if permissive else 'shape'} mismatch. Owner layer param shape is "
            f"{shape_text(theirs)}; sharing layer expects shape {shape_text(mine)}",
            layer=layer.name,
            field="param",
        )
