"""The graph of a net definition as a picture: layers, blobs, and their connections.

After Caffe's `python/caffe/draw.py`. The graph is written as DOT text; Graphviz's program `dot`
makes pictures of that.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from caffe_dns.encoding import encode
from caffe_dns.errors import CaffeError
from caffe_dns.files import write_atomically
from caffe_dns.layers.spatial import SIDES
from caffe_dns.proto.caffe_pb2 import (
    ConvolutionParameter,
    LayerParameter,
    NetParameter,
    PoolingParameter,
)

RANKDIRS = ("LR", "RL", "TB", "BT")

#: Endings of files that hold the text itself.
_TEXT_FORMATS = ("dot", "gv", "raw")
_CONVOLUTIONS = (
    "Convolution",
    "Deconvolution",
    "CConvolution",
    "DepthwiseConvolution",
    "ConvolutionDepthwise",
)
_INNER_PRODUCTS = ("InnerProduct", "CInnerProduct")
_IN_PLACE_COLOR = "#90EE90"
_BLOB_COLOR = "#E0E0E0"
_OTHER_COLOR = "#6495ED"
_COLORS = {
    **dict.fromkeys(_CONVOLUTIONS, "#FF5050"),
    **dict.fromkeys(_INNER_PRODUCTS, "#CC33FF"),
    "Pooling": "#FF9900",
}


def to_dot(
    net: NetParameter,
    rankdir: str = "LR",
    *,
    display_lrm: bool = False,
    label_edges: bool = True,
) -> str:
    """All layers of `net` as DOT text, laid out from left to right or as `rankdir` says.

    With `display_lrm`, layers with weights show their learning rate multipliers. With
    `label_edges`, the way to a top says how many images or channels it has.
    """
    separator = " " if rankdir in ("TB", "BT") else "\n"
    nodes, edges = [], []
    blobs: dict[str, str] = {}
    for index, layer in enumerate(net.layer):
        node = f"layer{index}"  # not its name, which layers for TRAIN and TEST may share
        in_place = len(layer.top) == 1 and list(layer.bottom) == list(layer.top)
        color = _IN_PLACE_COLOR if in_place else _COLORS.get(layer.type, _OTHER_COLOR)
        label = separator.join(_describe(layer, separator, display_lrm))
        nodes.append(f'{node} [label={_quote(label)}, shape=box, fillcolor="{color}"]')
        for blob in (*layer.bottom, *layer.top):
            blobs.setdefault(blob, f"blob{len(blobs)}")
        edges += [f"{blobs[blob]} -> {node}" for blob in layer.bottom]
        through = _edge_label(layer) if label_edges else ""
        edges += [f"{node} -> {blobs[blob]} [label={_quote(through)}]" for blob in layer.top]
    nodes += [
        f'{node} [label={_quote(blob)}, shape=octagon, fillcolor="{_BLOB_COLOR}"]'
        for blob, node in blobs.items()
    ]
    head = [f"digraph {_quote(net.name or 'Net')} {{", f"rankdir={rankdir}", "node [style=filled]"]
    return "\n".join([*head, *nodes, *edges, "}\n"])


def save_graph(dot: str, path: str) -> None:
    """Write DOT text as the picture that the ending of `path` asks for, or as it is.

    Raises CaffeError when that takes a program that is not there, or an ending is unknown.
    """
    ending = Path(path).suffix[1:].lower()
    write_atomically(path, render(dot, ending, path))


def render(dot: str, ending: str, path: str) -> bytes:
    """The picture in the format that `ending` names, or the text itself; `path` is for errors.

    Raises CaffeError when that takes a program that is not there, or an ending is unknown.
    """
    if ending in _TEXT_FORMATS:
        return encode(dot)
    if not ending:
        raise CaffeError("has no ending that says what to make: .png, .svg, .pdf, .dot", file=path)
    program = shutil.which("dot")
    if program is None:
        raise CaffeError(
            f".{ending} needs the program 'dot' of Graphviz, which is not installed; "
            "a name that ends in .dot gets the graph as text",
            file=path,
        )
    done = subprocess.run([program, f"-T{ending}"], input=encode(dot), capture_output=True)
    if done.returncode:
        raise CaffeError(f"dot: {_first_line(done.stderr)}", file=path)
    return done.stdout


def _first_line(output: bytes) -> str:
    return next(iter(output.decode(errors="replace").splitlines()), "failed without a message")


def _describe(layer: LayerParameter, separator: str, display_lrm: bool) -> list[str]:
    """The parts of a layer's label: name, type, window, learning rates."""
    parts = [layer.name]
    if layer.type == "Pooling":
        pool = PoolingParameter.PoolMethod.Name(layer.pooling_param.pool)
        parts += [f"(Pooling {pool})", _pooling_window(layer.pooling_param, separator)]
    elif layer.type in _CONVOLUTIONS:
        parts += [f"({layer.type})", _convolution_window(layer.convolution_param, separator)]
    else:
        parts.append(f"({layer.type})")
    if display_lrm and layer.type in (*_CONVOLUTIONS, *_INNER_PRODUCTS):
        rates = [spec.lr_mult for spec in layer.param[:2]]
        rates += [1.0] * (2 - len(rates))
        if any(rates):
            parts.append("lr mult: " + ", ".join(f"{rate:.1f}" for rate in rates))
    return parts


def _pooling_window(param: PoolingParameter, separator: str) -> str:
    if param.global_pooling:
        return "global"
    return _window(
        [param.kernel_h, param.kernel_w] if param.HasField("kernel_h") else [param.kernel_size],
        [param.stride_h, param.stride_w] if param.HasField("stride_h") else [param.stride],
        _sides(param) or ([param.pad_h, param.pad_w] if param.HasField("pad_h") else [param.pad]),
        separator,
    )


def _convolution_window(param: ConvolutionParameter, separator: str) -> str:
    return _window(
        [param.kernel_h, param.kernel_w] if param.HasField("kernel_h") else param.kernel_size,
        [param.stride_h, param.stride_w] if param.HasField("stride_h") else param.stride or [1],
        _sides(param)
        or ([param.pad_h, param.pad_w] if param.HasField("pad_h") else param.pad or [0]),
        separator,
    )


def _sides(param: PoolingParameter | ConvolutionParameter) -> list[int]:
    """The padding of each side, or nothing where none is given."""
    sides = [getattr(param, name) for name in SIDES]
    return sides if any(sides) else []


def _window(
    kernel: Sequence[int], stride: Sequence[int], pad: Sequence[int], separator: str
) -> str:
    sizes = {"kernel size": kernel, "stride": stride, "pad": pad}
    return separator.join(f"{what}: {'x'.join(map(str, size))}" for what, size in sizes.items())


def _edge_label(layer: LayerParameter) -> str:
    """What a layer's tops have in common: images in a batch, or channels."""
    if layer.type == "Data":
        return f"Batch {layer.data_param.batch_size}"
    if layer.type in _CONVOLUTIONS:
        return str(layer.convolution_param.num_output)
    if layer.type in _INNER_PRODUCTS:
        return str(layer.inner_product_param.num_output)
    return ""


def _quote(text: str) -> str:
    """A string of DOT that shows as `text`."""
    escaped = text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'
