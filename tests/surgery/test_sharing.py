"""Training with shared values: k-means by hand, states, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import SharedValues
from caffe_dns.solver.solver import Solver
from caffe_dns.surgery.shared_values import find_values, nearest
from tests.cli.harness import complaint, run_well
from tests.cli.test_pruned import write_solver
from tests.solver.harness import assert_same_weights, make_solver, small_net

BITS = "surgery_stage { surgery: false bits: 2 }"
Capture = pytest.CaptureFixture[str]


def entries(solver: Solver, name: str) -> np.ndarray:
    """A layer's weights and biases that are not masked."""
    weight, bias, mask = (blob.detach().numpy() for blob in solver.net.params[name])
    return np.concatenate([weight[mask != 0], bias.ravel()])


def masked(folder: Path, settings: str) -> Solver:
    solver = make_solver(folder, settings)
    with torch.no_grad():
        solver.net.params["ip1"][2].view(-1)[::3] = 0
        solver.net.params["ip2"][2].view(-1)[1::4] = 0
    return solver


def test_an_iteration_by_hand(tmp_path: Path) -> None:
    """The first two, restated in numpy from the updates that the solver's rule makes."""
    solver = masked(tmp_path, f"max_iter: 2 momentum: 0 {BITS}")
    start = {name: entries(solver, name).astype(np.float64) for name in ("ip1", "ip2")}
    masks = {name: solver.net.params[name][2].clone() for name in start}
    solver.step(1)
    kept: dict[str, np.ndarray] = {}
    for name, weights in start.items():
        values = find_values(weights, 4).astype(np.float64)
        (record,) = [entry for entry in solver._sharing_values.state() if entry.layer == name]
        moved = np.array(record.weight)
        # Weights moved by what the update did to the values, and values are means of weights.
        chosen = nearest(values, moved)
        means = [moved[chosen == k].mean() if (chosen == k).any() else values[k] for k in range(4)]
        np.testing.assert_allclose(record.value, means, rtol=1e-5, atol=1e-7)
        fraction, exponent = np.frexp(means)
        five_bits = np.ldexp(np.round(fraction * 2**5), exponent - 5)
        expected = five_bits[nearest(np.array(means), moved)]
        np.testing.assert_allclose(entries(solver, name), expected, rtol=1e-3)
        assert 0 < np.abs(moved - weights).max() < 0.1
        assert torch.equal(solver.net.params[name][2], masks[name])
        kept[name] = moved
    solver.step(1)
    for entry in solver._sharing_values.state():
        assert not np.array_equal(np.array(entry.weight), kept[entry.layer])
    solver.close()


def test_updates_reach_the_weights(tmp_path: Path) -> None:
    """With a rate so small that no weight changes its value, weights move as the values do."""
    solver = masked(tmp_path, f"base_lr: 1e-4 max_iter: 1 {BITS}")
    free = masked(tmp_path, "base_lr: 1e-4 max_iter: 1 surgery_stage { surgery: false }")
    before = {name: entries(free, name) for name in ("ip1", "ip2")}
    with torch.no_grad():
        for name, weights in before.items():
            values = find_values(weights, 4).astype(np.float32)
            weight, bias, mask = free.net.params[name]
            shared = torch.from_numpy(values[nearest(values, weights)])
            weight[mask != 0] = shared[: -len(bias)]
            bias.copy_(shared[-len(bias) :])
    given = {name: entries(free, name) for name in before}
    solver.step(1)
    free.step(1)
    for entry in solver._sharing_values.state():
        updates = entries(free, entry.layer) - given[entry.layer]
        expected = before[entry.layer] + updates
        np.testing.assert_allclose(np.array(entry.weight), expected, rtol=1e-5, atol=1e-7)
    solver.close()
    free.close()


def test_few_values_and_the_loss_falls(tmp_path: Path) -> None:
    solver = masked(tmp_path, "max_iter: 100 surgery_stage { surgery: false bits: 3 }")
    solver.step(1)
    first = float(solver._losses[-1])
    solver.step(89)
    last = []
    for _ in range(10):
        solver.step(1)
        last.append(float(solver._losses[-1]))
    assert np.mean(last) < 0.7 * first
    for name in ("ip1", "ip2"):
        found = np.unique(entries(solver, name))
        assert 4 < len(found) <= 8
        assert np.array_equal(found, found.astype(np.float16))
    solver.close()


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    settings = f"max_iter: 8 {BITS}"
    whole = masked(tmp_path, settings)
    whole.step(8)
    first = masked(tmp_path, settings)
    first.step(5)
    first.snapshot()
    resumed = make_solver(tmp_path, settings)
    resumed.restore(f"{tmp_path}/snap_iter_5.solverstate")
    assert len(resumed._sharing_values.state()) == 2
    resumed.step(3)
    assert_same_weights(resumed, whole)
    for solver in (whole, first, resumed):
        solver.close()


def test_a_stage_of_its_own(tmp_path: Path) -> None:
    stages = (
        "surgery_stage { iterations: 3 sparsity: 0.5 } surgery_stage { surgery: false bits: 3 }"
    )
    solver = make_solver(tmp_path, f"max_iter: 6 {stages}")
    solver.step(3)
    assert solver._sharing_values.state() == []
    assert len(np.unique(entries(solver, "ip1"))) > 8
    solver.step(1)
    assert len(np.unique(entries(solver, "ip1"))) <= 8
    assert {type(entry) for entry in solver._sharing_values.state()} == {SharedValues}
    solver.close()


def test_layers_with_bits_of_their_own(tmp_path: Path) -> None:
    stage = 'surgery_stage { surgery: false bits: 4 layer { name: "ip1" bits: 2 } }'
    solver = masked(tmp_path, f"max_iter: 2 {stage}")
    solver.step(2)
    counts = [len(np.unique(entries(solver, name))) for name in ("ip1", "ip2")]
    assert counts[0] == 4 < counts[1] <= 16
    solver.close()


@pytest.mark.parametrize(
    ("stage", "complaint"),
    [
        (
            'surgery: false bits: 2 layer { name: "ip1" bits: 9 }',
            "surgery_stage[0].bits: must be 1 to 8, not 9",
        ),
        (
            'surgery: false bits: 2 layer { name: "ip1" sparsity: 0.5 }',
            "surgery_stage[0].layer: 'ip1' and the stage must both have bits, or none",
        ),
        (
            'surgery: false layer { name: "ip1" bits: 3 }',
            "surgery_stage[0].layer: 'ip1' and the stage must both have bits, or none",
        ),
        (
            'surgery: false bits: 2 layer { name: "ip3" bits: 3 }',
            "no layer with a matrix of weights is named 'ip3'; there are: ip1, ip2",
        ),
        ("surgery: false bits: 0", "surgery_stage[0].bits: must be 1 to 8, not 0"),
        ("surgery: false bits: 9", "surgery_stage[0].bits: must be 1 to 8, not 9"),
        ("bits: 2", "surgery_stage[0].bits: needs masks that stay as they are: surgery: false"),
    ],
)
def test_refused(stage: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(CaffeError) as caught:
        make_solver(tmp_path, f"surgery_stage {{ {stage} }}")
    assert complaint in str(caught.value)


def test_by_flags_from_a_shrunk_net(tmp_path: Path, capfd: Capture) -> None:
    train = write_solver(tmp_path, small_net())
    run_well([*train, "--target-sparsity", "0.9"], capfd)
    pruned = f"{tmp_path}/snap_pruned"
    small, smallest = f"{tmp_path}/small.dnsz", f"{tmp_path}/smallest.dnsz"
    plain = ["--model", f"{pruned}.prototxt", "--weights", f"{pruned}.caffemodel"]
    run_well(["export", *plain, "--shrink", "--output", small], capfd)
    flags = ["--weights", small, "--masks-from-zeros", "--bits", "2"]
    messages = run_well([*train, *flags], capfd).messages
    assert any(message.startswith("Shared values of ip1: 4 of ") for message in messages)
    run_well(["export", *plain, "--output", smallest], capfd)
    assert Path(smallest).read_bytes()[4] == 3
    assert Path(smallest).stat().st_size < Path(small).stat().st_size / 2
    net = ["--model", f"{tmp_path}/net.prototxt", "--iterations", "2"]
    scored = run_well(["test", *net, "--weights", smallest], capfd).messages
    assert any(message.startswith("accuracy = ") for message in scored)
    said = complaint([*train, "--bits", "2", "--target-sparsity", "0.9"], capfd)
    assert "--bits and a target for surgery exclude each other" in said
