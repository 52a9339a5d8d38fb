"""What production computes, no arithmetic replaced, held to the recordings step by step.

`test_golden_runs` follows Caffe over forty iterations in arithmetic of its own. Here production
runs as it is, on whatever processor, with however many threads; so runs are short enough for a tie
not to grow, or on definitions that have none:

- `test_step`: one iteration of every recorded run, from its initial weights and from each of its
  snapshots. The loss is the recorded one within 1e-5, the recording's tolerance; it guards reading,
  the forward pass and the masks in force. Masks are those of `RoundedOnce`, to the entry. Gradients
  are its within GRADIENT; they guard the backward pass. Histories and weights start from the same
  gradients and are its within UPDATE; they guard every solver type, clipping, decay and iter_size.
- `test_run_without_ties`: whole runs of definitions with averages for maxima and TanH for ReLU,
  forty iterations on end, within the recording's tolerance for weights; they guard what adds up.
- `test_recorded_run_without_ties`: the one recorded run that neither pools nor rectifies, against
  Caffe itself.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from caffe_dns.proto.caffe_pb2 import DataPosition
from caffe_dns.solver.snapshot import seek_data
from caffe_dns.solver.solver import Solver
from tests.arithmetic import RoundedOnce
from tests.oracle import GOLDEN, assert_same_norm
from tests.steps import Step, take_step
from tests.test_golden_runs import RUNS, build, compare_models, snapshots

pytestmark = pytest.mark.usefixtures("in_golden_folder")

#: Norm of the difference to the norm, of what sums over a batch: BatchNorm's are the least exact.
GRADIENT = 2e-5
#: The same of what an update makes of one element; a few of float32's roundings.
UPDATE = 5e-7
#: What rounding a weight to float32 may change, to its norm.
ROUNDING = 2.0**-24
BATCH = 32
#: The solver types that amplify rounding most, clipping, several passes, each kind of surgery.
WITHOUT_TIES = [
    "adadelta",
    "rmsprop",
    "sgd_multistep_clip",
    "sgd_poly_itersize",
    "surgery_guo",
    "surgery_holmes_mixed",
]


@pytest.mark.parametrize("name", RUNS)
def test_step(name: str, tmp_path: Path) -> None:
    check_steps(name, tmp_path)


def check_steps(name: str, folder: Path, device: str = "cpu") -> None:
    """One iteration from each recorded point of a run."""
    solvers = [build(name, folder, device=device), build(name, folder)]
    for start in (0, 20, 40):
        for solver in solvers:
            go_to(solver, name, start)
        actual = take_step(solvers[0])
        with RoundedOnce():
            expected = take_step(solvers[1], like=actual)
        if start < 40:  # Caffe shows no iteration after the last; what it shows there is no step.
            assert actual.loss == pytest.approx(recorded_loss(name, start), rel=1e-5)
        compare_steps(actual, expected, f"from {start}: ")
    for solver in solvers:
        solver.close()


def go_to(solver: Solver, name: str, start: int) -> None:
    """Put a fresh solver, or one that has taken a step, before iteration `start` of its run."""
    solver.param.snapshot = 0
    if start == 0:
        return
    # The official fork fixes the moments that its masks go by in the first iteration.
    moments = solver.surgeon.moments() if solver.surgeon is not None else []
    ((_, state),) = snapshots(GOLDEN / "runs" / name, f"snap_iter_{start}")
    solver.restore(str(state))
    if solver.surgeon is not None:
        solver.surgeon.restore(moments)
    position = DataPosition(layer="mnist", records=start * solver.param.iter_size * BATCH)
    seek_data([solver.net], [position])


def recorded_loss(name: str, iteration: int) -> float:
    log = (GOLDEN / "runs" / name / "caffe.log").read_text()
    (loss,) = re.findall(rf"Iteration {iteration}(?: \(.*\))?, loss = (\S+)", log)
    return float(loss)


def compare_steps(actual: Step, expected: Step, where: str) -> None:
    assert actual.loss == pytest.approx(expected.loss, rel=1e-6)
    assert len(actual.masks) == len(expected.masks)
    for index, masks in enumerate(zip(actual.masks, expected.masks, strict=True)):
        assert torch.equal(*masks), f"{where}mask {index}"
    for index, pair in enumerate(zip(actual.gradients, expected.gradients, strict=True)):
        assert_near(*pair, GRADIENT * norm(pair[1]), f"{where}gradient {index}")
    for index, pair in enumerate(zip(actual.histories, expected.histories, strict=True)):
        assert_near(*pair, UPDATE * norm(pair[1]), f"{where}history {index}")
    for index, before in enumerate(expected.before):
        assert torch.equal(actual.before[index], before)
        update = norm(expected.after[index] - before)
        # Both are rounded, and where the exact value lies between two numbers, to either of them.
        allowed = UPDATE * update + ROUNDING * (norm(before) + norm(expected.after[index]))
        assert_near(actual.after[index], expected.after[index], allowed, f"{where}blob {index}")


def norm(tensor: Tensor) -> float:
    return float(tensor.double().norm())


def assert_near(actual: Tensor, expected: Tensor, allowed: float, what: str) -> None:
    difference = norm(actual.double() - expected.double())
    assert difference <= allowed, f"{what}: norm of difference {difference}, at most {allowed}"


@pytest.mark.parametrize("name", WITHOUT_TIES)
def test_run_without_ties(name: str, tmp_path: Path) -> None:
    check_run_without_ties(name, tmp_path)


def check_run_without_ties(name: str, folder: Path, device: str = "cpu") -> None:
    """Forty iterations of a run whose definition has averages for maxima and TanH for ReLU."""
    text = (GOLDEN / "runs" / name / "train_val.prototxt").read_text()
    assert text.count("pool: MAX") == 2 and text.count('"ReLU"') == 1
    smooth = folder / "smooth.prototxt"
    smooth.write_text(text.replace("pool: MAX", "pool: AVE").replace('"ReLU"', '"TanH"'))
    ends = []
    for place, arithmetic in ((device, nullcontext()), ("cpu", RoundedOnce())):
        solver = build(name, folder, net=smooth, device=place)
        solver.param.snapshot = 0
        with arithmetic:
            solver.step(40)
        solver.close()
        ends.append([(p.is_mask, p.tensor.detach().cpu()) for p in solver.net.learnable_params])
    for index, ((is_mask, actual), (_, expected)) in enumerate(zip(*ends, strict=True)):
        if is_mask:
            assert torch.equal(actual, expected), f"mask {index}"
        else:
            assert_same_norm(actual, expected.numpy(), f"blob {index}")


def test_recorded_run_without_ties(tmp_path: Path) -> None:
    golden = GOLDEN / "runs" / "siamese_shared"
    text = (golden / "train_val.prototxt").read_text()
    assert "MAX" not in text and "ReLU" not in text
    solver = build("siamese_shared", tmp_path)
    solver.solve()
    solver.close()
    for iteration in (20, 40):
        ((model, _),) = snapshots(golden, f"snap_iter_{iteration}")
        compare_models(tmp_path / model.name, model)
