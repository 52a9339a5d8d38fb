"""What other Caffe forks do differently in their files.

Fields that dns does not have are known by name, to say so when a definition uses one; field numbers
that mean something else in the fork with the official surgery layers are put right."""

from __future__ import annotations

from google.protobuf.message import Message

from caffe_dns.proto.caffe_pb2 import NetParameter

#: Fork -> message -> its fields.
_FORKS: dict[str, dict[str, tuple[str, ...]]] = {}


def foreign_field(message: str, field: str) -> str | None:
    """The fork whose message of that name has that field, or None."""
    for fork, messages in _FORKS.items():
        if field in messages.get(message, ()):
            return fork
    return None


def restore_surgery_fields(message: Message) -> None:
    """Undo, in a net read from a binary file, that two forks use the same numbers for other things.

    In yiwenguo's fork the fields 140 and 141 of a layer are cconvolution_param and
    cinner_product_param; everywhere else they are elu_param and bias_param. The type tells which.
    Parsing keeps what it does not know, so the misread message still has every byte.
    """
    if not isinstance(message, NetParameter):
        return
    for layer in message.layer:
        if layer.type == "CConvolution" and layer.HasField("elu_param"):
            layer.cconvolution_param.MergeFromString(layer.elu_param.SerializeToString())
            layer.ClearField("elu_param")
        if layer.type == "CInnerProduct" and layer.HasField("bias_param"):
            layer.cinner_product_param.MergeFromString(layer.bias_param.SerializeToString())
            layer.ClearField("bias_param")
