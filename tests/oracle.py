"""The one comparer of the tests: golden cases, tolerances and where files lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
#: Models that may not be copied into the project; tests that need them skip where it is missing.
OFFICIAL = Path(__file__).parents[2] / "shared" / "official"


def assert_close(actual: Tensor | np.ndarray, expected: np.ndarray, what: str) -> None:
    """Hold `actual` to the layer cases' tolerance: |a-b| <= 1e-5 + 1e-4*|b|, same shape."""
    values = actual.detach().cpu().numpy() if isinstance(actual, Tensor) else actual
    assert values.shape == expected.shape, f"{what}: shape {values.shape}, not {expected.shape}"
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5, err_msg=what)


def assert_same_norm(actual: Tensor | np.ndarray, expected: np.ndarray, what: str) -> None:
    """Hold `actual` to the training runs' tolerance for weights: ||a-b|| / ||b|| <= 2e-5."""
    values = actual.detach().cpu().numpy() if isinstance(actual, Tensor) else actual
    assert values.shape == expected.shape, f"{what}: shape {values.shape}, not {expected.shape}"
    difference = np.linalg.norm(values.astype(np.float64) - expected)
    assert difference <= 2e-5 * np.linalg.norm(expected), f"{what}: norm of difference {difference}"


def assert_same_bits(
    actual: Sequence[Sequence[np.ndarray]], expected: Sequence[Sequence[np.ndarray]]
) -> None:
    """The arrays of all layers are those expected, NaN and -0 included; they are float32."""
    for arrays, others in zip(actual, expected, strict=True):
        for array, other in zip(arrays, others, strict=True):
            assert array.dtype == np.float32
            assert array.shape == other.shape
            assert array.tobytes() == other.tobytes()


def run_layer_case(name: str, device: str = "cpu") -> None:
    """Run `golden/layers/NAME` forward and backward and compare every recorded array."""
    from caffe_dns import load_net

    folder = GOLDEN / "layers" / name
    arrays = dict(np.load(folder / "arrays.npz"))
    weights = folder / "weights.caffemodel"
    phase = "TRAIN" if name in {"bn_train", "bn_frac", "bn_global_train"} else "TEST"
    net = load_net(
        folder / "net.prototxt", phase, weights if weights.exists() else None, device=device
    )

    fed = {key[3:]: torch.from_numpy(value) for key, value in arrays.items() if key[:3] == "in:"}
    inputs = {}
    for blob, value in fed.items():
        raw = f"{blob}_raw"
        inputs[raw if raw in net.inputs else blob] = value.to(device).clone().requires_grad_()
    blobs = net(inputs)
    params = net.params.get("layer", [])
    for key, value in arrays.items():
        kind, _, which = key.partition(":")
        if kind == "top":
            assert_close(blobs[which], value, f"{name}: {key}")
        elif kind == "param_after":
            assert_close(params[int(which)], value, f"{name}: {key}")

    objective = torch.zeros((), device=device)
    for key, value in arrays.items():
        if key.startswith("topdiff:"):
            objective = objective + (blobs[key[8:]] * torch.from_numpy(value).to(device)).sum()
    for blob, weight in net.loss_weights.items():
        objective = objective + weight * blobs[blob].sum()
    if objective.requires_grad:
        objective.backward()
    for key, value in arrays.items():
        kind, _, which = key.partition(":")
        if kind == "bottomdiff":
            leaf = inputs[f"{which}_raw" if f"{which}_raw" in inputs else which]
            gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            assert_close(gradient, value, f"{name}: {key}")
        elif kind == "paramdiff":
            parameter = params[int(which)]
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert_close(gradient, value, f"{name}: {key}")
