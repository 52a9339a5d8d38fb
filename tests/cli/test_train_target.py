"""`dns train --target-sparsity`, `--target-compression`, `--target-macs`, and what they write."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_dns.net import Net
from caffe_dns.profile.latency import PassTime
from caffe_dns.proto.caffe_pb2 import NetParameter, SolverParameter
from caffe_dns.proto.text import parse_text
from tests.cli.harness import complaint, run_well
from tests.solver.harness import SETTINGS, small_net

Capture = pytest.CaptureFixture[str]
Monkey = pytest.MonkeyPatch

#: Settings of the harness, but with the last snapshot.
SOLVER = SETTINGS.replace("snapshot_after_train: false", "display: 1").replace(
    "max_iter: 6", "max_iter: 12"
)


@pytest.fixture
def solver(tmp_path: Path) -> str:
    (tmp_path / "net.prototxt").write_text(small_net())
    path = tmp_path / "solver.prototxt"
    path.write_text(f'{SOLVER} net: "{tmp_path}/net.prototxt" snapshot_prefix: "{tmp_path}/snap"')
    return str(path)


def model(folder: Path) -> NetParameter:
    return NetParameter.FromString((folder / "snap_iter_12.caffemodel").read_bytes())


def kept(folder: Path) -> dict[str, float]:
    """The share of each layer's weights that its mask keeps."""
    return {
        layer.name: sum(layer.blobs[2].data) / len(layer.blobs[2].data)
        for layer in model(folder).layer
        if len(layer.blobs) == 3
    }


def test_the_written_definition_trains_the_same_without_the_flag(
    solver: str, tmp_path: Path, capfd: Capture
) -> None:
    result = run_well(["train", "-solver", solver, "--target-sparsity", "0.9"], capfd)
    name = f"{tmp_path}/snap_target_solver.prototxt"
    wrote = f"Wrote {name}, which trains like this without the flags for a target"
    assert wrote in result.messages
    first, table = model(tmp_path), (tmp_path / "snap_surgery.csv").read_text()
    weights = 12 * 49 + 12 * 10
    shares = kept(tmp_path)
    left = round(shares["ip1"] * 12 * 49 + shares["ip2"] * 120)
    assert left == weights // 10
    (tmp_path / "snap_iter_12.caffemodel").unlink()
    run_well(["train", "-solver", name], capfd)
    assert model(tmp_path) == first
    assert (tmp_path / "snap_surgery.csv").read_text() == table


def test_the_schedule_is_written_out(solver: str, tmp_path: Path, capfd: Capture) -> None:
    run_well(["train", "-solver", solver, "--target-compression", "5"], capfd)
    text = (tmp_path / "snap_target_solver.prototxt").read_text()
    (stage,) = parse_text(text, SolverParameter).message.surgery_stage
    assert stage.compression == 5
    assert (stage.iterations, stage.start_iter, stage.end_iter) == (12, 0, 6)
    assert stage.HasField("steepness")
    assert stage.HasField("interval")


def test_a_share_of_the_multiplications(solver: str, tmp_path: Path, capfd: Capture) -> None:
    result = run_well(["train", "-solver", solver, "--target-macs", "0.25"], capfd)
    # Each weight of ip1 and ip2 is multiplied once for an item.
    macs = 12 * 49 + 12 * 10
    assert f"MACs kept: {macs // 4} of {macs} for one item, 0.25 of them" in result.messages
    assert f"MACs        {macs // 4} of {macs} are left: 4.0 times fewer" in result.out.splitlines()
    text = (tmp_path / "snap_target_solver.prototxt").read_text()
    (stage,) = parse_text(text, SolverParameter).message.surgery_stage
    assert stage.macs == 0.25
    shares = kept(tmp_path)
    assert round(shares["ip1"] * 12 * 49 + shares["ip2"] * 120) == macs // 4


def test_a_pattern_alone_is_a_target(solver: str, tmp_path: Path, capfd: Capture) -> None:
    run_well(["train", "-solver", solver, "--pattern", "2:4"], capfd)
    text = (tmp_path / "snap_target_solver.prototxt").read_text()
    (stage,) = parse_text(text, SolverParameter).message.surgery_stage
    assert (stage.pattern, stage.sparsity) == ("2:4", 0.5)
    masks = {layer.name: layer.blobs[2] for layer in model(tmp_path).layer if len(layer.blobs) == 3}
    for name, inputs in (("ip1", 49), ("ip2", 12)):
        rows = [
            masks[name].data[at : at + inputs] for at in range(0, len(masks[name].data), inputs)
        ]
        groups = [row[start : start + 4] for row in rows for start in range(0, inputs, 4)]
        assert 0 < max(map(sum, groups)) <= 2


def test_blocks_follow_the_thresholds(solver: str, tmp_path: Path, capfd: Capture) -> None:
    result = run_well(["train", "-solver", solver, "--pattern", "1x4"], capfd)
    (line,) = (message for message in result.messages if message.startswith("Surgery on "))
    assert line == (
        "Surgery on ip1 (threshold 1.281), ip2 (threshold 1.281), all in the pattern 1x4. "
        "To train without it: --no-surgery"
    )
    assert 0 < kept(tmp_path)["ip1"] < 1


def test_a_latency(solver: str, tmp_path: Path, capfd: Capture, monkeypatch: Monkey) -> None:
    """By times that are the weights of layers, in place of those of a clock."""

    def time_pass(net: Net) -> PassTime:
        sizes = {
            step.layer.name: 1.0 + sum(blob.numel() for blob in step.layer.blobs[:1])
            for step in net.steps
        }
        return PassTime(sum(sizes.values()), sizes)

    monkeypatch.setattr("caffe_dns.cli.latency.time_pass", time_pass)
    result = run_well(["train", "-solver", solver, "--target-latency", "0.5"], capfd)
    name = f"{tmp_path}/snap_target_solver.prototxt"
    (stage,) = parse_text(Path(name).read_text(), SolverParameter).message.surgery_stage
    table = {row.name: row for row in stage.latency_table}
    assert list(table["ip1"].share) == [2 / 12, 3 / 12, 6 / 12, 9 / 12, 1]
    assert list(table["ip1"].milliseconds) == [1 + 49 * n for n in (2, 3, 6, 9, 12)]
    dense = sum(row.milliseconds[-1] for row in table.values())
    assert stage.pattern == "filter" and stage.latency == dense / 2
    (line,) = (m for m in result.messages if m.startswith("Latency for one item: "))
    numbers = [float(word) for word in line.split() if word[:1].isdigit()]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.05) and numbers[0] <= dense / 2
    first = model(tmp_path)
    run_well(["train", "-solver", name], capfd)
    assert model(tmp_path) == first


def test_a_latency_on_several_gpus(solver: str, capfd: Capture, monkeypatch: Monkey) -> None:
    monkeypatch.setattr("caffe_dns.cli.actions.train.parse_gpus", lambda gpu: [0, 1])
    given = ["train", "-solver", solver, "--target-latency", "0.9", "-gpu", "0,1"]
    assert "measures on one GPU" in complaint(given, capfd)


def test_a_latency_is_measured_once(solver: str, tmp_path: Path, capfd: Capture) -> None:
    path = Path(solver)
    path.write_text(path.read_text() + " snapshot: 5")
    run_well(["train", "-solver", solver, "--target-sparsity", "0.9"], capfd)
    state = f"{tmp_path}/snap_iter_5.solverstate"
    given = ["train", "-solver", solver, "--target-latency", "0.9", "-snapshot", state]
    assert "resume with the definition that the run has written" in complaint(given, capfd)


def test_a_seed_that_was_drawn_is_written(solver: str, tmp_path: Path, capfd: Capture) -> None:
    path = Path(solver)
    path.write_text(path.read_text().replace("random_seed: 5", ""))
    run_well(["train", "-solver", solver, "--target-sparsity", "0.5"], capfd)
    first = model(tmp_path)
    run_well(["train", "-solver", f"{tmp_path}/snap_target_solver.prototxt"], capfd)
    assert model(tmp_path) == first


def test_layers_with_sparsities_of_their_own(solver: str, tmp_path: Path, capfd: Capture) -> None:
    run_well(["train", "-solver", solver, "--target-sparsity", "ip1=0.75"], capfd)
    assert kept(tmp_path) == {"ip1": 0.25, "ip2": 1.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target-sparsity", "-0.5"], "'-0.5' is not at least 0 and below 1"),
        (["--target-sparsity", "ip1=90"], "'90' is not at least 0 and below 1 (90 % are 0.9)"),
        (
            ["--target-sparsity", "ip9=0.5"],
            "dns: --target-sparsity: no masked layer is named 'ip9'",
        ),
        (["--target-sparsity", "high"], "'high' is not a number"),
        (["--target-compression", "0"], "'--target-compression': 0.0 is not in the range x>=1"),
        (
            ["--target-compression", "900"],
            "dns: --target-compression: 900 times smaller is out of reach",
        ),
        (
            ["--target-compression", "9", "--target-sparsity", "0.5"],
            "give --target-sparsity or --target-compression, not both",
        ),
        (["--target-macs", "0"], "'--target-macs': 0.0 is not in the range 0<x<=1"),
        (["--target-macs", "nan"], "dns: --target-macs: must be above 0 and at most 1, but"),
        (["--target-macs", "much"], "--target-macs"),
        (
            ["--target-macs", "0.001"],
            "dns: --target-macs: 0.001 of the multiply-accumulates is out of reach",
        ),
        (
            ["--target-macs", "0.5", "--target-compression", "9"],
            "give --target-compression or --target-macs, not both",
        ),
        (["--target-macs", "0.5", "--hold-masks"], "exclude each other"),
        (["--target-sparsity", "0.5", "--no-surgery"], "exclude each other"),
        (["--target-latency", "2"], "--target-latency must be a share of the dense net's"),
        (["--target-latency", "fast"], "like 0.3, or milliseconds, like 2.5ms, not 'fast'"),
        (["--target-latency", "0.5", "--pattern", "2:4"], "is for whole filters"),
        (
            ["--target-latency", "1ms", "--target-macs", "0.5"],
            "give --target-macs or --target-latency, not both",
        ),
        (["--pattern", "2:3x"], "dns: --pattern: '2:3x' is no pattern; known: N:M"),
        (
            ["--pattern", "2:3x", "--target-sparsity", "0.5"],
            "dns: --pattern: '2:3x' is no pattern; known: N:M",
        ),
        (["--pattern", "2:4", "--hold-masks"], "exclude each other"),
    ],
)
def test_wrong_targets(
    solver: str, tmp_path: Path, arguments: list[str], message: str, capfd: Capture
) -> None:
    before = sorted(tmp_path.iterdir())
    assert message in complaint(["train", "-solver", solver, *arguments], capfd)
    assert sorted(tmp_path.iterdir()) == before


def test_a_target_and_stages(solver: str, capfd: Capture) -> None:
    path = Path(solver)
    path.write_text(path.read_text() + " surgery_stage { }")
    line = complaint(["train", "-solver", solver, "--target-sparsity", "0.5"], capfd)
    assert line.endswith("has surgery_stage; change it there, or take it out")


def test_a_resumed_run_leaves_the_definition_alone(
    solver: str, tmp_path: Path, capfd: Capture
) -> None:
    path = Path(solver)
    path.write_text(path.read_text() + " snapshot: 5")
    run_well(["train", "-solver", solver, "--target-sparsity", "0.9"], capfd)
    first = model(tmp_path)
    written = (tmp_path / "snap_target_solver.prototxt").read_text()
    state = f"{tmp_path}/snap_iter_5.solverstate"
    run_well(["train", "-solver", solver, "--target-sparsity", "0.9", "-snapshot", state], capfd)
    assert model(tmp_path) == first
    assert (tmp_path / "snap_target_solver.prototxt").read_text() == written
