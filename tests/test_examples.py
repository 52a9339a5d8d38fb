"""The programs in examples/ run, on small databases."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.oracle import GOLDEN
from tests.processes import run_python

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str, folder: Path) -> list[str]:
    done = run_python(str(EXAMPLES / name), *arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_example_is_listed_and_tried() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == {"score.py", "prune_module.py", "train_together.py"}
    assert all(f"`{name}`" in listed for name in names)


def test_score() -> None:
    words = ["runs/sgd_inv/train_val.prototxt", "runs/sgd_inv/snap_iter_40.caffemodel", "10"]
    said = run("score.py", *words, folder=GOLDEN)
    assert said[0] == "accuracy = 0.5760"  # Caffe's own, in the log of the run
    assert said[1].startswith("loss = 1.42")
    assert [line.split(":")[0] for line in said[2:]] == ["conv1", "conv2", "ip1", "ip2"]


@pytest.mark.slow
def test_prune_module(tmp_path: Path) -> None:
    database = str(GOLDEN / "data" / "mnist1k_train_lmdb")
    said = run("prune_module.py", database, "20", folder=tmp_path)
    assert said[-1] == "Kept in all: 21554 of 431080 parameters (20.0 times smaller)"
    again = run("prune_module.py", database, "20", folder=tmp_path)
    assert again == ["going on after step 20", *said[-5:]]


@pytest.mark.slow
def test_train_together(tmp_path: Path) -> None:
    run_folder = GOLDEN / "runs" / "sgd_inv"
    text = (run_folder / "train_val.prototxt").read_text()
    (tmp_path / "train_val.prototxt").write_text(text.replace("data/", f"{GOLDEN}/data/"))
    (tmp_path / "solver.prototxt").write_text(
        'net: "train_val.prototxt" base_lr: 0.01 lr_policy: "fixed" max_iter: 3 test_iter: 1 '
        'test_interval: 2 snapshot_prefix: "together" solver_mode: CPU'
    )
    assert run("train_together.py", "solver.prototxt", folder=tmp_path) == [
        "2 processes have trained 3 iterations"
    ]
    assert (tmp_path / "together_iter_3.caffemodel").exists()
