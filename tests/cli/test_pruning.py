"""Going on from a pruned net: its masks, masks of its zeros, and masks that stay as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cli.harness import complaint, run_well
from tests.cli.test_pruned import PRUNING, arrays, write_solver
from tests.solver.harness import small_net

Capture = pytest.CaptureFixture[str]
HELD = "Surgery on no layer: masks stay as they are. To train without: --no-surgery"


@pytest.fixture
def pruned(tmp_path: Path, capfd: Capture) -> list[str]:
    """The command that trains a net of which a fifth is left, in `snap_pruned.caffemodel`."""
    train = write_solver(tmp_path, small_net())
    run_well([*train, *PRUNING], capfd)
    (tmp_path / "snap_pruned.caffemodel").rename(tmp_path / "plain.caffemodel")
    (tmp_path / "snap_iter_6.caffemodel").rename(tmp_path / "masked.caffemodel")
    return train


def masks(file: Path) -> list[np.ndarray]:
    stored = arrays(file)
    return [stored[name][2] for name in ("ip1", "ip2")]


@pytest.mark.parametrize("start", ["masked", "plain"])
def test_masks_are_held(start: str, pruned: list[str], tmp_path: Path, capfd: Capture) -> None:
    weights = ["--weights", f"{tmp_path}/{start}.caffemodel"]
    flags = ["--hold-masks", *(["--masks-from-zeros"] if start == "plain" else [])]
    messages = run_well([*pruned, *weights, *flags], capfd).messages
    assert HELD in messages
    before, after = (
        masks(tmp_path / "masked.caffemodel"),
        masks(tmp_path / "snap_iter_6.caffemodel"),
    )
    kept, total = (sum(int(f(mask)) for mask in before) for f in (np.sum, np.size))
    assert f"The masks keep {kept} of {total} parameters to begin with" in messages
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    old, new = arrays(tmp_path / "plain.caffemodel"), arrays(tmp_path / "snap_pruned.caffemodel")
    for name in ("ip1", "ip2"):
        np.testing.assert_array_equal(old[name][0] == 0, new[name][0] == 0)
        assert not np.array_equal(old[name][0], new[name][0])


def test_surgery_goes_on_from_the_masks(pruned: list[str], tmp_path: Path, capfd: Capture) -> None:
    def run(*flags: str) -> list[str]:
        return run_well([*pruned, "--target-sparsity", "0.9", *flags], capfd).messages

    begun = [m for m in run("--weights", f"{tmp_path}/masked.caffemodel") if "masks keep" in m]
    assert len(begun) == 1
    plain = ["--weights", f"{tmp_path}/plain.caffemodel"]
    hint = [m for m in run(*plain) if m.endswith("to begin with masks of them: --masks-from-zeros")]
    assert len(hint) == 1
    assert begun == [m for m in run(*plain, "--masks-from-zeros") if "masks keep" in m]
    assert not [m for m in run() if "to begin with" in m]


def test_held_through_all_stages(pruned: list[str], tmp_path: Path, capfd: Capture) -> None:
    text = (tmp_path / "solver.prototxt").read_text()
    stage = "surgery_stage { iterations: 3 sparsity: 0.9 solver { base_lr: 0.01 } } "
    (tmp_path / "solver.prototxt").write_text(text + stage + stage)
    weights = ["--weights", f"{tmp_path}/masked.caffemodel", "--hold-masks"]
    run_well([*pruned, *weights], capfd)
    before, after = (
        masks(tmp_path / "masked.caffemodel"),
        masks(tmp_path / "snap_iter_6.caffemodel"),
    )
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))


def test_masks_that_hold_nothing(pruned: list[str], tmp_path: Path, capfd: Capture) -> None:
    """Zeros of a plain model grow back; a dense net stays dense."""
    warning = "--hold-masks holds nothing: no mask prunes anything, so that the net stays dense"
    plain = run_well([*pruned, "--hold-masks", "--weights", f"{tmp_path}/plain.caffemodel"], capfd)
    at = plain.messages.index(warning)
    assert plain.messages[at + 1].endswith("to begin with masks of them: --masks-from-zeros")
    assert warning in run_well([*pruned, "--hold-masks"], capfd).messages
    masked = ["--hold-masks", "--weights", f"{tmp_path}/masked.caffemodel"]
    assert warning not in run_well([*pruned, *masked], capfd).messages


def test_wrong_flags(pruned: list[str], tmp_path: Path, capfd: Capture) -> None:
    weights = ["--weights", f"{tmp_path}/plain.caffemodel"]

    def said(*flags: str) -> str:
        return complaint([*pruned, *flags], capfd)

    assert "exclude" in said("--hold-masks", "--no-surgery")
    assert "exclude" in said("--masks-from-zeros", "--no-surgery", *weights)
    assert "exclude" in said("--hold-masks", *PRUNING)
    assert "--weights FILE" in said("--masks-from-zeros")
    state = ["--snapshot", f"{tmp_path}/snap_iter_6.solverstate"]
    assert "--weights FILE" in said("--masks-from-zeros", *state)
    net = small_net().replace("num_output", "sparsity_term: false num_output")
    (tmp_path / "net.prototxt").write_text(net)
    assert "no layer of the net has masks" in said("--masks-from-zeros", *weights)
