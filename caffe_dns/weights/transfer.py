"""Trained weights between files and a net: .caffemodel (protobuf), .caffemodel.h5 (HDF5), .dnsz.

Layers are matched by name (`Net::CopyTrainedLayersFrom`, `Net::ToProto` in net.cpp). A file is read
layer by layer, whatever its kind. `fitting` copies a layer's arrays to its blobs; HDF5 is in
`hdf5`, .dnsz in `compact`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.files.finite import check_finite
from caffe_dns.files.hdf5_stream import write_hdf5
from caffe_dns.files.reading import open_file
from caffe_dns.layers.base import Layer
from caffe_dns.net import Net
from caffe_dns.net.params import Param
from caffe_dns.proto.blobs import blob_pieces, blob_to_array
from caffe_dns.proto.caffe_pb2 import LayerParameter, NetParameter
from caffe_dns.proto.text import write_pieces
from caffe_dns.proto.upgrade import read_weights
from caffe_dns.proto.wire import Piece, embedded, read_fields
from caffe_dns.proto.wire_text import serialize
from caffe_dns.weights.compact.files import is_compact
from caffe_dns.weights.compact.files import read as read_compact
from caffe_dns.weights.fitting import StoredLayer, copy_layer, mismatch

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: How many axes every blob has in a file of C3D.
_C3D_AXES = 5
#: How many of the layers that do not fit are named.
_MOST_NAMED = 4


def weight_files(files: str) -> list[str]:
    """The names in a list separated by commas. Raises CaffeError when one is empty."""
    names = [part.strip() for part in files.split(",")]
    if not all(names):
        raise CaffeError(f"the list of weights '{files}' has an empty name in it")
    return names


def load_weights(net: Net, files: str) -> None:
    """Copy trained layers from one file, or from several separated by commas, in this order.

    Raises CaffeError for a file that cannot be read and for blobs that do not fit.
    """
    for file in weight_files(files):
        copy_trained_layers(net, file)


def copy_trained_layers(net: Net, file: str) -> None:
    """Copy the blobs of every layer of `file` into the net's first layer of the same name.

    Raises CaffeError for a file that cannot be read, for blobs that do not fit, and if none of its
    layers matches a layer with blobs, which Caffe ignores without a word.
    """
    try:
        _copy_layers(net, read_layers(file))
    except CaffeError as error:
        raise _explain(file, error) from None


def copy_from_net(net: Net, source: Net) -> None:
    """The same from another net's layers."""
    layers = [step.layer for step in source.steps]
    _copy_layers(net, (StoredLayer(layer.name, partial(_copies, layer)) for layer in layers))


def _copy_layers(net: Net, layers: Iterable[StoredLayer]) -> None:
    ignored: list[str] = []
    wanted = list(net.params)
    fits = not wanted
    for stored in layers:
        layer = net.layer(stored.name)
        if layer is None:
            log.info(f"Ignoring source layer {stored.name}")
            ignored.append(stored.name)
        else:
            _copy(net, layer, stored)
            fits = fits or bool(layer.blobs)
    if not fits:
        raise CaffeError(
            f"none of its layers has the name of one with weights here: it has {_some(ignored)}, "
            f"the net {_some(wanted)}"
        )


def _some(names: Sequence[str]) -> str:
    """The first few of some names."""
    first = ", ".join(f"'{name}'" for name in names[:_MOST_NAMED])
    return first + (", ..." if len(names) > _MOST_NAMED else "") if names else "no other"


def read_layers(file: str) -> Iterator[StoredLayer]:
    """The layers of a model file of any kind, one by one, in its order."""
    if is_hdf5(file):
        from caffe_dns.weights.hdf5 import read_hdf5  # here, because h5py takes long

        yield from read_hdf5(file)
    elif is_compact(file):
        contents = read_compact(file)
        for layer, arrays in zip(contents.definition.layer, contents.blobs, strict=True):
            yield StoredLayer(layer.name, partial(_finite, arrays))
    else:
        yield from (_from_proto(layer) for layer in read_weights(file).layer)


def _copies(layer: Layer) -> dict[int, np.ndarray]:
    return _finite([_to_array(blob).copy() for blob in layer.blobs])


def _finite(arrays: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    for index, array in enumerate(arrays):
        check_finite(array, f"blob {index}")
    return dict(enumerate(arrays))


def _from_proto(layer: LayerParameter) -> StoredLayer:
    legacy = any(len(blob.shape.dim) in (0, _C3D_AXES) for blob in layer.blobs)
    return StoredLayer(layer.name, partial(_arrays_of, layer), legacy=legacy)


def _arrays_of(layer: LayerParameter) -> dict[int, np.ndarray]:
    return {index: blob_to_array(blob, f"blob {index}") for index, blob in enumerate(layer.blobs)}


def _copy(net: Net, layer: Layer, stored: StoredLayer) -> None:
    owned = [index for index in range(len(layer.blobs)) if net.table.is_owner(layer, index)]
    copy_layer(layer, stored, owned)


def _explain(file: str, error: CaffeError) -> CaffeError:
    """A clearer error if the file is a solver state instead of a model."""
    if ".solverstate" in Path(file).name and os.path.isfile(file):
        return CaffeError(
            "is a solver state, not a model; give it with -snapshot, or give the .caffemodel "
            "to -weights",
            file=file,
        )
    return error.locate(file=file)


def is_hdf5(file: str | Path) -> bool:
    """Whether a file starts with HDF5's signature. Raises CaffeError if it cannot be opened."""
    try:
        with open_file(file) as stream:
            return stream.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE
    except OSError as error:
        raise CaffeError(f"cannot be read: {error.strerror}", file=str(file)) from None


def save_weights(
    net: Net,
    file: str | Path,
    *,
    hdf5: bool = False,
    diffs: Mapping[Param, Tensor] | None = None,
) -> None:
    """Write the net's layers and blobs as Caffe does, with a diff for each of them if given."""
    if hdf5:
        from caffe_dns.weights.hdf5 import put_weights  # here, because h5py takes long

        write_hdf5(file, partial(put_weights, net, diffs))
    else:
        write_pieces(file, list(_net_pieces(net, diffs)))


def _net_pieces(net: Net, diffs: Mapping[Param, Tensor] | None) -> Iterator[Piece]:
    """The net as Caffe stores it: its layers, including splits, with their blobs.

    Pieces of the wire format, with a diff for each blob if given.
    """
    yield serialize(NetParameter(name=net.name))
    for step in net.steps:
        layer = step.layer
        blobs = []
        for index, tensor in enumerate(layer.blobs):
            diff = None if diffs is None else _to_array(diffs[net.table.owner(layer, index)])
            blobs.append((_to_array(tensor), diff))
        yield from layer_pieces(layer.param, blobs)


def layer_pieces(
    param: LayerParameter, blobs: Iterable[tuple[np.ndarray, np.ndarray | None]]
) -> list[Piece]:
    """A layer of a model in the wire format, with these blobs and their diffs.

    Raises CaffeError for a blob that is too large for a message.
    """
    bare = LayerParameter()
    bare.CopyFrom(param)
    del bare.blobs[:]
    raw = serialize(bare)
    number = LayerParameter.BLOBS_FIELD_NUMBER
    # Where protobuf, which sorts by field number, would put them.
    behind = (field.start for field in read_fields(memoryview(raw)) if field.number > number)
    place = next(behind, len(raw))
    pieces: list[Piece] = [raw[:place]]
    for array, diff in blobs:
        try:
            pieces += embedded(number, blob_pieces(array, diff))
        except CaffeError as error:
            raise error.locate(layer=param.name) from None
    return embedded(NetParameter.LAYER_FIELD_NUMBER, [*pieces, raw[place:]])


def load_definition_blobs(net: Net) -> None:
    """Load blobs that are in the definition itself (`Layer::Layer`)."""
    for step in net.steps:
        if step.layer.param.blobs:
            _copy(net, step.layer, _from_proto(step.layer.param))


def share_weights(net: Net, owner: Net) -> None:
    """Let `net` use the blobs of `owner`, layer by layer (`Net::ShareTrainedLayersWith`).

    Gradients stay apart, and an update rule of `net` has to `follow`. Raises CaffeError for blobs
    that differ in number or shape.
    """
    for step in owner.steps:
        target = net.layer(step.layer.name)
        if target is None:
            log.info(f"Ignoring source layer {step.layer.name}")
            continue
        source_blobs, target_blobs = step.layer.blobs, target.blobs
        if len(source_blobs) != len(target_blobs):
            raise target.error(
                f"Incompatible number of blobs: {len(target_blobs)} here, "
                f"{len(source_blobs)} in the training net"
            )
        for index, (source, blob) in enumerate(zip(source_blobs, target_blobs, strict=True)):
            if source.shape != blob.shape:
                raise target.error(mismatch(index, tuple(source.shape), tuple(blob.shape)))
            target.share_data(index, step.layer, index)


def _to_array(tensor: Tensor) -> np.ndarray:
    # Not ascontiguousarray, which would give a single number an axis.
    return tensor.detach().contiguous().cpu().numpy()
