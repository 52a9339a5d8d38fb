"""A plain model as an ONNX file.

Values have the names of Caffe's blobs where they are inputs or outputs, and of the layers in
between; constants are called LAYER.weight, LAYER.bias. Batches may have any size, unless the
definition ties other axes to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from caffe_dns import __version__
from caffe_dns.errors import CaffeError, first_line
from caffe_dns.export import (  # noqa: F401 (they register converters)
    onnx_detection,
    onnx_forks,
    onnx_layers,
    onnx_neurons,
    onnx_recurrent,
    onnx_shapes,
    onnx_tensors,
)
from caffe_dns.export.formats import export_format
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.export.onnx_graph import Bottoms, Graph, converters
from caffe_dns.layers.base import Shape
from caffe_dns.net import Net
from caffe_dns.proto.text import MAX_BYTES

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

#: What every ONNX runtime since 2021 reads.
_OPSET, _IR_VERSION = 15, 8


@export_format("onnx", ".onnx")
def to_onnx(model: UnmaskedModel) -> bytes:
    """The bytes of an .onnx file. Raises CaffeError for layers that ONNX has nothing for."""
    try:
        import onnx
    except ImportError:
        raise CaffeError("this needs the package onnx: pip install 'caffe-dns[onnx]'") from None
    converted = _convert(model)
    if converted.ByteSize() > MAX_BYTES:
        raise CaffeError(
            "more than 2 GiB, which an .onnx file cannot hold; a .safetensors file would be right"
        )
    try:
        onnx.checker.check_model(converted)
    except onnx.checker.ValidationError as error:  # a blob without a name, say
        raise CaffeError(f"cannot be expressed in ONNX: {first_line(error)}") from None
    return converted.SerializeToString()


def _convert(model: UnmaskedModel) -> ModelProto:
    from onnx.helper import make_graph, make_model, make_opsetid

    net = model.to_net()
    graph = Graph()
    values = {blob: graph.take_name(blob) for blob in net.inputs}
    shapes: dict[str, Shape] = {}
    for step in net.steps:
        top_shapes = step.layer.top_shapes([shapes[blob] for blob in step.bottoms])
        if not step.layer.is_input:
            tops = _convert_layer(
                Bottoms(
                    graph,
                    step.layer,
                    [values[blob] for blob in step.bottoms],
                    [shapes[blob] for blob in step.bottoms],
                    top_shapes,
                )
            )
            values.update(zip(step.tops, tops, strict=True))
        shapes.update(zip(step.tops, map(tuple, top_shapes), strict=True))
    _name_outputs(graph, net, values)
    result = make_graph(
        graph.nodes,
        net.name or "net",
        [_describe(blob, net.blob_shapes[blob], net, graph) for blob in net.inputs],
        [_describe(blob, shapes[blob], net, graph) for blob in net.outputs],
        graph.constants,
        doc_string="\n".join(model.definition.remarks),
    )
    return make_model(
        result,
        producer_name="dns",
        producer_version=__version__,
        ir_version=_IR_VERSION,
        opset_imports=[make_opsetid("", _OPSET)],
    )


def _convert_layer(bottoms: Bottoms) -> list[str]:
    if bottoms.layer.type not in converters:
        raise bottoms.unsupported(f"a layer of type {bottoms.layer.type}")
    return converters[bottoms.layer.type](bottoms)


def _name_outputs(graph: Graph, net: Net, values: dict[str, str]) -> None:
    """Call the outputs' values what Caffe calls the blobs."""
    made = {value for node in graph.nodes for value in node.output}
    for blob in net.outputs:
        value = values[blob]
        if value == blob:
            continue
        if blob in made:
            # Another layer has that name; its value gets out of the way.
            graph.rename(blob, graph.take_name(f"{blob}_"))
        if value in made and value not in net.outputs:
            graph.rename(value, blob)
            values.update({other: blob for other, its in values.items() if its == value})
        else:
            graph.add_node("Identity", [value], blob, 1, {})
            if value in graph.extents:
                graph.extents[blob] = graph.extents[value]


def _describe(blob: str, shape: Shape, net: Net, graph: Graph) -> ValueInfoProto:
    from onnx import TensorProto
    from onnx.helper import make_tensor_value_info

    batch = net.blob_shapes[net.inputs[0]][:1] if net.inputs else ()
    extents = graph.extents.get(blob, list(shape))
    if blob not in graph.extents and not graph.fixed_batch and batch and tuple(shape[:1]) == batch:
        extents[0] = "N"
    return make_tensor_value_info(blob, TensorProto.FLOAT, extents)
