"""The table and the lines that `dns time` adds, from figures that are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_dns import load_net
from caffe_dns.net import Net
from caffe_dns.profile.layer_memory import LayerMemory
from caffe_dns.profile.report import LayerCost, NetCost, bytes_text, to_lines, to_table

COSTS = [
    LayerCost("data", "Data", 0.25, 0.0, LayerMemory(0, 2048, 1024)),
    LayerCost("ip", "InnerProduct", 0.75, 1.0, LayerMemory(3 << 20, 100, 0, 5 << 30)),
]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (999 << 10, "999.0 KiB"),
        (1000 << 10, "1.0 MiB"),
        (3 << 29, "1.5 GiB"),
        (5000 << 30, "5000.0 GiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert bytes_text(size) == text


def test_table() -> None:
    assert to_table(COSTS) == [
        "layer  type          forward ms  backward ms  parameters     tops     kept     peak",
        "-----------------------------------------------------------------------------------",
        "data   Data               0.250        0.000              2.0 KiB  1.0 KiB",
        "ip     InnerProduct       0.750        1.000     3.0 MiB    100 B           5.0 GiB",
        "-----------------------------------------------------------------------------------",
        "total                     1.000        1.000     3.0 MiB  2.1 KiB  1.0 KiB",
    ]


def test_there_are_no_peaks_where_none_were_measured() -> None:
    assert all("peak" not in line for line in to_table(COSTS[:1]))


def test_long_names_are_cut() -> None:
    cost = LayerCost("a" * 50, "Data", 1.0, 1.0, LayerMemory())
    assert to_table([cost])[2].startswith("a" * 14 + ".." + "a" * 14 + "  Data")


@pytest.fixture
def definition(tmp_path: Path) -> Path:
    path = tmp_path / "net.prototxt"
    path.write_text(
        'layer { name: "in" type: "Input" top: "a" input_param { shape { dim: 8 dim: 3 } } }'
    )
    return path


def test_lines(definition: Path) -> None:
    net: Net = load_net(definition, "TRAIN")
    assert to_lines(net, COSTS, NetCost(4.0, (3 << 30, 7 << 29))) == [
        "Batch size: 8",
        "Images per second, layer by layer: 4000.0, 2.000 ms each (forward and backward)",
        "Images per second, training passes: 2000.0, 4.000 ms each "
        "(data, forward and backward, no update)",
        "Peak memory, training passes: 3.0 GiB allocated, 3.5 GiB held for it by the allocator",
    ]
    scoring = to_lines(load_net(definition, "TEST"), COSTS, NetCost(4.0, None))
    assert scoring[2:] == [
        "Images per second, scoring passes: 2000.0, 4.000 ms each (data and forward)",
        "Peak memory, scoring passes: not measured on the CPU",
    ]
