"""Trained weights in HDF5: the groups `data` and `diff` of a .caffemodel.h5.

Restates `Net::CopyTrainedLayersFromHDF5` and `Net::ToHDF5` (net.cpp). A blob that is shared is
stored once, with the layer that owns it. Unlike Caffe, layers may have slashes in their names: they
are groups in groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import h5py
import numpy as np
from torch import Tensor

from caffe_dns.encoding import decode, encode
from caffe_dns.errors import CaffeError
from caffe_dns.files.hdf5 import find, open_hdf5, read_arrays
from caffe_dns.files.reading import is_count
from caffe_dns.net import Net
from caffe_dns.net.params import Param
from caffe_dns.weights.fitting import StoredLayer


def read_hdf5(file: str) -> Iterator[StoredLayer]:
    """The layers of a model, one by one. Raises CaffeError for a file that is not one."""
    with open_hdf5(file, "is not a model in HDF5") as root:
        data = find(root, "data")
        if not isinstance(data, h5py.Group):
            raise CaffeError("is not a model in HDF5: it has no group 'data'")
        for name in _group_names(data):
            arrays = _arrays(find(data, name))
            if arrays is not None:
                layer = decode(name) if isinstance(name, bytes) else name
                yield StoredLayer(layer, partial(dict, arrays), leaves_out_shared=True)


def _arrays(group: h5py.Group) -> dict[int, np.ndarray] | None:
    """The arrays of a layer by blob index; None for a group that only contains other groups."""
    items = {name: find(group, name) for name in group}
    datasets = {name: item for name, item in items.items() if isinstance(item, h5py.Dataset)}
    if not datasets and items:
        return None
    if not all(map(is_count, datasets)):
        raise CaffeError(f"is not a model in HDF5: the blobs of a layer are {sorted(datasets)}")
    return dict(zip(map(int, datasets), read_arrays([*datasets.values()]), strict=True))


def _group_names(data: h5py.Group) -> list[str | bytes]:
    """The names of all groups in `data`, as bytes where they are not UTF-8."""
    names: list[str | bytes] = []
    data.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Group) else None)
    return names


def check_names(net: Net) -> None:
    """Raise CaffeError for a layer that cannot have a group of its own name.

    A slash leads from a group to one in it: what begins with one begins at the root of the file, a
    dot leads nowhere, and there is nothing in an array.
    """
    blobs = {step.layer.name: len(step.layer.blobs) for step in net.steps}
    for step in net.steps:
        parts = step.layer.name.split("/")
        among_arrays = any(
            part in map(str, range(blobs.get("/".join(parts[:at]), 0)))
            for at, part in enumerate(parts)
        )
        if among_arrays or "\0" in step.layer.name or not {"", "."}.isdisjoint(parts):
            raise step.layer.error(
                "has no place of this name in HDF5; a .caffemodel (`snapshot_format: BINARYPROTO`) "
                "would be right"
            )


def put_weights(net: Net, diffs: Mapping[Param, Tensor] | None, root: h5py.File) -> Iterator[None]:
    """Write the net's blobs, and their `diffs` if given, to a file; yields after each.

    Raises CaffeError for a layer that cannot have a group of its own name.
    """
    check_names(net)
    data = root.create_group("data")
    diff = None if diffs is None else root.create_group("diff")
    for step in net.steps:
        group = _group(data, step.layer.name)
        diff_group = None if diff is None else _group(diff, step.layer.name)
        for index, tensor in enumerate(step.layer.blobs):
            if net.table.is_owner(step.layer, index):
                group[str(index)] = tensor.detach().cpu().numpy()
            if diff_group is not None and diffs is not None:
                values = diffs[net.table.owner(step.layer, index)].reshape(tensor.shape)
                diff_group[str(index)] = values.cpu().numpy()
            yield


def _group(parent: h5py.Group, name: str) -> h5py.Group:
    """The group of this name, created if it does not exist."""
    raw = encode(name)
    if raw == name.encode():
        return parent.require_group(name)
    # h5py makes and finds groups whose names are not UTF-8, but cannot say that there is none.
    return parent[raw] if raw in list(parent) else parent.create_group(raw)
