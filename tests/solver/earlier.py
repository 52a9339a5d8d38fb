"""Small trainings whose states are kept, release by release, and resumed ever after.

    python -m tests.solver.earlier NAME

records them with the version at hand in the folder states/NAME beside this file: before each
release, under its version. What is there already is never recorded again.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from caffe_dns.proto.caffe_pb2 import SolverState
from caffe_dns.proto.upgrade import read_solver
from caffe_dns.solver.solver import Solver
from caffe_dns.solver.state_file import read_state
from caffe_dns.weights.transfer import read_layers
from tests.arithmetic import RoundedOnce
from tests.oracle import GOLDEN

STATES = Path(__file__).with_name("states")
#: When the state is written, and up to where it has to lead.
FIRST, LAST = 4, 8

#: The BatchNorm comes first: a bias before it would have nothing but rounding for a gradient, and
#: Adam and RMSProp would make steps of that.
NET = """
layer { name: "mnist" type: "Data" top: "data" top: "label"
  transform_param { scale: 0.00390625 crop_size: 24 mirror: true }
  data_param { source: "data/mnist1k_train_lmdb" batch_size: 8 backend: LMDB } }
layer { name: "pool" type: "Pooling" bottom: "data" top: "pool"
  pooling_param { pool: AVE kernel_size: 6 stride: 6 } }
layer { name: "norm" type: "BatchNorm" bottom: "pool" top: "norm" }
layer { name: "conv" type: "CONV" bottom: "norm" top: "conv" param { lr_mult: 1 }
  param { lr_mult: 2 } convolution_param { num_output: 4 kernel_size: 2 CONV_RATE
  weight_filler { type: "xavier" } } CONV_MASKS }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "ip" type: "IP" bottom: "conv" top: "ip" param { lr_mult: 1 } param { lr_mult: 2 }
  inner_product_param { num_output: 10 IP_RATE weight_filler { type: "xavier" } } IP_MASKS }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
_MASKS = """{ gamma: 0.01 power: 1 c_rate: 0.3 iter_stop: 1000
  weight_mask_filler { type: "constant" value: 1 }
  bias_mask_filler { type: "constant" value: 1 } }"""
PLAIN = {"CONV": "Convolution", "IP": "InnerProduct"}
HOLMES = {**PLAIN, "CONV_RATE": "threshold: 0.5", "IP_RATE": "threshold: 1"}
GUO = {
    "CONV": "CConvolution",
    "IP": "CInnerProduct",
    "CONV_MASKS": f"cconvolution_param {_MASKS}",
    "IP_MASKS": f"cinner_product_param {_MASKS}",
}
SOLVER = f"""
net: "net.prototxt" snapshot_prefix: "s" max_iter: {LAST} base_lr: 0.01 random_seed: 3
weight_decay: 0.0005 surgery_iter_gamma: 0.01 surgery_iter_power: 1 snapshot_after_train: false
"""
#: What each has in its net, and in its solver besides.
CASES = {
    "sgd_plain": (PLAIN, 'lr_policy: "multistep" gamma: 0.5 stepvalue: 3 momentum: 0.9'),
    "rmsprop_iter_size": (PLAIN, 'type: "RMSProp" lr_policy: "fixed" rms_decay: 0.9 iter_size: 2'),
    "sgd_holmes_hdf5": (HOLMES, 'lr_policy: "inv" gamma: 0.1 power: 0.75 snapshot_format: HDF5'),
    "sgd_holmes_target": (
        HOLMES,
        'lr_policy: "fixed" momentum: 0.9 surgery_stage { iterations: 6 compression: 3 } '
        "surgery_stage { iterations: 2 }",
    ),
    "adam_guo": (GUO, 'type: "Adam" lr_policy: "fixed" momentum: 0.9'),
    "adam_guo_hdf5": (GUO, 'type: "Adam" lr_policy: "fixed" momentum: 0.9 snapshot_format: HDF5'),
}


def write_definitions(folder: Path, name: str) -> None:
    """The net and the solver of a case; their paths are relative to this and the golden folder."""
    parts, settings = CASES[name]
    net = NET
    for part in ("CONV_RATE", "CONV_MASKS", "IP_RATE", "IP_MASKS", "CONV", "IP"):
        net = net.replace(part, parts.get(part, ""))
    (folder / "net.prototxt").write_text(net)
    (folder / "solver.prototxt").write_text(SOLVER + settings + "\n")


def build(folder: Path) -> Solver:
    """The solver of a case in the current folder, its definitions read from `folder`.

    The data come by a link, so that no snapshot says where they lie.
    """
    param = read_solver(str(folder / "solver.prototxt")).message
    param.net = str(folder / param.net)
    Path("data").symlink_to(GOLDEN / "data")
    surgery = "sgd_plain" not in folder.name and "rmsprop" not in folder.name
    return Solver(param, surgery=surgery)


def train(solver: Solver, end: int) -> None:
    """Go on up to this iteration, in the same arithmetic everywhere, and write a snapshot."""
    with RoundedOnce():
        solver.step(end - solver.iteration)
        solver.snapshot()


def files(folder: Path, iteration: int) -> tuple[Path, Path]:
    """Model and state of a snapshot."""
    (model,) = folder.glob(f"s_iter_{iteration}.caffemodel*")
    (state,) = folder.glob(f"s_iter_{iteration}.solverstate*")
    return model, state


def contents(folder: Path, iteration: int) -> tuple[SolverState, dict[str, np.ndarray]]:
    """The fields of a state, without those about its model, and all arrays of a snapshot."""
    model, state_file = files(folder, iteration)
    state, histories = read_state(str(state_file))
    state.ClearField("learned_net")
    state.ClearField("learned_net_sha256")
    arrays = {f"history {index}": array for index, array in enumerate(histories)}
    for layer in read_layers(str(model)):
        arrays |= {f"{layer.name}/{index}": array for index, array in layer.read().items()}
    return state, arrays


def record(name: str) -> None:
    """Record all cases under the name of a release."""
    for case in CASES:
        folder = STATES / name / case
        folder.mkdir(parents=True)
        write_definitions(folder, case)
        os.chdir(folder)
        solver = build(folder)
        for end in (FIRST, LAST):
            train(solver, end)
        solver.close()
        Path("data").unlink()
        print(case, sum(file.stat().st_size for file in folder.iterdir()), "bytes")


if __name__ == "__main__":
    record(sys.argv[1])
