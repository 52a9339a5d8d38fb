"""`dns doctor`: a line for each finding, what to do, and the exit code."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from caffe_dns import kernels
from caffe_dns.cli import installation
from caffe_dns.cli.findings import NOTE
from caffe_dns.device import nvjpeg
from caffe_dns.solver.solver import Solver
from tests.cli.harness import run
from tests.nets import ip, layer
from tests.oracle import GOLDEN

Capture = pytest.CaptureFixture[str]
#: Which of them it is depends on the order in which numbers are added up.
NOT_FINITE = ("inf", "nan")
NET = "runs/sgd_inv/train_val.prototxt"


@pytest.fixture(autouse=True)
def alike_everywhere(in_golden_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def solver(
    folder: Path, more: str = "", *, net: str = NET, snapshot: int = 10, prefix: str = "snap"
) -> str:
    """A solver definition that puts its snapshots into the folder."""
    file = folder / "solver.prototxt"
    file.write_text(
        f'net: "{net}" base_lr: 0.01 lr_policy: "fixed" max_iter: 40 test_iter: 2 '
        f'test_interval: 20 snapshot: {snapshot} snapshot_prefix: "{folder}/{prefix}" {more}'
    )
    return str(file)


def lines(capfd: Capture, *arguments: str, code: int) -> list[str]:
    result = run(["doctor", *arguments], capfd)
    assert result.code == code, result.out
    assert result.err == ""
    return result.out.splitlines()


def test_the_installation(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "requires", {"caffe-dns": ["torch>=2", "click>=8"]}.get)
    found = lines(capfd, code=0)
    assert found[0].startswith("ok    dns 0.1.0, Python 3.")
    assert found[1].startswith("ok    torch 2.") and ", click 8." in found[1]
    assert found[-2] == f"ok    no GPU; threads on the CPU: {torch.get_num_threads()}"
    assert found[-1].startswith("nothing wrong, ")


def test_without_being_installed(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise installation.PackageNotFoundError(name)

    monkeypatch.setattr(installation, "requires", requires)
    assert lines(capfd, code=0)[1] == f"ok    torch {torch.__version__}"


def test_packages_that_are_missing_or_old(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["torch>=99.1", "nosuchpackage>=1", 'nosuchextra>=2; extra == "plot"', "click>=8.1"]
    needed.append('click>=99; extra == "plot"')
    monkeypatch.setattr(installation, "requires", lambda name: [*needed, 'x>=1; extra == "dev"'])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = lines(capfd, code=1)
    assert found[1].startswith(f"wrong torch is {torch.__version__}, older than 99.1 - pip install")
    assert found[2] == "wrong nosuchpackage is not installed - pip install 'nosuchpackage>=1'"
    assert found[3].startswith("ok    click 8.")
    assert found[4] == (
        "note  nosuchextra, click>=99 not installed, for dns plot, dns sensitivity - "
        "pip install 'caffe-dns[plot]' if you want that"
    )
    assert found[5].startswith("note  the shell does not find the command dns - ")
    assert found[-1] == "2 wrong, 2 to note"


def test_what_each_extra_is_for_is_known() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    section = text.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))
    assert extras - {"all", "dev", "fuzz"} == set(installation._EXTRAS)


@pytest.mark.parametrize(
    ("gpu", "there", "named"), [(False, False, 0), (True, True, 0), (True, False, 1)]
)
def test_nvjpeg_is_for_those_with_a_gpu(
    gpu: bool, there: bool, named: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library may come with another package, such as torchvision."""
    requirement = 'nvidia-nvjpeg>=13; platform_system == "Linux" and extra == "nvjpeg"'
    monkeypatch.setattr(installation, "requires", lambda package: [requirement])
    monkeypatch.setattr(installation, "_version", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(nvjpeg, "is_there", lambda: there)
    texts = [finding.what for finding in installation._packages() if finding.level == NOTE]
    assert texts == ["nvidia-nvjpeg not installed, for dns train --decode-on-gpu"] * named


def test_a_gpu_that_pytorch_does_not_see(
    capfd: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    driver = tmp_path / "version"
    driver.touch()
    monkeypatch.setattr(installation, "_DRIVER", driver)
    for cuda, said in (
        (None, f"there is a GPU, but PyTorch {torch.__version__} is built for CPUs only - "),
        ("12.8", "there is a GPU, but PyTorch for CUDA 12.8 does not find it - "),
    ):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        (line,) = (line for line in lines(capfd, code=0) if "GPU" in line)
        assert line.startswith(f"note  {said}")


def test_a_gpu_that_does_not_compute(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nand more of it")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda n: SimpleNamespace(name="H"))
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    monkeypatch.setattr(kernels, "wanted", lambda device: True)
    found = [line for line in lines(capfd, code=1) if "GPU" in line]
    assert [line.split("=")[1] for line in found] == ["1,2", "0,2", "0,1"]
    assert found[1] == (
        "wrong GPU 1: H does not compute: CUDA error: uncorrectable ECC error encountered - "
        "see what nvidia-smi says, or leave it out: CUDA_VISIBLE_DEVICES=0,2"
    )


def test_a_training_that_would_go_well(capfd: Capture, tmp_path: Path) -> None:
    file = solver(tmp_path)
    before = sorted(tmp_path.iterdir())
    found = lines(capfd, "--solver", file, code=0)
    found = found[next(i for i, line in enumerate(found) if "no GPU" in line) + 1 :]
    assert found[:2] == [
        "ok    all files that the definitions name are there",
        "ok    train net 'sgd_inv': 9 layers, 10,750 parameters, the shapes fit",
    ]
    assert found[2].startswith("ok    train net: a batch is read and decoded in ")
    assert found[2].endswith(" ms: data 32x1x28x28, label 32")
    assert found[3].startswith("ok    test net #0 'sgd_inv': 12 layers, 10,750 parameters")
    assert found[4].endswith(" ms: data 50x1x28x28, label 50")
    assert found[5].startswith("ok    first loss 2.") and "40 of them with their tests" in found[5]
    assert " are in use at most" in found[6]
    # Weights and one history, four bytes a parameter, of which the masks are a part.
    assert found[7].startswith("ok    4 snapshots go to ")
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_said_to_programs(capfd: Capture, tmp_path: Path) -> None:
    result = run(["doctor", "--solver", solver(tmp_path, snapshot=0), "--json"], capfd)
    found = json.loads(result.out)
    assert {entry["level"] for entry in found} <= {"ok", "note"}
    assert found[0]["what"].startswith("dns 0.1.0")
    quiet = lines(capfd, "--solver", solver(tmp_path), "--quiet", code=0)
    assert not any(line.startswith("ok") for line in quiet)


def test_files_that_are_missing(capfd: Capture, tmp_path: Path) -> None:
    text = (GOLDEN / NET).read_text().replace("data/", "gone/")
    net = tmp_path / "net.prototxt"
    net.write_text(text)
    found = lines(capfd, "--solver", solver(tmp_path, net=str(net)), "--quiet", code=1)
    wrong = [line for line in found if line.startswith("wrong")]
    assert len(wrong) == 2
    assert all(".source: there is no 'gone/" in line for line in wrong)
    assert all(f" in {GOLDEN} - put it there, correct the name" in line for line in wrong)
    found = lines(capfd, "--solver", solver(tmp_path, 'weights: "w.caffemodel"', net="n"), code=1)
    assert [line[:30] for line in found if line.startswith("wrong")] == [
        "wrong net: there is no 'n' in ",
        "wrong weights: there is no 'w.",
    ]
    long = 300 * "n"  # longer than file systems allow
    found = lines(capfd, "--solver", solver(tmp_path, net=long), code=1)
    assert found[-1] == "1 wrong, nothing to note"
    assert f"wrong net: there is no '{long}'" in found[-2]
    assert lines(capfd, "--solver", "nosuch", "--quiet", code=1)[-2:] == [
        "wrong nosuch: there is no such file",
        "1 wrong, nothing to note",
    ]


def test_snapshots_that_cannot_be_written(
    capfd: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = solver(tmp_path, prefix="no/snap")
    found = lines(capfd, "--solver", file, "--quiet", code=1)
    (line,) = (line for line in found if line.startswith("wrong"))
    assert f"the folder '{tmp_path}/no' of the snapshots does not exist" in line
    assert line.endswith(f" - mkdir -p '{tmp_path}/no', or another snapshot_prefix")
    usage = shutil.disk_usage(tmp_path)._replace(free=100000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    # Caffe takes a remainder, for which the sign does not count.
    found = lines(capfd, "--solver", solver(tmp_path, snapshot=-10), "--quiet", code=1)
    (line,) = (line for line in found if line.startswith("wrong"))
    assert line.startswith("wrong 4 snapshots go to ")
    assert line.endswith("97.7 KiB are free - keep fewer of them: dns train --keep 3")


def test_shapes_that_do_not_fit(capfd: Capture, tmp_path: Path) -> None:
    net = tmp_path / "net.prototxt"
    net.write_text((GOLDEN / NET).read_text().replace("kernel_size: 5", "kernel_size: 55"))
    found = lines(capfd, "--solver", solver(tmp_path, net=str(net)), "--quiet", code=1)
    (line,) = (line for line in found if line.startswith("wrong"))
    assert line.startswith(f"wrong {net}:") and "layer '" in line


def test_running_statistics_are_no_parameters(capfd: Capture, tmp_path: Path) -> None:
    net = tmp_path / "net.prototxt"
    shapes = "shape { dim: 2 dim: 3 } shape { dim: 2 dim: 3 } data_filler { value: 1 }"
    net.write_text(
        layer("in", "DummyData", "", "x y", f"dummy_data_param {{ {shapes} }}")
        + ip("score", "x", outputs=3)
        + layer("norm", "BatchNorm", "score", "score")
        + layer("loss", "EuclideanLoss", "score y", "loss")
    )
    found = lines(capfd, "--solver", solver(tmp_path, net=str(net)), code=0)
    assert "ok    train net: 4 layers, 12 parameters, the shapes fit" in found


def test_losses(capfd: Capture, tmp_path: Path) -> None:
    net = tmp_path / "net.prototxt"
    shapes = "shape { dim: 2 dim: 3 } shape { dim: 2 dim: 3 } data_filler { value: 3e38 }"
    net.write_text(
        layer("in", "DummyData", "", "x y", f"dummy_data_param {{ {shapes} }}")
        + ip("score", "x", outputs=3)
        + layer("loss", "EuclideanLoss", "score y", "loss")
    )
    found = lines(capfd, "--solver", solver(tmp_path, net=str(net)), "--quiet", code=1)
    wrong = [f"wrong the first loss is {x} - look at the data and the fillers" for x in NOT_FINITE]
    assert set(wrong) & set(found)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
        RuntimeError("Storage size calculation overflowed with sizes=[3037000500, 3037000500]"),
        MemoryError(),
    ],
)
def test_memory_that_does_not_suffice(
    error: Exception, capfd: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(solver: Solver, iterations: int) -> None:
        raise error

    monkeypatch.setattr(Solver, "step", exhausted)
    found = lines(capfd, "--solver", solver(tmp_path), "--quiet", code=1)
    (line,) = (line for line in found if line.startswith("wrong"))
    assert line.startswith("wrong not enough memory: ")
    assert " - a smaller batch_size; " in line


@pytest.mark.parametrize(
    ("type", "settings", "known"),
    [
        ("HDF5Output", 'hdf5_output_param { file_name: "FOLDER/out.h5" }', "HDF5Output"),
        ("DetectionOutput", "detection_output_param { no_permute: true }", "DetectionOutputOfMaps"),
    ],
)
def test_layers_that_write_are_not_tried(
    type: str, settings: str, known: str, capfd: Capture, tmp_path: Path
) -> None:
    net = tmp_path / "net.prototxt"
    net.write_text(
        (GOLDEN / NET).read_text()
        + f'layer {{ name: "w" type: "{type}" bottom: "data" bottom: "label" '
        + settings.replace("FOLDER", str(tmp_path))
        + "}"
    )
    found = lines(capfd, "--solver", solver(tmp_path, net=str(net)), code=0)
    assert found[-2] == f"note  not tried: {known} would write files"
    assert not (tmp_path / "out.h5").exists()
