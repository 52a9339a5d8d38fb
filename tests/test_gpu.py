"""What must hold on a GPU: the recorded layers and training runs in float32, TF32 off.

Skipped where there is no GPU. Sums are rounded in another order there, so weights get ten times the
CPU's tolerance and a mask may differ in one entry of a thousand.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_dns.device.determinism import always_the_same_bits
from caffe_dns.proto.upgrade import read_solver
from caffe_dns.solver.solver import Solver
from tests.nets import recorded_log
from tests.oracle import GOLDEN, run_layer_case
from tests.test_golden_runs import LOOSE, NEAR_TIES, RUNS, arrays_of, snapshots, watch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CASES = sorted(path.name for path in (GOLDEN / "layers").iterdir())


@pytest.fixture(autouse=True)
def in_golden_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("name", CASES)
def test_layer(name: str) -> None:
    run_layer_case(name, "cuda")


@pytest.mark.parametrize("name", [run for run in RUNS if run not in NEAR_TIES])
def test_training(name: str, tmp_path: Path) -> None:
    golden = GOLDEN / "runs" / name
    param = read_solver(f"runs/{name}/solver.prototxt").message
    param.snapshot_prefix = str(tmp_path / "snap")
    param.weights.append(f"runs/{name}/init.caffemodel")
    device = torch.device("cuda")
    solver = Solver(param, device=device, surgery=name.startswith("surgery_"))
    losses = watch(solver)
    solver.solve()
    solver.close()
    if (golden / "trace.npz").exists():
        expected = np.load(golden / "trace.npz")["values"]
        np.testing.assert_allclose(
            np.array(losses)[param.iter_size - 1 :: param.iter_size][:40],
            expected,
            rtol=1e-3 if name in LOOSE else 1e-4,
            atol=0,
        )
    for iteration in (20, 40):
        ((model, _),) = snapshots(golden, f"snap_iter_{iteration}")
        compare_loosely(arrays_of(tmp_path / model.name), arrays_of(model))


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_graphs_do_what_layers_do(gamma: float) -> None:
    """With surgery in every iteration, and in some."""
    found = []
    for captured in (True, False):
        param = read_solver("runs/surgery_holmes/solver.prototxt").message
        param.weights.append("runs/surgery_holmes/init.caffemodel")
        param.surgery_iter_gamma, param.surgery_iter_power = gamma, 1
        for field in ("test_iter", "test_interval", "snapshot"):
            param.ClearField(field)
        with recorded_log() as messages:
            solver = Solver(param, device=torch.device("cuda"))
            assert solver._captured is not None
            solver._captured._failed = not captured
            solver.step(40)
        assert ("Replaying iterations from a CUDA graph" in messages) == captured
        solver.close()
        found.append(
            {
                f"{name}/{index}": blob.detach().cpu().numpy()
                for name, blobs in solver.net.params.items()
                for index, blob in enumerate(blobs)
            }
        )
    compare_loosely(*found)


def test_deterministic_runs_agree_bit_for_bit() -> None:
    """Replayed and layer by layer, and with both, twice."""
    found = []
    for captured in (True, False, True):
        param = read_solver("runs/surgery_holmes/solver.prototxt").message
        param.weights.append("runs/surgery_holmes/init.caffemodel")
        for field in ("test_iter", "test_interval", "snapshot"):
            param.ClearField(field)
        solver = Solver(param, device=torch.device("cuda"))
        assert solver._captured is not None
        solver._captured._failed = not captured
        with always_the_same_bits(True):
            solver.step(40)
        solver.close()
        found.append([p.tensor.detach().cpu() for p in solver.net.learnable_params])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def compare_loosely(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for key, array in expected.items():
        if set(np.unique(array)) <= {0.0, 1.0} and array.ndim > 1:
            assert (actual[key] != array).mean() <= 1e-3, f"mask {key}"
        else:
            difference = np.linalg.norm(actual[key].astype(np.float64) - array)
            assert difference <= 2e-4 * np.linalg.norm(array), key
