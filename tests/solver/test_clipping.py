"""clip_gradients: by the norm of all gradients together (`sgd_solver.cpp`, ClipGradients)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caffe_dns.solver.update_rules import solver_types
from tests.nets import make_net, recorded_log
from tests.solver.rules import NET, make, parse, put_gradients


@pytest.mark.parametrize("settings", ["iter_size: 3", "iter_size: 1"])
def test_clipping_is_by_the_sum_and_logged(settings: str) -> None:
    net, rule = make("SGD", f"clip_gradients: 2 {settings}")
    gradients = put_gradients(net, 0)
    norm = np.sqrt(sum((g**2).sum() for g in gradients))
    rule.rate.fill_(1)
    rule.apply()
    with recorded_log() as messages:
        rule.log_clipping()
    wanted = f"Gradient clipping: scaling down gradients (L2 norm {norm:.6g} > 2) by scale factor"
    assert messages[0].startswith(wanted)
    assert float(messages[0].split()[-1]) == pytest.approx(2 / norm, rel=1e-5)


def test_small_gradients_are_not_clipped() -> None:
    net, rule = make("SGD", "clip_gradients: 1000")
    put_gradients(net, 0)
    rule.apply()
    with recorded_log() as messages:
        rule.log_clipping()
    assert messages == []


def test_forced_gradients_count_in_clipping_and_are_freed() -> None:
    net = make_net("force_backward: true " + NET)
    rule = solver_types["SGD"](parse("clip_gradients: 1"), net.learnable_params)
    for param in net.learnable_params:
        if param.tensor.requires_grad:
            param.tensor.grad = torch.ones_like(param.tensor)
    count = sum(p.tensor.numel() for p in net.learnable_params if p.tensor.requires_grad)
    assert any(p.lr_mult == 0 for p in net.learnable_params if p.tensor.requires_grad)
    rule.apply()
    assert float(rule.norm) == pytest.approx(count**0.5)  # type: ignore[arg-type]
    assert all(p.tensor.grad is None for p in net.learnable_params)


def test_clipping_to_nothing() -> None:
    net, rule = make("SGD", "clip_gradients: 0")
    before = [p.tensor.detach().clone() for p in net.learnable_params]
    rule.rate.fill_(1)
    rule.apply()
    put_gradients(net, 0)
    rule.apply()
    assert all(
        torch.equal(p.tensor, old) for p, old in zip(net.learnable_params, before, strict=True)
    )
