"""Solver states that come from a net with other masks, from Caffe's nets, or from a fork."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_dns.proto.blobs import blob_to_array
from caffe_dns.proto.caffe_pb2 import SolverState
from caffe_dns.proto.upgrade import read_solver
from caffe_dns.solver.snapshot import gather_histories
from caffe_dns.solver.solver import Solver
from caffe_dns.solver.state_file import read_state
from tests.oracle import GOLDEN
from tests.solver.harness import make_solver, small_net, state_of, trained


def test_states_go_between_nets_with_and_without_masks(tmp_path: Path) -> None:
    settings = "snapshot: 2 type: 'Adam' base_lr: 0.01"
    kinds = {
        "plain": (small_net(), False),
        "holmes": (small_net(), True),
        "guo": (small_net(kind="CInnerProduct"), True),
    }
    for source, (text, surgery) in kinds.items():
        solver = make_solver(tmp_path, settings, text, surgery=surgery)
        solver.step(2)
        solver.close()
        expected = histories_by_blob(solver)
        for target, (other_text, other_surgery) in kinds.items():
            other = make_solver(tmp_path, settings, other_text, surgery=other_surgery)
            other.restore(state_of(tmp_path, 2))
            found = histories_by_blob(other)
            assert found.keys() == expected.keys(), (source, target)
            assert all(np.array_equal(found[key], expected[key]) for key in found)


def histories_by_blob(solver: Solver) -> dict[tuple[str, int, int], np.ndarray]:
    found = {}
    for param in solver.net.learnable_params:
        for moment in range(solver.rule.num_histories):
            history = solver.rule.history(param, moment)
            if history is not None:
                found[param.layer.name, param.index, moment] = history.numpy()
    return found


@pytest.mark.parametrize("run", ["sgd_inv", "adam", "sgd_hdf5_snapshot"])
def test_a_plain_caffes_state_in_a_masked_net(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(GOLDEN)
    ending = ".h5" if "hdf5" in run else ""
    solver = Solver(read_solver(f"runs/{run}/solver.prototxt").message)
    path = f"runs/{run}/snap_iter_20.solverstate{ending}"
    solver.restore(path)
    stored = read_state(path)[1]
    kept = gather_histories(solver.rule, solver.net.learnable_params)
    masks = [p.is_mask for p in solver.net.learnable_params] * solver.rule.num_histories
    mine = [history for history, is_mask in zip(kept, masks, strict=True) if not is_mask]
    assert sum(masks) == 4 * solver.rule.num_histories
    assert all(np.array_equal(a, b.reshape(a.shape)) for a, b in zip(mine, stored, strict=True))
    assert all((mask == 1).all() for mask in (solver.net.params["ip1"][2],))


def test_a_forks_state_of_shared_masked_weights(tmp_path: Path) -> None:
    """In the fork the sharer's mask is a parameter of its own, so it has a history."""
    shared = small_net().replace(
        "param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }", 'param { name: "w" }'
    )
    branch = (
        'layer { name: "twin" type: "InnerProduct" bottom: "pool" top: "twin" '
        'param { name: "w" } inner_product_param { num_output: 12 } } '
        'layer { name: "sum" type: "Silence" bottom: "twin" }'
    )
    text = shared.replace('layer { name: "ip2"', f'{branch} layer {{ name: "ip2"')
    trained(tmp_path, 2, "snapshot: 2", text)
    names = [
        f"{p.layer.name}/{p.index}" for p in make_solver(tmp_path, "", text).net.learnable_params
    ]
    assert names == ["ip1/0", "ip1/1", "ip1/2", "twin/1", "twin/2", "ip2/0", "ip2/1", "ip2/2"]
    assert len(read_state(state_of(tmp_path, 2))[1]) == len(names)
    state = SolverState.FromString(Path(state_of(tmp_path, 2)).read_bytes())
    assert not blob_to_array(state.history[4]).any()
