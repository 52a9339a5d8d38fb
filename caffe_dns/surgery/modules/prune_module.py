"""`prune`: prunes a module while a program trains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from torch import nn

from caffe_dns.errors import BadValue, CaffeError
from caffe_dns.proto.caffe_pb2 import (
    CInnerProductParameter,
    InnerProductParameter,
    SolverParameter,
    SurgeryStage,
)
from caffe_dns.surgery.masked_layers import MaskedLayer
from caffe_dns.surgery.modules.adopted import Adopted, AdoptedByDeviation, AdoptedByMagnitude
from caffe_dns.surgery.modules.pruner import Pruner
from caffe_dns.surgery.modules.weights import PrunableWeight, find_weights
from caffe_dns.surgery.stages import plan

RULES = ("magnitude", "deviation")
#: A solver counts its iterations in 32 bits.
MOST_STEPS = 1 << 31
PerLayer = float | Mapping[str, float]


def prune(
    model: nn.Module,
    *,
    steps: int,
    compression: float | None = None,
    sparsity: PerLayer | None = None,
    threshold: PerLayer | None = None,
    c_rate: PerLayer | None = None,
    layers: Sequence[str] | None = None,
    rule: str = "magnitude",
    pattern: str = "",
    start: int = 0,
    end: int | None = None,
    interval: int = 50,
    steepness: float = 3.0,
    gamma: float = 0.001,
    power: float = 1.0,
    seed: int = 0,
    from_zeros: bool = False,
) -> Pruner:
    """Prune a module while it trains for `steps` steps.

    Move the model to its device first, and call `step` of the Pruner that this returns after each
    step of the optimizer. Raises CaffeError for settings that make no sense or do not fit the
    model.

    One of these says how far to prune:

    - `compression`: how many times fewer parameters the whole model is to have.
    - `sparsity`: the share of the pruned layers' parameters to prune, of all together or, in a
      dict, of each layer.
    - `threshold`, for all or by layer: prune weights within so many standard deviations of their
      mean (HolmesShuan's fork).
    - `c_rate`, for all or by layer: prune parameters whose magnitude is below the mean plus so many
      standard deviations of the magnitudes (Guo et al.).

    When: a compression or sparsity is approached from step `start` on and reached at step `end`
    (default: half of the steps), by renewals of the masks `interval` steps apart; what is still to
    be pruned falls as (1 - progress) ^ `steepness`. With `threshold` or `c_rate`, masks are renewed
    before `end` with the probability (1 + `gamma` * step) ^ -`power`, drawn from `seed`.

    What:

    - `layers`: the names of modules or parameters. Default: every Conv1d to Conv3d, also
      transposed, Linear and MultiheadAttention that learns, and every Caffe layer without masks.
    - `rule`, for a compression or sparsity: "magnitude" (weights and biases) or "deviation"
      (weights only, by their distance from their mean).
    - `pattern`, of the masks of weights: "2:4" keeps at most 2 of 4 neighbours along the inputs,
      "1x4" prunes 4 neighbours together; inputs are in the order kh, kw, C.
    - `from_zeros`: whether entries that are zero count as pruned from the beginning.
    """
    quantity = _quantity(
        compression=compression, sparsity=sparsity, threshold=threshold, c_rate=c_rate
    )
    if rule not in RULES:
        raise BadValue(f"rule: '{rule}' is unknown; known: {', '.join(RULES)}")
    if layers is not None:
        _check_names(layers)
        if quantity.names is not None:
            raise BadValue(f"layers: {quantity.kind} names them already")
    weights = find_weights(model, quantity.names if layers is None else layers)
    steps, start = _whole("steps", steps), _whole("start", start)
    stop = steps // 2 if end is None else _whole("end", end)
    interval = _whole("interval", interval)
    if not 0 <= start <= stop < steps:
        raise BadValue(
            f"0, start, end and steps must come in this order, the last one later than the others; "
            f"they are 0, {start}, {stop} and {steps}"
        )
    settings = CInnerProductParameter(gamma=gamma, power=power, iter_stop=stop)
    adopted = [
        _adopt(weight, quantity, number, rule, settings) for number, weight in enumerate(weights)
    ]
    if from_zeros:
        for layer in adopted:
            MaskedLayer(layer).mask_zeros()
    stage = SurgeryStage(start_iter=start, end_iter=stop, interval=interval, steepness=steepness)
    if pattern:
        stage.pattern = pattern
    quantity.fill(stage, [weight.name for weight in weights])
    solver = SolverParameter(
        lr_policy="fixed",  # of no consequence
        max_iter=steps,
        surgery_stop_iter=stop,
        surgery_iter_gamma=gamma,
        surgery_iter_power=power,
        surgery_stage=[stage],
    )
    try:
        return Pruner(model, adopted, plan(solver), seed)
    except CaffeError as error:
        # The stage is the only one, and nobody wrote it.
        field = (error.field or "").removeprefix("surgery_stage[0].")
        raise BadValue(f"{field}: {error.message}" if field else error.message) from None


@dataclass(frozen=True)
class _Quantity:
    """How far to prune, in which terms: `amounts` has one for all layers, or one for each."""

    kind: str
    amounts: list[float]
    names: list[str] | None

    def of(self, number: int) -> float:
        """What holds for a layer, by its number."""
        return self.amounts[0 if self.names is None else number]

    def fill(self, stage: SurgeryStage, layers: Sequence[str]) -> None:
        """Say it in a stage, if it is something to be reached."""
        if self.kind == "compression":
            stage.compression = self.of(0)
        elif self.kind == "sparsity" and self.names is None:
            stage.sparsity = self.of(0)
        elif self.kind == "sparsity":
            for layer, amount in zip(layers, self.amounts, strict=True):
                stage.layer.add(name=layer, sparsity=amount)


def _check_names(layers: Sequence[str]) -> None:
    if isinstance(layers, str):
        raise BadValue(f"layers: must be a list of names; for one layer it is ['{layers}']")
    for name in layers:
        if not isinstance(name, str):
            raise BadValue(f"layers: must be names, as of model.named_modules(), not {name!r}")


def _whole(name: str, value: float) -> int:
    """A number that a solver's fields can have."""
    with suppress(TypeError, ValueError, OverflowError):
        if int(value) == value and abs(value) < MOST_STEPS:
            return int(value)
    raise BadValue(f"{name}: must be a whole number below {MOST_STEPS}, not {value!r}")


def _amount(kind: str, value: float) -> float:
    with suppress(TypeError, ValueError):
        return float(value)
    raise BadValue(f"{kind}: must be a number, or one for each name of a layer, not {value!r}")


def _quantity(**given: PerLayer | None) -> _Quantity:
    kinds = [kind for kind, amount in given.items() if amount is not None]
    if len(kinds) != 1:
        raise BadValue(
            f"give one of {', '.join(given)}, not {' and '.join(kinds) or 'none of them'}"
        )
    amount = given[kinds[0]]
    if isinstance(amount, Mapping):
        amounts = [_amount(kinds[0], value) for value in amount.values()]
        return _Quantity(kinds[0], amounts, list(amount))
    assert amount is not None
    return _Quantity(kinds[0], [_amount(kinds[0], amount)], None)


def _adopt(
    weight: PrunableWeight,
    quantity: _Quantity,
    number: int,
    rule: str,
    settings: CInnerProductParameter,
) -> Adopted:
    """A weight as a layer with masks, which has its own threshold if there is one."""
    if quantity.kind == "threshold":
        return AdoptedByDeviation(weight, InnerProductParameter(threshold=quantity.of(number)))
    if quantity.kind == "c_rate":
        own = CInnerProductParameter(c_rate=quantity.of(number))
        own.MergeFrom(settings)
        return AdoptedByMagnitude(weight, own)
    if rule == "deviation":
        return AdoptedByDeviation(weight, InnerProductParameter())
    return AdoptedByMagnitude(weight, settings)
