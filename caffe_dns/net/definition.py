"""Passes over a network definition: NetParameter in, NetParameter out.

`filter_layers` applies the include and exclude rules, `insert_splits` gives every reader of a blob
a top of its own. They restate `Net::FilterNet`, `Net::StateMeetsRule` (net.cpp) and
`insert_splits.cpp`; nothing is built here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import LayerParameter, NetParameter, NetState, NetStateRule, Phase

#: A top by position: (index of its layer, index among the layer's tops).
TopIndex = tuple[int, int]

_SURGERY_TYPES = ("CConvolution", "CInnerProduct")
_SURGERY_FIELDS: tuple[Literal["sparsity_term", "threshold", "weight_mask_filler"], ...] = (
    "sparsity_term",
    "threshold",
    "weight_mask_filler",
)


def with_state(
    param: NetParameter, phase: Phase, level: int = 0, stages: Sequence[str] = ()
) -> NetParameter:
    """A copy whose state has this phase, level and these stages on top of the definition's own."""
    result = NetParameter()
    result.CopyFrom(param)
    result.state.phase = phase
    result.state.level = level
    result.state.stage.extend(stages)
    return result


def asks_for_surgery(param: NetParameter) -> bool:
    """Whether any layer is of a type with masks or has a field about masks."""
    return any(
        layer.type in _SURGERY_TYPES
        or any(
            settings.HasField(field)
            for settings in (layer.convolution_param, layer.inner_product_param)
            for field in _SURGERY_FIELDS
        )
        for layer in param.layer
    )


def filter_layers(param: NetParameter) -> tuple[NetParameter, list[int]]:
    """The definition without the layers that its state excludes, and the indices of those kept.

    Raises CaffeError for a layer with both include and exclude rules.
    """
    kept = [i for i, layer in enumerate(param.layer) if _included(param.state, layer)]
    result = without_layers(param)
    result.layer.extend(param.layer[i] for i in kept)
    return result, kept


def without_layers(param: NetParameter) -> NetParameter:
    """A copy of everything but the layers: layers deleted from a copy would stay in memory."""
    others = {field.name: value for field, value in param.ListFields() if field.name != "layer"}
    return NetParameter(**others)


def _included(state: NetState, layer: LayerParameter) -> bool:
    if layer.include and layer.exclude:
        raise CaffeError(
            "has both include and exclude rules; give one kind only",
            layer=layer.name,
            field="include",
        )
    if layer.include:
        return any(meets_rule(state, rule, layer.name) for rule in layer.include)
    return not any(meets_rule(state, rule, layer.name) for rule in layer.exclude)


def meets_rule(state: NetState, rule: NetStateRule, layer: str) -> bool:
    """Whether `state` meets `rule`; logs what it does not meet, as in Caffe."""
    where = f"specified by a rule in layer {layer}"
    broken = None
    if rule.HasField("phase") and rule.phase != state.phase:
        broken = f"phase ({state.phase}) differed from the phase ({rule.phase}) {where}"
    elif rule.HasField("min_level") and state.level < rule.min_level:
        broken = f"level ({state.level}) is above the min_level ({rule.min_level}) {where}"
    elif rule.HasField("max_level") and state.level > rule.max_level:
        broken = f"level ({state.level}) is above the max_level ({rule.max_level}) {where}"
    if broken:
        log.info(f"The NetState {broken}")
        return False
    for stage in rule.stage:
        if stage not in state.stage:
            log.info(f"The NetState did not contain stage '{stage}' {where}")
            return False
    for stage in rule.not_stage:
        if stage in state.stage:
            log.info(f"The NetState contained a not_stage '{stage}' {where}")
            return False
    return True


def with_statistics_of(param: NetParameter) -> NetParameter:
    """The definition; if it gives `bn_stats_batch_size`, a copy with it in all BatchNorm layers.

    It replaces theirs (`apply_bn_stats_batch_size.cpp` of Intel Caffe).
    """
    if not param.HasField("bn_stats_batch_size"):
        return param
    result = NetParameter()
    result.CopyFrom(param)
    for layer in result.layer:
        if layer.type == "BatchNorm":
            layer.batch_norm_param.stats_batch_size = result.bn_stats_batch_size
    return result


def insert_splits(param: NetParameter) -> NetParameter:
    """A copy in which a top that is read more than once goes through a Split layer.

    The copies are named BLOB_LAYER_TOP_split_N. A loss weight counts as a reader. Raises CaffeError
    for a bottom that no earlier layer makes.
    """
    sources, readers, losses = _find_readers(param)
    result = without_layers(param)
    copies_given: Counter[TopIndex] = Counter()
    for i, original in enumerate(param.layer):
        layer = result.layer.add()
        layer.CopyFrom(original)
        for j in range(len(layer.bottom)):
            source = sources[i, j]
            if readers[source] > 1:
                maker = param.layer[source[0]].name
                copy = f"{_split_name(layer.bottom[j], maker, source[1])}_{copies_given[source]}"
                layer.bottom[j] = copy
                copies_given[source] += 1
        for j, blob in enumerate(original.top):
            if readers[i, j] > 1:
                weight = losses.get((i, j), 0.0)
                split = _split_name(blob, original.name, j)
                _configure_split(result.layer.add(), split, blob, readers[i, j], weight)
                if weight:
                    layer.ClearField("loss_weight")
                    copies_given[i, j] += 1
    return result


def _find_readers(
    param: NetParameter,
) -> tuple[dict[TopIndex, TopIndex], Counter[TopIndex], dict[TopIndex, float]]:
    """Where each bottom comes from, how many readers each top has, and the tops' loss weights."""
    last_top: dict[str, TopIndex] = {}
    sources: dict[TopIndex, TopIndex] = {}
    readers: Counter[TopIndex] = Counter()
    losses: dict[TopIndex, float] = {}
    for i, layer in enumerate(param.layer):
        for j, blob in enumerate(layer.bottom):
            if blob not in last_top:
                raise unknown_bottom(blob, layer.name, j)
            sources[i, j] = last_top[blob]
            readers[last_top[blob]] += 1
        for j, blob in enumerate(layer.top):
            last_top[blob] = (i, j)
        for blob, weight in zip(layer.top, layer.loss_weight, strict=False):
            losses[last_top[blob]] = weight
            if weight:
                readers[last_top[blob]] += 1
    return sources, readers, losses


def unknown_bottom(blob: str, layer: str, index: int) -> CaffeError:
    """The error for a bottom that no earlier layer makes, or that is no longer available."""
    return CaffeError(
        f"Unknown bottom blob '{blob}' (layer '{layer}', bottom index {index}); "
        "no earlier layer in this phase makes it",
        layer=layer,
        field="bottom",
    )


def _split_name(blob: str, layer: str, top: int) -> str:
    return f"{blob}_{layer}_{top}_split"


def _configure_split(
    split: LayerParameter, name: str, blob: str, copies: int, loss_weight: float
) -> None:
    split.name = name
    split.type = "Split"
    split.bottom.append(blob)
    for k in range(copies):
        split.top.append(f"{name}_{k}")
        if loss_weight:
            split.loss_weight.append(loss_weight if k == 0 else 0.0)
