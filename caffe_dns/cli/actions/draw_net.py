"""`dns draw_net` (python/draw_net.py)."""

from __future__ import annotations

import click

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.files import check_target
from caffe_dns.net.definition import filter_layers, with_state
from caffe_dns.proto.caffe_pb2 import NetParameter, Phase
from caffe_dns.proto.upgrade import read_net
from caffe_dns.reports.drawing import RANKDIRS, save_graph, to_dot


def run(
    input_net_proto_file: str,
    output_image_file: str,
    rankdir: str,
    phase: str,
    display_lrm: bool,
) -> None:
    """Do what `dns draw_net` is asked for, by the values of its flags."""
    if rankdir not in RANKDIRS:
        raise CaffeError(f"-rankdir must be one of {', '.join(RANKDIRS)}, not '{rankdir}'")
    if phase not in ("TRAIN", "TEST", "ALL"):
        raise CaffeError(f"-phase must be TRAIN, TEST or ALL, not '{phase}'")
    check_target(output_image_file, [input_net_proto_file])
    net = _read(input_net_proto_file, phase)
    click.echo(f"Drawing net to {output_image_file}")
    save_graph(to_dot(net, rankdir, display_lrm=display_lrm), output_image_file)


def _read(path: str, phase: str) -> NetParameter:
    """The layers of the net that are in this phase; for ALL, all of them."""
    net = read_net(path).message
    if phase == "ALL":
        return net
    with log.silenced:
        try:
            return filter_layers(with_state(net, Phase.Value(phase)))[0]
        except CaffeError as error:
            raise error.locate(file=path) from None
