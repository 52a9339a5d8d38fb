"""What is too large for snapshots, known before the first iteration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_dns.errors import CaffeError
from caffe_dns.proto.blobs import array_to_blob
from caffe_dns.solver.checks import check_sizes
from caffe_dns.solver.solver import Solver
from tests.solver.harness import make_solver, small_net

#: Values of 4 bytes in 1 GiB.
GIB = 1 << 28


def grown(tmp_path: Path, values: int, settings: str = "") -> Solver:
    """A solver whose layer ip1 has a weight of so many values, which take no memory."""
    solver = make_solver(tmp_path, f"snapshot: 5 {settings}")
    layer = solver.net.layer("ip1")
    assert layer is not None
    layer.see_parameter_as(0, torch.zeros(1).expand(values))
    return solver


def check(solver: Solver, histories: int = 1) -> None:
    check_sizes(solver.param, solver.net, histories)


def complaint(solver: Solver, histories: int = 1) -> str:
    with pytest.raises(CaffeError) as caught:
        check(solver, histories)
    return str(caught.value)


def test_models_beyond_two_gibibytes_are_known_at_the_start(tmp_path: Path) -> None:
    check(grown(tmp_path, 2 * GIB - 10_000))
    assert complaint(grown(tmp_path, 3 * GIB)) == (
        "snapshot_format: a model of 3.00 GiB does not fit: protobuf reads 2 GiB at most "
        "(blob 0 of layer 'ip1' takes 3.00 GiB); `snapshot_format: HDF5` would be right"
    )
    check(grown(tmp_path, 3 * GIB, "snapshot_format: HDF5"))


def test_a_snapshot_without_its_sign_has_to_fit_as_well(tmp_path: Path) -> None:
    solver = grown(tmp_path, 3 * GIB)
    solver.param.snapshot = -5
    solver.param.snapshot_after_train = False
    assert "a model of 3.00 GiB does not fit" in complaint(solver)
    solver.param.snapshot = 0
    check(solver)


def test_names_without_a_place_in_hdf5_are_known_at_the_start(tmp_path: Path) -> None:
    """ONNX's names begin with a slash."""
    net = small_net().replace('"ip1" type', '"/ip1" type')
    with pytest.raises(CaffeError, match="'/ip1': has no place of this name in HDF5"):
        make_solver(tmp_path / "a", "snapshot: 5 snapshot_format: HDF5", net)
    make_solver(tmp_path / "b", "snapshot: 5", net)
    make_solver(tmp_path / "c", "snapshot_format: HDF5", net)


def test_differences_and_histories_count(tmp_path: Path) -> None:
    solver = grown(tmp_path, GIB + GIB // 2)
    check(solver)
    assert "a solver state of 3.00 GiB does not fit" in complaint(solver, histories=2)
    assert "a model of 3.00 GiB" in complaint(
        grown(tmp_path, GIB + GIB // 2, "snapshot_diff: true")
    )


def test_who_writes_no_snapshots_may_have_any_model(tmp_path: Path) -> None:
    solver = grown(tmp_path, 3 * GIB, "snapshot_after_train: false")
    solver.param.snapshot = 0
    check(solver)
    solver.param.snapshot_after_train = True
    assert "a model of 3.00 GiB" in complaint(solver)


def test_a_blob_too_large_for_a_message_is_refused() -> None:
    with pytest.raises(CaffeError, match="a blob of 3221225472 bytes is more than the 2 GiB"):
        array_to_blob(np.broadcast_to(np.float32(0), (3, GIB)))
