"""Several processes of one program train one net, as BVLC's python/train.py has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import caffe_dns.pycaffe as caffe
from caffe_dns.errors import CaffeError
from tests.oracle import GOLDEN
from tests.processes import Forked

NET = """
    layer {{ name: 'data' type: 'Data' top: 'data' top: 'label' transform_param {{ scale: 0.01 }}
      data_param {{ source: '{golden}/data/mnist1k_train_lmdb' backend: LMDB
        batch_size: {batch} }} }}
    layer {{ name: 'ip1' type: 'InnerProduct' bottom: 'data' top: 'ip1'
      inner_product_param {{ num_output: 12 weight_filler {{ type: 'xavier' }} }} }}
    layer {{ name: 'tanh' type: 'TanH' bottom: 'ip1' top: 'ip1' }}
    layer {{ name: 'ip2' type: 'InnerProduct' bottom: 'ip1' top: 'ip2'
      inner_product_param {{ num_output: 10 weight_filler {{ type: 'xavier' }} }} }}
    layer {{ name: 'loss' type: 'SoftmaxWithLoss' bottom: 'ip2' bottom: 'label' top: 'loss' }}"""
SOLVER = """net: 'net.prototxt' base_lr: 0.05 lr_policy: 'fixed' momentum: 0.9 weight_decay: 0.001
    solver_mode: CPU display: 2 max_iter: 6 snapshot_prefix: 'all' snapshot: 6 """


def write(batch: int) -> None:
    Path("net.prototxt").write_text(NET.format(golden=GOLDEN, batch=batch))
    Path("solver.prototxt").write_text(SOLVER)


def solve(words: list[str]) -> None:
    """What train.py does in each of its processes: its rank, their number, their uid.

    Then whether it is to fail, and whether each has a GPU.
    """
    rank, size, uid = int(words[0]), int(words[1]), words[2]
    fails, on_gpus = (word == "True" for word in words[3:])
    if on_gpus:
        caffe.set_device(rank)
        caffe.set_mode_gpu()
    caffe.set_surgery(False)
    caffe.set_solver_count(size)
    caffe.set_solver_rank(rank)
    caffe.set_multiprocess(True)
    solver = caffe.SGDSolver("solver.prototxt")
    nccl = caffe.NCCL(solver, uid)
    nccl.bcast()
    save(solver, f"first{rank}.npz")
    solver.add_callback(nccl)
    if solver.param.layer_wise_reduce:
        solver.net.after_backward(nccl)
    if fails:
        raise ValueError("no more")
    solver.step(solver.param.max_iter)
    save(solver, f"last{rank}.npz")


def blobs(solver: caffe.SGDSolver) -> list[np.ndarray]:
    return [blob.data for layer in solver.net.layers for blob in layer.blobs]


def save(solver: caffe.SGDSolver, file: str) -> None:
    np.savez(file, *blobs(solver))


def start(folder: Path, failing: int | None = None, *, on_gpus: bool = False) -> list[int]:
    """The exit codes of two processes, which leave what they say in rank0.log and rank1.log."""
    uid = caffe.NCCL.new_uid().decode()
    environment = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        Forked(
            "tests.pycaffe.test_nccl:solve",
            [str(rank), "2", uid, str(rank == failing), str(on_gpus)],
            folder,
            environment,
            folder / f"rank{rank}.log",
        )
        for rank in range(2)
    ]
    return [process.wait(100) for process in processes]


def saved(file: str) -> list[np.ndarray]:
    with np.load(file) as arrays:
        return list(arrays.values())


def test_ranks_are_one_process_with_a_larger_batch(folder: Path) -> None:
    """Without a seed, so that all have to begin with what rank 0 has drawn."""
    write(batch=8)
    assert start(folder) == [0, 0]
    for mine, theirs in zip(saved("last1.npz"), saved("last0.npz"), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert sorted(path.name for path in folder.glob("all*")) == [
        "all_iter_6.caffemodel",
        "all_iter_6.solverstate",
    ]
    assert "Iteration 4" in Path("rank0.log").read_text()
    assert not Path("rank1.log").read_text()
    for mine, value in zip(trained_alone(), saved("last1.npz"), strict=True):
        np.testing.assert_allclose(mine, value, rtol=0, atol=1e-6)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_ranks_on_gpus(folder: Path) -> None:
    write(batch=8)
    assert start(folder, on_gpus=True) == [0, 0]
    for mine, theirs in zip(saved("last1.npz"), saved("last0.npz"), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    caffe.set_mode_gpu()
    for mine, value in zip(trained_alone(), saved("last1.npz"), strict=True):
        np.testing.assert_allclose(mine, value, rtol=0, atol=1e-4)


def trained_alone() -> list[np.ndarray]:
    """The blobs after a training by one process, from the ranks' first ones.

    The mean over all of 16 records is that of the means over 8 each, whoever has which.
    """
    write(batch=16)
    caffe.set_surgery(False)
    alone = caffe.SGDSolver("solver.prototxt")
    for mine, value in zip(blobs(alone), saved("first1.npz"), strict=True):
        mine[...] = value
    nccl = caffe.NCCL(alone, b"nobody else, so that there is no meeting")
    nccl.bcast()
    alone.add_callback(nccl)
    alone.step(6)
    return blobs(alone)


def test_all_end_when_one_fails(folder: Path) -> None:
    write(batch=8)
    assert start(folder, failing=1) == [1, 1]
    assert not list(folder.glob("last*"))
    assert Path("rank1.log").read_text().splitlines()[-1] == "ValueError: no more"
    assert "Error" not in Path("rank0.log").read_text()


def test_uid() -> None:
    assert caffe.has_nccl()
    uid = caffe.NCCL.new_uid()
    assert isinstance(uid, bytes) and uid != caffe.NCCL.new_uid()


def test_settings(folder: Path) -> None:
    assert (caffe.solver_count(), caffe.solver_rank()) == (1, 0)
    for call in (lambda: caffe.set_solver_count(0), lambda: caffe.set_solver_rank(-1)):
        with pytest.raises(CaffeError, match=r"at least 1, not 0|there is none -1"):
            call()
    write(batch=8)
    caffe.set_surgery(False)
    caffe.set_solver_rank(2)
    with pytest.raises(CaffeError, match=r"set_solver_rank\(2\) of set_solver_count\(1\)"):
        caffe.SGDSolver("solver.prototxt")
    caffe.set_solver_count(3)
    caffe.set_multiprocess(True)
    assert (caffe.solver_count(), caffe.solver_rank()) == (3, 2)
    with pytest.raises(ValueError, match=r"'name' is not what NCCL\.new_uid\(\) has given"):
        caffe.NCCL(caffe.SGDSolver("solver.prototxt"), "name")
