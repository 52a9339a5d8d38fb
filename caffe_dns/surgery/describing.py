"""Describes a stage for the log: which layers are pruned, and how."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_dns import log
from caffe_dns.layers.masked import MagnitudeMasks
from caffe_dns.proto.caffe_pb2 import LayerSurgery, SurgeryStage
from caffe_dns.surgery.masked_layers import MaskedLayer
from caffe_dns.surgery.stages import Stage


def describe(stage: Stage, masked_layers: Sequence[MaskedLayer]) -> str:
    """The stage's layers and how they are pruned, for the log."""
    listed = []
    together = []
    for masked_layer in masked_layers:
        settings = stage.settings_of(masked_layer.name)
        if settings is None:
            continue
        shape = f", pattern {settings.pattern}" if settings.HasField("pattern") else ""
        if settings.HasField("sparsity"):
            goal = f"to sparsity {log.number(settings.sparsity)}"
            listed.append(f"{masked_layer.name} ({goal}{shape})")
        elif stage.shares_target(settings):
            together.append(f"{masked_layer.name}{shape}")
        else:
            threshold = _describe_threshold(masked_layer, settings)
            listed.append(f"{masked_layer.name} ({threshold}{shape})")
    if together:
        listed.append(f"{', '.join(together)} ({_describe_target(stage)})")
    shape = f", all in the pattern {stage.surgery.pattern}" if stage.surgery.pattern else ""
    return (", ".join(listed) or "no layer") + shape


def _describe_threshold(masked_layer: MaskedLayer, settings: LayerSurgery) -> str:
    layer = masked_layer.layer
    if isinstance(layer, MagnitudeMasks):
        own = layer.mask_settings()
        c_rate = settings.c_rate if settings.HasField("c_rate") else own.c_rate
        until = log.number(own.iter_stop)
        return f"c_rate {log.number(c_rate)}, until iteration {until}"
    own_threshold = layer.mask_settings().threshold
    threshold = settings.threshold if settings.HasField("threshold") else own_threshold
    return f"threshold {log.number(threshold)}"


def _describe_target(stage: Stage) -> str:
    surgery_stage = stage.surgery
    if surgery_stage.HasField("compression"):
        goal = f"to {log.number(surgery_stage.compression)} times fewer parameters"
    elif surgery_stage.HasField("latency"):
        goal = f"to {log.number(surgery_stage.latency)} ms for one item, as measured"
    elif surgery_stage.HasField("macs"):
        goal = f"to {log.number(surgery_stage.macs)} of the net's multiply-accumulates"
    else:
        goal = f"to sparsity {log.number(surgery_stage.sparsity)}"
    by = ", ranked by the loss" if surgery_stage.ranking == SurgeryStage.LOSS else ""
    return f"{goal}{by}, from iteration {surgery_stage.start_iter} to {stage.end_iter} of the stage"
