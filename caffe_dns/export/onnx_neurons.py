"""Elementwise layers (`layers.neuron`) as ONNX nodes."""

from __future__ import annotations

from typing import cast

from caffe_dns.export.onnx_graph import FLOAT, Bottoms, converts
from caffe_dns.layers import neuron


@converts("ReLU")
def relu(at: Bottoms) -> list[str]:
    slope = cast(neuron.ReLU, at.layer).negative_slope
    if slope == 0:
        return [at.add("Relu", *at.values)]
    return [at.add("LeakyRelu", *at.values, alpha=slope)]


@converts("PReLU")
def prelu(at: Bottoms) -> list[str]:
    slopes = at.layer.blobs[0]
    if slopes.dim():
        slopes = slopes.reshape(-1, *[1] * (at.rank - 2))
    return [at.add("PRelu", at.values[0], at.constant("weight", slopes))]


@converts("Sigmoid")
def sigmoid(at: Bottoms) -> list[str]:
    return [at.add("Sigmoid", *at.values)]


@converts("TanH")
def tanh(at: Bottoms) -> list[str]:
    return [at.add("Tanh", *at.values)]


@converts("BNLL")
def bnll(at: Bottoms) -> list[str]:
    return [at.add("Softplus", *at.values)]


@converts("AbsVal")
def absval(at: Bottoms) -> list[str]:
    return [at.add("Abs", *at.values)]


@converts("ELU")
def elu(at: Bottoms) -> list[str]:
    return [at.add("Elu", *at.values, alpha=cast(neuron.ELU, at.layer).alpha)]


@converts("Swish")
def swish(at: Bottoms) -> list[str]:
    scaled = at.affine(at.values[0], cast(neuron.Swish, at.layer).beta, 0.0)
    return [at.add("Mul", at.values[0], at.add("Sigmoid", scaled))]


@converts("Power")
def power(at: Bottoms) -> list[str]:
    layer = cast(neuron.Power, at.layer)
    base = at.affine(at.values[0], layer.scale, layer.shift)
    if layer.power == 1:
        return [base]
    return [at.add("Pow", base, at.number("power", layer.power))]


@converts("Exp")
def exp(at: Bottoms) -> list[str]:
    layer = cast(neuron.Exp, at.layer)
    return [at.add("Exp", at.affine(at.values[0], layer.scale, layer.shift))]


@converts("Log")
def log(at: Bottoms) -> list[str]:
    layer = cast(neuron.Log, at.layer)
    value = at.add("Log", at.affine(at.values[0], layer.scale, layer.shift))
    return [at.affine(value, layer.outer_scale, 0.0)]


@converts("Clip")
def clip(at: Bottoms) -> list[str]:
    layer = cast(neuron.Clip, at.layer)
    # In two steps: where min is above max, min wins in Caffe.
    value = at.add("Min", at.values[0], at.number("max", layer.most))
    return [at.add("Max", value, at.number("min", layer.least))]


@converts("Threshold")
def threshold(at: Bottoms) -> list[str]:
    limit = at.number("threshold", cast(neuron.Threshold, at.layer).threshold)
    return [at.add("Cast", at.add("Greater", at.values[0], limit), to=FLOAT)]
