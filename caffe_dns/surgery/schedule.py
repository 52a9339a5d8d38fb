"""When masks are renewed: by random draws that become rarer, as both forks define them.

HolmesShuan's solver (`surgery_iter_gamma` and `surgery_iter_power`) draws once for all layers,
yiwenguo's layers (`gamma` and `power` of cconvolution_param and cinner_product_param) one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from caffe_dns import mask_rules
from caffe_dns.layers.masked import MagnitudeMasks
from caffe_dns.surgery.masked_layers import MaskedLayer
from caffe_dns.surgery.stages import Stage


@dataclass(frozen=True)
class Schedule:
    """When the masks of some layers are renewed in a stage, decided by random draws.

    There are `draws` draws per iteration, from `stream`, up to iteration `stop` of the stage, which
    begins at iteration `start` of the run.
    """

    masked_layers: Sequence[MaskedLayer]
    stream: str
    gamma: float
    power: float
    start: int
    stop: float
    draws: int = 1
    #: Whether the fork draws at every forward pass, rather than once an iteration.
    at_every_pass: bool = False

    def is_due(self, seed: int, iteration: int, more: str = "") -> bool:
        """Whether the masks are renewed at an iteration; `more` selects other draws."""
        return iteration - self.start < self.stop and mask_rules.happens(
            seed,
            self.stream + more,
            iteration,
            gamma=self.gamma,
            power=self.power,
            draws=self.draws,
            since=self.start,
        )


def make_schedules(stage: Stage, masked_layers: Sequence[MaskedLayer]) -> list[Schedule]:
    """The schedules of the layers of a stage that follow a threshold.

    Each official layer has its own; the others share the solver's.
    """
    param = stage.param
    schedules = []
    together = []
    for masked_layer in masked_layers:
        layer = masked_layer.layer
        if not isinstance(layer, MagnitudeMasks):
            together.append(masked_layer)
            continue
        settings = layer.mask_settings()
        schedules.append(
            Schedule(
                [masked_layer],
                layer.name,
                settings.gamma,
                settings.power,
                stage.start,
                settings.iter_stop,
                # The fork draws at each forward pass, so iter_size times an iteration.
                draws=param.iter_size,
                at_every_pass=True,
            )
        )
    if together:
        stop = param.surgery_stop_iter if param.HasField("surgery_stop_iter") else math.inf
        gamma, power = param.surgery_iter_gamma, param.surgery_iter_power
        schedules.append(Schedule(together, "solver", gamma, power, stage.start, stop))
    return schedules
