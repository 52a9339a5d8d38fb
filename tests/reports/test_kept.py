"""What is left of a pruned net, counted by hand."""

from __future__ import annotations

import torch

from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.proto.text import parse_text
from caffe_dns.reports.kept import count_kept, kept_lines
from caffe_dns.reports.summary import summarize
from caffe_dns.surgery.layer_count import LayerCount
from caffe_dns.surgery.stages import plan
from caffe_dns.surgery.surgeon import Surgeon
from tests.nets import input_layer, layer, make_net

DATA = input_layer(data=(2, 1, 6, 5), flat=(2, 8))


def conv(name: str, settings: str = "") -> str:
    inner = f"convolution_param {{ num_output: 4 kernel_size: 3 {settings} }}"
    return layer(name, "Convolution", "data", name, inner)


def ip(name: str, params: str = "", kind: str = "InnerProduct", settings: str = "") -> str:
    inner = f"inner_product_param {{ num_output: 6 {settings} }} {params}"
    return layer(name, kind, "flat", name, inner)


def filled(text: str) -> Net:
    """The net with all values 1, masks included, but the first three of each blob's first axis."""
    net = make_net(text)
    for param in net.learnable_params:
        param.tensor.data.fill_(1)
        if param.is_mask:
            param.tensor.data[:3] = 0
    return net


def test_masked_and_zero_parameters_are_gone() -> None:
    net = filled(DATA + conv("conv", "bias_term: false") + ip("a") + ip("b", kind="CInnerProduct"))
    net.params["a"][1].data[2] = 0
    assert count_kept(net) == [
        LayerCount("conv", 9, 36),
        LayerCount("a", 24 + 5, 54),
        LayerCount("b", 24 + 3, 54),
    ]


def test_shared_parameters_count_once() -> None:
    text = DATA + ip("a", "param { name: 'w' }") + ip("b", "param { name: 'w' } param { }")
    both = "param { name: 'w' share_mode: PERMISSIVE } param { name: 'v' }"
    text += ip("c", both, settings="transpose: true")
    text += ip("d", both, settings="transpose: true")
    net = filled(text)
    net.params["a"][2][:3], net.params["a"][2][3:] = 0, 1  # the one mask of all four
    assert count_kept(net) == [
        LayerCount("a", 24 + 6, 54),
        LayerCount("b", 6, 6),
        LayerCount("c", 6, 6),
    ]


def test_one_way_of_counting_with_batch_norm() -> None:
    """A compression of 5 leaves a fifth, however it is counted."""
    text = DATA + conv("conv") + layer("bn", "BatchNorm", "conv", "bn")
    text += layer("scale", "Scale", "bn", "scale", "scale_param { bias_term: true }")
    inner = "inner_product_param { num_output: 9 bias_term: false }"
    text += layer("ip", "InnerProduct", "scale", "ip", inner)
    net = make_net(text)
    for seed, param in enumerate(net.learnable_params):
        if not param.is_mask:
            param.tensor.data.normal_(generator=torch.Generator().manual_seed(seed))
    total = 4 * 9 + 4 + 2 * 4 + 9 * 4 * 3 * 4
    stage = "surgery_stage { iterations: 2 interval: 1 end_iter: 1 compression: 5 }"
    stage += " lr_policy: 'fixed'"
    surgeon = Surgeon.of_net(net, plan(parse_text(stage, SolverParameter).message), 1)
    for iteration in range(2):
        surgeon.update_masks(iteration)
    counts = count_kept(net)
    assert [count.name for count in counts] == ["conv", "scale", "ip"]
    assert sum(count.total for count in counts) == total
    assert sum(count.kept for count in counts) == total // 5
    rows = summarize(net)
    assert sum(row.parameters for row in rows) == total
    assert sum(row.kept for row in rows) == total // 5


def test_lines() -> None:
    net = filled(DATA + ip("a") + ip("b"))
    assert kept_lines(count_kept(net)) == [
        "Kept a: 30 of 54 parameters (55.56 %)",
        "Kept b: 30 of 54 parameters (55.56 %)",
        "Kept in all: 60 of 108 parameters (1.8 times smaller)",
    ]
    for blob in net.parameters():
        blob.data.zero_()
    assert kept_lines(count_kept(net))[-1] == "Kept in all: 0 of 108 parameters (nothing is left)"


def test_nothing_is_said_of_a_dense_net() -> None:
    net = make_net(DATA + ip("a") + ip("b"))
    for blob in net.parameters():
        blob.data.copy_(torch.ones_like(blob))
    net.params["a"][1].data[0] = 0
    assert kept_lines(count_kept(net)) == kept_lines(count_kept(make_net(DATA))) == []
