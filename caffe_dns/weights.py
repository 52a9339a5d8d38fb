"""Trained weights between files and a net: .caffemodel (protobuf) and .caffemodel.h5 (HDF5).

Layers are matched by name (`Net::CopyTrainedLayersFrom`, `Net::ToProto`, `Net::ToHDF5` in
net.cpp). Models of plain Caffe and of both surgery forks fit nets with and without masks: see
`Blobs`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.errors import CaffeError, first_line
from caffe_dns.files import write_atomically
from caffe_dns.layers.base import Layer, shape_text
from caffe_dns.layers.masked import MagnitudeMasks, WeightedLayer
from caffe_dns.net import Net
from caffe_dns.proto.blobs import array_to_blob, blob_to_array
from caffe_dns.proto.caffe_pb2 import BlobProto, NetParameter
from caffe_dns.proto.upgrade import read_weights

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
LEGACY_AXES = 4


def load_weights(net: Net, files: str) -> None:
    """Copy trained layers from one file, or from several separated by commas, one after the other.

    Raises CaffeError for a file that cannot be read and for blobs that do not fit.
    """
    for file in (part.strip() for part in files.split(",")):
        if not file:
            raise CaffeError(f"the list of weights '{files}' has an empty name in it")
        log.info(f"Finetuning from {file}")
        copy_trained_layers(net, file)


def copy_trained_layers(net: Net, file: str) -> None:
    """Copy the blobs of every layer of `file` into the net's first layer of the same name."""
    try:
        if is_hdf5(file):
            _copy_from_hdf5(net, file)
        else:
            _copy_from_proto(net, read_weights(file))
    except CaffeError as error:
        raise _explain(file, error) from None


def _explain(file: str, error: CaffeError) -> CaffeError:
    """Say so when a solver state was given where a model belongs."""
    if ".solverstate" in Path(file).name and Path(file).is_file():
        return CaffeError(
            "is a solver state, not a model; give it with -snapshot, or give the .caffemodel "
            "to -weights",
            file=file,
        )
    return error.locate(file=file)


def is_hdf5(file: str | Path) -> bool:
    """Whether a file begins like HDF5. Raises CaffeError when it cannot be opened."""
    try:
        with open(file, "rb") as stream:
            return stream.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE
    except OSError as error:
        raise CaffeError(f"cannot be read: {error.strerror}", file=str(file)) from None


def save_weights(net: Net, file: str | Path, *, hdf5: bool = False, diff: bool = False) -> None:
    """Write the net's layers and blobs, with the gradients if `diff`, as Caffe does."""
    if hdf5:
        write_atomically(file, _to_hdf5(net, diff))
    else:
        write_atomically(file, net_to_proto(net, diff=diff).SerializeToString())


def net_to_proto(net: Net, *, diff: bool = False) -> NetParameter:
    """The net as Caffe stores it: its layers, splits included, each with its blobs."""
    param = NetParameter(name=net.name)
    for step in net.steps:
        layer = param.layer.add()
        layer.CopyFrom(step.layer.param)
        del layer.blobs[:]
        for tensor in step.layer.blobs:
            layer.blobs.append(_to_blob(tensor, diff))
    return param


def load_definition_blobs(net: Net) -> None:
    """Take over blobs that stand in the definition itself (`Layer::Layer`)."""
    for step in net.steps:
        if step.layer.param.blobs:
            _copy_layer(step.layer, list(step.layer.param.blobs))


def share_weights(net: Net, owner: Net) -> None:
    """Let `net` use the blobs of `owner`, layer by layer (`Net::ShareTrainedLayersWith`)."""
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
                raise target.error(_mismatch(index, tuple(source.shape), tuple(blob.shape)))
            target.share_blob(index, step.layer, index)


# Masks ------------------------------------------------------------------------------------------


@dataclass
class Blobs:
    """A weighted layer's arrays by meaning, whatever wrote them.

    Plain Caffe stores [W, b], HolmesShuan's fork [W, b, M], yiwenguo's [W, b, Mw, Mb]; without
    bias [W] and [W, M].
    """

    weight: np.ndarray
    bias: np.ndarray | None
    weight_mask: np.ndarray | None = None
    bias_mask: np.ndarray | None = None

    @classmethod
    def from_list(cls, arrays: Sequence[np.ndarray], bias_term: bool) -> Blobs | None:
        """Sort stored arrays by meaning; None when there are too few or too many."""
        biases = 1 if bias_term else 0
        masks = len(arrays) - 1 - biases
        if masks not in (0, 1, 1 + biases):
            return None
        return cls(
            arrays[0],
            arrays[1] if bias_term else None,
            arrays[1 + biases] if masks else None,
            arrays[3] if masks == 2 else None,
        )

    def for_layer(self, layer: WeightedLayer) -> list[np.ndarray | None]:
        """The arrays in the order of the layer's blobs; None where its own value is to stay.

        Masks that the layer has no blob for are applied to the values.
        """
        weight, bias = self.weight, self.bias
        masks: list[np.ndarray | None] = []
        if not layer.mask_indices:
            if self.weight_mask is not None:
                log.info(f"Applying the stored mask to the weights of layer {layer.name}")
                weight = weight * self.weight_mask
        else:
            masks.append(self.weight_mask)
        if isinstance(layer, MagnitudeMasks) and bias is not None:
            masks.append(self.bias_mask)
        elif self.bias_mask is not None and bias is not None:
            bias = bias * self.bias_mask
        return [weight, *([] if bias is None else [bias]), *masks]


def _fit_masks(layer: Layer, arrays: list[np.ndarray]) -> list[np.ndarray | None]:
    """The stored arrays in the order of the layer's blobs. Raises CaffeError on a wrong count."""
    blobs: Blobs | None = None
    if isinstance(layer, WeightedLayer):
        blobs = Blobs.from_list(arrays, layer.bias_term)
        if blobs is not None:
            return blobs.for_layer(layer)
    elif len(arrays) == len(layer.blobs):
        return list(arrays)
    raise layer.error(
        f"Incompatible number of blobs: the model has {len(arrays)}, the layer {len(layer.blobs)}"
    )


# Protobuf ---------------------------------------------------------------------------------------


def _copy_from_proto(net: Net, param: NetParameter) -> None:
    for source in param.layer:
        layer = net.layer(source.name)
        if layer is None:
            log.info(f"Ignoring source layer {source.name}")
        else:
            _copy_layer(layer, list(source.blobs))


def _copy_layer(layer: Layer, blobs: list[BlobProto]) -> None:
    try:
        arrays = _fit_masks(layer, [blob_to_array(blob) for blob in blobs])
    except CaffeError as error:
        raise error.locate(layer=layer.name) from None
    legacy = [not blob.HasField("shape") for blob in blobs]
    _assign(layer, arrays, any(legacy))


def _assign(layer: Layer, arrays: Sequence[np.ndarray | None], legacy: bool) -> None:
    for index, (target, array) in enumerate(zip(layer.blobs, arrays, strict=True)):
        if array is None:
            continue
        shape = tuple(target.shape)
        # Old files give every blob four axes, the missing ones in front.
        padded = (1,) * (LEGACY_AXES - len(shape)) + shape
        if array.shape != shape and not (legacy and array.shape == padded):
            raise layer.error(_mismatch(index, array.shape, shape))
        with torch.no_grad():
            target.copy_(torch.from_numpy(array.reshape(shape)))


def _mismatch(index: int, source: tuple[int, ...], target: tuple[int, ...]) -> str:
    return (
        f"Cannot copy param {index} weights; shape mismatch. Source param shape is "
        f"{shape_text(source)}; target param shape is {shape_text(target)}. To learn this layer's "
        "parameters from scratch rather than copying from a saved net, rename the layer"
    )


def _to_blob(tensor: Tensor, diff: bool) -> BlobProto:
    blob = array_to_blob(_to_array(tensor))
    if diff:
        gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        blob.diff.extend(_to_array(gradient).ravel().tolist())
    return blob


def _to_array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


# HDF5 -------------------------------------------------------------------------------------------


def _copy_from_hdf5(net: Net, file: str) -> None:
    try:
        with h5py.File(file, "r") as root:
            for name, group in _hdf5_layers(root["data"]):
                layer = net.layer(name)
                if layer is None:
                    log.info(f"Ignoring source layer {name}")
                elif group:
                    _copy_hdf5_layer(net, layer, group)
    except (OSError, KeyError) as error:
        raise CaffeError(f"is not a model in HDF5: {first_line(error)}") from None


def _hdf5_layers(data: h5py.Group) -> Iterator[tuple[str, dict[int, np.ndarray]]]:
    """Layer names with their datasets by blob index. A name with slashes is a nested group."""
    found: dict[str, dict[int, np.ndarray]] = {}

    def visit(path: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            name, _, index = path.rpartition("/")
            found.setdefault(name, {})[int(index)] = item[()].astype(np.float32)
        else:
            found.setdefault(path, {})

    data.visititems(visit)
    yield from found.items()


def _copy_hdf5_layer(net: Net, layer: Layer, group: dict[int, np.ndarray]) -> None:
    # A blob that the file leaves out is one shared with another layer, which brings it.
    blobs = layer.blobs
    missing = [
        index
        for index in range(len(blobs) - len(layer.mask_indices))
        if index not in group and net.table.is_owner(layer, index)
    ]
    if missing:
        raise layer.error(f"Incompatible number of blobs: the model has no blob {missing[0]}")
    if len(group) == max(group) + 1:
        _assign(layer, _fit_masks(layer, [group[index] for index in sorted(group)]), legacy=False)
    else:
        _assign(layer, [group.get(index) for index in range(len(blobs))], legacy=False)


def _to_hdf5(net: Net, diff: bool) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as root:
        data = root.create_group("data")
        gradients = root.create_group("diff") if diff else None
        for step in net.steps:
            group = data.require_group(step.layer.name)
            for index, tensor in enumerate(step.layer.blobs):
                if net.table.is_owner(step.layer, index):
                    group[str(index)] = _to_array(tensor)
                if gradients is not None:
                    gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
                    gradients[f"{step.layer.name}/{index}"] = _to_array(gradient)
    return stream.getvalue()
