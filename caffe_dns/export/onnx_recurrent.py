"""LSTM and RNN as ONNX nodes, unrolled over the timesteps as in Caffe.

ONNX's own operators have no indicators of where a sequence begins. Where a definition does not
expose the states, they are zero at the beginning of every run; in Caffe they continue from the
previous pass where the indicators of the first timestep are not 0.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from caffe_dns.export.onnx_graph import Bottoms, converts
from caffe_dns.layers.recurrent import LSTM, RNN, Recurrent


@converts("LSTM", "RNN")
def recurrent(at: Bottoms) -> list[str]:
    layer = cast(Recurrent, at.layer)
    timesteps, streams = at.shapes[0][:2]
    at.graph.fixed_batch = True
    inputs = _linear(at, at.reshape(at.values[0], [timesteps, streams, -1]), "x", 0, bias=1)
    if layer.has_static:
        static = _linear(at, at.reshape(at.values[2], [streams, -1]), "static", 2)
        inputs = at.add("Add", inputs, static)
    ones = at.integers("ones", [1] * timesteps)
    steps = at.add_many("Split", timesteps, inputs, ones, axis=0)
    marks = at.reshape(at.values[1], [timesteps, streams, 1])
    state = at.values[2 + layer.has_static :]
    if not state:
        zeros = np.zeros((1, streams, layer.num_output), np.float32)
        state = [at.constant("first", zeros)] * len(layer.state_names)
    weight = at.constant("weight_h", layer.blobs[2 + layer.has_static].t())
    sizes = at.integers("sizes", [layer.num_output] * layer.gates) if layer.gates > 1 else ""
    hidden = []
    for step, mark in zip(steps, at.add_many("Split", timesteps, marks, ones, axis=0), strict=True):
        summed = at.add("Add", step, at.add("MatMul", at.add("Mul", state[0], mark), weight))
        state = _step(at, summed, state, mark, sizes)
        hidden.append(state[0])
    top = at.add("Concat", *hidden, axis=0)
    if isinstance(layer, RNN):
        index = len(layer.blobs) - 2
        top = at.add("Tanh", _linear(at, top, "o", index, bias=index + 1))
    return [top, *state[: layer.exposed]]


def _step(at: Bottoms, summed: str, state: list[str], mark: str, sizes: str) -> list[str]:
    """The states after a timestep (`RNN.step`, `lstm_unit`)."""
    if not isinstance(at.layer, LSTM):
        return [at.add("Tanh", summed)]
    gates = at.add_many("Split", at.layer.gates, summed, sizes, axis=2)
    enter, forget, leave = (at.add("Sigmoid", gate) for gate in gates[:3])
    kept = at.add("Mul", at.add("Mul", mark, forget), state[1])
    cell = at.add("Add", kept, at.add("Mul", enter, at.add("Tanh", gates[3])))
    return [at.add("Mul", leave, at.add("Tanh", cell)), cell]


def _linear(at: Bottoms, value: str, name: str, weight: int, bias: int | None = None) -> str:
    """The value, ... x K, times the blob `weight`, R x K, and with the blob `bias` added."""
    blobs = at.layer.blobs
    value = at.add("MatMul", value, at.constant(f"weight_{name}", blobs[weight].t()))
    return value if bias is None else at.add("Add", value, at.constant(f"bias_{name}", blobs[bias]))
