"""Solver states between files and a solver: .solverstate (protobuf) and .solverstate.h5 (HDF5).

Restates `SGDSolver::SnapshotSolverState*` and `RestoreSolverState*` (sgd_solver.cpp). What only
dns knows (data positions, surgery moments, the model's checksum) goes into fields, or an
HDF5 attribute or dataset, that Caffe skips.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from caffe_dns.encoding import decode, encode, on_disk
from caffe_dns.errors import CaffeError
from caffe_dns.files import remove_leftovers, try_place
from caffe_dns.files.hdf5 import find, is_bounded, open_hdf5, read_arrays
from caffe_dns.files.hdf5_stream import write_hdf5
from caffe_dns.files.reading import open_file
from caffe_dns.layers.batch_data import BatchDataLayer
from caffe_dns.layers.masked import DeviationMasks, WeightedLayer
from caffe_dns.net import Net
from caffe_dns.net.params import Param
from caffe_dns.proto.blobs import blob_pieces, blob_to_array
from caffe_dns.proto.caffe_pb2 import DataPosition, NetParameter, SolverParameter, SolverState
from caffe_dns.proto.text import read_binary, write_pieces
from caffe_dns.proto.wire import Piece, embedded
from caffe_dns.proto.wire_text import parse, serialize
from caffe_dns.solver.update_rules import UpdateRule
from caffe_dns.weights.transfer import is_hdf5

if TYPE_CHECKING:
    import h5py

#: Records that a layer can have handed out: what is read next has numbers of 64 bits, too.
_MOST_RECORDS = 1 << 62
#: The HDF5 attribute that holds the fields beyond Caffe's, as a serialised SolverState; a dataset
#: where they are too long for an attribute.
_EXTENSION = "caffe_dns"
#: HDF5 has room for 64 KB of an attribute, with what it says of it.
_LONGEST_ATTRIBUTE = 60_000


def write_state(file: str, state: SolverState, histories: list[np.ndarray], *, hdf5: bool) -> None:
    """Write a state whose `history` is empty together with its histories; whole or not at all."""
    if hdf5:
        write_hdf5(file, partial(_put, state, histories))
    else:
        first = SolverState(iter=state.iter, learned_net=state.learned_net)
        last = SolverState(current_step=state.current_step)
        pieces: list[Piece] = [serialize(_beyond_caffe(state)), serialize(first)]
        for array in histories:
            pieces += embedded(SolverState.HISTORY_FIELD_NUMBER, blob_pieces(array))
        # current_step is the very last, so that a file that is cut short has none.
        write_pieces(file, [*pieces, serialize(last)])


def _beyond_caffe(state: SolverState) -> SolverState:
    """The fields that Caffe does not have."""
    extension = SolverState()
    extension.CopyFrom(state)
    for field in ("iter", "learned_net", "current_step"):
        extension.ClearField(field)
    return extension


def read_state(file: str) -> tuple[SolverState, list[np.ndarray]]:
    """A state without its histories, and the histories.

    Raises CaffeError for a file that is not a solver state; a model given instead is named as such.
    """
    try:
        state, histories = _from_hdf5(file) if is_hdf5(file) else _from_proto(file)
    except CaffeError as error:
        raise _explain(file, error) from None
    for field in ("iter", "current_step"):
        if getattr(state, field) < 0:
            raise CaffeError(f"is {getattr(state, field)}, below 0", file=file, field=field)
    if state.current_step > state.iter + 1:
        what = f"is {state.current_step}, more than the {state.iter} iterations"
        raise CaffeError(what, file=file, field="current_step")
    for position in state.data_position:
        if position.records > _MOST_RECORDS:
            what = f"layer '{position.layer}' would have handed out {position.records} records"
            raise CaffeError(what, file=file, field="data_position")
    return state, histories


def _from_proto(file: str) -> tuple[SolverState, list[np.ndarray]]:
    state = read_binary(file, SolverState)
    if state.HasField("random_seed") and not state.HasField("current_step"):
        raise CaffeError("is cut short: its current_step is missing, which comes last")
    histories = [
        blob_to_array(blob, f"history {index}") for index, blob in enumerate(state.history)
    ]
    del state.history[:]
    return state, histories


def _explain(file: str, error: CaffeError) -> CaffeError:
    """Say so when a model was given where a solver state belongs."""
    if ".caffemodel" in Path(file).name or _is_model(file):
        return CaffeError(
            "is a model, not a solver state; give it with -weights, or give the .solverstate "
            "to -snapshot",
            file=file,
        )
    return error.locate(file=file)


def _is_model(file: str) -> bool:
    try:
        return bool(read_binary(file, NetParameter).layer)
    except CaffeError:
        return False


def snapshot_name(param: SolverParameter, iteration: int, ending: str) -> str:
    """`Solver::SnapshotFilename`: where a file of the snapshot of this iteration lies."""
    return f"{param.snapshot_prefix}_iter_{iteration}{ending}"


def check_writable(param: SolverParameter) -> None:
    """Raise CaffeError where snapshots could not be written; none is left behind.

    What dead processes have left half-written under the same prefix is removed.
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
    """One array for each moment and each blob that owns itself, zeros where the rule keeps none."""
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


#: What the histories of one moment belong to, in their order; None for masks that the net lacks.
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
    """The parameters that are no masks, with empty places where a layer had `masks`."""
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


# HDF5 -------------------------------------------------------------------------------------------


def _put(state: SolverState, histories: list[np.ndarray], root: h5py.File) -> Iterator[None]:
    """Put a state into a file; yields after each history."""
    # Caffe writes integers as one-element datasets.
    root["iter"] = np.array([state.iter], dtype=np.int32)
    _write_string(root, "learned_net", encode(state.learned_net))
    root["current_step"] = np.array([state.current_step], dtype=np.int32)
    group = root.create_group("history")
    for index, array in enumerate(histories):
        group[str(index)] = array
        yield
    extension = _beyond_caffe(state).SerializeToString()
    if len(extension) <= _LONGEST_ATTRIBUTE:
        root.attrs[_EXTENSION] = np.void(extension)
    else:
        root[_EXTENSION] = np.frombuffer(extension, np.uint8)


def _write_string(root: h5py.File, name: str, value: bytes) -> None:
    """A dataset like those of `hdf5_save_string` (util/hdf5.cpp): with a NUL at the end.

    Caffe reads as many bytes as the dataset has, and takes what stands before the first NUL. h5py's
    own strings have none.
    """
    import h5py

    kind = h5py.h5t.C_S1.copy()
    kind.set_size(len(value) + 1)
    space = h5py.h5s.create(h5py.h5s.SCALAR)
    dataset = h5py.h5d.create(root.id, name.encode(), kind, space)
    dataset.write(space, space, np.array(value, f"S{len(value) + 1}"), kind)


def _from_hdf5(file: str) -> tuple[SolverState, list[np.ndarray]]:
    state = SolverState()
    with open_hdf5(file, "is not a solver state in HDF5") as root:
        _parse(state, _extension(root))
        state.iter = _integer(root, "iter")
        state.current_step = _integer(root, "current_step")
        name = find(root, "learned_net")
        if name is not None:
            if name.size != 1 or not is_bounded(name):
                raise CaffeError("is not a solver state in HDF5: 'learned_net' is no single text")
            text = name[()]
            state.learned_net = decode(text) if isinstance(text, bytes) else str(text)
        group = find(root, "history")
        histories = read_arrays([find(group, str(index)) for index in range(len(group))])
    return state, histories


def _extension(root: h5py.File) -> bytes:
    """What `_put` has put beside what Caffe has."""
    if _EXTENSION in root.attrs:
        return bytes(root.attrs[_EXTENSION].tobytes())
    found = find(root, _EXTENSION)
    if found is None:
        return b""
    if not is_bounded(found):
        raise CaffeError(f"is not a solver state in HDF5: '{_EXTENSION}' claims {found.size} bytes")
    return bytes(found[()].tobytes())


def _parse(state: SolverState, extension: bytes) -> None:
    try:
        parse(state, extension)
    except DecodeError:
        raise CaffeError(f"is not a solver state in HDF5: '{_EXTENSION}' is damaged") from None


def _integer(root: h5py.File, name: str) -> int:
    """The value of a dataset of one element."""
    found = find(root, name)
    if found is None or found.size != 1:
        raise CaffeError(f"is not a solver state in HDF5: it has no single '{name}'")
    return int(np.ravel(found[()])[0])


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
    """Let the data layers go on at these positions; those of other nets or layers are left out."""
    for position in positions:
        layer = nets[position.net].layer(position.layer) if position.net < len(nets) else None
        if isinstance(layer, BatchDataLayer):
            layer.seek(position.records)
