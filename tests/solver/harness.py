"""Solvers of a small net on recorded data, and gradients put where backward would leave them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from caffe_dns import log
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.proto.text import parse_text
from caffe_dns.solver.solver import Solver
from tests.oracle import GOLDEN

#: 28 x 28 images on their way to 10 classes.
NET = f"""
name: "small"
layer {{ name: "mnist" type: "Data" top: "data" top: "label" include {{ phase: TRAIN }}
  transform_param {{ scale: 0.00390625 TRANSFORM }}
  data_param {{ source: "{GOLDEN}/data/mnist1k_train_lmdb" batch_size: 16 backend: LMDB }} }}
layer {{ name: "mnist" type: "Data" top: "data" top: "label" include {{ phase: TEST }}
  transform_param {{ scale: 0.00390625 CENTRE }}
  data_param {{ source: "{GOLDEN}/data/mnist500_test_lmdb" batch_size: 20 backend: LMDB }} }}
layer {{ name: "pool" type: "Pooling" bottom: "data" top: "pool"
  pooling_param {{ pool: AVE kernel_size: 4 stride: 4 }} }}
layer {{ name: "ip1" type: "IP" bottom: "pool" top: "ip1"
  param {{ lr_mult: 1 }} param {{ lr_mult: 2 decay_mult: 0 }}
  inner_product_param {{ num_output: 12 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "relu" type: "ReLU" bottom: "ip1" top: "ip1" }}
EXTRA
layer {{ name: "ip2" type: "IP" bottom: "ip1" top: "ip2"
  inner_product_param {{ num_output: 10 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "accuracy" type: "Accuracy" bottom: "ip2" bottom: "label" top: "accuracy"
  include {{ phase: TEST }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }}
"""
DROPOUT = 'layer { name: "drop" type: "Dropout" bottom: "ip1" top: "ip1" }'
SETTINGS = (
    'base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 max_iter: 6 solver_mode: CPU random_seed: 5 '
    "snapshot_after_train: false"
)


def small_net(*, crop: bool = False, extra: str = "", kind: str = "InnerProduct") -> str:
    """The definition, with random crops, more layers, or another type of inner product."""
    text = NET.replace("TRANSFORM", "crop_size: 24 mirror: true" if crop else "")
    text = text.replace("CENTRE", "crop_size: 24" if crop else "")
    return text.replace("EXTRA", extra).replace('"IP"', f'"{kind}"')


def make_solver(
    folder: Path, settings: str = "", net: str | None = None, *, quiet: bool = True, **more: Any
) -> Solver:
    """A solver whose net and snapshots are in `folder`, which may have to be made.

    Later settings replace earlier ones.
    """
    folder.mkdir(exist_ok=True)
    (folder / "net.prototxt").write_text(net or small_net())
    param = parse_text(SETTINGS, SolverParameter).message
    param.snapshot_prefix = f"{folder}/snap"
    param.net = f"{folder}/net.prototxt"
    own = parse_text(settings, SolverParameter).message
    if any(own.HasField(name) for name in ("net_param", "train_net", "train_net_param")):
        param.ClearField("net")
    param.MergeFrom(own)
    was_quiet = log.set_quiet(quiet)
    try:
        return Solver(param, **more)
    finally:
        log.set_quiet(was_quiet)


def state_of(folder: Path, iteration: int, ending: str = "") -> str:
    return f"{folder}/snap_iter_{iteration}.solverstate{ending}"


def trained(folder: Path, steps: int, settings: str = "", net: str | None = None) -> Solver:
    """A solver after so many iterations from its first weights."""
    solver = make_solver(folder, settings, net)
    solver.step(steps)
    solver.close()
    return solver


def weights_of(solver: Solver) -> dict[str, torch.Tensor]:
    """Copies of all blobs, masks included."""
    return {
        f"{name}/{index}": blob.detach().clone()
        for name, blobs in solver.net.params.items()
        for index, blob in enumerate(blobs)
    }


def assert_same_weights(solver: Solver, other: Solver) -> None:
    mine, theirs = weights_of(solver), weights_of(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def whole_and_resumed(
    make: Callable[[Path], Solver], folder: Path, stop: int, end: int
) -> tuple[Solver, Solver]:
    """A run, and one resumed from a snapshot of another on the way; they have the same weights.

    `make` makes the solver in a folder, as `make_solver` does.
    """
    whole = make(folder / "whole")
    whole.step(end)
    first = make(folder / "parts")
    first.step(stop)
    first.snapshot()
    second = make(folder / "parts")
    second.restore(f"{folder}/parts/snap_iter_{stop}.solverstate")
    second.step(end - stop)
    for solver in (whole, first, second):
        solver.close()
    assert_same_weights(whole, second)
    return whole, second
