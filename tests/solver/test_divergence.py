"""Divergence is told at a display or before a snapshot, with the place where it begins."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.proto.upgrade import read_solver
from caffe_dns.solver.divergence import Guard, find_origin
from caffe_dns.solver.solver import Solver
from tests.cli.harness import complaint, run_well
from tests.nets import input_layer, make_net, recorded_log
from tests.solver.test_observers import read_table, write_solver

pytestmark = pytest.mark.usefixtures("in_golden_folder")

Capture = pytest.CaptureFixture[str]


def test_divergence_ends_in_one_line(tmp_path: Path, capfd: Capture) -> None:
    solver = write_solver(
        tmp_path, "sgd_inv", base_lr=1e30, display=2, snapshot=3, test_interval=100
    )
    good = tmp_path / "snap_iter_1.caffemodel"
    good.write_bytes(b"the last good one")
    line = complaint(["train", "--solver", solver, "--no-surgery"], capfd)
    assert re.match(r"dns: Iteration 2: the loss \(output 'loss'\) is (nan|inf); ", line)
    assert "try a base_lr below 1e+30, or clip_gradients; if" in line
    assert good.read_bytes() == b"the last good one"
    assert {path.name for path in tmp_path.iterdir()} == {"solver.prototxt", good.name}


def test_advice_fits_the_run(tmp_path: Path, capfd: Capture) -> None:
    solver = write_solver(
        tmp_path, "surgery_holmes", base_lr=1e30, snapshot=0, clip_gradients=1e9, test_interval=100
    )
    line = complaint(["train", "--solver", solver], capfd)
    assert "try a base_lr below 1e+30, or lower thresholds; if" in line
    rows = read_table(tmp_path)  # the display that shows it is in the table
    assert f"Iteration {rows[-1]['iteration']}: " in line


def test_a_snapshot_is_never_one_of_nan(tmp_path: Path, capfd: Capture) -> None:
    def said(**settings: object) -> str:
        solver = write_solver(tmp_path, "sgd_inv", base_lr=3e38, display=0, **settings)
        line = complaint(["train", "--solver", solver, "--no-surgery"], capfd)
        assert [path.name for path in tmp_path.iterdir()] == ["solver.prototxt"]
        return line

    # The first update spoils the weights, the loss of the first iteration is still good.
    assert "Iteration 1: blob 1 of layer 'conv1' is not finite; training has diverged" in said(
        snapshot=1, test_interval=100
    )
    # The last snapshot, which no display comes before.
    assert "Iteration 3: the loss (output 'loss') is nan" in said(
        snapshot=0, max_iter=3, test_interval=100
    )


def test_other_iterations_are_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(guard: Guard, iteration: int, *given: object) -> bool:
        seen.append(iteration)
        return True

    monkeypatch.setattr(Guard, "check", look)
    path = write_solver(tmp_path, "sgd_inv", display=4, snapshot=5, test_interval=100)
    solver = Solver(read_solver(path).message, surgery=False)
    try:
        solver.step(10)
    finally:
        solver.close()
    assert seen == [0, 4, 5, 8, 10]


def test_warning_goes_on_without_snapshots(tmp_path: Path, capfd: Capture) -> None:
    solver = write_solver(
        tmp_path, "sgd_inv", base_lr=1e30, display=2, snapshot=3, max_iter=8, test_interval=100
    )
    result = run_well(["train", "--solver", solver, "--no-surgery", "--on-nan=warn"], capfd)
    told = [line for line in result.messages if "training has diverged" in line]
    assert len(told) == 1, told
    assert "Iteration 3: no snapshot is written" in result.messages
    assert not list(tmp_path.glob("snap_iter_[3-8]*"))
    assert result.messages[-1] == "Optimization Done."


#: A layer whose top is not finite from the start: log(0).
LOG = f"""
{input_layer(data=(2, 3))}
layer {{ name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param {{ num_output: 2 sparsity_term: false }} }}
layer {{ name: "norm" type: "BatchNorm" bottom: "ip" top: "norm" }}
layer {{ name: "log" type: "Log" bottom: "norm" top: "log" }}
layer {{ name: "loss" type: "EuclideanLoss" bottom: "log" bottom: "ip" top: "loss" }}
"""


def test_the_layer_in_which_it_begins() -> None:
    net = make_net(LOG)
    batch = {"data": torch.zeros(2, 3)}
    before = [blob.detach().clone() for blob in net.params["norm"]]
    assert find_origin(net, batch) == "top 'log' of layer 'log'"
    assert all(map(torch.equal, before, net.params["norm"]))
    with torch.no_grad():
        net.params["ip"][1][0] = math.inf
    assert find_origin(net, batch) == "blob 1 of layer 'ip'"


def test_data_that_are_not_finite_are_named() -> None:
    batch = {"data": torch.full((2, 3), math.nan)}
    assert find_origin(make_net(LOG), batch) == "top 'data' of layer 'in'"


#: -log of the smallest normal float32: the loss of Caffe's GPU code for scores that are NaN.
NAN_SCORES = torch.tensor(87.3365)


def test_a_loss_that_hides_nan_is_seen_through() -> None:
    net = make_net(LOG)
    guard = Guard(SolverParameter(base_lr=0.1), net)
    given = {"data": torch.ones(2, 3)}
    with torch.no_grad():
        net.params["norm"][2].fill_(1)
        net.params["ip"][0].fill_(math.nan)
    with pytest.raises(CaffeError, match="Iteration 7: blob 0 of layer 'ip' is not finite"):
        guard.check(7, NAN_SCORES, {"loss": NAN_SCORES}, given)


def test_a_loss_of_the_same_value_may_be_honest() -> None:
    text = LOG.replace('"Log"', '"TanH"')
    guard = Guard(SolverParameter(base_lr=0.1), make_net(text))
    given = {"data": torch.ones(2, 3)}
    assert guard.check(7, NAN_SCORES, {"loss": NAN_SCORES}, given)


def test_what_to_do_is_one_of_two_words() -> None:
    with pytest.raises(CaffeError, match="'ignore' is not one of stop, warn"):
        Guard(SolverParameter(), make_net(LOG), "ignore")


def test_each_place_is_warned_of_once() -> None:
    net = make_net(LOG)
    guard = Guard(SolverParameter(base_lr=0.1), net, "warn")
    loss = torch.tensor(math.nan)
    with recorded_log() as messages:
        for iteration in (10, 20):
            assert not guard.check(iteration, loss, {"loss": loss}, {"data": torch.zeros(2, 3)})
    assert len(messages) == 1
    assert "the loss (output 'loss') is nan; it begins in top 'log' of layer 'log'" in messages[0]
