"""Caffe's seven fillers, which give parameters their initial values (`include/caffe/filler.hpp`).

`file` comes from caffe_pp2, `gaussian_unitball` from happynear's fork.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from caffe_dns.errors import CaffeError
from caffe_dns.files.reading import read_file
from caffe_dns.proto.caffe_pb2 import FillerParameter
from caffe_dns.registry import Registry

Shape = tuple[int, ...]
Filler = Callable[[Shape, FillerParameter, Generator], Tensor]

#: By type, functions that return a float32 CPU tensor of a shape, drawn from a generator.
filler_types: Registry[Filler] = Registry("filler type")


def fill(shape: Shape, filler: FillerParameter, generator: Generator) -> Tensor:
    """A float32 CPU tensor of `shape`, filled as `filler` says with draws from `generator`.

    Raises CaffeError for an unknown type, for `sparse` where the type does not take it, and for
    shapes a type cannot fill.
    """
    function = filler_types[filler.type]
    if 0 in shape:
        raise CaffeError(f"a blob of shape {shape} has no numbers to fill")
    if filler.sparse != -1 and filler.type != "gaussian":
        raise CaffeError(f"filler type '{filler.type}' does not take 'sparse'; 'gaussian' does")
    return function(shape, filler, generator)


@filler_types.register("constant")
def _constant(shape: Shape, filler: FillerParameter, generator: Generator) -> Tensor:
    return torch.full(shape, filler.value, dtype=torch.float32)


@filler_types.register("uniform")
def _uniform(shape: Shape, filler: FillerParameter, generator: Generator) -> Tensor:
    if filler.min > filler.max:
        raise CaffeError(f"filler type 'uniform' with min {filler.min:g} above max {filler.max:g}")
    if filler.max - filler.min > torch.finfo(torch.float32).max:
        raise CaffeError(f"filler type 'uniform' from {filler.min:g} to {filler.max:g} is too far")
    return torch.empty(shape).uniform_(filler.min, filler.max, generator=generator)


@filler_types.register("gaussian")
def _gaussian(shape: Shape, filler: FillerParameter, generator: Generator) -> Tensor:
    if filler.std < 0:
        raise CaffeError(f"filler type 'gaussian' with a negative std ({filler.std})")
    values = torch.empty(shape).normal_(filler.mean, filler.std, generator=generator)
    if filler.sparse < -1:
        raise CaffeError(f"'sparse' must be at least -1, not {filler.sparse}")
    if filler.sparse >= 0:
        # On average, `sparse` inputs of each output keep their weight.
        if not shape or filler.sparse > shape[0]:
            raise CaffeError(
                f"'sparse' is {filler.sparse}; it may be no more than the first extent of the "
                f"blob's shape {shape}"
            )
        keep = filler.sparse / shape[0]
        values *= torch.empty(shape).uniform_(generator=generator) < keep
    return values


@filler_types.register("xavier")
def _xavier(shape: Shape, filler: FillerParameter, generator: Generator) -> Tensor:
    limit = math.sqrt(3.0 / _fan(shape, filler))
    return torch.empty(shape).uniform_(-limit, limit, generator=generator)


@filler_types.register("msra")
def _msra(shape: Shape, filler: FillerParameter, generator: Generator) -> Tensor:
    std = math.sqrt(2.0 / _fan(shape, filler) / (1 + filler.alpha**2))
    return torch.empty(shape).normal_(0.0, std, generator=generator)


@filler_types.register("positive_unitball")
def _positive_unitball(shape: Shape, filler: FillerParameter, generator: Generator) -> Tensor:
    values = torch.empty(shape).uniform_(generator=generator)
    rows = values.view(shape[0], -1) if shape else values.view(1, 1)
    return (rows / rows.sum(dim=1, keepdim=True)).view(shape)


@filler_types.register("gaussian_unitball")
def _gaussian_unitball(shape: Shape, filler: FillerParameter, generator: Generator) -> Tensor:
    values = torch.empty(shape).normal_(generator=generator)
    rows = values.view(shape[0], -1) if shape else values.view(1, 1)
    return (rows / (rows.square().sum(1, keepdim=True) + 1e-12).sqrt()).view(shape)


@filler_types.register("bilinear")
def _bilinear(shape: Shape, filler: FillerParameter, generator: Generator) -> Tensor:
    if len(shape) != 4 or shape[2] != shape[3]:
        raise CaffeError(f"filler type 'bilinear' needs 4 axes and a square kernel, not {shape}")
    width = shape[3]
    factor = math.ceil(width / 2.0)
    centre = (width - 1) / (2.0 * factor)
    ramp = 1 - (torch.arange(width, dtype=torch.float32) / factor - centre).abs()
    return torch.outer(ramp, ramp).expand(shape).clone()


@filler_types.register("file")
def _file(shape: Shape, filler: FillerParameter, generator: Generator) -> Tensor:
    try:
        words = read_file(filler.file).decode(errors="replace").split()
    except OSError as error:
        raise CaffeError(f"'{filler.file}': {error.strerror}") from None
    total = math.prod(shape)
    if len(words) < total:
        raise CaffeError(f"'{filler.file}' has {len(words)} numbers, {total} would be right")
    try:
        values = torch.tensor([float(word) for word in words[:total]])
    except ValueError as error:
        raise CaffeError(f"'{filler.file}': {error}") from None
    return values.reshape(shape)


def _fan(shape: Shape, filler: FillerParameter) -> float:
    """Inputs, outputs or their mean, by Caffe's count: count/num and count/channels."""
    if not shape:
        raise CaffeError(f"filler type '{filler.type}' needs a blob with at least one axis")
    total = math.prod(shape)
    fan_in = total / shape[0]
    fan_out = total / shape[1] if len(shape) > 1 else total
    if filler.variance_norm == FillerParameter.FAN_OUT:
        return fan_out
    if filler.variance_norm == FillerParameter.AVERAGE:
        return (fan_in + fan_out) / 2.0
    return fan_in
