"""Wrong input of `dns train` and `dns test`: one line, exit code 1, and nothing left behind."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from tests.cli.harness import complaint, run_well
from tests.cli.workspace import TRAIN, Workspace
from tests.oracle import GOLDEN

Capture = pytest.CaptureFixture[str]

FINETUNE = [*TRAIN, "-weights", "snap_iter_20.caffemodel"]
TEST = ["test", "-model", "net.prototxt", "-weights", "snap_iter_20.caffemodel", "-iterations", "1"]


def test_the_workspace_is_right(work: Workspace, capfd: Capture) -> None:
    run_well([*FINETUNE, "--no-surgery"], capfd)
    run_well([*TEST, "--no-surgery"], capfd)
    assert {"snap_iter_2.caffemodel", "snap_iter_2.solverstate"} <= work.names()


def test_a_stage_that_is_not_in_utf_8(work: Workspace, capfd: Capture) -> None:
    run_well([*TEST, "-stage", "\udcff"], capfd)


def nothing(work: Workspace) -> None:
    """Leave the workspace as it is: the command line is what is wrong."""


def spoil(file: str, old: str, new: str) -> Callable[[Workspace], None]:
    return lambda work: work.replace(file, old, new)


def write(file: str, data: bytes) -> Callable[[Workspace], None]:
    def change(work: Workspace) -> None:
        (work.folder / file).write_bytes(data)

    return change


def truncate(file: str) -> Callable[[Workspace], None]:
    def change(work: Workspace) -> None:
        os.truncate(work.folder / file, 5000)

    return change


def cut_database(work: Workspace) -> None:
    data = (GOLDEN / "data" / "mnist1k_train_lmdb" / "data.mdb").read_bytes()
    (work.folder / "cut_lmdb").mkdir()
    (work.folder / "cut_lmdb" / "data.mdb").write_bytes(data[: len(data) // 2])
    work.replace("net.prototxt", "data/mnist1k_train_lmdb", "cut_lmdb")


def empty_folder(name: str) -> Callable[[Workspace], None]:
    def change(work: Workspace) -> None:
        (work.folder / name).unlink(missing_ok=True)
        (work.folder / name).mkdir()

    return change


def rename_layers(work: Workspace) -> None:
    """Other names for the layers with weights."""
    for name in ("conv1", "conv2", "ip1", "ip2"):
        work.replace("net.prototxt", f'name: "{name}"', f'name: "other_{name}"')


def deploy_net(work: Workspace) -> None:
    """Inputs in the place of the data layers."""
    lines = (work.folder / "net.prototxt").read_text().splitlines()
    shapes = "shape { dim: 2 dim: 1 dim: 28 dim: 28 } shape { dim: 2 }"
    lines[1:3] = [
        f'layer {{ name: "in" type: "Input" top: "data" top: "label" input_param {{ {shapes} }} }}'
    ]
    (work.folder / "net.prototxt").write_text("\n".join(lines))


def hdf5_data(work: Workspace) -> None:
    """An HDF5 file where a list of such files belongs."""
    (work.folder / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (work.folder / "net.prototxt").write_text(
        'layer { name: "d" type: "HDF5Data" top: "data" top: "label"\n'
        '  hdf5_data_param { source: "a.h5" batch_size: 2 } }\n'
        'layer { name: "l" type: "EuclideanLoss" bottom: "data" bottom: "label" top: "l" }\n'
    )


#: What is done to the workspace, the command, and words that its complaint has to hold.
WRONG: dict[str, tuple[Callable[[Workspace], None], list[str], list[str]]] = {
    "no solver flag": (nothing, ["train"], ["--solver"]),
    "no model flag": (nothing, ["test", "-weights", "x"], ["--model"]),
    "no weights flag": (nothing, ["test", "-model", "net.prototxt"], ["--weights"]),
    "missing solver": (nothing, ["train", "-solver", "gone.prototxt"], ["gone.prototxt"]),
    "missing net": (
        spoil("solver.prototxt", "net.prototxt", "gone.prototxt"),
        TRAIN,
        ["gone.prototxt"],
    ),
    "missing model": (
        nothing,
        ["test", "-model", "gone.prototxt", "-weights", "snap_iter_20.caffemodel"],
        ["gone.prototxt"],
    ),
    "missing weights of train": (nothing, [*TRAIN, "-weights", "gone.caffemodel"], ["gone.caf"]),
    "missing weights of test": (
        nothing,
        ["test", "-model", "net.prototxt", "-weights", "gone.caffemodel"],
        ["gone.caffemodel"],
    ),
    "missing state": (
        nothing,
        [*TRAIN, "-snapshot", "gone.solverstate"],
        ["gone.solverstate: is not there; the newest", "is snap_iter_20.solverstate"],
    ),
    "missing state of a run without one": (
        spoil("solver.prototxt", '"snap"', '"other"'),
        [*TRAIN, "-snapshot", "gone.solverstate"],
        ["gone.solverstate: is not there; no state begins with 'other_iter_'"],
    ),
    "truncated weights of train": (
        truncate("snap_iter_20.caffemodel"),
        FINETUNE,
        ["snap_iter_20.caffemodel", "truncated"],
    ),
    "truncated weights of test": (
        truncate("snap_iter_20.caffemodel"),
        TEST,
        ["snap_iter_20.caffemodel", "truncated"],
    ),
    "truncated model of a state": (
        truncate("snap_iter_20.caffemodel"),
        [*TRAIN, "-snapshot", "snap_iter_20.solverstate"],
        ["snap_iter_20.caffemodel"],
    ),
    "truncated state": (
        truncate("snap_iter_20.solverstate"),
        [*TRAIN, "-snapshot", "snap_iter_20.solverstate"],
        ["snap_iter_20.solverstate", "truncated"],
    ),
    "missing data": (
        spoil("net.prototxt", "data/mnist1k_train_lmdb", "data/gone_lmdb"),
        TRAIN,
        ["data/gone_lmdb: layer 'mnist'"],
    ),
    "a folder that is no LMDB": (
        spoil("net.prototxt", "data/mnist500_test_lmdb", "data"),
        TEST,
        ["data: layer 'mnist'", "not a database"],
    ),
    "an LMDB that is cut short": (cut_database, TRAIN, ["cut_lmdb", "cut short"]),
    "the wrong backend": (
        spoil("net.prototxt", "backend: LMDB", "backend: LEVELDB"),
        TRAIN,
        ["data/mnist1k_train_lmdb", "'lmdb'", "'leveldb'"],
    ),
    "shape mismatch in train": (
        spoil("net.prototxt", "num_output: 40", "num_output: 41"),
        FINETUNE,
        ["ip1", "40", "41", "snap_iter_20.caffemodel"],
    ),
    "shape mismatch in test": (
        spoil("net.prototxt", "num_output: 40", "num_output: 41"),
        TEST,
        ["ip1", "40", "41", "snap_iter_20.caffemodel"],
    ),
    "shape mismatch of a state": (
        spoil("net.prototxt", "num_output: 40", "num_output: 41"),
        [*TRAIN, "-snapshot", "snap_iter_20.solverstate"],
        ["ip1", "40", "41"],
    ),
    "unknown field of the net": (
        spoil("net.prototxt", "num_output: 40", "num_outputs: 40"),
        TEST,
        ["net.prototxt:8", "num_outputs", "'num_output'"],
    ),
    "unknown field of the solver": (
        spoil("solver.prototxt", "base_lr", "baselr"),
        TRAIN,
        ["solver.prototxt:2", "baselr", "'base_lr'"],
    ),
    "unknown layer type": (
        spoil("net.prototxt", '"Pooling"', '"Poling"'),
        TRAIN,
        ["net.prototxt:5", "pool1", "Poling", "'Pooling'"],
    ),
    "a bottom that no layer makes": (
        spoil("net.prototxt", 'bottom: "pool1"', 'bottom: "pool9"'),
        TRAIN,
        ["net.prototxt:6", "conv2", "'pool9'"],
    ),
    "batch size 0": (
        spoil("net.prototxt", "batch_size: 32", "batch_size: 0"),
        TRAIN,
        ["net.prototxt:2", "mnist", "batch_size"],
    ),
    "no layers for the phase": (
        write("net.prototxt", b'layer { name: "a" type: "Silence" include { phase: TEST } }'),
        TRAIN,
        ["net.prototxt", "TRAIN"],
    ),
    "a label without a class": (
        spoil("net.prototxt", "num_output: 10", "num_output: 5"),
        TRAIN,
        ["label", "0 to 4"],
    ),
    "an empty name among weights": (nothing, [*FINETUNE[:-1], "snap_iter_20.caffemodel,"], ["emp"]),
    "no such GPU in train": (nothing, [*TRAIN, "-gpu", "99"], ["-gpu", "99"]),
    "no such GPU in test": (nothing, [*TEST, "-gpu", "99"], ["-gpu", "99"]),
    "no device id": (nothing, [*TRAIN, "-gpu", "zero"], ["-gpu", "zero"]),
    "snapshot and weights": (
        nothing,
        [*FINETUNE, "-snapshot", "snap_iter_20.solverstate"],
        ["-snapshot", "-weights"],
    ),
    "a caffemodel as snapshot": (
        nothing,
        [*TRAIN, "-snapshot", "snap_iter_20.caffemodel"],
        ["snap_iter_20.caffemodel", "-weights"],
    ),
    "a solverstate as weights": (
        nothing,
        [*TRAIN, "-weights", "snap_iter_20.solverstate"],
        ["snap_iter_20.solverstate", "-snapshot"],
    ),
    "a solverstate as weights of test": (
        nothing,
        ["test", "-model", "net.prototxt", "-weights", "snap_iter_20.solverstate"],
        ["snap_iter_20.solverstate"],
    ),
    "empty solver": (write("solver.prototxt", b""), TRAIN, ["solver.prototxt"]),
    "empty net": (write("net.prototxt", b""), TRAIN, ["net.prototxt"]),
    "empty net of test": (write("net.prototxt", b"\n"), TEST, ["net.prototxt"]),
    "folder as solver": (empty_folder("solver.prototxt"), TRAIN, ["solver.prototxt", "directory"]),
    "folder as net": (empty_folder("net.prototxt"), TRAIN, ["net.prototxt", "directory"]),
    "folder as weights": (
        empty_folder("snap_iter_20.caffemodel"),
        FINETUNE,
        ["snap_iter_20.caffemodel", "directory"],
    ),
    "folder as state": (
        empty_folder("snap_iter_20.solverstate"),
        [*TRAIN, "-snapshot", "snap_iter_20.solverstate"],
        ["snap_iter_20.solverstate", "directory"],
    ),
    "binary as solver": (
        nothing,
        ["train", "-solver", "snap_iter_20.caffemodel"],
        ["snap_iter_20.caffemodel", "binary"],
    ),
    "binary as model": (
        nothing,
        ["test", "-model", "snap_iter_20.caffemodel", "-weights", "snap_iter_20.caffemodel"],
        ["snap_iter_20.caffemodel", "binary"],
    ),
    "text as weights": (
        nothing,
        ["test", "-model", "net.prototxt", "-weights", "net.prototxt"],
        ["net.prototxt", "text"],
    ),
    "net as solver": (
        nothing,
        ["train", "-solver", "net.prototxt"],
        ["net.prototxt:1: name", "the definition of a net"],
    ),
    "solver as net": (
        nothing,
        ["test", "-model", "solver.prototxt", "-weights", "snap_iter_20.caffemodel"],
        ["solver.prototxt:1: net", "the definition of a solver"],
    ),
    "a net without data in train": (
        deploy_net,
        TRAIN,
        ["net.prototxt: layer 'in'", "'data' comes from outside", "train_val.prototxt"],
    ),
    "a net without data in test": (
        deploy_net,
        TEST,
        ["net.prototxt: layer 'in'", "'data' comes from outside", "train_val.prototxt"],
    ),
    "weights for other layers in train": (
        rename_layers,
        FINETUNE,
        ["snap_iter_20.caffemodel", "'ip1'", "'other_ip1'"],
    ),
    "weights for other layers in test": (
        rename_layers,
        TEST,
        ["snap_iter_20.caffemodel", "'ip1'", "'other_ip1'"],
    ),
    "a state whose model is gone": (
        lambda work: (work.folder / "snap_iter_20.caffemodel").unlink(),
        [*TRAIN, "-snapshot", "snap_iter_20.solverstate"],
        ["snap_iter_20.solverstate", "its model is gone", "'snap_iter_20.caffemodel'"],
    ),
    "an HDF5 file for a list of them": (hdf5_data, TRAIN, ["a.h5", "HDF5 file", "text file"]),
    "snapshot_prefix in a missing folder": (
        spoil("solver.prototxt", '"snap"', '"gone/snap"'),
        TRAIN,
        ["gone", "snapshot_prefix"],
    ),
    "a NUL byte in snapshot_prefix": (
        spoil("solver.prototxt", '"snap"', r'"s\000nap"'),
        TRAIN,
        ["s\\x00nap", "NUL byte"],
    ),
    "unknown solver type": (
        spoil("solver.prototxt", "display: 1", 'type: "Adma"'),
        TRAIN,
        ["solver.prototxt", "Adma", "'Adam'"],
    ),
    "unknown lr_policy": (
        spoil("solver.prototxt", '"inv"', '"invv"'),
        TRAIN,
        ["solver.prototxt", "invv", "'inv'"],
    ),
    "negative iterations": (nothing, [*TEST[:-1], "-3"], ["-iterations", "-3"]),
    "negative max_iter": (
        spoil("solver.prototxt", "max_iter: 2", "max_iter: -2"),
        TRAIN,
        ["solver.prototxt", "max_iter"],
    ),
    "a GPU to decode where there is none in train": (
        nothing,
        [*TRAIN, "--decode-on-gpu"],
        ["net.prototxt:2", "decode_on_gpu: this net is on a CPU"],
    ),
    "a GPU to decode where there is none in test": (
        nothing,
        [*TEST, "--decode-on-gpu"],
        ["net.prototxt:", "decode_on_gpu: this net is on a CPU"],
    ),
    "a GPU that is no number": (nothing, [*TEST, "-gpu", "²"], ["-gpu", "'²'"]),
    "a level of more than 32 bits": (nothing, [*TEST, "--level", "9" * 11], ["--level", "9" * 11]),
    "more threads than a machine has": (nothing, [*TEST, "--threads", "9" * 11], ["--threads"]),
    "an extent of too many digits": (
        nothing,
        ["deploy", "-model", "net.prototxt", "-output", "o", "-shape", "9" * 5000],
        ["--shape", "3,227,227"],
    ),
    "a pattern of too many digits": (
        nothing,
        [*FINETUNE, "-pattern", "1x" + "9" * 5000, "-target-sparsity", "0.5"],
        ["is no pattern"],
    ),
    "a level that is no number": (
        nothing,
        [*TRAIN, "-level", "x"],
        ["--level", "'x' is not a valid integer."],
    ),
    "a target that is no number": (
        nothing,
        [*TRAIN, "--target-compression", "x"],
        ["--target-compression", "'x' is not a valid number."],
    ),
    "a layer without a type": (
        spoil("net.prototxt", 'type: "InnerProduct"', ""),
        TRAIN,
        ["net.prototxt", "the layer has no type"],
    ),
    "unknown effect of a signal": (nothing, [*TRAIN, "-sigint_effect", "halt"], ["halt"]),
    "solver without a net": (
        spoil("solver.prototxt", 'net: "net.prototxt"', ""),
        TRAIN,
        ["solver.prototxt", "net"],
    ),
    "test_iter without a test_interval": (
        spoil("solver.prototxt", "test_interval: 20", ""),
        TRAIN,
        ["solver.prototxt", "test_interval"],
    ),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [TRAIN, TEST])
def test_gpu_where_there_is_none(command: list[str], work: Workspace, capfd: Capture) -> None:
    assert "there is none" in complaint([*command, "-gpu", "0"], capfd)
    assert "there is no GPU" in complaint([*command, "-gpu", "all"], capfd)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gets_one_line(case: str, work: Workspace, capfd: Capture) -> None:
    change, arguments, words = WRONG[case]
    change(work)
    before = work.names()
    line = complaint(arguments, capfd)
    for word in words:
        assert word in line
    assert work.names() == before
