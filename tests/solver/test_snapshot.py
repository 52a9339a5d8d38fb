"""Solver states: what they hold, who can read them, and that a resumed run ends where it would."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import DataPosition, NetParameter, SharedValues, SolverState
from caffe_dns.solver.signals import Action
from caffe_dns.solver.snapshot import data_positions, gather_histories
from caffe_dns.solver.solver import Solver
from caffe_dns.solver.state_file import read_state, write_state
from tests.nets import recorded_log
from tests.oracle import GOLDEN
from tests.solver.harness import (
    DROPOUT,
    assert_same_weights,
    make_solver,
    small_net,
    state_of,
    trained,
    weights_of,
)

FORMATS = [("BINARYPROTO", ""), ("HDF5", ".h5")]


def resumed(folder: Path, state: str, steps: int, settings: str = "", **more: str) -> Solver:
    """A new solver that goes on from `state`."""
    solver = make_solver(folder, settings, more.get("net"))
    solver.restore(state)
    solver.step(steps)
    solver.close()
    return solver


# What a state holds -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (SolverState(iter=-1), "iter: is -1, below 0"),
        (SolverState(iter=3, current_step=5), "current_step: is 5, more than the 3 iterations"),
        (
            SolverState(iter=3, data_position=[DataPosition(layer="x", records=2**63)]),
            "data_position: layer 'x' would have handed out 9223372036854775808 records",
        ),
    ],
)
@pytest.mark.parametrize("ending", ["", ".h5"])
def test_states_that_no_run_has_left(
    ending: str, state: SolverState, message: str, tmp_path: Path
) -> None:
    file = f"{tmp_path}/s_iter_3.solverstate{ending}"
    state.learned_net, state.random_seed = "s_iter_3.caffemodel", 5
    write_state(file, state, [], hdf5=bool(ending))
    with pytest.raises(CaffeError) as caught:
        read_state(file)
    assert str(caught.value) == f"{file}: {message}"


@pytest.mark.parametrize("hdf5", [False, True])
@pytest.mark.parametrize("values", [10, 14_990, 15_000, 100_000])
def test_shared_values_of_any_size(values: int, hdf5: bool, tmp_path: Path) -> None:
    """An attribute of HDF5 has 64 KB at most."""
    shared = SharedValues(layer="ip1", value=[0.5], weight=[0.25] * values)
    state = SolverState(iter=3, learned_net="x", random_seed=5, shared_values=[shared])
    file = f"{tmp_path}/s_iter_3.solverstate{'.h5' * hdf5}"
    write_state(file, state, [], hdf5=hdf5)
    assert list(read_state(file)[0].shared_values) == [shared]


@pytest.mark.parametrize(("kind", "ending"), FORMATS)
def test_what_a_state_holds(tmp_path: Path, kind: str, ending: str) -> None:
    solver = trained(tmp_path, 3, f"snapshot_format: {kind} snapshot: 3")
    state, histories = read_state(state_of(tmp_path, 3, ending))
    assert (state.iter, state.current_step, state.random_seed) == (3, 0, 5)
    assert state.learned_net == f"{tmp_path}/snap_iter_3.caffemodel{ending}"
    assert [(p.net, p.layer, p.records) for p in state.data_position] == [(0, "mnist", 48)]
    assert len(histories) == 6  # two layers of weight, bias and mask
    kept = gather_histories(solver.rule, solver.net.learnable_params)
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(histories, kept, strict=True))
    assert [bool(history.any()) for history in histories] == [True, True, False] * 2


def test_a_caffe_reads_our_states(tmp_path: Path) -> None:
    """By the field numbers and names that Caffe's own message has."""
    trained(tmp_path, 2, "snapshot: 2")
    state = SolverState.FromString(Path(state_of(tmp_path, 2)).read_bytes())
    for field, _ in state.ListFields():
        assert field.number <= 4 or field.number >= 1000
    trained(tmp_path, 2, "snapshot: 2 snapshot_format: HDF5")
    with h5py.File(state_of(tmp_path, 2, ".h5")) as root:
        assert sorted(root) == ["current_step", "history", "iter", "learned_net"]
        golden = h5py.File(GOLDEN / "runs/sgd_hdf5_snapshot/snap_iter_20.solverstate.h5")
        for name in ("iter", "current_step", "learned_net"):
            assert root[name].shape == golden[name].shape
            assert root[name].dtype.kind == golden[name].dtype.kind
        # Caffe reads the bytes of the dataset as a C string: the last has to be a NUL.
        kinds = [file["learned_net"].id.get_type() for file in (root, golden)]
        assert kinds[0].get_strpad() == kinds[1].get_strpad() == h5py.h5t.STR_NULLTERM
        assert kinds[0].get_cset() == kinds[1].get_cset()
        assert [kind.get_size() for kind in kinds] == [
            len(file["learned_net"][()]) + 1 for file in (root, golden)
        ]
        assert sorted(root["history"]) == [str(index) for index in range(6)]
        golden.close()


def test_diffs_are_the_last_update(tmp_path: Path) -> None:
    solver = make_solver(tmp_path, "snapshot: 3 snapshot_diff: true")
    solver.step(2)
    before = weights_of(solver)
    solver.step(1)
    solver.close()
    model = NetParameter.FromString((tmp_path / "snap_iter_3.caffemodel").read_bytes())
    diffs = {
        f"{layer.name}/{index}": np.array(blob.diff, np.float32).reshape(list(blob.shape.dim))
        for layer in model.layer
        for index, blob in enumerate(layer.blobs)
    }
    assert diffs.keys() == before.keys()
    for param, history in zip(
        solver.net.learnable_params,
        gather_histories(solver.rule, solver.net.learnable_params),
        strict=True,
    ):
        key = f"{param.layer.name}/{param.index}"
        # What SGD subtracts is its history.
        np.testing.assert_allclose(diffs[key], history, atol=1e-7)
        assert diffs[key].any() != param.is_mask


def test_diffs_before_the_first_update_are_zero(tmp_path: Path) -> None:
    solver = make_solver(tmp_path, "snapshot_diff: true")
    solver.snapshot()
    model = NetParameter.FromString((tmp_path / "snap_iter_0.caffemodel").read_bytes())
    blobs = [blob for layer in model.layer for blob in layer.blobs]
    assert len(blobs) == 6
    assert all(len(blob.diff) == len(blob.data) and not any(blob.diff) for blob in blobs)


# Going on -----------------------------------------------------------------------------------------

RUNS = {
    "inv": ("lr_policy: 'inv' gamma: 0.1 power: 0.75", {}),
    "random": ("lr_policy: 'fixed'", {"crop": True, "extra": DROPOUT}),
    "boundary": ("lr_policy: 'multistep' gamma: 0.1 stepvalue: 2 stepvalue: 3 stepvalue: 3", {}),
    "adam": ("type: 'Adam' momentum: 0.9 momentum2: 0.99 base_lr: 0.01", {}),
    "iter_size": ("iter_size: 3 weight_decay: 0.01", {"crop": True, "extra": DROPOUT}),
    "surgery": ("surgery_iter_gamma: 1 surgery_iter_power: 0.7", {}),
    "official": ("lr_policy: 'fixed'", {"kind": "CInnerProduct"}),
    "tests": ("test_iter: 2 test_interval: 2", {}),
}


@pytest.mark.parametrize(("kind", "ending"), FORMATS)
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("given", [True, False])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, name: str, kind: str, ending: str, given: bool
) -> None:
    settings, net = RUNS[name]
    settings += f" snapshot_format: {kind} snapshot: 3" + ("" if given else " random_seed: -1")
    text = small_net(**net)  # type: ignore[arg-type]
    whole = trained(tmp_path, 6, settings, text)
    end = weights_of(whole)
    again = resumed(tmp_path, state_of(tmp_path, 3, ending), 3, settings, net=text)
    assert (again.iteration, again.current_step) == (whole.iteration, whole.current_step)
    assert again.seed == whole.seed
    found = weights_of(again)
    assert all(torch.equal(found[key], values) for key, values in end.items())
    histories = [gather_histories(s.rule, s.net.learnable_params) for s in (whole, again)]
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(*histories, strict=True))


@pytest.mark.parametrize("action", [Action.SNAPSHOT, Action.STOP])
def test_a_test_that_was_interrupted_is_repeated(tmp_path: Path, action: Action) -> None:
    settings = "test_iter: 3 test_iter: 3 test_interval: 2 snapshot_after_train: true max_iter: 4"
    whole = make_solver(tmp_path, settings)
    with recorded_log() as expected:
        whole.solve()
    whole.close()
    # The solver looks once an iteration, and before each batch of a test.
    solver = make_solver(tmp_path, settings)
    looks = iter([Action.NONE] * (3 + 3 + 2 + 3 + 1) + [action])
    solver.poll = lambda: next(looks, Action.NONE)
    solver.step(3)
    if action is Action.STOP:  # as `solve` does
        solver.snapshot()
    solver.close()
    state = SolverState.FromString(Path(state_of(tmp_path, 2)).read_bytes())
    records = [(p.net, p.records) for p in state.data_position]
    assert records == [(0, 32), (1, 60), (2, 60)]
    again = make_solver(tmp_path, settings)
    again.restore(state_of(tmp_path, 2))
    with recorded_log() as found:
        again.solve()
    again.close()
    scores = [[m for m in log if "Test net output" in m] for log in (expected, found)]
    assert scores[1] == scores[0][-8:]
    assert_same_weights(again, whole)


def test_runs_without_a_seed_differ(tmp_path: Path) -> None:
    first, second = (trained(tmp_path, 1, "random_seed: -1") for _ in range(2))
    assert not torch.equal(first.net.params["ip1"][0], second.net.params["ip1"][0])
    first, second = (trained(tmp_path, 1) for _ in range(2))
    assert_same_weights(first, second)


def test_a_seed_in_the_definition_comes_before_the_states(tmp_path: Path) -> None:
    trained(tmp_path, 3, "snapshot: 3")
    solver = make_solver(tmp_path, "random_seed: 8")
    solver.restore(state_of(tmp_path, 3))
    assert solver.seed == solver.net.context.seed == 8


def test_states_of_a_caffe_start_the_data_again(tmp_path: Path) -> None:
    solver = trained(tmp_path, 3, "snapshot: 3")
    path = Path(state_of(tmp_path, 3))
    state = SolverState.FromString(path.read_bytes())
    for field in ("data_position", "random_seed", "learned_net_sha256", "surgery_moments"):
        state.ClearField(field)
    path.write_bytes(state.SerializeToString())
    solver = make_solver(tmp_path)
    solver.restore(str(path))
    assert solver.iteration == 3
    assert [p.records for p in data_positions([solver.net])] == [0]


# Where files lie ----------------------------------------------------------------------------------


def test_a_moved_folder(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    expected = trained(there, 4, "snapshot: 2")
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in there.glob("snap_iter_2*"):
        shutil.move(file, moved / file.name)
    assert_same_weights(resumed(there, state_of(moved, 2), 2), expected)


def test_a_changed_model_is_noticed(tmp_path: Path) -> None:
    trained(tmp_path, 2, "snapshot: 1")
    shutil.copy(tmp_path / "snap_iter_1.caffemodel", tmp_path / "snap_iter_2.caffemodel")
    solver = make_solver(tmp_path)
    with recorded_log() as messages:
        solver.restore(state_of(tmp_path, 2))
    assert messages[0].startswith(f"{tmp_path}/snap_iter_2.caffemodel has changed since")


@pytest.mark.parametrize(("kind", "ending"), FORMATS)
def test_what_restoring_logs(tmp_path: Path, kind: str, ending: str) -> None:
    settings = f"snapshot: 1 snapshot_format: {kind} type: 'AdaDelta'"
    trained(tmp_path, 1, settings)
    solver = make_solver(tmp_path, settings)
    with recorded_log() as messages:
        solver.restore(state_of(tmp_path, 1, ending))
    assert messages == ["SGDSolver: restoring history"] * (not ending)


def complaint(folder: Path, file: str) -> str:
    with pytest.raises(CaffeError) as caught:
        make_solver(folder).restore(file)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_files_that_are_no_states(tmp_path: Path) -> None:
    trained(tmp_path, 1, "snapshot: 1")
    trained(tmp_path, 2, "snapshot: 2 snapshot_format: HDF5")
    for model in ("snap_iter_1.caffemodel", "snap_iter_2.caffemodel.h5"):
        message = complaint(tmp_path, f"{tmp_path}/{model}")
        assert "is a model, not a solver state; give it with -weights" in message
    renamed = shutil.copy(tmp_path / "snap_iter_1.caffemodel", tmp_path / "renamed")
    assert "is a model, not a solver state" in complaint(tmp_path, str(renamed))
    assert "gone: cannot be read: No such file" in complaint(tmp_path, f"{tmp_path}/gone")
    (tmp_path / "part").write_bytes(SolverState(learned_net="x").SerializeToString())
    assert "is not a SolverState: truncated or another" in complaint(tmp_path, f"{tmp_path}/part")
    (tmp_path / "text").write_text("iter: 3")
    assert str(tmp_path / "text") in complaint(tmp_path, f"{tmp_path}/text")
    with h5py.File(tmp_path / "x.h5", "w") as root:
        root["iter"] = np.array([3], np.int32)
    assert "is not a solver state in HDF5" in complaint(tmp_path, f"{tmp_path}/x.h5")


def test_a_state_without_its_model(tmp_path: Path) -> None:
    trained(tmp_path, 1, "snapshot: 1")
    (tmp_path / "snap_iter_1.caffemodel").unlink()
    gone = f"its model is gone: there is none at '{tmp_path}/snap_iter_1.caffemodel'"
    assert complaint(tmp_path, state_of(tmp_path, 1)) == f"{state_of(tmp_path, 1)}: {gone}"
    (tmp_path / "moved").mkdir()
    moved = shutil.move(state_of(tmp_path, 1), tmp_path / "moved")
    gone += f" nor at '{tmp_path}/moved/snap_iter_1.caffemodel'"
    assert complaint(tmp_path, str(moved)) == f"{moved}: {gone}"


# Other nets ---------------------------------------------------------------------------------------


def test_a_state_of_another_net_or_type(tmp_path: Path) -> None:
    trained(tmp_path, 1, "snapshot: 1 type: 'AdaDelta'")
    message = complaint(tmp_path, state_of(tmp_path, 1))
    wanted = "Incorrect length of history blobs: the state has 12, this net and solver type need 6"
    assert message == f"{state_of(tmp_path, 1)}: {wanted}"
    path = Path(state_of(tmp_path, 1))
    state = SolverState.FromString(path.read_bytes())
    del state.history[6:]
    state.history[1].CopyFrom(state.history[4])
    path.write_bytes(state.SerializeToString())
    message = complaint(tmp_path, str(path))
    assert message.endswith("layer 'ip1': history of blob 1 has shape (10,), the parameter (12,)")
