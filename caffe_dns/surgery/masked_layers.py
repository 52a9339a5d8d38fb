"""The masked layers of a net in training: renews their masks, and counts them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from caffe_dns import mask_rules
from caffe_dns.device.recording import recording
from caffe_dns.layers.masked import DeviationMasks, MagnitudeMasks
from caffe_dns.net import Net
from caffe_dns.net.multiplications import uses_by_layer
from caffe_dns.proto.caffe_pb2 import LayerSurgery
from caffe_dns.surgery.patterns import Pattern, from_rows, to_rows

LayerWithMasks = DeviationMasks | MagnitudeMasks


_Result = TypeVar("_Result")


class Replayed(Generic[_Result]):
    """A function of tensors that stay in place; on a GPU, from its third call on, a CUDA graph.

    From then on its results are in the graph's memory, the same tensors at each call.
    """

    WARM_UP = 2

    def __init__(self, function: Callable[[], _Result], device: torch.device) -> None:
        self._function = function
        self._capture = device.type == "cuda"
        self._calls = 0
        self._recorded: tuple[torch.cuda.CUDAGraph, _Result] | None = None

    def __call__(self) -> _Result:
        self._calls += 1
        if not self._capture or self._calls <= self.WARM_UP:
            return self._function()
        if self._recorded is None:
            graph = torch.cuda.CUDAGraph()
            with recording(graph):
                result = self._function()
            self._recorded = graph, result
        graph, result = self._recorded
        graph.replay()
        return result


@dataclass(frozen=True)
class Count:
    """The counts of one layer's masks, and the threshold that they were renewed by.

    `threshold` is the layer's threshold in standard deviations, or its c_rate; `spliced_back`
    counts since the last display.
    """

    layer: str
    kept: int
    pruned: int
    spliced_back: int
    threshold: float

    @property
    def sparsity(self) -> float:
        return self.pruned / (self.kept + self.pruned)


class MaskedLayer:
    """A layer with masks, and the threshold that the masks follow."""

    def __init__(self, layer: LayerWithMasks) -> None:
        self.layer = layer
        self.device = layer.blobs[0].device
        #: How often each weight is multiplied in a forward pass of a batch; 0 if not counted.
        self.uses = 0
        #: How many connections were spliced back since the last display.
        self.spliced = torch.zeros((), dtype=torch.int64, device=self.device)
        #: For each mask the mean squares of gradients, if weights are ranked by the loss.
        self._squares: list[Tensor] | None = None
        #: The current threshold if it follows a sparsity, in the layer's own terms, or by loss.
        self._followed: Tensor | None = None
        #: The pattern of the weight's mask, if there is one.
        self.pattern: Pattern | None = None
        self.follow_definition(LayerSurgery())

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def size(self) -> int:
        """How many parameters have a mask."""
        return sum(mask.numel() for mask in self.layer.mask_blobs())

    @property
    def weights(self) -> int:
        """How many weights have a mask, without biases."""
        return self.layer.mask_blobs()[0].numel()

    @property
    def setting(self) -> float:
        """The threshold that the layer renews its masks by, in its own terms."""
        layer = self.layer
        return layer.c_rate if isinstance(layer, MagnitudeMasks) else layer.threshold

    @property
    def threshold(self) -> float:
        """The current threshold, in the layer's own terms. Waits for the device."""
        return self.setting if self._followed is None else float(self._followed)

    @property
    def goes_by_loss(self) -> bool:
        """Whether weights are ranked by the loss, not by magnitude."""
        return self._squares is not None

    @property
    def followed(self) -> float | None:
        """The current threshold if it follows a sparsity. Waits for the device."""
        return None if self._followed is None else float(self._followed)

    @property
    def row_length(self) -> int:
        """How many weights an output has."""
        return self.layer.blobs[0].movedim(self._input_axis, -1)[0].numel()

    def unit_size(self, pattern: Pattern | None) -> int:
        """How many weights are cut together in this pattern."""
        return 1 if pattern is None else pattern.unit_size(self.row_length)

    def follow_definition(self, settings: LayerSurgery, pattern: Pattern | None = None) -> None:
        """Renew by the layer's own threshold from now on, or by the one in these settings."""
        layer = self.layer
        self.pattern = pattern
        if isinstance(layer, MagnitudeMasks):
            given = settings.HasField("c_rate")
            layer.c_rate = settings.c_rate if given else layer.mask_settings().c_rate
        else:
            given = settings.HasField("threshold")
            layer.threshold = settings.threshold if given else layer.mask_settings().threshold
        self._followed = None
        self._squares = None
        self.renew = Replayed(self._renew, self.device)

    def follow_sparsity(
        self, threshold: float | None = None, squares: Mapping[int, Tensor] | None = None
    ) -> None:
        """Set masks by `prune_below` from now on; `threshold` is the current one.

        With `squares`, the mean squares of gradients by the addresses of their parameters, weights
        are ranked by the loss. Raises CaffeError for a layer that does not learn, and so has none.
        """
        if squares is not None:
            addresses = [parameter.data_ptr() for parameter, _ in self._pairs()]
            if not all(address in squares for address in addresses):
                raise self.layer.error("does not learn, so that no gradient ranks its weights")
            self._squares = [squares[address] for address in addresses]
        value = self.threshold if threshold is None else threshold
        self._followed = torch.tensor(value, dtype=torch.float32, device=self.device)

    def kept(self) -> int:
        """How many parameters are kept. Waits for the device."""
        return int(self._count_kept())

    def _count_kept(self) -> Tensor:
        return torch.stack([mask.count_nonzero() for mask in self.layer.mask_blobs()]).sum()

    def kept_weights(self) -> int:
        """How many weights are kept, without biases. Waits for the device."""
        return int(self.layer.mask_blobs()[0].count_nonzero())

    def zeros(self) -> int:
        """How many parameters are zero, whatever their masks. Waits for the device."""
        return sum(p.numel() - int(p.count_nonzero()) for p, _ in self._pairs())

    @torch.no_grad()
    def mask_zeros(self) -> None:
        """Prune the parameters that are zero."""
        for parameter, mask in self._pairs():
            mask.mul_(parameter != 0)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Each parameter with its mask."""
        return list(zip(self.layer.blobs, self.layer.mask_blobs(), strict=False))

    def strengths(self) -> list[Tensor]:
        """For each mask, the threshold up to which each of its parameters is kept.

        In a pattern, these are the strengths of the weight's units, rows x units.
        """
        (distance, *more), (mask, *biases) = self._distances(), self.layer.mask_blobs()
        pattern = self.pattern
        if pattern is None:
            weights = mask_rules.strength(distance, mask)
        else:
            units = pattern.distances(self._rows(distance)), pattern.kept(self._rows(mask))
            weights = pattern.in_place(mask_rules.strength(*units))
        return [weights, *map(mask_rules.strength, more, biases)]

    @property
    def biases(self) -> int:
        """How many biases have a mask."""
        return self.size - self.weights

    @property
    def products(self) -> int:
        """How many weights an output has per input channel: the size of the kernel."""
        return self.row_length // self.layer.blobs[0].shape[self._input_axis]

    def limit(self) -> Tensor:
        """The threshold that the layer renews its masks by, as a distance."""
        return self.layer.as_distance(self.setting)

    def follow(self, threshold: Tensor) -> None:
        """Store the current threshold, a distance, if it follows a sparsity."""
        assert self._followed is not None
        by_loss = self._squares is not None
        self._followed.copy_(threshold if by_loss else self.layer.in_own_terms(threshold))

    def filters_kept(self) -> Tensor:
        """For each output, whether any weight is kept, bool."""
        return self._rows(self.layer.mask_blobs()[0]).any(1)

    def keep_filters(self, outputs: Tensor, inputs: Tensor) -> None:
        """Keep the weights of these outputs for these input channels (bool), and their biases."""
        mask, *biases = self.layer.mask_blobs()
        shape = mask.movedim(self._input_axis, -1).shape
        kept = outputs.view(-1, *[1] * (len(shape) - 1)) & inputs
        kept = kept.expand(shape).movedim(-1, self._input_axis)
        for each, renewed in zip((mask, *biases), (kept, outputs), strict=False):
            self.spliced += mask_rules.replace(each, renewed.to(each.dtype))

    def _distances(self) -> list[Tensor]:
        """For each mask, the values that a threshold is compared with."""
        if self._squares is None:
            return self.layer.distances()
        return [
            mask_rules.distance_by_loss(parameter.detach(), squares)
            for (parameter, _), squares in zip(self._pairs(), self._squares, strict=True)
        ]

    def costs(self, *, in_macs: bool) -> Tensor:
        """The cost of each of the `strengths`, concatenated: parameters or multiplications.

        A bias costs no multiplication.
        """
        weight, *biases = self.layer.mask_blobs()
        if self.pattern is None:
            sizes = torch.ones(weight.numel(), dtype=torch.int64, device=self.device)
        else:
            rows = self._rows(weight)
            sizes = self.pattern.sizes(rows).repeat(len(rows))
        others = [
            torch.full((bias.numel(),), int(not in_macs), device=self.device) for bias in biases
        ]
        return torch.cat([sizes * (self.uses if in_macs else 1), *others])

    def prune_below(self, threshold: Tensor, strengths: list[Tensor]) -> None:
        """Keep exactly what is stronger than a threshold (a distance, 0-dim)."""
        self._keep_above(threshold, strengths)
        self.follow(threshold.clamp(min=0))

    def _keep_above(self, threshold: Tensor, strengths: list[Tensor]) -> None:
        for index, (mask, strength) in enumerate(
            zip(self.layer.mask_blobs(), strengths, strict=True)
        ):
            kept = (strength > threshold).to(mask.dtype)
            if index == 0 and self.pattern is not None:
                rows = self.pattern.weights(kept, self.row_length)
                kept = from_rows(rows, mask, self._input_axis)
            self.spliced += mask_rules.replace(mask, kept)

    def _rows(self, weight: Tensor) -> Tensor:
        """A tensor shaped like the weight, as a matrix: outputs x inputs."""
        return to_rows(weight, self._input_axis)

    @property
    def _input_axis(self) -> int:
        if self.layer.input_axis is None:
            raise self.layer.error("takes no pattern: no axis of its weight has the inputs alone")
        return self.layer.input_axis

    def tally(self) -> Tensor:
        """How many parameters are kept, how many were spliced back since the last display, and the
        current threshold if it follows a sparsity; float64.
        """
        followed = [] if self._followed is None else [self._followed]
        numbers = [self._count_kept(), self.spliced, *followed]
        return torch.stack([number.double() for number in numbers])

    def forget_spliced(self) -> None:
        self.spliced.zero_()

    def _renew(self) -> None:
        if self.pattern is None:
            self.spliced += self.layer.renew_masks()
        else:
            self._keep_above(self.limit(), self.strengths())


def count_masks(layers: Sequence[MaskedLayer], tallies: Sequence[Tensor]) -> list[Count]:
    """The counts of some layers' masks, from their tallies, which are best on the host."""
    counts = []
    for layer, tally in zip(layers, tallies, strict=True):
        kept, spliced, *followed = tally.tolist()
        (threshold,) = followed or (layer.setting,)
        counts.append(Count(layer.name, int(kept), layer.size - int(kept), int(spliced), threshold))
    return counts


def find_masked_layers(net: Net) -> list[MaskedLayer]:
    """The masked layers of a net; layers that share a mask count once."""
    owners: dict[int, MaskedLayer] = {}
    uses = uses_by_layer(net)
    for step in net.steps:
        layer = step.layer
        if not isinstance(layer, DeviationMasks | MagnitudeMasks) or not layer.mask_indices:
            continue
        mask = layer.mask_blobs()[0]
        # A shared mask belongs to the first layer; others may see it in another shape.
        if mask.data_ptr() not in owners:
            owners[mask.data_ptr()] = MaskedLayer(layer)
        owners[mask.data_ptr()].uses += uses.get(layer, 0)
    return list(owners.values())
