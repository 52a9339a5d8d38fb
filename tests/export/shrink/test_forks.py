"""Rules of layers of forks by hand, and random nets of them with random masks."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_dns.export.shrink import fold, shrink
from tests.export.shrink.build import (
    IMAGES,
    assert_same_outputs,
    channels,
    conv,
    full,
    ip,
    pruned_model,
    shrunk,
)
from tests.nets import input_layer, layer

BN = {
    "pspnet": "bn_param { eps: 0.01 }",
    "frozen": "bn_param { frozen: true }",
    "inference": "bn_param { bn_mode: INFERENCE }",
    "learn": "bn_param { bn_mode: LEARN }",
}


def test_relu6_passes_constants_up_to_six() -> None:
    model, blobs = full(IMAGES + conv("a", "data") + layer("r", "ReLU6", "a", "a") + ip("b", "a"))
    blobs["a"][0][:3] = 0
    blobs["a"][1][:3] = [9, -1, 2]
    result = shrunk(model)
    assert channels(result.model) == {"a": 1, "b": 4}
    sums = blobs["b"][0].reshape(4, 4, -1).sum(2)
    expected = blobs["b"][1] + sums[:, :3] @ [6.0, 0.0, 2.0]
    np.testing.assert_allclose(result.model.blobs[3][1], expected, rtol=1e-6)


def test_axpy_loses_a_channel_of_all_three() -> None:
    pool = "pooling_param { pool: AVE global_pooling: true }"
    text = (
        IMAGES
        + conv("x", "data")
        + conv("y", "data")
        + layer("p", "Pooling", "data", "p", pool)
        + conv("a", "p", more="kernel_size: 1")
        + layer("s", "Axpy", "a x y", "s")
        + ip("b", "s")
    )
    model, blobs = full(text)
    blobs["b"][0].reshape(4, 4, -1)[:, 2] = 0  # nobody reads the third
    for name in "axy":
        blobs[name][0][0] = 0  # the first is constant in all
    blobs["x"][0][1] = 0  # the second in one
    assert channels(shrunk(model).model) == {"x": 2, "y": 2, "a": 2, "b": 4}


@pytest.mark.parametrize("kind", sorted(BN))
def test_bn(kind: str) -> None:
    text = IMAGES + conv("a", "data") + layer("n", "BN", "a", "n", BN[kind]) + ip("b", "n")
    model, blobs = full(text)
    blobs["a"][0][1] = 0
    blobs["n"][0][0, 2] = 0  # a slope
    blobs["b"][0].reshape(4, 4, -1)[:, 3] = 0
    result = shrunk(model)
    assert channels(result.model) == {"a": 1, "b": 4}
    assert {array.shape for array in result.model.blobs[2]} == {(1, 1, 1, 1)}


@pytest.mark.parametrize("kind", sorted(BN))
def test_bn_is_folded_unless_it_learns(kind: str) -> None:
    text = IMAGES + conv("a", "data", 6) + layer("n", "BN", "a", "n", BN[kind]) + ip("b", "n")
    model = pruned_model(text, kept=0.9)
    folded = fold(model)
    assert folded.layers == ([] if kind == "learn" else ["n"])
    assert_same_outputs(model, folded.model)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Interp", "interp_param { zoom_factor: 3 pad_beg: -1 }"),
        ("Upsample", "upsample_param { scale: 2 }"),
    ],
)
def test_larger_images_pass_constants(kind: str, settings: str) -> None:
    text = IMAGES + conv("a", "data") + layer("u", kind, "a", "u", settings) + ip("b", "u")
    model, blobs = full(text)
    blobs["a"][0][1] = 0
    blobs["b"][0].reshape(4, 4, -1)[:, 3] = 0
    assert channels(shrunk(model).model) == {"a": 2, "b": 4}


def test_upsampling_by_a_mask_passes_zeros_alone() -> None:
    text = (
        IMAGES
        + conv("a", "data")
        + layer("p", "Pooling", "a", "p mask", "pooling_param { kernel_size: 2 stride: 2 }")
        + layer("u", "Upsample", "p mask", "u", "upsample_param { scale: 2 }")
        + ip("b", "u")
    )
    model, blobs = full(text)
    blobs["a"][0][:2] = 0
    blobs["a"][1][0] = 0
    blobs["b"][0].reshape(4, 4, -1)[:, 3] = 0
    assert channels(shrunk(model).model) == {"a": 2, "b": 4}


@pytest.mark.parametrize("shared", ["true", "false"])
def test_only_zeros_have_no_part_in_a_norm(shared: str) -> None:
    settings = f"norm_param {{ channel_shared: {shared} across_spatial: false }}"
    text = IMAGES + conv("a", "data") + layer("n", "Normalize", "a", "n", settings) + ip("b", "n")
    model, blobs = full(text)
    blobs["a"][0][:2] = 0
    blobs["a"][1][0] = 0
    blobs["b"][0].reshape(4, 4, -1)[:, 3] = 0  # not read, but in the norm
    result = shrunk(model)
    assert channels(result.model) == {"a": 3, "b": 4}
    assert result.held == ["n (Normalize) keeps 1 idle channel(s): they have a part in a norm"]


# Random nets ------------------------------------------------------------------------------------

#: Layers that a random net is made of, by what they are given and what they make.
PIECES = {
    "conv": ("Convolution", "convolution_param { num_output: 8 kernel_size: 3 pad: 1 }"),
    "narrow": ("Convolution", "convolution_param { num_output: 6 kernel_size: 1 }"),
    "groups": ("Convolution", "convolution_param { num_output: 8 group: 2 kernel_size: 1 }"),
    "depthwise": ("DepthwiseConvolution", ""),
    "relu6": ("ReLU6", "relu6_param { negative_slope: 0.1 }"),
    "bn": ("BN", "bn_param { eps: 0.01 }"),
    "bn_learn": ("BN", "bn_param { bn_mode: LEARN }"),
    "interp": ("Interp", "interp_param { height: 5 width: 6 }"),
    "upsample": ("Upsample", "upsample_param { scale: 2 }"),
    "pool": ("Pooling", "pooling_param { kernel_size: 2 stride: 2 }"),
    "normalize": ("Normalize", "norm_param { across_spatial: false channel_shared: false }"),
    "shuffle": ("ShuffleChannel", "shuffle_channel_param { group: 2 }"),
    "permute": ("Permute", "permute_param { order: 0 order: 1 order: 3 order: 2 }"),
}


def random_net(seed: int) -> str:
    """A chain of eight pieces with an Axpy across some of them, and an inner product."""
    generator = np.random.default_rng(seed)
    text = input_layer(data=(2, 4, 6, 5)) + conv("first", "data", 8, "kernel_size: 3 pad: 1")
    blob, width = "first", 8
    for index in range(8):
        piece = str(generator.choice(list(PIECES)))
        kind, settings = PIECES[piece]
        if piece == "depthwise":
            kind = "Convolution"
            numbers = f"num_output: {width} group: {width} kernel_size: 3 pad: 1"
            settings = f"convolution_param {{ {numbers} }}"
        elif kind == "Convolution":
            width = 6 if piece == "narrow" else 8
        name = f"{piece}{index}"
        text += layer(name, kind, blob, name, settings)
        blob = name
    pool = "pooling_param { pool: AVE global_pooling: true }"
    text += layer("squeeze", "Pooling", blob, "squeeze", pool)
    text += conv("gate", "squeeze", width, "kernel_size: 1")
    text += conv("side", blob, width, "kernel_size: 1")
    text += layer("axpy", "Axpy", f"gate {blob} side", "axpy")
    return text + ip("out", "axpy")


@pytest.mark.parametrize("seed", range(12))
def test_random_nets(seed: int) -> None:
    model = pruned_model(random_net(seed), seed=seed, kept=0.15)
    assert_same_outputs(model, shrink(model).model)
    folded = fold(model).model
    assert_same_outputs(model, folded)
    assert_same_outputs(model, shrink(folded).model)


def test_random_nets_do_become_smaller() -> None:
    models = [pruned_model(random_net(seed), seed=seed, kept=0.15) for seed in range(12)]
    sizes = [shrink(model).model.total / model.total for model in models]
    assert sum(sizes) < 0.95 * len(sizes)
