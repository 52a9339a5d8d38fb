"""The values that a display shows, copied to the host together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from caffe_dns.device.fetching import on_host
from caffe_dns.net import Net
from caffe_dns.solver.divergence import largest_values
from caffe_dns.surgery.surgeon import Surgeon


@dataclass(frozen=True)
class Readings:
    """The smoothed loss and, on the host, the other values of an iteration.

    `last` is the loss of the last iteration, `largest` what `largest_values` gives, `tallies` the
    surgeon's.
    """

    loss: float
    last: Tensor
    largest: Tensor
    outputs: dict[str, Tensor]
    tallies: list[Tensor]


def take_readings(
    net: Net, losses: Sequence[Tensor], outputs: Mapping[str, Tensor], surgeon: Surgeon | None
) -> Readings:
    """The readings after an iteration, whose loss is the last of `losses`.

    All are requested before the host waits for the device, which is idle from then on.
    """
    tallies = surgeon.tallies() if surgeon is not None else []
    values = [smoothed(losses), losses[-1], largest_values(net), *outputs.values(), *tallies]
    loss, last, largest, *rest = on_host(values)
    shown = dict(zip(outputs, rest, strict=False))
    return Readings(float(loss), last, largest, shown, rest[len(shown) :])


def smoothed(losses: Sequence[Tensor]) -> Tensor:
    """The mean of the last average_loss losses."""
    return torch.stack([*losses]).mean()
