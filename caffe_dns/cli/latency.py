"""`dns train --target-latency`: measures each layer's time as a function of what is left of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from caffe_dns import log
from caffe_dns.cli.pruned import plain_model
from caffe_dns.errors import CaffeError
from caffe_dns.export.shrink import shrink
from caffe_dns.layers.base import Context
from caffe_dns.layers.masked import WeightedLayer
from caffe_dns.net import Net
from caffe_dns.profile.latency import PassTime, time_pass
from caffe_dns.proto.caffe_pb2 import LayerLatency, SolverParameter
from caffe_dns.solver.solver import Solver

#: The shares of filters at which every layer is measured.
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class LatencyTarget:
    """A share of the dense net's latency, or milliseconds."""

    amount: float
    in_ms: bool

    @classmethod
    def parse(cls, text: str) -> LatencyTarget | None:
        """The target of `--target-latency`, if given. Raises CaffeError for an invalid one."""
        if not text:
            return None
        number = text.removesuffix("ms").strip()
        in_ms = text.endswith("ms")
        try:
            target = cls(float(number), in_ms)
        except ValueError:
            target = cls(math.nan, in_ms)
        if not 0 < target.amount < math.inf or (target.amount > 1 and not in_ms):
            raise CaffeError(
                f"--target-latency must be a share of the dense net's, like 0.3, or milliseconds, "
                f"like 2.5ms, not '{text}'"
            )
        return target

    def measure(self, param: SolverParameter, build: Callable[[SolverParameter], Solver]) -> None:
        """Write the table and the target in milliseconds into the only stage.

        `build` makes a solver from a definition; it is not trained here.
        """
        with log.silenced:
            trainer = build(param)
            try:
                rows, dense = _measure(trainer)
            finally:
                trainer.close()
        (stage,) = param.surgery_stage
        stage.latency_table.extend(rows)
        stage.latency = self.amount if self.in_ms else self.amount * dense
        for row in rows:
            if len(set(row.milliseconds)) > 1:
                pairs = zip(row.share, row.milliseconds, strict=True)
                listed = ", ".join(f"{log.number(ms)} at {share:.3g}" for share, ms in pairs)
                log.info(f"Latency of {row.name}, in ms, by the share that is left: {listed}")
        goal = log.number(stage.latency)
        log.info(f"Latency of the dense net: {log.number(dense)} ms for one item; wanted: {goal}")


def tell_latency(trainer: Solver) -> None:
    """Log the latency that a stage has reached: by its table, and measured after shrinking."""
    predicted = None if trainer.surgeon is None else trainer.surgeon.latency()
    if predicted is not None:
        measured = time_pass(_small_net(trainer)).total
        log.info(
            f"Latency for one item: {log.number(predicted)} ms by the table, "
            f"{log.number(measured)} measured, without the filters that are cut (--shrink)"
        )


def _measure(trainer: Solver) -> tuple[list[LayerLatency], float]:
    """The table, and the milliseconds of the dense net."""
    assert trainer.surgeon is not None
    filters = trainer.surgeon.filters(trainer.surgeon.stages[0])
    if filters is None:
        raise CaffeError("--target-latency: no layer of the net has masks")
    found: list[tuple[Net, PassTime]] = []
    for share in SHARES:
        filters.keep_share(share)
        net = _small_net(trainer)
        found.append((net, time_pass(net)))
    dense, whole = found[-1]
    names = [step.layer.name for step in dense.steps]
    return [_row(name, found) for name in names if whole.layers[name] > 0], whole.total


def _small_net(trainer: Solver) -> Net:
    """The shrunk net for deployment, on the device of the training net."""
    context = trainer.net.context
    plain = Context(
        device=context.device,
        allow_python_layers=context.allow_python_layers,
        activations=context.activations,
    )
    return shrink(plain_model(trainer)).model.to_net(plain)


def _row(name: str, found: Sequence[tuple[Net, PassTime]]) -> LayerLatency:
    """The times of a layer by the share of its filters in the nets."""
    whole = _size(found[-1][0], name)
    times: dict[float, float] = {}
    for net, measured in found:
        if name in measured.layers:
            share = _size(net, name) / whole
            times[share] = min(measured.layers[name], times.get(share, math.inf))
    if len(times) == 1:
        times[0.0] = times[1.0]  # it is never reduced
    shares = sorted(times)
    return LayerLatency(name=name, share=shares, milliseconds=[times[s] for s in shares])


def _size(net: Net, name: str) -> int:
    """The weights of a layer, or the channels that it reads."""
    layer = net.layer(name)
    assert layer is not None
    if isinstance(layer, WeightedLayer):
        return layer.blobs[0].numel()
    (step,) = (step for step in net.steps if step.layer is layer)
    shapes = [net.blob_shapes[blob] for blob in (*step.bottoms, *step.tops)]
    return shapes[0][1] if len(shapes[0]) > 1 else 1
