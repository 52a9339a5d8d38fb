"""Plain models with weights that leave units without inputs or readers, and shrunk ones."""

from __future__ import annotations

import numpy as np
import torch

from caffe_dns.export.deploy import Deployment
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.export.shrink import Shrunk, shrink
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import TEST, NetParameter
from tests.nets import input_layer, layer, make_net, parse_net

Weights = dict[str, list[np.ndarray]]
IMAGES = input_layer(data=(2, 3, 6, 5))
#: Relative to the largest entry of an output, in float64; weights and biases are float32.
TOLERANCE = 1e-6


def conv(name: str, bottom: str, outputs: int = 4, more: str = "kernel_size: 3") -> str:
    return layer(
        name, "Convolution", bottom, name, f"convolution_param {{ num_output: {outputs} {more} }}"
    )


def ip(name: str, bottom: str, outputs: int = 4, more: str = "") -> str:
    return layer(
        name,
        "InnerProduct",
        bottom,
        name,
        f"inner_product_param {{ num_output: {outputs} {more} }}",
    )


def pruned_model(param: NetParameter | str, seed: int = 0, kept: float = 0.3) -> UnmaskedModel:
    """A model of this definition: random weights, of which this share is not zero.

    Of rows and of columns, a tenth have none at all. Some biases and factors of Scale are 0.
    """
    if isinstance(param, str):
        param = parse_net(param)
    generator = np.random.default_rng(seed)
    net = make_net(str(param), TEST)
    blobs = []
    for entry in param.layer:
        found = net.layer(entry.name)
        assert found is not None
        shapes = [
            tuple(blob.shape)
            for index, blob in enumerate(found.blobs)
            if index not in found.mask_indices
        ]
        blobs.append([_values(entry.type, i, s, generator, kept) for i, s in enumerate(shapes)])
    return UnmaskedModel(Deployment(param), blobs)


def _values(
    kind: str, index: int, shape: tuple[int, ...], generator: np.random.Generator, kept: float
) -> np.ndarray:
    values = generator.standard_normal(shape)
    if kind == "BatchNorm" and index == 0:
        values *= 0.1
    elif kind == "BatchNorm" or (kind == "BN" and index == 3):
        values = np.abs(values) + 0.5
    elif kind in ("Convolution", "InnerProduct", "Deconvolution") and index == 0:
        # Of the size that keeps the entries of a deep net in bounds.
        values *= (4 / (kept * np.prod(shape[1:]) + 1)) ** 0.5
        values *= generator.random(shape) < kept
        for axis in (0, 1):
            across = np.moveaxis(values, axis, 0)
            if len(across) > 1:
                across[generator.random(len(across)) < 0.1] = 0
    elif kind in ("Convolution", "InnerProduct", "Deconvolution"):
        values *= 0.1 * (generator.random(shape) < 0.6)
    elif values.ndim:
        values = (0.3 * values + (index == 0)) * (generator.random(shape) < 0.9)
    return values.astype(np.float32)


def masked_net(param: NetParameter, seed: int = 0, kept: float = 0.3) -> Net:
    """A net of this definition with masks that keep this share of weights, none of them zero."""
    net = make_net(str(param), TEST)
    with torch.no_grad():
        for entry, arrays in zip(param.layer, pruned_model(param, seed, kept).blobs, strict=True):
            found = net.layer(entry.name)
            assert found is not None
            masks = [found.blobs[index] for index in found.mask_indices]
            weights = [b for i, b in enumerate(found.blobs) if i not in found.mask_indices]
            for blob, array in zip(weights, arrays, strict=True):
                blob.copy_(torch.from_numpy(array))
            for blob, mask in zip(weights, masks, strict=False):
                mask.copy_(blob != 0)
                blob[blob == 0] = 1
    return net


def outputs(model: UnmaskedModel | Net, *seeds: int) -> list[dict[str, np.ndarray]]:
    """What the model computes in float64 of random inputs, of each of some seeds."""
    net: Net = (model if isinstance(model, Net) else model.to_net()).double()
    return [_outputs(net, seed) for seed in seeds]


def _outputs(net: Net, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    inputs = {name: generator.standard_normal(net.blob_shapes[name]) for name in net.inputs}
    with torch.no_grad():
        blobs = net(inputs)
    return {name: blobs[name].numpy() for name in net.outputs}


def assert_same_outputs(one: UnmaskedModel | Net, other: UnmaskedModel, seed: int = 0) -> None:
    expected, others = outputs(one, seed, seed + 1)
    (actual,) = outputs(other, seed)
    assert expected.keys() == actual.keys()
    moved = [np.abs(values - others[name]).max() for name, values in expected.items()]
    assert max(moved) > 1e-3, "no output depends on an input"
    for name, values in expected.items():
        assert np.isfinite(values).all()
        assert actual[name].shape == values.shape
        bound = TOLERANCE * np.abs(values).max()
        assert np.abs(actual[name] - values).max() <= bound, name


def channels(model: UnmaskedModel) -> dict[str, int]:
    """How many outputs each layer with num_output has."""
    return {
        entry.name: settings.num_output
        for entry in model.definition.param.layer
        for settings in (entry.convolution_param, entry.inner_product_param)
        if settings.num_output
    }


def full(text: str) -> tuple[UnmaskedModel, Weights]:
    """A model in which nothing is zero, and its arrays by layer, to put zeros in."""
    model = pruned_model(text, kept=1.0)
    generator = np.random.default_rng(5)
    for arrays in model.blobs:
        for index, array in enumerate(arrays):
            if array.ndim and not (len(arrays) >= 3 and index):  # not what a variance is made of
                array[...] = generator.uniform(0.5, 1.5, array.shape)
    return model, dict(
        zip((la.name for la in model.definition.param.layer), model.blobs, strict=True)
    )


def shrunk(model: UnmaskedModel) -> Shrunk:
    """The shrunk model, held to the outputs of the given one, which stays as it was."""
    before = [[array.copy() for array in arrays] for arrays in model.blobs]
    result = shrink(model)
    for old, new in zip(before, model.blobs, strict=True):
        for one, other in zip(old, new, strict=True):
            np.testing.assert_array_equal(one, other)
    assert_same_outputs(model, result.model)
    return result
