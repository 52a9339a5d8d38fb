"""Building nets and solvers from a few lines of prototxt, and listening to what they log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Context
from caffe_dns.net import Net
from caffe_dns.net.definition import with_state
from caffe_dns.proto.caffe_pb2 import TRAIN, NetParameter, Phase
from caffe_dns.proto.text import parse_text


def parse_net(text: str) -> NetParameter:
    """The definition in `text`."""
    param: NetParameter = parse_text(text, NetParameter).message
    return param


def make_net(
    text: str, phase: Phase = TRAIN, context: Context | None = None, *, quiet: bool = True
) -> Net:
    """The net that `text` defines; what it logs is dropped unless `quiet` is false."""
    was_quiet = log.set_quiet(quiet)
    try:
        return Net(with_state(parse_net(text), phase), context)
    finally:
        log.set_quiet(was_quiet)


def refused(text: str, phase: Phase = TRAIN) -> str:
    """What building the net complains about."""
    with pytest.raises(CaffeError) as caught:
        make_net(text, phase)
    message = str(caught.value)
    assert "\n" not in message
    return message


@contextmanager
def recorded_log() -> Iterator[list[str]]:
    """The messages logged inside, without their prefixes."""
    messages: list[str] = []
    log.set_sink(lambda line: messages.append(line.split("] ", 1)[1]))
    try:
        yield messages
    finally:
        log.set_sink(None)


def input_layer(**shapes: tuple[int, ...]) -> str:
    """An Input layer with these tops."""
    tops = "".join(f"top: '{name}' " for name in shapes)
    dims = "".join(
        f"shape {{ {' '.join(f'dim: {extent}' for extent in shape)} }} "
        for shape in shapes.values()
    )
    return f"layer {{ name: 'in' type: 'Input' {tops} input_param {{ {dims} }} }}\n"


DATA = input_layer(data=(3, 4), label=(3,))


def layer(name: str, kind: str, bottoms: str, tops: str, more: str = "") -> str:
    """A layer; blobs are words."""
    blobs = "".join(f"bottom: '{b}' " for b in bottoms.split())
    blobs += "".join(f"top: '{t}' " for t in tops.split())
    return f"layer {{ name: '{name}' type: '{kind}' {blobs} {more} }}\n"


def ip(name: str, bottom: str, more: str = "", outputs: int = 5) -> str:
    """An InnerProduct layer whose top has its name."""
    filled = f"num_output: {outputs} weight_filler {{ type: 'gaussian' }}"
    return layer(name, "InnerProduct", bottom, name, f"inner_product_param {{ {filled} }} {more}")


def feed(net: Net, seed: int = 0) -> dict[str, Tensor]:
    """Random values for all inputs; labels are small whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(0, 3, net.blob_shapes[name], generator=generator).float()
        if name.startswith("label")
        else torch.rand(net.blob_shapes[name], generator=generator)
        for name in net.inputs
    }


def backward_flags(net: Net) -> dict[str, tuple[bool, list[bool]]]:
    """For each layer whether it takes part in backward, and which bottoms get a gradient."""
    return {s.layer.name: (s.needs_backward, s.bottom_backward) for s in net.steps}


def build_log(text: str, phase: Phase = TRAIN) -> list[str]:
    """What building the net logs."""
    with recorded_log() as messages:
        make_net(text, phase, quiet=False)
    return messages
