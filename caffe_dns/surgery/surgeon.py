"""Surgery in a training run: the masked layers' part of an iteration, and of the log.

The rules are in `mask_rules`, the masks in the layers, the stages' settings in `stages`, the times
in `schedule`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.device.fetching import on_host
from caffe_dns.errors import nearest
from caffe_dns.layers.masked import MagnitudeMasks
from caffe_dns.net import Net
from caffe_dns.net.multiplications import batch_size, uses_by_layer
from caffe_dns.proto.caffe_pb2 import LayerSurgery, SurgeryMoments, SurgeryStage
from caffe_dns.surgery.costs import (
    PER_MILLISECOND,
    Costs,
    Latency,
    Multiplications,
    Parameters,
)
from caffe_dns.surgery.describing import describe
from caffe_dns.surgery.filters import Filters
from caffe_dns.surgery.masked_layers import Count, MaskedLayer, count_masks, find_masked_layers
from caffe_dns.surgery.renewal import Renewal
from caffe_dns.surgery.schedule import Schedule, make_schedules
from caffe_dns.surgery.stages import Stage, stage_at
from caffe_dns.surgery.target import NetSize, Target, make_groups

#: What the fork calls the two kinds of layers in its sparsity lines.
_FORK_NAMES = {"Convolution": "ConV", "InnerProduct": "IP"}


class Surgeon:
    """Renews the masks of some layers according to the run's stages and the layers' definitions.

    `size` is that of the whole net; `net` tells which layers read the layers' outputs. Raises
    CaffeError for a stage that does not fit.
    """

    def __init__(
        self,
        masked_layers: Sequence[MaskedLayer],
        size: NetSize,
        stages: Sequence[Stage],
        seed: int,
        net: Net | None = None,
    ) -> None:
        self.stages = stages
        self._net = net
        self.seed = seed
        self.masked_layers = masked_layers
        self.size = size
        self._check_stages()
        #: The mean squares of gradients, by the addresses of their parameters; see `needs_squares`.
        self.squares: Mapping[int, Tensor] = {}
        self._stage: Stage | None = None
        #: When and how masks are renewed: for layers that follow a threshold, then for the others.
        self._schedules: list[Schedule] = []
        self._renewal = Renewal([])
        self._target: Target | None = None
        #: The layers of the stage whose filters are cut.
        self._filters: Filters | None = None
        #: What each layer kept when the stage began; see `_find_kept`.
        self._kept: dict[str, int] = {}
        #: What a solver state says about the stage that it was written in.
        self._restored: dict[str, SurgeryMoments] = {}

    @classmethod
    def of_net(cls, net: Net, stages: Sequence[Stage], seed: int) -> Surgeon:
        """The surgeon of all masked layers of a net."""
        parameters = sum(p.tensor.numel() for p in net.learnable_params if p.counts)
        macs = sum(layer.blobs[0].numel() * uses for layer, uses in uses_by_layer(net).items())
        size = NetSize(parameters, macs, batch_size(net))
        return cls(find_masked_layers(net), size, stages, seed, net)

    @property
    def needs_squares(self) -> bool:
        """Whether a stage ranks by the loss, so that `squares` must be set before it begins."""
        return any(stage.surgery.ranking == SurgeryStage.LOSS for stage in self.stages)

    def announce(self) -> None:
        """Log which layers surgery affects, how, and how to switch it off."""
        if not self.masked_layers:
            return
        if not any(stage.surgery.surgery for stage in self.stages):
            log.info("Surgery on no layer: masks stay as they are. To train without: --no-surgery")
            return
        if len(self.stages) > 1:
            log.info(f"Surgery in {len(self.stages)} stages. To train without it: --no-surgery")
            return
        log.info(
            f"Surgery on {describe(self.stages[0], self.masked_layers)}. "
            "To train without it: --no-surgery"
        )

    def update_masks(self, iteration: int) -> None:
        """Renew the masks that are due at this iteration, before its first forward pass."""
        passed = iteration - self._enter(iteration).start
        due = self._due(iteration)
        if due:
            self._renewal.run(due)
        if self._target is not None and self._target.is_due(passed):
            self._target.renew(passed)

    def is_due(self, iteration: int) -> bool:
        """Whether `update_masks` would renew any masks at this iteration."""
        passed = iteration - self._enter(iteration).start
        return bool(self._due(iteration)) or (
            self._target is not None and self._target.is_due(passed)
        )

    def update_masks_for_last_display(self, iteration: int) -> None:
        """Renew masks of the official kind for the forward pass that only shows the last loss.

        The fork's layers draw at every pass in TRAIN, this one at the last iteration's number, so
        that the last loss and the last test are not those of the last snapshot.
        """
        self._enter(iteration)
        due = [
            masked_layer
            for schedule in self._schedules
            if schedule.at_every_pass and schedule.is_due(self.seed, iteration, more="/last")
            for masked_layer in schedule.masked_layers
        ]
        self._renewal.run(due)

    def tallies(self) -> list[Tensor]:
        """The counts of each layer's masks for a display, on their device."""
        return [masked_layer.tally() for masked_layer in self.masked_layers]

    def display(self, tallies: Sequence[Tensor] | None = None) -> list[Count]:
        """Log the fork's two sparsity lines, then a line for each masked layer; returns these.

        Without `tallies` on the host it waits for the device.
        """
        tallies = on_host(self.tallies()) if tallies is None else tallies
        counts = count_masks(self.masked_layers, tallies)
        for kind, name in _FORK_NAMES.items():
            some = [
                count
                for count, masked_layer in zip(counts, self.masked_layers, strict=True)
                if masked_layer.layer.type == kind
            ]
            if some:
                pruned = sum(count.pruned for count in some)
                total = sum(count.kept for count in some) + pruned
                log.info(f"{name} Sparsity: {log.number(pruned / total)}")
        for count in counts:
            log.info(
                f"Surgery {count.layer}: kept {count.kept}, pruned {count.pruned}, sparsity "
                f"{log.number(count.sparsity)}, spliced back {count.spliced_back}"
            )
        if self._stage is not None and self._stage.surgery.HasField("macs"):
            kept, macs = self.macs_kept()
            log.info(f"MACs kept: {kept} of {macs} for one item, {log.number(kept / macs)} of them")
        if (latency := self.latency()) is not None:
            log.info(f"Latency by the table: {log.number(latency)} ms for one item")
        for masked_layer in self.masked_layers:
            masked_layer.forget_spliced()
        return counts

    def macs_kept(self) -> tuple[int, int]:
        """The multiply-accumulates for one item by weights that are kept, and by all.

        Waits for the device.
        """
        pruned = sum(
            masked_layer.uses * (masked_layer.weights - masked_layer.kept_weights())
            for masked_layer in self.masked_layers
        )
        return (self.size.macs - pruned) // self.size.batch, self.size.macs // self.size.batch

    def latency(self) -> float | None:
        """The milliseconds of a pass of one item, by the stage's table, if it has one.

        Waits for the device.
        """
        if self._stage is None or not self._stage.surgery.HasField("latency"):
            return None
        return None if self._filters is None else self._filters.cost() / PER_MILLISECOND

    def _due(self, iteration: int) -> list[MaskedLayer]:
        """The layers that follow a threshold and whose masks are due in the current stage."""
        return [
            masked_layer
            for schedule in self._schedules
            if schedule.is_due(self.seed, iteration)
            for masked_layer in schedule.masked_layers
        ]

    # Stages -------------------------------------------------------------------------------------

    def _check_stages(self) -> None:
        names = [masked_layer.name for masked_layer in self.masked_layers]
        for stage in self.stages:
            # Those of a stage with bits also name layers without masks, whose values are shared.
            for entry in () if stage.surgery.HasField("bits") else stage.surgery.layer:
                if entry.name not in names:
                    raise stage.error(
                        f"no masked layer is named '{entry.name}'{nearest(entry.name, names)}; "
                        f"there are: {', '.join(names) or 'none'}",
                        "layer",
                    )
                layer = self.masked_layers[names.index(entry.name)].layer
                official = isinstance(layer, MagnitudeMasks)
                if entry.HasField("threshold") if official else entry.HasField("c_rate"):
                    have, lack = ("c_rate", "threshold") if official else ("threshold", "c_rate")
                    raise stage.error(
                        f"'{entry.name}' is of type {layer.type}, which has a {have} and no {lack}",
                        "layer",
                    )
            for masked_layer in self.masked_layers:
                masked_layer.unit_size(
                    stage.pattern_of(masked_layer.name)
                )  # raises if it cannot have one
            # Raises if the net cannot become this small, whatever is pruned.
            nothing, filters = dict.fromkeys(names, 0), self.filters(stage)
            make_groups(stage, self.masked_layers, nothing, self.size, filters)

    def filters(self, stage: Stage) -> Filters | None:
        """The layers of a stage whose filters are cut, if there are any."""
        chosen = []
        for masked_layer in self.masked_layers:
            pattern = stage.pattern_of(masked_layer.name)
            if pattern is not None and pattern.is_filter:
                chosen.append(masked_layer)
        if chosen and self._net is None:
            raise stage.error("filters are for nets of Caffe's layers", "pattern")
        if not chosen or self._net is None:
            return None
        return Filters(self._net, chosen, _costs(stage, chosen[0].device))

    def _enter(self, iteration: int) -> Stage:
        """The stage of this iteration; prepares a stage when it begins or is resumed."""
        stage = stage_at(self.stages, iteration)
        if stage is self._stage:
            return stage
        self._stage = stage
        begins = iteration == stage.start
        if begins and len(self.stages) > 1 and self.masked_layers:
            described = describe(stage, self.masked_layers)
            log.info(f"Surgery {stage.title}, up to iteration {stage.end}: {described}")
        settings = {
            masked_layer.name: stage.settings_of(masked_layer.name)
            for masked_layer in self.masked_layers
        }
        chosen = [
            masked_layer
            for masked_layer in self.masked_layers
            if settings[masked_layer.name] is not None
        ]
        for masked_layer in self.masked_layers:
            masked_layer.follow_definition(
                settings[masked_layer.name] or LayerSurgery(), stage.pattern_of(masked_layer.name)
            )
            if masked_layer in chosen and isinstance(masked_layer.layer, MagnitudeMasks):
                self._find_moments(masked_layer.layer, begins)
        self._kept = {
            masked_layer.name: self._find_kept(masked_layer, stage, begins)
            for masked_layer in self.masked_layers
        }
        filters = self._filters = self.filters(stage)
        groups = make_groups(stage, self.masked_layers, self._kept, self.size, filters)
        followers = [masked_layer for group in groups for masked_layer in group.masked_layers]
        for masked_layer in followers:
            entry = self._restored.get(masked_layer.name)
            known = not begins and entry is not None and entry.HasField("threshold")
            masked_layer.follow_sparsity(
                entry.threshold if entry is not None and known else None,
                self.squares if stage.surgery.ranking == SurgeryStage.LOSS else None,
            )
        self._target = Target(stage, groups) if groups else None
        others = [masked_layer for masked_layer in chosen if masked_layer not in followers]
        self._schedules = make_schedules(stage, others)
        self._renewal = Renewal(others, filters)
        return stage

    def _find_moments(self, layer: MagnitudeMasks, begins: bool) -> None:
        """Measure the moments when a stage begins; later, take those of the solver state."""
        entry = self._restored.get(layer.name)
        if not begins and entry is not None and entry.HasField("mu"):
            layer.moments.copy_(torch.tensor([entry.mu, entry.sigma]))
            return
        layer.measure_moments()
        if not begins:
            log.warning(
                f"The solver state has no surgery moments for layer {layer.name}; "
                "measured them from the weights as they are now"
            )

    def _find_kept(self, masked_layer: MaskedLayer, stage: Stage, begins: bool) -> int:
        """How many parameters a layer kept when the stage began; weights if MACs are counted."""
        entry = self._restored.get(masked_layer.name)
        if not begins and entry is not None and entry.HasField("kept"):
            return entry.kept
        in_macs = stage.surgery.HasField("macs")
        return masked_layer.kept_weights() if in_macs else masked_layer.kept()

    # State --------------------------------------------------------------------------------------

    def moments(self) -> list[SurgeryMoments]:
        """The layers' state at the beginning of the stage, for the solver state."""
        if self._stage is None:
            return list(self._restored.values())
        entries = []
        for masked_layer in self.masked_layers:
            entry = SurgeryMoments(layer=masked_layer.name)
            layer = masked_layer.layer
            if isinstance(layer, MagnitudeMasks) and layer.moments[0] >= 0:
                entry.mu, entry.sigma = layer.moments.tolist()
            if self._target is not None:
                entry.kept = self._kept[masked_layer.name]
            if masked_layer.followed is not None:
                entry.threshold = masked_layer.followed
            if len(entry.ListFields()) > 1:
                entries.append(entry)
        return entries

    def restore(self, moments: Sequence[SurgeryMoments]) -> None:
        """Take over what a solver state says; what it lacks is measured, as the forks do."""
        self._restored = {entry.layer: entry for entry in moments}
        self._stage = None


def _costs(stage: Stage, device: torch.device) -> Costs:
    """What the filters of a stage are counted in."""
    if stage.surgery.HasField("latency"):
        return Latency(stage.surgery.latency_table, device)
    return Multiplications() if stage.surgery.HasField("macs") else Parameters()
