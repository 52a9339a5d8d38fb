"""caffe.SGDSolver and its kin: training that a program looks into."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import caffe_dns.pycaffe as caffe
from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.proto.blobs import blob_to_array
from caffe_dns.proto.caffe_pb2 import NetParameter
from tests.oracle import GOLDEN, assert_close, assert_same_norm
from tests.pycaffe.regression import NET, SETTINGS, Regression, build, fill


def blobs_of(model: Path) -> dict[str, list[np.ndarray]]:
    param = NetParameter.FromString(model.read_bytes())
    return {layer.name: [blob_to_array(blob) for blob in layer.blobs] for layer in param.layer}


# Against Caffe ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["sgd_inv", "sgd_poly_itersize", "nesterov", "siamese_shared", "surgery_holmes"]
)
def test_golden_runs(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = GOLDEN / "runs" / name
    text = (run / "solver.prototxt").read_text()
    text = text.replace(f"runs/{name}/snap", str(folder / "snap"))
    (folder / "solver.prototxt").write_text(f"{text}\nweights: 'runs/{name}/init.caffemodel'")
    monkeypatch.chdir(GOLDEN)
    caffe.set_surgery(name.startswith("surgery"))
    solver = caffe.get_solver(folder / "solver.prototxt")
    recorded = run / "trace.npz"
    values = np.load(recorded)["values"] if recorded.exists() else None
    for iteration in range(20):
        solver.step(1)
        if values is not None:
            outputs = [solver.net.blobs[name].data for name in solver.net.outputs]
            trace = np.concatenate([np.ravel(output) for output in outputs])
            np.testing.assert_allclose(trace, values[iteration], rtol=1e-4, atol=1e-6)
    solver.snapshot()
    ours, theirs = (blobs_of(where / "snap_iter_20.caffemodel") for where in (folder, run))
    assert ours.keys() == theirs.keys()
    for layer, arrays in theirs.items():
        for actual, expected in zip(ours[layer], arrays, strict=True):
            assert_same_norm(actual, expected, layer)


# What a step leaves -----------------------------------------------------------------------------


def test_a_step_leaves_blobs_and_updates() -> None:
    solver = build()
    byhand = Regression(solver)
    weight, bias = (blob.data for blob in solver.net.params["ip"])
    for rate in (0.1, 0.1, 0.05):
        assert solver.lr == pytest.approx(rate)
        byhand.step(rate)
        solver.step(1)
        assert solver.net.blobs["loss"].data == pytest.approx(byhand.loss, rel=1e-5)
        assert_close(weight, byhand.values[0], "weight")
        assert_close(bias, byhand.values[1], "bias")
        for blob, update in zip(solver.net.params["ip"], byhand.history, strict=True):
            assert_close(blob.diff, update, "the diff is the update")
    assert solver.iter == 3
    error = solver.net.blobs["ip"].data - solver.net.blobs["y"].data
    assert_close(solver.net.blobs["ip"].diff, error / 4, "diff of a blob")


def test_steps_by_hand(capfd: pytest.CaptureFixture[str]) -> None:
    """Each update is an iteration (sgd_solver.cpp): the rate falls by its policy, and is shown."""
    solver = build(SETTINGS + "display: 2")
    log.set_quiet(False)
    byhand = Regression(solver)
    for rate in (0.1, 0.1, 0.05):
        gradients = byhand.gradients()
        byhand.step(rate)
        solver.net.clear_param_diffs()
        solver.net.forward()
        solver.net.backward()
        for blob, gradient in zip(solver.net.params["ip"], gradients, strict=True):
            assert_close(blob.diff, gradient, "gradient")
        solver.apply_update()
        assert_close(solver.net.params["ip"][0].data, byhand.values[0], "weight")
    assert solver.iter == 3
    said = [line.partition("] ")[2] for line in capfd.readouterr().err.splitlines()]
    assert said[-2:] == ["Iteration 0, lr = 0.1", "Iteration 2, lr = 0.05"]


def test_an_update_from_diffs_that_a_program_writes() -> None:
    solver = build(SETTINGS.replace("weight_decay: 0.1", ""))
    weight = solver.net.params["ip"][0]
    weight.data[...] = 0
    weight.diff[...] = 1
    solver.apply_update()
    assert_close(weight.data, np.full((2, 3), -0.1), "weight")


def test_solving_and_resuming() -> None:
    solver = build(SETTINGS + "snapshot: 2")
    solver.solve()
    assert solver.iter == 4 and Path("snap_iter_4.caffemodel").exists()
    resumed = build()
    resumed.solve("snap_iter_2.solverstate")
    assert resumed.iter == 4
    again = build()
    again.restore("snap_iter_2.solverstate")
    assert again.iter == 2
    again.step(2)
    for other in (resumed, again):
        for mine, theirs in zip(other.net.params["ip"], solver.net.params["ip"], strict=True):
            assert np.array_equal(mine.data, theirs.data)


def test_snapshots_can_hold_the_updates() -> None:
    solver = build(SETTINGS + "snapshot: 2 snapshot_diff: true")
    solver.step(2)
    param = NetParameter.FromString(Path("snap_iter_2.caffemodel").read_bytes())
    blob = next(layer for layer in param.layer if layer.name == "ip").blobs[0]
    assert_close(np.array(blob.diff).reshape(2, 3), solver.net.params["ip"][0].diff, "diff")


def test_test_nets_share_weights_and_take_inputs() -> None:
    solver = build(SETTINGS + "test_iter: 1 test_interval: 1")
    (net,) = solver.test_nets
    fill(net)
    solver.step(1)
    at_start = net.blobs["loss"].data.copy()
    assert at_start == solver.net.blobs["loss"].data
    assert np.shares_memory(net.params["ip"][0].data, solver.net.params["ip"][0].data)
    assert net.forward()["loss"] < at_start
    other = caffe.Net("net.prototxt", caffe.TEST)
    solver.share_weights(other)
    fill(other)
    assert other.forward()["loss"] == net.blobs["loss"].data


def test_a_backward_pass_of_a_test_net_goes_by_the_last_test() -> None:
    """Not by what an in-place layer found in a forward pass before that."""
    net = """
        layer { name: 'in' type: 'Input' top: 'x' input_param { shape { dim: 2 dim: 3 } } }
        layer { name: 'p' type: 'Power' bottom: 'x' top: 'y' }
        layer { name: 'relu' type: 'ReLU' bottom: 'y' top: 'y' }
        layer { name: 'ip' type: 'InnerProduct' bottom: 'y' top: 'ip'
          inner_product_param { num_output: 1 weight_filler { type: 'constant' value: 1 } } }
        layer { name: 'loss' type: 'Reduction' bottom: 'ip' top: 'loss' loss_weight: 1 }"""
    Path("relu.prototxt").write_text("force_backward: true" + net)
    text = SETTINGS.replace("net.prototxt", "relu.prototxt").replace("0.1", "0")
    Path("solver.prototxt").write_text(text + "test_iter: 1 test_interval: 1")
    caffe.set_surgery(False)
    solver = caffe.SGDSolver("solver.prototxt")
    (tested,) = solver.test_nets
    tested.blobs["x"].data[...] = -1
    tested.forward()
    tested.blobs["x"].data[...] = 1
    solver.step(1)
    tested.backward()
    assert (tested.blobs["x"].diff == 1).all()


@pytest.mark.parametrize("owner", [0, 1])
def test_solvers_whose_nets_share_weights_train_them_together(owner: int) -> None:
    solvers = [build(), build()]
    solvers[1].net.blobs["x"].data[...] *= 2
    solvers[1 - owner].net.share_with(solvers[owner].net)
    byhand = [Regression(solver) for solver in solvers]
    byhand[1].values = byhand[0].values
    for turn in (0, 1, 1, 0):
        solvers[turn].step(1)
        byhand[turn].step(0.1)
        for solver in solvers:
            for blob, value in zip(solver.net.params["ip"], byhand[0].values, strict=True):
                assert_close(blob.data, value, "of both")
    for blob, other in zip(*(solver.net.params["ip"] for solver in solvers), strict=True):
        assert np.shares_memory(blob.data, other.data)
        assert not np.array_equal(blob.diff, other.diff)


def test_debug_info_changes_nothing() -> None:
    plain, chatty = build(), build(SETTINGS + "debug_info: true display: 1")
    for solver in (plain, chatty):
        solver.step(2)
    for name in ("ip", "loss"):
        assert_close(chatty.net.blobs[name].data, plain.net.blobs[name].data, name)
    for mine, theirs in zip(chatty.net.params["ip"], plain.net.params["ip"], strict=True):
        assert_close(mine.data, theirs.data, "weight")
        assert_close(mine.diff, theirs.diff, "update")


def test_python_layers_learn() -> None:
    caffe.allow_python_layers()
    by_hand = """type: 'Python' loss_weight: 1
        python_param { module: 'user' layer: 'Euclidean' }"""
    builtin = build()
    Path("net.prototxt").write_text(NET.replace("type: 'EuclideanLoss'", by_hand))
    ours = caffe.get_solver("solver.prototxt")
    fill(ours.net)
    for solver in (builtin, ours):
        solver.step(4)
    for mine, theirs in zip(ours.net.params["ip"], builtin.net.params["ip"], strict=True):
        assert_close(mine.data, theirs.data, "weight")


# Which solver -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (caffe.SGDSolver, "SGD"),
        (caffe.NesterovSolver, "Nesterov"),
        (caffe.AdaGradSolver, "AdaGrad"),
        (caffe.RMSPropSolver, "RMSProp"),
        (caffe.AdaDeltaSolver, "AdaDelta"),
        (caffe.AdamSolver, "Adam"),
    ],
)
def test_types(cls: type[caffe.SGDSolver], name: str) -> None:
    build()
    text = SETTINGS.replace("momentum: 0.9", "")
    Path("solver.prototxt").write_text(text)
    assert cls("solver.prototxt").param.type == name
    Path("solver.prototxt").write_text(f"{text} type: '{name}'")
    assert type(caffe.get_solver("solver.prototxt")) is cls


def test_the_seed_of_the_process_is_taken_where_the_definition_has_none() -> None:
    Path("net.prototxt").write_text(
        NET.replace("num_output: 2", "num_output: 2 weight_filler { type: 'xavier' }")
    )
    Path("solver.prototxt").write_text(SETTINGS.replace("random_seed: 1", ""))

    def weight() -> np.ndarray:
        return caffe.get_solver("solver.prototxt").net.params["ip"][0].data

    caffe.set_random_seed(5)
    first, second = weight(), weight()
    assert not np.array_equal(first, second)
    caffe.set_random_seed(6)
    assert not np.array_equal(first, weight())
    caffe.set_random_seed(5)
    assert np.array_equal(first, weight())


def test_wrong_definitions() -> None:
    build()
    Path("solver.prototxt").write_text(SETTINGS + "type: 'Adm'")
    with pytest.raises(CaffeError, match=r"solver\.prototxt:2: type: unknown solver type 'Adm'"):
        caffe.get_solver("solver.prototxt")
    with pytest.raises(CaffeError, match="nowhere"):
        caffe.SGDSolver("nowhere.prototxt")


# Callbacks and surgery --------------------------------------------------------------------------


@pytest.mark.parametrize("more", ["", "debug_info: true display: 1"])
def test_callbacks(more: str) -> None:
    solver = build(f"{SETTINGS} iter_size: 2 test_iter: 1 test_interval: 2 {more}")
    weight = solver.net.params["ip"][0]
    kinds: list[tuple[str, int]] = []
    arrays: list[np.ndarray] = []
    solver.test_nets[0].after_forward(
        lambda layer: kinds.append((f"test {layer}", solver.iter)) if layer < 2 else None
    )

    def tell(kind: str, array: np.ndarray) -> None:
        kinds.append((kind, solver.iter))
        arrays.append(array.copy())

    solver.add_callback(lambda: tell("start", weight.data), lambda: tell("ready", weight.diff))
    by_hand = Regression(solver)
    solver.step(2)
    tested = [("test 0", 0), ("test 1", 0)]
    assert kinds == [*tested, ("start", 0), ("ready", 0), ("start", 1), ("ready", 1)]
    for before, gradient in (arrays[:2], arrays[2:]):
        assert_close(before, by_hand.values[0].astype(np.float32), "weight at the start")
        # The sum over iter_size, before it is divided.
        assert_close(gradient, 2 * by_hand.gradients()[0].astype(np.float32), "gradient")
        by_hand.step(0.1)


def test_a_callback_may_change_gradients() -> None:
    solver = build(SETTINGS.replace("weight_decay: 0.1", ""))

    def clear() -> None:
        for blob in solver.net.params["ip"]:
            blob.diff[...] = 0

    before = solver.net.params["ip"][0].data.copy()
    solver.add_callback(lambda: None, clear)
    solver.step(2)
    assert np.array_equal(solver.net.params["ip"][0].data, before)
    for wrong in ((clear,), (solver, clear), (solver,)):
        with pytest.raises(TypeError, match="takes two functions, or an object with on_start"):
            solver.add_callback(*wrong)


@pytest.mark.parametrize("by_hand", [False, True])
def test_frozen_zeros_stay_zero(by_hand: bool) -> None:
    build()
    frozen = NET.replace("type: 'InnerProduct'", "type: 'InnerProduct' connectivity_mode: MODE")
    Path("net.prototxt").write_text(frozen.replace("MODE", "DISCONNECTED_ELTWISE"))
    solver = caffe.SGDSolver("solver.prototxt")
    fill(solver.net)
    weight = solver.net.params["ip"][0].data
    weight[...] = [[0, 1, 2], [3, 0, 4]]
    before = weight.copy()
    for _ in range(2):
        if by_hand:
            solver.net.forward()
            solver.net.backward()
            solver.apply_update()
        else:
            solver.step(1)
        assert np.array_equal(weight == 0, before == 0)
    assert (weight != before)[before != 0].all()


@pytest.mark.parametrize(
    ("solver_field", "net_field", "blobs"),
    [
        ("", "", 2),
        ("surgery_stop_iter: 10", "", 3),
        ("surgery_stage { iterations: 4 sparsity: 0.5 }", "", 3),
        ("", "threshold: 1", 3),
    ],
)
def test_only_solvers_that_ask_for_it_prune(solver_field: str, net_field: str, blobs: int) -> None:
    Path("net.prototxt").write_text(NET.replace("num_output: 2", f"num_output: 2 {net_field}"))
    Path("solver.prototxt").write_text(SETTINGS + solver_field)
    solver = caffe.SGDSolver("solver.prototxt")
    assert len(solver.net.params["ip"]) == blobs
    caffe.set_surgery(False)
    if "surgery_stage" not in solver_field:
        assert len(caffe.SGDSolver("solver.prototxt").net.params["ip"]) == 2


def test_a_seed_in_the_definition_is_that_of_the_process() -> None:
    # `Solver::Init` calls Caffe::set_random_seed.
    build()
    filled = NET.replace("num_output: 2", "num_output: 2 weight_filler { type: 'xavier' }")
    Path("net.prototxt").write_text(filled)
    weights = []
    for _ in range(2):
        caffe.SGDSolver("solver.prototxt")
        weights.append(caffe.Net("net.prototxt", caffe.TRAIN).params["ip"][0].data)
    assert np.array_equal(weights[0], weights[1])
