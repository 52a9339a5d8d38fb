"""`caffe.draw`: pictures of net definitions, by Graphviz's program `dot` (`draw.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from caffe_dns.errors import CaffeError
from caffe_dns.net.definition import filter_layers, with_state
from caffe_dns.proto.caffe_pb2 import NetParameter, Phase
from caffe_dns.proto.upgrade import upgrade_net
from caffe_dns.reports.drawing import RANKDIRS, render, save_graph, to_dot


def draw_net(
    caffe_net: NetParameter,
    rankdir: str,
    ext: str = "png",
    phase: Phase | None = None,
    display_lrm: bool = False,
) -> bytes:
    """The picture in the format `ext`: png, svg, pdf, or dot and raw for the graph as text.

    `rankdir` is LR, RL, TB or BT; `phase` leaves out the layers of the other one; `display_lrm`
    shows learning rate multipliers. Raises CaffeError where there is no program `dot`.
    """
    return render(_graph(caffe_net, rankdir, phase, display_lrm), ext, "the picture")


def draw_net_to_file(
    caffe_net: NetParameter,
    filename: str | Path,
    rankdir: str = "LR",
    phase: Phase | None = None,
    display_lrm: bool = False,
) -> None:
    """Write the picture that `draw_net` gives in the format that the name ends in."""
    save_graph(_graph(caffe_net, rankdir, phase, display_lrm), str(filename))


def get_pydot_graph(
    caffe_net: NetParameter,
    rankdir: str,
    label_edges: bool = True,
    phase: Phase | None = None,
    display_lrm: bool = False,
) -> Any:
    """The graph as one of the package pydot, which has to be installed."""
    try:
        import pydot
    except ImportError:
        raise CaffeError("get_pydot_graph needs the package pydot: pip install pydot") from None
    text = _graph(caffe_net, rankdir, phase, display_lrm, label_edges=label_edges)
    return pydot.graph_from_dot_data(text)[0]


def _graph(
    net: NetParameter,
    rankdir: str,
    phase: Phase | None,
    display_lrm: bool,
    *,
    label_edges: bool = True,
) -> str:
    if rankdir not in RANKDIRS:
        raise CaffeError(f"rankdir must be one of {', '.join(RANKDIRS)}, not '{rankdir}'")
    today = NetParameter()
    today.CopyFrom(net)
    today = upgrade_net(today, "the net")
    if phase is not None:
        today = filter_layers(with_state(today, phase))[0]
    return to_dot(today, rankdir, display_lrm=display_lrm, label_edges=label_edges)
