"""Files of solver states: .solverstate (protobuf) and .solverstate.h5 (HDF5).

Restates `SGDSolver::SnapshotSolverState*` and `RestoreSolverState*` (sgd_solver.cpp). What only
dns knows (data positions, surgery moments, the model's checksum) goes into fields, or an
HDF5 attribute or dataset, that Caffe skips.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from google.protobuf.message import DecodeError

from caffe_dns.encoding import decode, encode
from caffe_dns.errors import CaffeError
from caffe_dns.files.hdf5 import find, is_bounded, open_hdf5, read_arrays
from caffe_dns.files.hdf5_stream import write_hdf5
from caffe_dns.proto.blobs import blob_pieces, blob_to_array
from caffe_dns.proto.caffe_pb2 import NetParameter, SolverState
from caffe_dns.proto.text import read_binary, write_pieces
from caffe_dns.proto.wire import Piece, embedded
from caffe_dns.proto.wire_text import parse, serialize
from caffe_dns.weights.transfer import is_hdf5

if TYPE_CHECKING:
    import h5py

#: The most records that a layer can have read: record numbers have 64 bits.
_MOST_RECORDS = 1 << 62
#: The HDF5 attribute with the fields that Caffe does not have, as a serialised SolverState; a
#: dataset if they are too long for an attribute.
_EXTENSION = "caffe_dns"
#: An HDF5 attribute has at most 64 KB, including its header.
_LONGEST_ATTRIBUTE = 60_000


def write_state(file: str, state: SolverState, histories: list[np.ndarray], *, hdf5: bool) -> None:
    """Write a state, whose `history` is empty, with its histories; completely or not at all."""
    if hdf5:
        write_hdf5(file, partial(_put, state, histories))
    else:
        first = SolverState(iter=state.iter, learned_net=state.learned_net)
        last = SolverState(current_step=state.current_step)
        pieces: list[Piece] = [serialize(_beyond_caffe(state)), serialize(first)]
        for array in histories:
            pieces += embedded(SolverState.HISTORY_FIELD_NUMBER, blob_pieces(array))
        # current_step comes last, so that a truncated file has none.
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
    """A clearer error if the file is a model instead of a solver state."""
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


# HDF5 -------------------------------------------------------------------------------------------


def _put(state: SolverState, histories: list[np.ndarray], root: h5py.File) -> Iterator[None]:
    """Write a state to an open file; yields after each history."""
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

    Caffe reads as many bytes as the dataset has, up to the first NUL. h5py's own strings have none.
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
    """The extension that `_put` has written."""
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
