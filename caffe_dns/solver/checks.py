"""Checks a solver definition, by itself and together with the net that it trains.

Everything is checked before the first iteration, nothing only at a snapshot hours later.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from caffe_dns.errors import CaffeError
from caffe_dns.lr_policy import check_policy
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.proto.text import MAX_BYTES
from caffe_dns.solver.scores import check_eval_type
from caffe_dns.solver.update_rules import solver_types

_BYTES_PER_VALUE = 4
#: At most so many blobs are named, to keep the message on one line.
_MOST_NAMED = 5


def check_definition(param: SolverParameter) -> None:
    """Raise CaffeError, with the field, for settings that cannot be used."""
    check_policy(param)
    check_eval_type(param)
    try:
        solver_types[param.type]
    except CaffeError as error:
        raise error.locate(field="type") from None
    if param.max_iter < 0:
        raise CaffeError(f"must not be negative, but is {param.max_iter}", field="max_iter")
    for field in ("average_loss", "iter_size"):
        if getattr(param, field) < 1:
            raise CaffeError(f"must be at least 1, not {getattr(param, field)}", field=field)
    if param.snapshot and not param.HasField("snapshot_prefix"):
        raise CaffeError("snapshot is given, but snapshot_prefix is not", field="snapshot")


def check_sizes(param: SolverParameter, net: Net, histories: int) -> None:
    """Raise CaffeError when the solver's snapshots could not be read again, or not be written.

    A state has `histories` numbers for each parameter. Text and settings, which take some thousand
    bytes, are checked when they are written.
    """
    wanted = param.snapshot or param.snapshot_after_train
    if not wanted:
        return
    if param.snapshot_format == SolverParameter.HDF5:
        from caffe_dns.weights.hdf5 import check_names  # here, because h5py takes long

        check_names(net)
        return
    copies = 2 if param.snapshot_diff else 1
    blobs = [
        (f"blob {index} of layer '{step.layer.name}'", copies * _bytes([tensor]))
        for step in net.steps
        for index, tensor in enumerate(step.layer.blobs)
    ]
    model = sum(size for _, size in blobs)
    state = histories * _bytes(p.tensor for p in net.learnable_params)
    for what, size in (("model", model), ("solver state", state)):
        if size > MAX_BYTES:
            raise CaffeError(
                f"a {what} of {_gigabytes(size)} does not fit: protobuf reads 2 GiB at most"
                f"{_large(blobs)}; `snapshot_format: HDF5` would be right",
                field="snapshot_format",
            )


def _large(blobs: Iterable[tuple[str, int]]) -> str:
    """The part of a message about blobs that exceed the limit by themselves."""
    large = [f"{name} takes {_gigabytes(size)}" for name, size in blobs if size > MAX_BYTES]
    if len(large) > _MOST_NAMED:
        large[_MOST_NAMED:] = [f"{len(large) - _MOST_NAMED} more are as large"]
    return f" ({', '.join(large)})" if large else ""


def _bytes(tensors: Iterable[Tensor]) -> int:
    return _BYTES_PER_VALUE * sum(tensor.numel() for tensor in tensors)


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
