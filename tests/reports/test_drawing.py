"""The graph of a net as DOT text."""

from __future__ import annotations

import pytest

from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.proto.text import parse_text
from caffe_dns.reports.drawing import to_dot


def lines(definition: str, rankdir: str = "LR", *, display_lrm: bool = False) -> list[str]:
    net = parse_text(definition, NetParameter).message
    return to_dot(net, rankdir, display_lrm=display_lrm).splitlines()


def test_layers_blobs_and_edges() -> None:
    assert lines(
        'name: "two" '
        'layer { name: "d" type: "Data" top: "data" data_param { batch_size: 9 } } '
        'layer { name: "r" type: "ReLU" bottom: "data" top: "data" }'
    ) == [
        'digraph "two" {',
        "rankdir=LR",
        "node [style=filled]",
        r'layer0 [label="d\n(Data)", shape=box, fillcolor="#6495ED"]',
        r'layer1 [label="r\n(ReLU)", shape=box, fillcolor="#90EE90"]',
        'blob0 [label="data", shape=octagon, fillcolor="#E0E0E0"]',
        'layer0 -> blob0 [label="Batch 9"]',
        "blob0 -> layer1",
        'layer1 -> blob0 [label=""]',
        "}",
    ]


@pytest.mark.parametrize(
    ("layer", "label"),
    [
        (
            'type: "Convolution" convolution_param { num_output: 5 kernel_size: 3 }',
            "(Convolution) kernel size: 3 stride: 1 pad: 0",
        ),
        (
            'type: "Deconvolution" convolution_param { kernel_size: 3 kernel_size: 5 stride: 2 }',
            "(Deconvolution) kernel size: 3x5 stride: 2 pad: 0",
        ),
        (
            'type: "CConvolution" convolution_param { kernel_h: 1 kernel_w: 7 pad_h: 0 pad_w: 3 }',
            "(CConvolution) kernel size: 1x7 stride: 1 pad: 0x3",
        ),
        (
            'type: "Pooling" pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }',
            "(Pooling AVE) kernel size: 3 stride: 2 pad: 1",
        ),
        (
            'type: "Pooling" pooling_param { kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 1 }',
            "(Pooling MAX) kernel size: 3x2 stride: 2x1 pad: 0",
        ),
        ('type: "Pooling" pooling_param { global_pooling: true }', "(Pooling MAX) global"),
        ('type: "InnerProduct" inner_product_param { num_output: 4 }', "(InnerProduct)"),
    ],
)
def test_labels(layer: str, label: str) -> None:
    [node] = [line for line in lines(f'layer {{ name: "x" {layer} }}', "TB") if "layer0 [" in line]
    assert f'"x {label}"' in node


def test_edges_say_how_many_channels() -> None:
    text = lines(
        'layer { name: "c" type: "Convolution" top: "a" convolution_param { num_output: 5 } }'
        'layer { name: "i" type: "CInnerProduct" bottom: "a" top: "b"'
        " inner_product_param { num_output: 4 } }"
    )
    assert 'layer0 -> blob0 [label="5"]' in text
    assert 'layer1 -> blob1 [label="4"]' in text


@pytest.mark.parametrize(
    ("params", "shown"),
    [
        ("", "lr mult: 1.0, 1.0"),
        ("param { lr_mult: 0.5 }", "lr mult: 0.5, 1.0"),
        ("param { lr_mult: 1 } param { lr_mult: 2 } param { lr_mult: 0 }", "lr mult: 1.0, 2.0"),
        ("param { lr_mult: 0 } param { lr_mult: 0 }", None),
    ],
)
def test_learning_rate_multipliers(params: str, shown: str | None) -> None:
    definition = f'layer {{ name: "i" type: "InnerProduct" {params} }}'
    text = "\n".join(lines(definition, display_lrm=True))
    assert (shown in text) if shown else ("lr mult" not in text)
    assert "lr mult" not in "\n".join(lines(definition))


def test_names_are_quoted() -> None:
    text = lines(r'layer { name: "a\"b\\c" type: "Split" bottom: "x:y|{z}" }')
    assert text[3].startswith(r'layer0 [label="a\"b\\c\n(Split)"')
    assert 'blob0 [label="x:y|{z}", shape=octagon, fillcolor="#E0E0E0"]' in text
