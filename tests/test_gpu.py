"""What must hold on a GPU: the recorded layers and training runs in float32, TF32 off.

Skipped where there is no GPU. Two ways of running the same forty iterations may part at a tie:
their weights get ten times the recordings' tolerance, and of a mask one entry in 1,000 may differ.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.device.determinism import always_the_same_bits
from caffe_dns.layers import pooling
from caffe_dns.layers.data import MOST_AT_ONCE
from caffe_dns.layers.pooling import Window
from caffe_dns.proto.upgrade import read_solver
from caffe_dns.solver.readings import smoothed
from caffe_dns.solver.solver import Solver
from tests.nets import recorded_log
from tests.oracle import GOLDEN, run_layer_case
from tests.shapes import MODEL, make_pictures, on_pictures
from tests.test_golden_runs import RUNS
from tests.test_golden_steps import WITHOUT_TIES, check_run_without_ties, check_steps
from tools.benchmarks.contestants import net_definition

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CASES = sorted(path.name for path in (GOLDEN / "layers").iterdir())


@pytest.fixture(autouse=True)
def in_float32(in_golden_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("name", CASES)
def test_layer(name: str) -> None:
    run_layer_case(name, "cuda")


@pytest.mark.parametrize("name", RUNS)
def test_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's figures hold: sums are rounded in another order, but no better and no worse."""
    max_of = pooling.max_of

    def noted(bottom: Tensor, window: Window, *more: Any, **options: Any) -> Tensor:
        if kernels.suit(bottom):
            pooling.max_pool(bottom.detach(), window)  # `Winners` sees this, and not our kernel
        return max_of(bottom, window, *more, **options)

    monkeypatch.setattr(pooling, "max_of", noted)
    check_steps(name, tmp_path, "cuda")


@pytest.mark.parametrize("name", WITHOUT_TIES)
def test_run_without_ties(name: str, tmp_path: Path) -> None:
    check_run_without_ties(name, tmp_path, "cuda")


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


@pytest.mark.parametrize("batches_at_once", [1, MOST_AT_ONCE])
def test_deterministic_runs_agree_bit_for_bit(
    batches_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replayed, from a graph that batches are transformed into, and layer by layer; twice."""
    monkeypatch.setattr("caffe_dns.layers.data.MOST_AT_ONCE", batches_at_once)
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


def test_a_detector_trains_as_on_the_cpu(tmp_path: Path) -> None:
    """With surgery; the same pictures, drawn and distorted alike. Then it is tested."""
    pictures = make_pictures(tmp_path)
    found: list[list[float]] = []
    for device in ("cpu", "cuda"):
        param = read_solver(MODEL / "prune_solver.prototxt").message
        param.ClearField("net")
        param.net_param.CopyFrom(on_pictures("prune_train_val.prototxt", pictures, 4))
        param.test_iter[:] = [2]
        param.snapshot = param.display = 0
        param.average_loss = 1
        solver = Solver(param, device=torch.device(device))
        losses = []
        for _ in range(3):
            solver.step(1)
            losses.append(float(smoothed(solver._losses)))
        precision = solver.test(0)["detection_eval"]
        assert precision.numel() == 1 and 0 <= float(precision) <= 1
        solver.close()
        found.append(losses)
    np.testing.assert_allclose(found[1][:1], found[0][:1], rtol=1e-4)
    np.testing.assert_allclose(found[1], found[0], rtol=0.05)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_display_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all that it shows: at most one that PyTorch sees."""
    param = read_solver(MODEL.parent / "lenet" / "prune_solver.prototxt").message
    param.net_param.CopyFrom(net_definition(param.net, "lenet", 4))
    for field in ("net", "test_iter", "test_interval", "snapshot"):
        param.ClearField(field)
    param.display = 2
    solver = Solver(param, device=torch.device("cuda"))
    waits: list[int] = []
    display = solver._display

    def watched(*given: Any) -> None:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                display(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchronizing" in str(one.message) for one in said))

    monkeypatch.setattr(solver, "_display", watched)
    solver.step(9)
    solver.close()
    assert len(waits) == 5 and max(waits) <= 1


def compare_loosely(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for key, array in expected.items():
        if set(np.unique(array)) <= {0.0, 1.0} and array.ndim > 1:
            assert (actual[key] != array).mean() <= 1e-3, f"mask {key}"
        else:
            difference = np.linalg.norm(actual[key].astype(np.float64) - array)
            assert difference <= 2e-4 * np.linalg.norm(array), key
