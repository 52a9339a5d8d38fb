"""Snapshots: a model and the solver state that names it, written and restored.

Restates `Solver::Snapshot` (solver.cpp) and `SGDSolver::RestoreSolverState*` (sgd_solver.cpp). The
format of the state's file is in `state_file`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.device.heap import beside_the_heap
from caffe_dns.encoding import on_disk
from caffe_dns.errors import CaffeError
from caffe_dns.files import remove_leftovers, try_place
from caffe_dns.files.reading import open_file
from caffe_dns.layers.batch_data import BatchDataLayer
from caffe_dns.layers.masked import DeviationMasks, WeightedLayer
from caffe_dns.net import Net
from caffe_dns.net.params import Param
from caffe_dns.proto.caffe_pb2 import DataPosition, SolverParameter, SolverState
from caffe_dns.solver.state_file import read_state, write_state
from caffe_dns.solver.update_rules import UpdateRule
from caffe_dns.weights.transfer import copy_trained_layers, is_hdf5, save_weights


@beside_the_heap()
def write_snapshot(
    state: SolverState,
    param: SolverParameter,
    net: Net,
    rule: UpdateRule,
    diffs: Mapping[Param, Tensor] | None,
) -> str:
    """Write the model, then the state, which is given the model's name; returns the state's file.

    `diffs` are written beside the blobs, if there are any.
    """
    hdf5 = param.snapshot_format == SolverParameter.HDF5
    ending, kind = (".h5", "HDF5") if hdf5 else ("", "binary proto")
    model = snapshot_name(param, state.iter, f".caffemodel{ending}")
    log.info(f"Snapshotting to {kind} file {model}")
    save_weights(net, model, hdf5=hdf5, diffs=diffs)
    file = snapshot_name(param, state.iter, f".solverstate{ending}")
    log.info(f"Snapshotting solver state to {kind} file {file}")
    state.learned_net = model
    state.learned_net_sha256 = checksum(model)
    write_state(file, state, gather_histories(rule, net.learnable_params), hdf5=hdf5)
    return file


def restore_snapshot(file: str, net: Net, rule: UpdateRule) -> SolverState:
    """Put the weights and the histories of a snapshot back; returns what else its state says.

    Raises CaffeError when the state, or the model that it names, cannot be read or does not fit.
    """
    state, histories = read_state(file)
    if state.HasField("learned_net"):
        model = find_model(state.learned_net, file)
        if state.learned_net_sha256 and checksum(model) != state.learned_net_sha256:
            log.warning(f"{model} has changed since {file} was written")
        copy_trained_layers(net, model)
    try:
        restore_histories(rule, net, histories)
    except CaffeError as error:
        raise error.locate(file=file) from None
    if not is_hdf5(file):
        log.info("SGDSolver: restoring history")  # whatever the type, and not for HDF5
    return state


def snapshot_name(param: SolverParameter, iteration: int, ending: str) -> str:
    """`Solver::SnapshotFilename`: where a file of the snapshot of this iteration lies."""
    return f"{param.snapshot_prefix}_iter_{iteration}{ending}"


def check_writable(param: SolverParameter) -> None:
    """Raise CaffeError if snapshots could not be written; leaves no file behind.

    Removes incomplete files with the same prefix that dead processes have left.
    """
    longest = Path(on_disk(snapshot_name(param, param.max_iter, ".solverstate.h5")))
    folder = longest.parent
    if not os.path.isdir(folder):
        raise CaffeError(
            f"the folder '{folder}' of the snapshots does not exist; create it first",
            field="snapshot_prefix",
        )
    remove_leftovers(Path(on_disk(f"{param.snapshot_prefix}_iter_")), any_ending=True)
    try:
        try_place(longest)
    except OSError as error:
        raise CaffeError(
            f"cannot write to '{folder}': {error.strerror}", field="snapshot_prefix"
        ) from None


def find_model(learned_net: str, state_file: str) -> str:
    """The model as the state names it, or, when the folder was moved, beside the state.

    Raises CaffeError when it is neither here nor there.
    """
    named = Path(on_disk(learned_net))
    beside = Path(state_file).parent / named.name
    for model in (named, beside):
        if os.path.exists(model):
            return str(model)
    places = f"at '{named}'" + (f" nor at '{beside}'" if beside != named else "")
    raise CaffeError(f"its model is gone: there is none {places}", file=state_file)


def checksum(file: str | Path) -> bytes:
    """SHA-256 of a file's contents. Raises CaffeError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open_file(file) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise CaffeError(f"cannot be read: {error.strerror}", file=str(file)) from None
    return digest.digest()


# Histories --------------------------------------------------------------------------------------


def gather_histories(rule: UpdateRule, params: Sequence[Param]) -> list[np.ndarray]:
    """One array per moment and parameter, zeros where the rule has no history."""
    arrays = []
    for moment in range(rule.num_histories):
        for param in params:
            history = rule.history(param, moment)
            tensor = torch.zeros_like(param.tensor) if history is None else history
            arrays.append(tensor.detach().cpu().numpy())
    return arrays


def restore_histories(rule: UpdateRule, net: Net, arrays: Sequence[np.ndarray]) -> None:
    """Put stored histories back.

    States of plain Caffe have none for the masks, those of the forks one for each; they fit nets
    with and without masks. Raises CaffeError when the number or a shape does not fit the net.
    """
    slots = _find_layout(net, len(arrays), rule.num_histories)
    for index, array in enumerate(arrays):
        moment, place = divmod(index, len(slots))
        param = slots[place]
        if param is None or param.is_mask:
            continue
        if rule.history(param, moment) is None and array.any():
            rule.track(param)
        target = rule.history(param, moment)
        if target is not None:
            _copy(target, array, param)


#: The parameters of one moment's histories, in order; None for masks that the net lacks.
_Layout = list[Param | None]


def _find_layout(net: Net, given: int, moments: int) -> _Layout:
    params = net.learnable_params
    layouts: list[_Layout] = [[*params], *(_layout(net, masks) for masks in _MASKS)]
    for layout in layouts:
        if given == moments * len(layout):
            return layout
    raise CaffeError(
        f"Incorrect length of history blobs: the state has {given}, this net and solver type need "
        f"{moments * len(params)}"
    )


def _layout(net: Net, masks: Callable[[WeightedLayer], int]) -> _Layout:
    """The parameters except masks, with empty places for the masks that a layer had."""
    layout: _Layout = []
    for step in net.steps:
        owned = [p for p in net.learnable_params if p.layer is step.layer and not p.is_mask]
        layout += owned
        if isinstance(step.layer, WeightedLayer):
            layout += [None] * masks(step.layer)
    return layout


def _no_masks(layer: WeightedLayer) -> int:
    return 0


def _deviation_masks(layer: WeightedLayer) -> int:
    return 0 if isinstance(layer, DeviationMasks) and not layer.wants_mask() else 1


def _magnitude_masks(layer: WeightedLayer) -> int:
    return 2 if layer.bias_term else 1


#: How many masks a layer had in plain Caffe, in HolmesShuan's fork, and in yiwenguo's.
_MASKS = (_no_masks, _deviation_masks, _magnitude_masks)


def _copy(target: Tensor, array: np.ndarray, param: Param) -> None:
    if array.size != target.numel():
        raise CaffeError(
            f"history of blob {param.index} has shape {array.shape}, "
            f"the parameter {tuple(target.shape)}",
            layer=param.layer.name,
        )
    target.copy_(torch.from_numpy(array.reshape(target.shape)))


# Data -------------------------------------------------------------------------------------------


def data_positions(nets: Sequence[Net]) -> list[DataPosition]:
    """Where the data layers of the training net and the test nets stand."""
    return [
        DataPosition(net=index, layer=step.layer.name, records=step.layer.position())
        for index, net in enumerate(nets)
        for step in net.steps
        if isinstance(step.layer, BatchDataLayer)
    ]


def seek_data(nets: Sequence[Net], positions: Iterable[DataPosition]) -> None:
    """Move the data layers to these positions; ignores those of other nets or layers."""
    for position in positions:
        layer = nets[position.net].layer(position.layer) if position.net < len(nets) else None
        if isinstance(layer, BatchDataLayer):
            layer.seek(position.records)
