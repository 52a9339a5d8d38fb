"""Zeros that stay zero through training, and the other weights, which learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from caffe_dns.errors import CaffeError
from tests.solver.harness import make_solver, small_net

CONVOLUTION = """
layer { name: "conv" type: "Convolution" bottom: "pool" top: "conv" MODE
  convolution_param { num_output: 4 group: 2 kernel_size: 2 weight_filler { type: "xavier" } } }
"""


def net(mode: str) -> str:
    """The small net with a convolution of two groups in front of its first inner product."""
    text = small_net().replace('bottom: "pool" top: "ip1"', f'bottom: "conv" top: "ip1" {mode}')
    before, first, rest = text.partition('layer { name: "ip1"')
    two = 'layer { name: "two" type: "Concat" bottom: "pool" bottom: "pool" top: "two" }'
    convolution = CONVOLUTION.replace("MODE", mode).replace('bottom: "pool"', 'bottom: "two"')
    return before + two + convolution + first + rest


def test_all_zeros(tmp_path: Path) -> None:
    solver = make_solver(
        tmp_path, "weight_decay: 0.01", net("connectivity_mode: DISCONNECTED_ELTWISE")
    )
    weights = [solver.net.params[name][0] for name in ("conv", "ip1")]
    zeros = [torch.rand(weight.shape, generator=torch.Generator()) < 0.5 for weight in weights]
    with torch.no_grad():
        for weight, some in zip(weights, zeros, strict=True):
            weight[some] = 0
    before = [weight.detach().clone() for weight in weights]
    for _ in range(2):
        solver.step(3)
        for weight, some, old in zip(weights, zeros, before, strict=True):
            assert torch.equal(weight == 0, some)
            assert (weight != old)[~some].all()


def test_zeros_in_groups(tmp_path: Path) -> None:
    """Of a convolution's rows and columns each group has its own; others may learn."""
    solver = make_solver(tmp_path, "", net("connectivity_mode: DISCONNECTED_GRPWISE"))
    conv, ip = (solver.net.params[name][0] for name in ("conv", "ip1"))
    stays = torch.zeros(conv.shape, dtype=torch.bool)
    stays[1] = True  # an output
    stays[2:, :, 0, 1] = True  # an input of the second group
    wide = torch.zeros(ip.shape, dtype=torch.bool)
    wide[:, 7] = True
    wide[3] = True
    with torch.no_grad():
        conv[stays] = 0
        conv[2, 0, 0, 0] = 0
        ip[wide] = 0
        ip[5, 9] = 0
    solver.step(4)
    assert torch.equal(conv == 0, stays)
    assert torch.equal(ip == 0, wide)


def test_a_snapshot_has_no_diff_of_what_stays(tmp_path: Path) -> None:
    settings = "weight_decay: 0.01 snapshot_diff: true"
    solver = make_solver(tmp_path, settings, net("connectivity_mode: DISCONNECTED_ELTWISE"))
    weight = solver.net.params["ip1"][0]
    with torch.no_grad():
        weight[::2, ::3] = 0
    solver.step(2)
    diffs = solver._last_update.diffs()
    assert diffs is not None
    (diff,) = (diff for param, diff in diffs.items() if param.tensor is weight)
    assert torch.equal(diff == 0, weight == 0)


def test_what_has_no_weights(tmp_path: Path) -> None:
    text = net("").replace('type: "ReLU"', 'type: "ReLU" connectivity_mode: DISCONNECTED_ELTWISE')
    with pytest.raises(CaffeError, match=r"'relu': connectivity_mode: type ReLU has no weights"):
        make_solver(tmp_path, "", text)
