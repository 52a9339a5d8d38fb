"""Upgrades old definitions and models, and reads files in the current form.

Three generations of nets, transformation settings inside data layers, `input` fields, BatchNorm's
`param`, and the solver's enum are upgraded as in `util/upgrade_proto.cpp`, with the lines that
Caffe logs.
"""

from __future__ import annotations

import os
from pathlib import Path

from caffe_dns import log
from caffe_dns.encoding import in_message, on_disk
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import LayerParameter, NetParameter, SolverParameter
from caffe_dns.proto.text import Parsed, read_binary, read_text
from caffe_dns.proto.upgrade_forks import say_as_ours
from caffe_dns.proto.upgrade_v0 import is_padding, upgrade_v0_net
from caffe_dns.proto.upgrade_v1 import (
    needs_data_upgrade,
    upgrade_data_transformation,
    upgrade_v1_net,
)

_SOLVER_TYPES = {
    SolverParameter.SGD: "SGD",
    SolverParameter.NESTEROV: "Nesterov",
    SolverParameter.ADAGRAD: "AdaGrad",
    SolverParameter.RMSPROP: "RMSProp",
    SolverParameter.ADADELTA: "AdaDelta",
    SolverParameter.ADAM: "Adam",
}


def read_net(path: str | Path) -> Parsed[NetParameter]:
    """Read a net definition and upgrade it (`ReadNetParamsFromTextFileOrDie`)."""
    parsed = read_text(path, NetParameter)
    parsed.check_finite()
    old, positions = parsed.message, parsed.positions
    # Layer numbers stay true: padding layers go, and an Input layer comes in front.
    positions.remove_layers({at for at, layer in enumerate(old.layers) if is_padding(layer)})
    names = [layer.layer.name for layer in old.layers if not is_padding(layer)]
    has_shapes = _has_input_shapes(old)
    try:
        _check_inputs(old)
        parsed.message = upgrade_net(old, str(path))
    except CaffeError as error:
        if error.layer in names:
            error.locate(line=positions.layer_line(names.index(error.layer)))
        raise parsed.locate(error) from None
    if has_shapes:
        positions.insert_layer()
    return parsed


def read_solver(path: str | Path) -> Parsed[SolverParameter]:
    """Read a solver definition and upgrade it (`ReadSolverParamsFromTextFileOrDie`).

    A snapshot_prefix that is missing or a folder is completed with the file's name.
    """
    parsed = read_text(path, SolverParameter)
    parsed.check_finite()
    try:
        upgrade_solver(parsed.message, str(path))
    except CaffeError as error:
        raise parsed.locate(error) from None
    complete_snapshot_prefix(parsed.message, str(path))
    return parsed


def read_weights(path: str | Path) -> NetParameter:
    """Read a .caffemodel and upgrade it (`ReadNetParamsFromBinaryFileOrDie`)."""
    return upgrade_net(read_binary(path, NetParameter), str(path))


def net_needs_upgrade(net: NetParameter) -> bool:
    """Whether anything in the net is of an older form (`NetNeedsUpgrade`)."""
    return len(net.layers) > 0 or len(net.input) > 0 or any(map(_is_old_batch_norm, net.layer))


def upgrade_net(param: NetParameter, file: str) -> NetParameter:
    """The net in today's form; `param` itself may be changed on the way. `file` is for messages."""
    return upgrade_net_as_needed(param, file)[0]


def upgrade_net_as_needed(param: NetParameter, file: str) -> tuple[NetParameter, bool]:
    """The net in today's form, and False when settings had to be left behind, which are logged."""
    try:
        param, v0_compatible = _upgrade_v0(param, file)
        _upgrade_data(param, file)
        param, v1_compatible = _upgrade_v1(param, file)
        _upgrade_input(param, file)
        _upgrade_batch_norm(param, file)
        _give_fillers_to_scales(param)
        for layer in param.layer:
            say_as_ours(layer)
    except CaffeError as error:
        raise error.locate(file=file) from None
    return param, v0_compatible and v1_compatible


def _upgrade_v0(param: NetParameter, file: str) -> tuple[NetParameter, bool]:
    if not any(layer.HasField("layer") for layer in param.layers):
        return param, True
    log.info(
        f"Attempting to upgrade input file specified using deprecated V0LayerParameter: {file}"
    )
    param, compatible = upgrade_v0_net(param)
    if compatible:
        log.info("Successfully upgraded file specified using deprecated V0LayerParameter")
    else:
        log.error(
            "Warning: had one or more problems upgrading V0NetParameter to NetParameter "
            "(see above); continuing anyway."
        )
    log.warning(
        "Note that future Caffe releases will not support V0NetParameter; "
        "use ./build/tools/upgrade_net_proto_text for prototxt and "
        "./build/tools/upgrade_net_proto_binary for model weights "
        "upgrade this and any other net protos to the new format."
    )
    return param, compatible


def _upgrade_data(param: NetParameter, file: str) -> None:
    if not needs_data_upgrade(param):
        return
    log.info(
        "Attempting to upgrade input file specified using deprecated "
        f"transformation parameters: {file}"
    )
    upgrade_data_transformation(param)
    log.info(
        "Successfully upgraded file specified using deprecated data transformation parameters."
    )
    log.warning(
        "Note that future Caffe releases will only support "
        "transform_param messages for transformation fields."
    )


def _upgrade_v1(param: NetParameter, file: str) -> tuple[NetParameter, bool]:
    if not param.layers:
        return param, True
    log.info(
        f"Attempting to upgrade input file specified using deprecated V1LayerParameter: {file}"
    )
    param, compatible = upgrade_v1_net(param)
    if compatible:
        log.info("Successfully upgraded file specified using deprecated V1LayerParameter")
    else:
        log.error(
            "Warning: had one or more problems upgrading V1LayerParameter "
            "(see above); continuing anyway."
        )
    return param, compatible


def _upgrade_input(param: NetParameter, file: str) -> None:
    """Turn `input` fields into an Input layer in front (`UpgradeNetInput`)."""
    if not param.input:
        return
    log.info(f"Attempting to upgrade input file specified using deprecated input fields: {file}")
    # A model that names inputs without their shapes only loses the names.
    if _has_input_shapes(param):
        param.layer.insert(0, _input_layer(param))
    for name in ("input", "input_shape", "input_dim"):
        param.ClearField(name)
    log.info("Successfully upgraded file specified using deprecated input fields.")
    log.warning(
        "Note that future Caffe releases will only support input layers and not input fields."
    )


def _has_input_shapes(param: NetParameter) -> bool:
    return len(param.input) > 0 and (len(param.input_shape) > 0 or len(param.input_dim) > 0)


def _check_inputs(param: NetParameter) -> None:
    """Raise CaffeError for an input without a shape, which an upgrade loses, if layers miss it."""
    if param.input and not _has_input_shapes(param):
        layers = [*param.layer, *param.layers]
        missed = {blob for layer in layers for blob in layer.bottom}
        missed -= {blob for layer in layers for blob in layer.top}
        for blob in param.input:
            if blob in missed:
                raise _no_shape(blob)


def _no_shape(blob: str) -> CaffeError:
    return CaffeError(
        f"input '{blob}' has no shape: each input needs one input_shape or four input_dim",
        field="input",
    )


def _input_layer(param: NetParameter) -> LayerParameter:
    layer = LayerParameter(name="input", type="Input", top=param.input)
    for index, blob in enumerate(param.input):
        if param.input_shape:
            dims = list(param.input_shape[index].dim) if index < len(param.input_shape) else None
        else:
            dims = list(param.input_dim[4 * index : 4 * index + 4])
            dims = dims if len(dims) == 4 else None
        if dims is None:
            raise _no_shape(blob)
        layer.input_param.shape.add(dim=dims)
    return layer


def _is_old_batch_norm(layer: LayerParameter) -> bool:
    return layer.type == "BatchNorm" and len(layer.param) == 3


def _upgrade_batch_norm(param: NetParameter, file: str) -> None:
    """Keep solvers away from statistics whose `param` is written out (`UpgradeNetBatchNorm`)."""
    layers = [layer for layer in param.layer if _is_old_batch_norm(layer)]
    if not layers:
        return
    log.info(f"Attempting to upgrade batch norm layers using deprecated params: {file}")
    for layer in layers:
        for spec in layer.param:
            spec.lr_mult = 0
            spec.decay_mult = 0
    log.info("Successfully upgraded batch norm layers using deprecated params.")


def _give_fillers_to_scales(param: NetParameter) -> None:
    """Move fillers of Intel Caffe's BatchNorm to the Scale that reads it.

    There the two become one layer, in which the BatchNorm's fillers count
    (`Net::CompilationRuleRemoveScale`).
    """
    #: By blob, the first of the layers further on that reads it.
    readers: dict[str, int] = {}
    for at in reversed(range(len(param.layer))):
        layer = param.layer[at]  # one at a time: each as an object of Python takes 1 KB
        found = [readers[top] for top in layer.top if top in readers]
        readers.update(dict.fromkeys(layer.bottom, at))
        if layer.type != "BatchNorm":
            continue
        settings = layer.batch_norm_param
        if not settings.HasField("filler") or settings.scale_bias:
            continue
        reader = param.layer[min(found)] if found else None
        if reader is None or reader.type != "Scale" or len(reader.bottom) != 1:
            continue
        reader.scale_param.filler.CopyFrom(settings.filler)
        settings.ClearField("filler")
        if settings.HasField("bias_filler"):
            reader.scale_param.bias_filler.CopyFrom(settings.bias_filler)
            settings.ClearField("bias_filler")


def upgrade_solver(param: SolverParameter, file: str) -> SolverParameter:
    """Replace `solver_type` by `type`, in place (`UpgradeSolverAsNeeded`).

    Raises CaffeError when both are given.
    """
    if not param.HasField("solver_type"):
        return param
    log.info(
        "Attempting to upgrade input file specified using deprecated "
        f"'solver_type' field (enum)': {file}"
    )
    if param.HasField("type"):
        raise CaffeError("type and solver_type are both given", file=file, field="solver_type")
    param.type = _SOLVER_TYPES[param.solver_type]
    param.ClearField("solver_type")
    log.info(
        "Successfully upgraded file specified using deprecated "
        "'solver_type' field (enum) to 'type' field (string)."
    )
    log.warning(
        "Note that future Caffe releases will only support "
        "'type' field (string) for a solver's type."
    )
    return param


def complete_snapshot_prefix(param: SolverParameter, file: str) -> None:
    """Name snapshots after the solver file where the definition does not (`UpgradeSnapshotPrefix`).

    A missing prefix becomes the file's path without extension; in a folder, they get its stem.
    """
    stem = in_message(os.path.splitext(file)[0])
    if not param.HasField("snapshot_prefix"):
        param.snapshot_prefix = stem
        log.info(f"snapshot_prefix was not specified and is set to {stem}")
    elif os.path.isdir(on_disk(param.snapshot_prefix)):
        param.snapshot_prefix = os.path.join(param.snapshot_prefix, os.path.basename(stem))
        log.info(f"snapshot_prefix was a directory and is replaced to {param.snapshot_prefix}")
