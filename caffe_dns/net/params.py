"""Which blobs of a net are learnable parameters, who owns the shared ones, and how fast they learn.

Restates `Net::AppendParam` (net.cpp). Masks are in the list because the forks' solver states count
them, but no solver updates them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import Tensor

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Layer, count, shape_text
from caffe_dns.proto.caffe_pb2 import ParamSpec


@dataclass(eq=False)
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
    #: That of the parameter's own decay; empty for the solver's.
    regularization_type: str = ""

    @property
    def tensor(self) -> Tensor:
        return self.layer.blobs[self.index]

    @property
    def counts(self) -> bool:
        """Whether it is one of the net's parameters, wherever these are counted.

        Masks and running statistics are not.
        """
        return not self.is_mask and self.index not in self.layer.fixed_blobs


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
        owner = self.owner(layer, index)
        return owner.layer is layer and owner.index == index

    def unshared(self) -> list[Param]:
        """The parameters that one blob alone is."""
        users = Counter(self._owners.values())
        return [param for param in self.owned if users[param] == 1]

    def append(self, layer: Layer) -> list[bool]:
        """Enter a layer's blobs; returns which of them ask for a gradient.

        Raises CaffeError for too many `param {}` and for sharers that do not agree.
        """
        specs = layer.param.param
        blobs = len(layer.blobs)
        if len(specs) > blobs + layer.spare_param_specs:
            raise layer.error(
                f"Too many params specified: {len(specs)} for {blobs} blob(s)", "param"
            )
        wanted = [
            (index >= len(specs) or specs[index].lr_mult != 0) and index not in layer.mask_indices
            for index in range(blobs)
        ]
        if layer.fixed_blobs:
            # Only now, and in the layer's own definition: Caffe's backward pass goes through layers
            # whose statistics have no `param {}`, and its models have these zeros.
            specs.extend(ParamSpec() for _ in range(len(specs), blobs))
            for index in layer.fixed_blobs:
                specs[index].lr_mult = 0
        for index in range(blobs):
            self._append_blob(layer, index, specs[index] if index < len(specs) else ParamSpec())
        return wanted

    def _append_blob(self, layer: Layer, index: int, spec: ParamSpec) -> None:
        owner = self._by_name.get(spec.name) if spec.name else None
        if owner is not None:
            self._share(layer, index, spec, owner)
        else:
            owner = self._own(layer, index, spec)
        self._owners[id(layer), index] = owner

    def _own(self, layer: Layer, index: int, spec: ParamSpec) -> Param:
        is_mask = index in layer.mask_indices
        param = Param(
            layer=layer,
            index=index,
            name=spec.name,
            lr_mult=0.0 if is_mask else spec.lr_mult,
            decay_mult=spec.decay_mult,
            is_mask=is_mask,
            has_lr_mult=spec.HasField("lr_mult"),
            has_decay_mult=spec.HasField("decay_mult"),
            regularization_type=spec.regularization_type,
        )
        self.owned.append(param)
        if spec.name:
            self._by_name[spec.name] = param
        if is_mask:
            self._use_mask_of_shared_weight(layer, index)
        return param

    def _use_mask_of_shared_weight(self, layer: Layer, index: int) -> None:
        """Let a mask be that of the weight's owner: a shared weight has one mask.

        It keeps its place in `owned`, for the forks' solver states count it.
        """
        masked = self._owners[id(layer), layer.mask_indices.index(index)]
        masks = masked.layer.mask_indices
        if masked.layer is layer or masked.index >= len(masks):
            return
        layer.share_blob(index, masked.layer, masks[masked.index])

    def _share(self, layer: Layer, index: int, spec: ParamSpec, owner: Param) -> None:
        log.info(
            f"Sharing parameters '{spec.name}' owned by layer '{owner.layer.name}', "
            f"param index {owner.index}"
        )
        self._check_shapes(layer, index, spec, owner)
        layer.share_blob(index, owner.layer, owner.index)
        if spec.HasField("lr_mult") and not owner.is_mask:
            if owner.has_lr_mult and spec.lr_mult != owner.lr_mult:
                raise self._mismatch(layer, spec.name, "lr_mult", owner, spec.lr_mult)
            owner.lr_mult, owner.has_lr_mult = spec.lr_mult, True
        if spec.HasField("decay_mult"):
            if owner.has_decay_mult and spec.decay_mult != owner.decay_mult:
                raise self._mismatch(layer, spec.name, "decay_mult", owner, spec.decay_mult)
            owner.decay_mult, owner.has_decay_mult = spec.decay_mult, True

    def _mismatch(
        self, layer: Layer, name: str, field: str, owner: Param, value: float
    ) -> CaffeError:
        return layer.error(
            f"Shared param '{name}' has mismatched {field} ({getattr(owner, field):g} in layer "
            f"'{owner.layer.name}', {value:g} here)",
            "param",
        )

    def _check_shapes(self, layer: Layer, index: int, spec: ParamSpec, owner: Param) -> None:
        mine, theirs = tuple(layer.blobs[index].shape), tuple(owner.tensor.shape)
        permissive = spec.share_mode == ParamSpec.PERMISSIVE
        if mine == theirs or (permissive and count(mine) == count(theirs)):
            return
        raise layer.error(
            f"Cannot share param '{spec.name}' owned by layer '{owner.layer.name}'; "
            f"{'count' if permissive else 'shape'} mismatch. Owner layer param shape is "
            f"{shape_text(theirs)}; sharing layer expects shape {shape_text(mine)}",
            "param",
        )
