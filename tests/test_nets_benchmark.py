"""The benchmarks of training, on the CPU: both sides train the same nets, as they are to."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from caffe_dns import log
from tests.processes import CONTEXT, run_forked, run_python
from tools.benchmarks import lenet_cpu, lenet_gpu, nets_gpu, processes, several_gpus, surgery_cost
from tools.benchmarks.contestants import difference
from tools.benchmarks.plain_nets import NETS
from tools.benchmarks.records import make_database

COLUMNS = ["ms", "images/s", "GiB", "speed", "memory"]


@pytest.fixture(autouse=True)
def quiet_and_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_quiet", True)
    monkeypatch.setattr(lenet_gpu.subprocess, "run", run_forked)
    monkeypatch.setattr(processes, "get_context", lambda kind: CONTEXT)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name != "lenet" else []) for name in NETS],
)
def test_the_plain_nets_are_the_same(name: str) -> None:
    # The definitions have their small constants, of BatchNorm and LRN, in float32.
    assert difference(name, batch=2) < 1e-5


def run(
    module: object, arguments: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> list[str]:
    """What the tool prints."""
    monkeypatch.setattr(sys, "argv", ["tool", *arguments.split()])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    module.main()  # type: ignore[attr-defined]
    return capfd.readouterr().out.splitlines()


@pytest.mark.parametrize("at_once", ["", " --at-once"])
def test_nets(at_once: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    arguments = "--nets lenet --batch 3 --precisions fp32 tf32 --rounds 2 --seconds 0.01"
    lines = run(nets_gpu, arguments + at_once, monkeypatch, capfd)[3:]
    assert lines[0].split() == ["lenet,", "batch", "3,", "fp32", *COLUMNS]
    titles = ["PyTorch", "dns train, surgery", "dns train --no-surgery"]
    assert [text[2:32].strip() for text in lines[1:4]] == titles
    for text in lines[1:4]:
        milliseconds, images, _memory, speed, _ratio, way = text[32:].split()
        # They are printed as a whole number, which is 4 on a machine that has much else to do.
        assert float(images) == pytest.approx(3000 / float(milliseconds), rel=0.01, abs=0.51)
        assert float(speed) > 0 and way == "eager"
    assert lines[1].split()[4] == "1.00"
    # The CPU has no tf32.
    assert all(re.search(r"failed: --precision tf32 needs .*", text) for text in lines[5:8])
    assert len(lines) == 8


def test_commands_on_lenet(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(lenet_gpu, "LENET_RECORDS", 10)
    monkeypatch.setattr(lenet_gpu, "LENET_SECONDS", 0.01)
    arguments = "--parts lenet --batch 3 --precisions fp32 --rounds 1 --lenet-iterations 8"
    lines = run(lenet_gpu, arguments, monkeypatch, capfd)[1:]
    assert re.fullmatch(r"LeNet, batch 3, fp32 +iter/s +images/s +to PyTorch, eager", lines[0])
    titles = ["PyTorch, eager", *(f"dns train, {solver}" for solver in lenet_gpu.LENET_SOLVERS)]
    assert [text[2:34].strip() for text in lines[1:]] == [*titles, "dns train --no-surgery"]
    for text in lines[1:]:
        rate, images, ratio = map(float, text[34:].split())
        assert images == pytest.approx(3 * rate, abs=1) and ratio > 0


@pytest.mark.slow
def test_commands_on_alexnet(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(lenet_gpu, "ALEXNET_SECONDS", 0.01)
    arguments = "--parts alexnet --batch 2 --records 3 --rounds 1 --alexnet-iterations 8"
    lines = run(lenet_gpu, arguments, monkeypatch, capfd)[1:]
    titles = ["no displays, constant data", "dns train, constant data", "dns train, LMDB"]
    assert [text[2:34].strip() for text in lines[1:]] == titles


def test_held_data(tmp_path: Path) -> None:
    """A plugin's layer that gives its first batch again, where it is offered."""
    database = tmp_path / "lmdb"
    make_database(database, 5, (1, 4, 4))
    code = f"""
from caffe_dns.layers import Context, layer_types
from caffe_dns.plugins import import_plugin
from caffe_dns.proto.caffe_pb2 import LayerParameter
import_plugin({lenet_gpu.HELD_DATA!r})
param = LayerParameter(type="HeldData", name="data", top=["data", "label"])
param.data_param.source, param.data_param.batch_size = {str(database)!r}, 2
param.data_param.backend = param.data_param.LMDB
layer = layer_types["HeldData"](param, Context())
layer.setup([])
first, again = layer(), layer()
assert first[1].tolist() == [0, 1] and len(first) == 2
assert all(one is other for one, other in zip(first, again, strict=True))
memory = [top.clone() for top in first]
layer.offer(memory)
assert all(one is other for one, other in zip(layer(), memory, strict=True))
layer.close()
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


def test_what_is_left_beside_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The ratios are those of each round: the machine was half as fast in the second."""
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    alone = [{"by hand": 50.0, "dns": 100.0}, {"by hand": 25.0, "dns": 50.0}]
    beside = [{"by hand": 5.0, "dns": 30.0}, {"by hand": 2.5, "dns": 15.0}]
    lenet_cpu.report_load(alone, beside, 4, ["by hand"])
    rows = [line[42:].split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1:3] == [["3.8", "1.00"], ["22.5", "6.00"]]
    assert rows[4:] == [["0.10", "0.30"], ["0.30", "0.90"]]


def test_a_command_that_fails() -> None:
    with pytest.raises(SystemExit, match=r"train --solver nowhere.prototxt.*: dns: nowhere"):
        lenet_gpu.dns_train(Path("nowhere.prototxt"), "fp32", "cpu")


def test_what_surgery_costs(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    arguments = "--nets lenet lenet_official --batch 3 --copies 2 --rounds 2 --seconds 0.01"
    lines = run(surgery_cost, arguments, monkeypatch, capfd)[1:]
    kinds = ["off", "never due", "always due"]
    for heading, *rows in (lines[:4], lines[4:]):
        assert heading.split()[1:4] == ["batch", "3,", "fp32"]
        assert [row[:40].split("surgery")[1].strip() for row in rows] == kinds
        for row in rows:
            usual, fastest, slowest = map(float, row[40:].split()[:3])
            assert 0 < fastest <= usual <= slowest


@pytest.mark.parametrize("title", ["lenet", "lenet_official"])
def test_surgery_is_due_in_every_iteration_or_in_none(title: str) -> None:
    kept = {}
    for kind in (surgery_cost.OFF, surgery_cost.NEVER, surgery_cost.ALWAYS):
        solver = surgery_cost.make(title, 2, kind, torch.device("cpu"), "fp32")
        surgeon = solver.surgeon
        assert (surgeon is None) == (kind == surgery_cost.OFF)
        if surgeon is not None:
            due = [all(s.is_due(solver.seed, i) for s in surgeon._schedules) for i in range(50)]
            kept[kind] = sum(due)
        solver.close()
    assert kept == {surgery_cost.NEVER: 0, surgery_cost.ALWAYS: 50}


def test_several_gpus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """The table of it; what is trained, on the CPU."""
    speeds = {"cuda:0": [200.0, 100.0], "cuda:0,1,2": [190.0, 97.0]}
    monkeypatch.setattr(several_gpus, "dns_train", lambda _file, _p, name: speeds[name].pop(0))
    monkeypatch.setattr(several_gpus, "device_name", lambda name: name)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    options = ["--nets", "lenet", "--precisions", "bf16", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["several_gpus.py", *options])
    several_gpus.main()
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert rows == [
        "| lenet | 64 | bf16 | 1 | 9,600 | 1.000 |",
        "| lenet | 64 | bf16 | 3 | 27,552 | 0.960 |",
    ]
    file = tmp_path / "solver.prototxt"
    several_gpus.write_solver(file, "lenet", 2, 8)
    assert lenet_gpu.dns_train(file, "fp32", "cpu") > 0


def test_more_gpus_than_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(sys, "argv", ["several_gpus.py", "--gpus", "2", "4"])
    with pytest.raises(SystemExit, match="2"):
        several_gpus.main()
    assert "--gpus: from 2 to the GPUs that are here, 2" in capsys.readouterr().err
