"""Who looks on while `dns train` runs: the table of surgery, TensorBoard, and what is lost."""

from __future__ import annotations

import csv
import errno
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from caffe_dns import load_net, log
from caffe_dns.cli import live_report
from caffe_dns.errors import CaffeError
from caffe_dns.solver.observers import Display, SideFile, SurgeryTable
from caffe_dns.solver.solver import Solver
from caffe_dns.surgery.surgeon import Count
from tests.cli.harness import Result, complaint, run, run_well

pytestmark = pytest.mark.usefixtures("in_golden_folder")

Capture = pytest.CaptureFixture[str]


def write_solver(folder: Path, name: str, **settings: object) -> str:
    """The solver of a golden run with other settings, writing its snapshots to `folder`."""
    text = Path(f"runs/{name}/solver.prototxt").read_text()
    settings = {"snapshot_prefix": f'"{folder}/snap"', **settings}
    for key, value in settings.items():
        text = re.sub(rf"\b{key}: \S+", "", text) + f"\n{key}: {value}"
    path = folder / "solver.prototxt"
    path.write_text(text)
    return str(path)


def train(folder: Path, name: str, capture: Capture, *flags: str, **settings: object) -> Result:
    solver = write_solver(folder, name, **settings)
    start = flags or ("--weights", f"runs/{name}/init.caffemodel")
    return run_well(["train", "--solver", solver, *start], capture)


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "snap_surgery.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# The table ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "thresholds"),
    [
        ("surgery_holmes", {"conv1": "0.6", "conv2": "0.6", "ip1": "1.281", "ip2": "1.281"}),
        ("surgery_guo", {"conv1": "0.5", "conv2": "1", "ip1": "1.5", "ip2": "0.8"}),
    ],
)
def test_rows_say_what_the_log_says(
    name: str, thresholds: dict[str, str], tmp_path: Path, capfd: Capture
) -> None:
    result = train(tmp_path, name, capfd, max_iter=5, display=2, snapshot=0)
    rows = read_table(tmp_path)
    lines = [line for line in result.messages if line.startswith("Surgery ")]
    assert [line for line in lines if not line.startswith("Surgery on")] == [
        "Surgery {layer}: kept {kept}, pruned {pruned}, sparsity {sparsity}, "
        "spliced back {spliced_back}".format(**row)
        for row in rows
    ]
    assert [row["iteration"] for row in rows] == [*"000022224444"]
    assert {row["layer"]: row["threshold"] for row in rows} == thresholds


def test_a_resumed_run_repeats_no_row(tmp_path: Path, capfd: Capture) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    train(whole, "surgery_holmes", capfd, max_iter=6, snapshot=0)
    # Trained on beyond its snapshot, and broke off in the middle of a row.
    train(broken, "surgery_holmes", capfd, max_iter=4, snapshot=2)
    table = broken / "snap_surgery.csv"
    with table.open("a") as file:
        file.write("4,conv1,99")
    state = str(broken / "snap_iter_2.solverstate")
    train(broken, "surgery_holmes", capfd, "--snapshot", state, max_iter=6, snapshot=2)
    assert [row["iteration"] for row in read_table(broken)] == [*"000011112222333344445555"]
    assert table.read_bytes() == (whole / "snap_surgery.csv").read_bytes()


def test_a_new_run_begins_a_new_table(tmp_path: Path, capfd: Capture) -> None:
    for _ in range(2):
        train(tmp_path, "surgery_holmes", capfd, max_iter=1, snapshot=0)
        assert len(read_table(tmp_path)) == 4


def test_no_table_without_surgery_or_snapshots(tmp_path: Path, capfd: Capture) -> None:
    solver = write_solver(tmp_path, "sgd_inv", max_iter=1, snapshot=0)
    run_well(["train", "--solver", solver, "--no-surgery"], capfd)
    assert {path.name for path in tmp_path.glob("*.csv")} == set()
    solver = write_solver(
        tmp_path, "surgery_holmes", max_iter=1, snapshot=0, snapshot_after_train="false"
    )
    run_well(["train", "--solver", solver], capfd)
    assert {path.name for path in tmp_path.glob("*.csv")} == set()


HEAD = ",".join(SurgeryTable.COLUMNS)
#: Of them, the last two are more than the csv module and Python's int read.
OTHER_TABLES = [
    "time,temperature\n1,20\n",
    f'{HEAD}\n1,"{"x" * 200_000}"\n',
    f"{HEAD}\n{'1' * 5000}\n",
]


@pytest.mark.parametrize("other", OTHER_TABLES)
def test_another_kind_of_table_is_kept(tmp_path: Path, other: str) -> None:
    table = tmp_path / "surgery.csv"
    display = Display(7, 1.0, 0.1, {}, [Count("a,b", 1, 3, 2, 0.5)])
    SurgeryTable(table).displayed(display)
    assert table.read_text().splitlines()[1] == '7,"a,b",1,3,0.75,2,0.5'
    SurgeryTable(table).displayed(display)
    assert len(table.read_text().splitlines()) == 2
    table.write_text(other)
    with pytest.raises(CaffeError, match=r"surgery\.csv: is not a table of surgery"):
        SurgeryTable(table).displayed(display)
    assert table.read_text() == other


def test_missing_folder_is_noticed_before_training(tmp_path: Path, capfd: Capture) -> None:
    solver = write_solver(
        tmp_path, "surgery_holmes", snapshot=0, snapshot_prefix=f'"{tmp_path}/gone/snap"'
    )
    assert "does not exist; create it first" in complaint(["train", "--solver", solver], capfd)


# TensorBoard --------------------------------------------------------------------------------------


def test_tensorboard(tmp_path: Path, capfd: Capture) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    solver = write_solver(
        tmp_path, "surgery_holmes", max_iter=4, test_interval=2, display=2, snapshot=0
    )
    folder = tmp_path / "board"
    weights = "runs/surgery_holmes/init.caffemodel"
    result = run_well(
        ["train", "--solver", solver, "--weights", weights, "--tensorboard", str(folder)], capfd
    )
    events = EventAccumulator(str(folder), size_guidance={"histograms": 0}).Reload()

    def points(title: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in events.Scalars(title)]

    losses = [line for line in result.messages if re.match(r"Iteration \d+ \(.*loss = ", line)]
    assert [f"{value:.6g}" for _, value in points("train/smoothed_loss")] == [
        line.rsplit(" ", 1)[1] for line in losses
    ]
    assert points("train/lr") == [(0, pytest.approx(0.01)), (2, pytest.approx(0.01))]
    assert [step for step, _ in points("test/accuracy")] == [2, 4]
    assert [step for step, _ in points("train/loss")] == [0, 2]
    rows = read_table(tmp_path)
    for layer in ("conv1", "ip2"):
        wanted = [float(row["sparsity"]) for row in rows if row["layer"] == layer]
        assert [value for _, value in points(f"sparsity/{layer}")] == pytest.approx(wanted)
    assert points("threshold/ip1")[0] == (0, pytest.approx(1.281))
    _check_the_rest(events, tmp_path)


def _check_the_rest(events: Any, folder: Path) -> None:
    """Histograms, graph and settings."""
    from tensorboard.compat.proto.graph_pb2 import GraphDef
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    model = folder / "snap_iter_4.caffemodel"
    net = load_net("runs/surgery_holmes/train_val.prototxt", "TRAIN", model)
    weight, _, mask = (blob.detach() for blob in net.params["ip1"])
    shown = events.Histograms("ip1/blob 0")
    assert [event.step for event in shown] == [2, 4]
    last = shown[-1].histogram_value
    assert last.num == weight.numel()
    assert (last.min, last.max) == pytest.approx((float(weight.min()), float(weight.max())))
    masks = events.Histograms("ip1/mask 2")[-1].histogram_value
    assert masks.sum == float(mask.sum()) and masks.num == mask.numel()
    graph = GraphDef.FromString(events.Graph().SerializeToString())
    nodes = {node.name: node for node in graph.node}
    assert list(nodes) == [step.layer.name for step in net.steps]
    assert nodes["conv1"].op == "Convolution" and list(nodes["pool1"].input) == ["conv1"]
    (shape,) = nodes["ip2"].attr["_output_shapes"].list.shape
    assert tuple(dim.size for dim in shape.dim) == net.blob_shapes["ip2"]
    settings = HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    ).session_start_info.hparams
    assert settings["base_lr"].number_value == pytest.approx(0.01)
    assert settings["type"].string_value == "SGD"
    assert events.Scalars("hparam/accuracy")[0].value == events.Scalars("test/accuracy")[-1].value


def test_tensorboard_is_looked_for_before_any_work(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    solver = write_solver(tmp_path, "surgery_holmes")
    result = run(["train", "--solver", solver, "--tensorboard", str(tmp_path / "board")], capfd)
    assert result.code == 1
    assert result.err == "dns: --tensorboard needs a package: pip install tensorboard\n"
    assert [path.name for path in tmp_path.iterdir()] == ["solver.prototxt"]


def test_tensorboard_needs_a_folder(tmp_path: Path, capfd: Capture) -> None:
    pytest.importorskip("tensorboard")
    solver = write_solver(tmp_path, "surgery_holmes")
    line = complaint(["train", "--solver", solver, "--tensorboard", solver], capfd)
    assert line == f"dns: {solver}: --tensorboard needs a folder, and this is a file"
    line = complaint(["train", "--solver", solver, "--tensorboard", "b\udce4"], capfd)
    assert line == "dns: b\udce4: TensorBoard needs a name in UTF-8"


# Files that cannot be written ---------------------------------------------------------------------

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def warned(folder: Path, capture: Capture, *flags: str) -> str:
    """The one warning of a training that loses a side file, and nothing else."""
    solver = write_solver(
        folder, "surgery_holmes", max_iter=4, display=1, snapshot=0, test_interval=2, test_iter=1
    )
    result = run(["train", "--solver", solver, *flags], capture)
    assert (result.code, result.complaints) == (log.LOST_OUTPUT, [])
    assert "Optimization Done." in result.messages
    assert (folder / "snap_iter_4.solverstate").exists()
    (warning,) = [line for line in result.err.splitlines() if re.match(r"W\d{4} ", line)]
    message, _, end = warning.partition("] ")[2].partition("; nothing more ")
    assert end == "is written there; training continues"
    return message


def fail_after(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, whole: int, error: Exception = NO_SPACE
) -> None:
    """Let a function work so many times, and then fail for ever."""
    left = iter(range(whole))
    works = getattr(owner, name)

    def work_or_fail(*arguments: Any) -> Any:
        if next(left, None) is None:
            raise error
        return works(*arguments)

    monkeypatch.setattr(owner, name, work_or_fail)


def test_a_table_that_cannot_be_begun(tmp_path: Path, capfd: Capture) -> None:
    table = tmp_path / "snap_surgery.csv"
    table.mkdir()
    assert warned(tmp_path, capfd) == f"{table}: cannot be written: it is a folder"


def test_a_table_that_cannot_go_on(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "snap_surgery.csv"
    open_path = Path.open

    def open_or_fail(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if (path, mode) == (table, "ab"):
            raise NO_SPACE
        return open_path(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_or_fail)
    assert warned(tmp_path, capfd) == f"{table}: cannot be written: No space left on device"
    assert [row["iteration"] for row in read_table(tmp_path)] == [*"0000"]


@pytest.mark.parametrize("whole", [0, 1])
def test_a_page_on_a_full_disk(
    whole: int, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first display, and when the run is over."""
    pytest.importorskip("plotly")
    page = tmp_path / "run.html"
    error = CaffeError("cannot be written: No space left on device", file=str(page))
    fail_after(monkeypatch, live_report, "write_atomically", whole, error)
    assert warned(tmp_path, capfd, "--report", str(page)) == str(error)
    assert page.exists() is bool(whole)


@pytest.mark.parametrize("whole", [2, 20, 60])
def test_tensorboard_on_a_full_disk(
    whole: int, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread writes, which must neither end with a traceback nor in silence."""
    pytest.importorskip("tensorboard")
    from tensorboard.summary.writer.record_writer import RecordWriter

    fail_after(monkeypatch, RecordWriter, "write", whole)
    board = tmp_path / "board"
    said = warned(tmp_path, capfd, "--tensorboard", str(board))
    assert said == f"{board}: cannot be written: No space left on device"


def test_memory_that_does_not_suffice_for_a_side_file(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What PyTorch says of a GPU's; any other error is one of ours."""
    no_memory = RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    fail_after(monkeypatch, SurgeryTable, "displayed", 1, no_memory)
    table = tmp_path / "snap_surgery.csv"
    assert warned(tmp_path, capfd).startswith(f"{table}: cannot be written: out of memory; ")
    file = SideFile("x", SurgeryTable("x"))
    fail_after(monkeypatch, SurgeryTable, "displayed", 0, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        file.displayed(Display(0, 1.0, 0.1, {}, []))
    assert not file.is_lost


@pytest.mark.parametrize("whole", [0, 1])
def test_tensorboard_on_a_disk_that_was_full_before_ends_the_run(
    whole: int, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to lose yet."""
    pytest.importorskip("tensorboard")
    from tensorboard.summary.writer.record_writer import RecordWriter

    fail_after(monkeypatch, RecordWriter, "write", whole)
    solver = write_solver(tmp_path, "surgery_holmes")
    board = tmp_path / "board"
    line = complaint(["train", "--solver", solver, "--tensorboard", str(board)], capfd)
    assert line == f"dns: {board}: cannot be written: No space left on device"


def test_a_run_that_fails_says_why_whatever_it_cannot_write(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise CaffeError("the run is broken")

    pytest.importorskip("plotly")
    monkeypatch.setattr(Solver, "solve", broken)
    fail_after(monkeypatch, live_report, "write_atomically", 0)
    solver = write_solver(tmp_path, "surgery_holmes")
    page = str(tmp_path / "run.html")
    assert "the run is broken" in complaint(["train", "--solver", solver, "--report", page], capfd)
