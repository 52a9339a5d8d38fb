"""A net as a program of torch.export, and compiled by torch.compile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from caffe_dns.layers.base import Context
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import TEST
from tests.nets import input_layer, ip, layer, make_net

CONV = "convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: 'xavier' } }"
POOL = "pooling_param { pool: MAX kernel_size: 2 stride: 2 }"
TEXT = (
    input_layer(data=(2, 3, 8, 8))
    + layer("conv", "Convolution", "data", "conv", CONV)
    + layer("relu", "ReLU", "conv", "conv")
    + layer("pool", "Pooling", "conv", "pool", POOL)
    + layer("bn", "BatchNorm", "pool", "bn")
    + ip("score", "bn")
    + layer("prob", "Softmax", "score", "prob")
)


def net(*, surgery: bool) -> Net:
    made = make_net(TEXT, TEST, Context(seed=3, surgery=surgery))
    with torch.no_grad():
        made.params["bn"][2].fill_(2)
        made.params["bn"][1].fill_(3)
        if surgery:
            made.params["score"][2][:, ::2] = 0
    return made


def images(number: int) -> Tensor:
    return torch.rand(number, 3, 8, 8, generator=torch.Generator().manual_seed(number))


@pytest.mark.slow
@pytest.mark.parametrize("surgery", [False, True])
def test_export_with_any_batch_size(surgery: bool) -> None:
    made = net(surgery=surgery)
    batch = torch.export.Dim("batch")
    program = torch.export.export(made, (images(4),), dynamic_shapes=({0: batch},))
    for number in (3, 9):
        found, expected = program.module()(images(number)), made(images(number))
        assert list(found) == list(expected)
        for blob, value in expected.items():
            torch.testing.assert_close(found[blob], value)
    assert set(program.state_dict) == set(made.state_dict())


@pytest.mark.slow
def test_export_with_any_image_size() -> None:
    made = make_net(
        input_layer(data=(2, 3, 8, 8)) + layer("conv", "Convolution", "data", "conv", CONV), TEST
    )
    sizes = {axis: torch.export.Dim(name, min=4) for axis, name in ((2, "height"), (3, "width"))}
    program = torch.export.export(made, (images(4),), dynamic_shapes=(sizes,))
    other = torch.rand(4, 3, 9, 5)
    torch.testing.assert_close(program.module()(other)["conv"], made(other)["conv"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_compiled() -> None:
    """In pieces; what was exported, as a whole. Inductor's code takes minutes on a CPU."""
    made = net(surgery=True)
    compiled = torch.compile(made, backend="aot_eager")
    data = images(4).requires_grad_()
    torch.testing.assert_close(compiled(data)["prob"], made(data)["prob"])
    (found,) = torch.autograd.grad(compiled(data)["prob"][:, 0].sum(), data)
    (expected,) = torch.autograd.grad(made(data)["prob"][:, 0].sum(), data)
    torch.testing.assert_close(found, expected)
    assert expected.any()
    program = torch.export.export(net(surgery=False), (images(4),))
    whole = torch.compile(program.module(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(whole(images(4))["prob"], net(surgery=False)(images(4))["prob"])
