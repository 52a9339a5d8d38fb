"""caffe.draw: pictures of definitions."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import caffe_dns.pycaffe as caffe
from caffe_dns.errors import CaffeError
from caffe_dns.proto.text import parse_text
from caffe_dns.pycaffe import draw
from caffe_dns.reports import drawing

NET = parse_text(
    """
    layer { name: 'in' type: 'Input' top: 'x' input_param { shape { dim: 4 dim: 3 } } }
    layer { name: 'ip' type: 'InnerProduct' bottom: 'x' top: 'y'
      inner_product_param { num_output: 77 } }
    layer { name: 'only' type: 'Silence' bottom: 'y' include { phase: TRAIN } }""",
    caffe.proto.caffe_pb2.NetParameter,
).message


def test_text() -> None:
    text = draw.draw_net(NET, "TB", "raw").decode()
    assert "rankdir=TB" in text and '"77"' in text and "only" in text and "lr mult" not in text
    assert "only" not in draw.draw_net(NET, "LR", "dot", phase=caffe.TEST).decode()
    assert "lr mult: 1.0, 1.0" in draw.draw_net(NET, "LR", "dot", display_lrm=True).decode()
    draw.draw_net_to_file(NET, "net.dot")
    assert Path("net.dot").read_bytes() == draw.draw_net(NET, "LR", "dot")


def test_old_definitions() -> None:
    old = caffe.proto.caffe_pb2.NetParameter()
    old.layers.add(name="r", type=old.layers.add().RELU, bottom=["a"], top=["a"])
    del old.layers[0]
    assert "(ReLU)" in draw.draw_net(old, "LR", "dot").decode()
    assert not old.layer  # the caller's message stays as it is


def test_pictures_are_dots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "dot"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nprint(sys.argv[1], sys.stdin.read()[:7])\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert draw.draw_net(NET, "LR") == b"-Tpng digraph\n"
    draw.draw_net_to_file(NET, "net.svg")
    assert Path("net.svg").read_bytes() == b"-Tsvg digraph\n"
    monkeypatch.setattr(drawing.shutil, "which", lambda name: None)
    with pytest.raises(CaffeError, match=r"\.png needs the program 'dot' of Graphviz"):
        draw.draw_net(NET, "LR")


def test_pydot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydot", None)
    with pytest.raises(CaffeError, match="needs the package pydot"):
        draw.get_pydot_graph(NET, "LR")
    monkeypatch.setitem(
        sys.modules, "pydot", SimpleNamespace(graph_from_dot_data=lambda text: [text])
    )
    assert draw.get_pydot_graph(NET, "LR") == draw.draw_net(NET, "LR", "dot").decode()
    assert '"77"' not in draw.get_pydot_graph(NET, "LR", label_edges=False)


def test_wrong_direction() -> None:
    with pytest.raises(CaffeError, match="rankdir must be one of LR, RL, TB, BT, not 'up'"):
        draw.draw_net(NET, "up")
