"""Arrays over a net on a GPU: what programs write arrives there, and what it makes comes back.

Skipped where there is no GPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import caffe_dns.pycaffe as caffe
from caffe_dns.layers.python import Python
from caffe_dns.proto.upgrade import read_solver
from caffe_dns.solver.solver import Solver
from tests.pycaffe.harness import NET

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

TRAIN_NET = """
    layer { name: 'data' type: 'Python' top: 'data' top: 'label'
      python_param { module: 'user' layer: 'Counter' } }
    layer { name: 'ip' type: 'InnerProduct' bottom: 'data' top: 'ip'
      inner_product_param { num_output: 3 weight_filler { type: 'xavier' } } }
    layer { name: 'times' type: 'Python' bottom: 'ip' top: 'ip'
      python_param { module: 'user' layer: 'Times' param_str: '0.1' } }
    layer { name: 'loss' type: 'Python' bottom: 'ip' bottom: 'data' top: 'loss' loss_weight: 1
      python_param { module: 'user' layer: 'Euclidean' } }
    layer { name: 'quiet' type: 'Silence' bottom: 'label' }"""
SOLVER = """net: 'net.prototxt' base_lr: 0.001 lr_policy: 'fixed' momentum: 0.9 max_iter: 8
    snapshot_prefix: 'snap' random_seed: 3 """


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def use(gpu: bool) -> None:
    caffe.set_surgery(False)
    caffe.set_random_seed(1)
    caffe.set_mode_gpu() if gpu else caffe.set_mode_cpu()


def passes(gpu: bool) -> list[np.ndarray]:
    """What a program sees that writes everywhere before and between passes."""
    use(gpu)
    Path("net.prototxt").write_text(NET)
    net = caffe.Net("net.prototxt", caffe.TEST)
    generator = np.random.default_rng(0)
    for blob in [net.blobs["x"], *net.params["ip1"], *net.params["ip2"]]:
        blob.data[...] = generator.standard_normal(blob.shape)
    seen = [net.forward(y=np.zeros(4), x=net.blobs["x"].data)["prob"].copy()]
    net.backward()
    net.blobs["ip2"].data[...] *= 2
    net.params["ip2"][0].diff[...] += 1
    seen.append(net.forward(start="prob", end="prob")["prob"].copy())
    net.blobs["ip2"].diff[...] = generator.standard_normal((4, 2))
    seen.append(net.backward(start="ip2")["x"].copy())
    seen += [blob.diff.copy() for name in ("ip1", "ip2") for blob in net.params[name]]
    net.params["ip1"][1].data[...] = 1
    net.save("saved.caffemodel")
    other = caffe.Net("net.prototxt", caffe.TEST, weights="saved.caffemodel")
    seen.append(other.params["ip1"][1].data)
    net.blobs["x"].reshape(2, 3)
    net.blobs["y"].reshape(2)
    seen.append(net.forward()["prob"])
    return seen


def test_passes() -> None:
    for gpu, cpu in zip(passes(True), passes(False), strict=True):
        close(gpu, cpu)


def trained(gpu: bool) -> list[np.ndarray]:
    """What is left of training in which a program takes part."""
    use(gpu)
    caffe.allow_python_layers()
    Path("net.prototxt").write_text(TRAIN_NET)
    Path("solver.prototxt").write_text(SOLVER)
    solver = caffe.SGDSolver("solver.prototxt")
    solver.step(2)
    weight, bias = solver.net.params["ip"]
    bias.data[...] = [1, 2, 3]
    solver.step(1)
    weight.diff[...] = 5
    solver.apply_update()
    seen = [weight.data.copy(), bias.data, bias.diff]
    return seen + [blob.data for blob in solver.net.blobs.values()]


def test_training() -> None:
    for gpu, cpu in zip(trained(True), trained(False), strict=True):
        close(gpu, cpu)


def test_python_layers_under_the_solver_itself() -> None:
    Path("net.prototxt").write_text(TRAIN_NET)
    Path("solver.prototxt").write_text(SOLVER)
    weights = []
    for device in ("cuda", "cpu"):
        solver = Solver(
            read_solver("solver.prototxt").message,
            device=torch.device(device),
            surgery=False,
            allow_python_layers=True,
        )
        solver.step(8)
        source = solver.net.layer("data")
        assert isinstance(source, Python) and source.user.rows == 8  # type: ignore[attr-defined]
        weights.append(solver.net.params["ip"][0].detach().cpu().numpy())
    close(*weights)
