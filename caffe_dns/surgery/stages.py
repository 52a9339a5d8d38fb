"""The stages of a training run: which layers are pruned when, how far, and at which rates.

`plan` makes them from a solver definition and checks them; a definition without stages is one stage
that lasts the whole run. What happens within a stage is the surgeon's business, and how the masks
follow a sparsity that of `target`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from caffe_dns.encoding import in_message
from caffe_dns.errors import CaffeError
from caffe_dns.lr_policy import check_policy, learning_rate, next_step
from caffe_dns.proto.caffe_pb2 import LayerSurgery, SolverParameter, SurgeryStage
from caffe_dns.surgery.patterns import Pattern, parse_pattern

#: What a stage's `solver { }` may set.
STAGE_SETTINGS = (
    "base_lr",
    "lr_policy",
    "gamma",
    "power",
    "stepsize",
    "stepvalue",
    "warmup_iter",
    "warmup_start_lr",
    "rampup_interval",
    "rampup_lr",
    "min_lr",
    "stagelr",
    "stageiter",
    "surgery_stop_iter",
    "surgery_iter_gamma",
    "surgery_iter_power",
)
#: Up to 256 values: a byte for each weight.
MOST_BITS = 8
#: How far a stage prunes its layers together: one of these.
AMOUNTS: tuple[Literal["sparsity", "compression", "macs", "latency"], ...] = (
    "sparsity",
    "compression",
    "macs",
    "latency",
)
_LAYER_SETTINGS: tuple[Literal["sparsity", "threshold", "c_rate", "bits"], ...] = (
    "sparsity",
    "threshold",
    "c_rate",
    "bits",
)


@dataclass(frozen=True)
class Stage:
    """Iterations `start` to `start + length` of a run; `number` counts from 1.

    `param` is the solver definition as it is in this stage: its max_iter is the stage's length.
    """

    number: int
    start: int
    length: int
    surgery: SurgeryStage
    param: SolverParameter

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def title(self) -> str:
        name = self.surgery.name
        return f"stage {self.number} ({name})" if name else f"stage {self.number}"

    @property
    def end_iter(self) -> int:
        """Where, counted from the beginning of the stage, the sparsity is reached."""
        given = self.surgery.HasField("end_iter")
        return self.surgery.end_iter if given else max(self.surgery.start_iter, self.length // 2)

    @property
    def first_ranked(self) -> int:
        """The first iteration of the stage with something to rank weights by.

        To rank by the loss takes gradients, of which a run has none when it begins.
        """
        return int(self.start == 0 and self.surgery.ranking == SurgeryStage.LOSS)

    def rate(self, iteration: int, current_step: int) -> tuple[float, int]:
        """The learning rate at an iteration of the run, and the number of steps passed by then.

        `current_step` is the number of steps passed before.
        """
        passed = iteration - self.start
        step = next_step(self.param, passed, current_step if passed else 0)
        return learning_rate(self.param, passed, step), step

    def settings_of(self, layer: str) -> LayerSurgery | None:
        """How the stage prunes a layer; None when it does not."""
        if not self.surgery.surgery:
            return None
        if not self.surgery.layer:
            return LayerSurgery(name=layer)
        return next((entry for entry in self.surgery.layer if entry.name == layer), None)

    def bits_of(self, layer: str) -> int:
        """How many values a layer's weights share in a stage with bits: 2 to the power of this."""
        own = [entry.bits for entry in self.surgery.layer if entry.name == layer]
        return own[0] if own else self.surgery.bits

    def shares_target(self, settings: LayerSurgery) -> bool:
        """Whether a layer with these settings is pruned by what the whole stage is to reach."""
        has_target = any(map(self.surgery.HasField, AMOUNTS))
        return has_target and not any(settings.HasField(name) for name in _LAYER_SETTINGS)

    def pattern_of(self, layer: str) -> Pattern | None:
        """The pattern that a layer's mask keeps in this stage, if any."""
        settings = self.settings_of(layer)
        if settings is None:
            return None
        text = settings.pattern or self.surgery.pattern
        return parse_pattern(text) if text else None

    def error(self, message: str, field: str) -> CaffeError:
        return CaffeError(message, field=f"surgery_stage[{self.number - 1}].{field}")


def plan(param: SolverParameter) -> list[Stage]:
    """The stages of a run, in order. Raises CaffeError for settings that make no sense."""
    if not param.surgery_stage:
        return [Stage(1, 0, param.max_iter, SurgeryStage(), param)]
    stages: list[Stage] = []
    start = 0
    for number, surgery in enumerate(param.surgery_stage, start=1):
        length = surgery.iterations
        if number == len(param.surgery_stage) and not surgery.HasField("iterations"):
            length = param.max_iter - start
        stage = Stage(number, start, length, surgery, _merged(param, surgery, length))
        if length < 1:
            raise stage.error(f"must be at least 1, not {length}", "iterations")
        _check(stage)
        stages.append(stage)
        start = stage.end
    if param.HasField("max_iter") and param.max_iter != start:
        raise CaffeError(
            f"is {param.max_iter}, but the iterations of all surgery_stage are {start}; "
            "leave it out, or make them the same",
            field="max_iter",
        )
    return stages


def stage_at(stages: Sequence[Stage], iteration: int) -> Stage:
    """The stage that an iteration lies in; the last one also for what comes after it."""
    return next((stage for stage in stages if iteration < stage.end), stages[-1])


def parse_target(
    sparsity: str, compression: float | None, macs: float | None = None, pattern: str = ""
) -> SurgeryStage:
    """The one stage that `--target-sparsity 0.9` or `conv2=0.97,ip1=0.99`, or a compression, or a
    share of the multiply-accumulates, asks for, in a pattern if one is given. A pattern N:M alone
    asks for the sparsity that it comes to. Raises CaffeError for anything else.
    """
    stage = SurgeryStage()
    if pattern:
        stage.pattern = in_message(pattern)
    if compression is not None:
        stage.compression = compression
    elif macs is not None:
        stage.macs = macs
    elif not sparsity:
        try:
            group = parse_pattern(pattern)
        except CaffeError as error:
            raise error.locate(field="--pattern") from None
        if group.most < group.group:
            stage.sparsity = 1 - group.most / group.group
    elif "=" not in sparsity:
        stage.sparsity = _share(sparsity)
    else:
        for entry in sparsity.split(","):
            name, _, value = entry.partition("=")
            stage.layer.add(name=in_message(name.strip()), sparsity=_share(value))
    return stage


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        wrong = "is not a number"
    else:
        if 0 <= value < 1:
            return value
        wrong = "is not at least 0 and below 1"
        if 1 < value < 100:
            wrong += f" ({value:g} % are {value / 100:g})"
    raise CaffeError(
        f"--target-sparsity must be a share like 0.9, or layers with shares like "
        f"conv2=0.97,ip1=0.99; '{text}' {wrong}"
    )


def _merged(param: SolverParameter, surgery: SurgeryStage, length: int) -> SolverParameter:
    merged = SolverParameter()
    merged.CopyFrom(param)
    merged.ClearField("surgery_stage")
    for name in ("stepvalue", "stagelr", "stageiter"):
        if getattr(surgery.solver, name):
            merged.ClearField(name)
    merged.MergeFrom(surgery.solver)
    merged.max_iter = length
    return merged


def _check(stage: Stage) -> None:
    surgery = stage.surgery
    for field, _ in surgery.solver.ListFields():
        if field.name not in STAGE_SETTINGS:
            known = ", ".join(STAGE_SETTINGS)
            raise stage.error(f"cannot differ in a stage; what can: {known}", field.name)
    try:
        check_policy(stage.param)
    except CaffeError as error:
        raise stage.error(error.message, error.field or "lr_policy") from None
    _check_amounts(stage)
    _check_patterns(stage)
    if surgery.start_iter < 0:
        raise stage.error(f"must not be negative, but is {surgery.start_iter}", "start_iter")
    if not surgery.start_iter <= stage.end_iter < stage.length:
        raise stage.error(
            f"must lie between start_iter ({surgery.start_iter}) and the stage's last iteration "
            f"({stage.length - 1}), but is {stage.end_iter}",
            "end_iter",
        )
    if stage.end_iter < stage.first_ranked:
        raise stage.error("must be above 0 with ranking: LOSS, which needs gradients", "end_iter")
    if surgery.interval < 1:
        raise stage.error(f"must be at least 1, not {surgery.interval}", "interval")
    if not surgery.steepness > 0:
        raise stage.error(f"must be above 0, not {surgery.steepness:g}", "steepness")


def _check_patterns(stage: Stage) -> None:
    for part in (stage.surgery, *stage.surgery.layer):
        if not part.HasField("pattern"):
            continue
        if not stage.surgery.surgery:
            raise stage.error("without surgery, masks stay as they are", "pattern")
        try:
            parse_pattern(part.pattern)
        except CaffeError as error:
            raise stage.error(error.message, "pattern") from None


def _check_latency(stage: Stage) -> None:
    surgery = stage.surgery
    if surgery.HasField("latency"):
        if not 0 < surgery.latency < math.inf:
            raise stage.error(f"must be above 0, but is {surgery.latency:g}", "latency")
        if surgery.pattern != "filter" or any(entry.pattern for entry in surgery.layer):
            raise stage.error("is for whole filters: pattern: 'filter'", "latency")
        if not surgery.latency_table:
            raise stage.error("needs a latency_table, which --target-latency measures", "latency")
    elif surgery.latency_table:
        raise stage.error("is of no use without a latency", "latency_table")
    for row in surgery.latency_table:
        shares = list(row.share)
        rising = len(shares) > 1 and shares[0] >= 0 and shares[-1] == 1
        rising = rising and all(map(operator.lt, shares, shares[1:]))
        timed = len(row.milliseconds) == len(shares)
        if not (rising and timed and all(0 <= ms < math.inf for ms in row.milliseconds)):
            raise stage.error(
                f"'{row.name}' needs two shares or more that rise to 1, and the milliseconds of "
                "each",
                "latency_table",
            )


def _check_amounts(stage: Stage) -> None:
    surgery = stage.surgery
    if surgery.HasField("bits") and surgery.surgery:
        raise stage.error("needs masks that stay as they are: surgery: false", "bits")
    amounts = [name for name in AMOUNTS if surgery.HasField(name)]
    some = amounts or any(entry.HasField("sparsity") for entry in surgery.layer)
    if surgery.HasField("ranking") and not (some and surgery.surgery):
        raise stage.error(
            "needs something to rank for: a sparsity, a compression, macs or latency", "ranking"
        )
    if surgery.ranking == SurgeryStage.LOSS and any(
        part.HasField("pattern") for part in (surgery, *surgery.layer)
    ):
        raise stage.error("LOSS is for parameters alone, not for those of a pattern", "ranking")
    if len(amounts) > 1:
        raise stage.error(f"give either this or {amounts[0]}, not both", amounts[-1])
    if surgery.HasField("compression") and not surgery.compression >= 1:
        raise stage.error(f"must be at least 1, not {surgery.compression:g}", "compression")
    if surgery.HasField("macs") and not 0 < surgery.macs <= 1:
        raise stage.error(f"must be above 0 and at most 1, but is {surgery.macs:g}", "macs")
    _check_latency(stage)
    for part in (surgery, *surgery.layer):
        if part.HasField("sparsity") and not 0 <= part.sparsity < 1:
            raise stage.error(
                f"must be at least 0 and below 1, but is {part.sparsity:g}", "sparsity"
            )
        if part.HasField("bits") and not 1 <= part.bits <= MOST_BITS:
            raise stage.error(f"must be 1 to {MOST_BITS}, not {part.bits}", "bits")
    names = [entry.name for entry in surgery.layer]
    for entry in surgery.layer:
        if names.count(entry.name) > 1:
            raise stage.error(f"'{entry.name}' is given more than once", "layer")
        if entry.HasField("bits") != surgery.HasField("bits"):
            raise stage.error(f"'{entry.name}' and the stage must both have bits, or none", "layer")
        given = [name for name in _LAYER_SETTINGS if entry.HasField(name)]
        if len(given) > 1:
            raise stage.error(f"'{entry.name}' can have only one of {', '.join(given)}", "layer")
        for goal in ("macs", "latency"):
            if given and surgery.HasField(goal):
                raise stage.error(
                    f"'{entry.name}' has a {given[0]}, but all layers of a stage are pruned "
                    "together by this; give that one a stage of its own",
                    goal,
                )
        if given and given != ["sparsity"] and surgery.HasField("compression"):
            raise stage.error(
                f"'{entry.name}' has a {given[0]}, so what it will keep is not known; "
                "give it a sparsity",
                "compression",
            )
