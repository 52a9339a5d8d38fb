"""When surgery happens in a training run, and what it did: the masked layers' part of an iteration.

The mask rules are in `surgery`, the masks in the layers; this is the schedule, the counts and the
lines of the log.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from caffe_dns import log, surgery
from caffe_dns.layers.masked import DeviationMasks, MagnitudeMasks, WeightedLayer
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import SolverParameter, SurgeryMoments

#: What the fork calls the two kinds of layers in its sparsity lines.
_FORK_NAMES = {"Convolution": "ConV", "InnerProduct": "IP"}


@dataclass
class Patient:
    """A masked layer and its count of connections spliced back since the last display."""

    layer: DeviationMasks | MagnitudeMasks
    spliced: Tensor
    _renewals: int = 0
    _graph: torch.cuda.CUDAGraph | None = None

    def renew(self) -> None:
        """Renew the layer's masks; on a GPU by replaying the kernels of an earlier time."""
        if self._graph is not None:
            self._graph.replay()
            return
        self._renewals += 1
        if self.spliced.device.type != "cuda" or self._renewals < 3:
            self.spliced += self.layer.renew_masks()
            return
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.spliced += self.layer.renew_masks()
        graph.replay()
        self._graph = graph


@dataclass(frozen=True)
class Count:
    """What the masks of one layer are like, and by which threshold they are renewed.

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


class Surgeon:
    """Renews the masks of one net as the solver's settings and the layers' say."""

    def __init__(self, net: Net, param: SolverParameter, seed: int) -> None:
        self.param = param
        self.seed = seed
        self.patients: list[Patient] = []
        owners: set[int] = set()
        for step in net.steps:
            layer = step.layer
            if not isinstance(layer, DeviationMasks | MagnitudeMasks) or not layer.mask_indices:
                continue
            mask = layer.mask_blobs()[0]
            # A shared mask belongs to the first layer; others may see it in another shape.
            if mask.data_ptr() not in owners:
                owners.add(mask.data_ptr())
                self.patients.append(
                    Patient(layer, torch.zeros((), dtype=torch.float64, device=mask.device))
                )

    def announce(self) -> None:
        """One line that says which layers surgery touches, how, and how to switch it off."""
        if not self.patients:
            return
        layers = ", ".join(_describe(patient.layer) for patient in self.patients)
        log.info(f"Surgery on {layers}. To train without it: --no-surgery")

    @torch.no_grad()
    def operate(self, iteration: int) -> None:
        """Renew the masks that are due at this iteration, before its first forward pass."""
        deviation = self._deviation_due(iteration)
        for patient in self.patients:
            layer = patient.layer
            if isinstance(layer, MagnitudeMasks):
                if iteration == 0:
                    layer.measure_moments()
                due = self._magnitude_due(layer, iteration)
            else:
                due = deviation
            if due:
                patient.renew()

    @torch.no_grad()
    def operate_for_last_display(self, iteration: int) -> None:
        """Renew masks of the official kind for the forward pass that only shows the last loss.

        The fork's layers draw at every pass in TRAIN, this one at the last iteration's number, so
        that the last loss and the last test are not those of the last snapshot.
        """
        for patient in self.patients:
            if isinstance(patient.layer, MagnitudeMasks) and self._magnitude_due(
                patient.layer, iteration, stream=f"{patient.layer.name}/last"
            ):
                patient.renew()

    def display(self) -> list[Count]:
        """Log the fork's two sparsity lines, then a line for each masked layer; returns these."""
        counts = [_count(patient) for patient in self.patients]
        counted = list(zip(counts, self.patients, strict=True))
        for kind, name in _FORK_NAMES.items():
            some = [count for count, patient in counted if patient.layer.type == kind]
            if some:
                pruned = sum(count.pruned for count in some)
                total = sum(count.kept for count in some) + pruned
                log.info(f"{name} Sparsity: {log.number(pruned / total)}")
        for count, patient in counted:
            log.info(
                f"Surgery {count.layer}: kept {count.kept}, pruned {count.pruned}, sparsity "
                f"{log.number(count.sparsity)}, spliced back {count.spliced_back}"
            )
            patient.spliced.zero_()
        return counts

    # State --------------------------------------------------------------------------------------

    def moments(self) -> list[SurgeryMoments]:
        """What the layers of the official kind measured, for the solver state."""
        return [
            SurgeryMoments(layer=layer.name, mu=float(mu), sigma=float(sigma))
            for layer in self._magnitude_layers()
            for mu, sigma in [layer.moments.tolist()]
            if mu >= 0
        ]

    def restore(self, moments: list[SurgeryMoments]) -> None:
        """Take over moments from a solver state; measure those that it lacks, as the fork's do."""
        known = {entry.layer: entry for entry in moments}
        for layer in self._magnitude_layers():
            entry = known.get(layer.name)
            if entry is None:
                layer.measure_moments()
                log.warning(
                    f"The solver state has no surgery moments for layer {layer.name}; "
                    "measured them from the weights as they are now"
                )
            else:
                layer.moments.copy_(torch.tensor([entry.mu, entry.sigma]))

    # When ---------------------------------------------------------------------------------------

    def _deviation_due(self, iteration: int) -> bool:
        if self.param.HasField("surgery_stop_iter") and iteration >= self.param.surgery_stop_iter:
            return False
        return surgery.happens(
            self.seed,
            "solver",
            iteration,
            gamma=self.param.surgery_iter_gamma,
            power=self.param.surgery_iter_power,
        )

    def _magnitude_due(
        self, layer: MagnitudeMasks, iteration: int, stream: str | None = None
    ) -> bool:
        settings = layer.mask_settings()
        if iteration >= settings.iter_stop:
            return False
        # The fork draws at each forward pass, so iter_size times an iteration.
        return surgery.happens(
            self.seed,
            stream or layer.name,
            iteration,
            gamma=settings.gamma,
            power=settings.power,
            draws=self.param.iter_size,
        )

    def _magnitude_layers(self) -> list[MagnitudeMasks]:
        return [p.layer for p in self.patients if isinstance(p.layer, MagnitudeMasks)]


def _describe(layer: WeightedLayer) -> str:
    if isinstance(layer, MagnitudeMasks):
        settings = layer.mask_settings()
        return (
            f"{layer.name} (c_rate {log.number(settings.c_rate)}, "
            f"until iteration {log.number(settings.iter_stop)})"
        )
    assert isinstance(layer, DeviationMasks)
    return f"{layer.name} (threshold {log.number(layer.threshold)})"


def _count(patient: Patient) -> Count:
    layer = patient.layer
    masks = layer.mask_blobs()
    kept = int(sum(mask.count_nonzero() for mask in masks))
    total = sum(mask.numel() for mask in masks)
    if isinstance(layer, MagnitudeMasks):
        threshold = layer.mask_settings().c_rate
    else:
        threshold = layer.threshold
    return Count(layer.name, kept, total - kept, int(patient.spliced), threshold)
