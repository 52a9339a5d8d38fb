"""A net with random weights and gradients for update rules to move."""

from __future__ import annotations

import numpy as np
import torch

from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.proto.text import parse_text
from caffe_dns.solver.update_rules import UpdateRule, solver_types
from tests.nets import input_layer, ip, layer, make_net

NET = (
    input_layer(data=(3, 4))
    + layer("bn", "BatchNorm", "data", "bn")
    + ip("a", "bn", "param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }")
    + ip("frozen", "a", "param { lr_mult: 0 } param { lr_mult: 0 decay_mult: 3 }")
    + ip("b", "frozen", "param { lr_mult: 0.5 decay_mult: 2 } param { }")
)
TYPES = {
    "SGD": "momentum: 0.9",
    "Nesterov": "momentum: 0.95",
    "AdaGrad": "delta: 1e-3",
    "RMSProp": "rms_decay: 0.9 delta: 1e-3",
    "AdaDelta": "momentum: 0.95 delta: 1e-3",
    "Adam": "momentum: 0.9 momentum2: 0.99 delta: 1e-3",
}


def parse(text: str) -> SolverParameter:
    param: SolverParameter = parse_text(text, SolverParameter).message
    return param


def make(kind: str, settings: str = "") -> tuple[Net, UpdateRule]:
    """The net with random weights, masks included, and a rule for it."""
    net = make_net(NET)
    generator = torch.Generator().manual_seed(1)
    for param in net.learnable_params:
        param.tensor.data.copy_(torch.randn(param.tensor.shape, generator=generator))
    rule = solver_types[kind](parse(f"type: '{kind}' {settings}"), net.learnable_params)
    return net, rule


def put_gradients(net: Net, step: int) -> list[np.ndarray]:
    """Random gradients where backward leaves them; zeros, and none put, for what never learns."""
    generator = torch.Generator().manual_seed(100 + step)
    gradients = []
    for param in net.learnable_params:
        gradient = torch.randn(param.tensor.shape, generator=generator)
        if param.lr_mult == 0:
            gradient.zero_()
        else:
            param.tensor.grad = gradient.to(param.tensor.device, copy=True)
        gradients.append(gradient.double().numpy())
    return gradients
