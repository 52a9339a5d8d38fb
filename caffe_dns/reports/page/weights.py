"""The weights of a net on a page: histograms with thresholds, and masks as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from caffe_dns import mask_rules
from caffe_dns.layers.masked import DeviationMasks, MagnitudeMasks, WeightedLayer
from caffe_dns.net import Net
from caffe_dns.reports.page.parts import Chart, Pictures, Section, Table

_BINS = 80
#: Pixels of a mask's picture, along either side.
_MOST_PIXELS = 512


def histogram_section(net: Net, thresholds: Mapping[str, float]) -> Section:
    """A histogram for each layer with weights, kept ones and pruned ones apart.

    `thresholds` are those in force, by layer and in its own terms, where they are not the
    definition's.
    """
    charts = [_histogram(layer, thresholds.get(layer.name)) for layer in _weighted(net)]
    return Section("Weights", charts)


def mask_section(net: Net) -> Section:
    """A picture for each mask of a weight."""
    pictures = []
    for layer in _weighted(net):
        mask = _mask(layer)
        if mask is not None:
            kept = int(mask.count_nonzero())
            says = (
                f"{kept:,} of {mask.numel():,} weights kept ({100 * kept / mask.numel():.2f} %); "
                f"{mask.shape[0]} outputs from top to bottom, what each reads from left to right"
            )
            pictures.append((layer.name, says, _picture(mask)))
    return Section("Masks", [Pictures(pictures)] if pictures else [])


def _weighted(net: Net) -> list[WeightedLayer]:
    """The layers with a weight of their own."""
    return [
        step.layer
        for step in net.steps
        if isinstance(step.layer, WeightedLayer) and net.table.is_owner(step.layer, 0)
    ]


def _mask(layer: WeightedLayer) -> Tensor | None:
    masks = layer.mask_blobs()
    return masks[0].detach() if masks else None


def _histogram(layer: WeightedLayer, in_force: float | None) -> Chart:
    weight = layer.blobs[0].detach().float().cpu().numpy().reshape(-1)
    mask = _mask(layer)
    kept = np.ones(weight.size, bool) if mask is None else mask.cpu().numpy().reshape(-1) != 0
    finite = np.isfinite(weight)
    low, high = (weight[finite].min(), weight[finite].max()) if finite.any() else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
    parts = {"kept": weight[finite & kept], "pruned": weight[finite & ~kept]}
    counts = {name: np.histogram(part, edges)[0] for name, part in parts.items() if part.size}
    middles = (edges[:-1] + edges[1:]) / 2
    limits = _limits(layer, in_force)
    layout = {
        "xaxis": {"title": {"text": "weight", "standoff": 4}, "hoverformat": ".4~g"},
        "yaxis": {"title": {"text": "weights"}, "type": "log", "exponentformat": "none"},
        "hovermode": "x unified",
        "showlegend": len(counts) > 1,
        "shapes": [
            {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"} for x in limits
        ],
    }
    rows = [
        [f"{middle:.4g}", *(f"{count[index]:,}" for count in counts.values())]
        for index, middle in enumerate(middles)
    ]
    near = ", ".join(f"{x:.4g}" for x in limits)
    says = f"Histogram of {weight.size:,} weights from {low:.4g} to {high:.4g}." + (
        f" Thresholds at {near}." if limits else ""
    )
    title = layer.name + (f" (thresholds at {near})" if limits else "")
    table = Table(f"{layer.name}: weights by value", ["around", *counts], rows)
    return Chart(title, says, _steps(middles, counts), layout, table)


def _steps(middles: np.ndarray, counts: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": [float(f"{middle:.6g}") for middle in middles],
            "y": [int(n) or None for n in count],
            "colour": 0 if name == "kept" else 1,
            "line": {"shape": "hvh", "width": 1.4},
        }
        for name, count in counts.items()
    ]


def _limits(layer: WeightedLayer, in_force: float | None) -> list[float]:
    """The weights between which the layer's masks are renewed to 0."""
    if not layer.mask_indices:
        return []
    if isinstance(layer, DeviationMasks):
        weight = layer.blobs[0].detach().float()
        distance = (layer.threshold if in_force is None else in_force) * float(
            weight.std(correction=0)
        )
        mean = float(weight.mean())
        return [mean - distance, mean + distance] if distance > 0 else []
    if isinstance(layer, MagnitudeMasks) and float(layer.moments[0]) >= 0:
        mu, sigma = layer.moments.tolist()
        limit = mu + (layer.c_rate if in_force is None else in_force) * sigma
        near, far = mask_rules.PRUNE_BELOW * limit, mask_rules.SPLICE_ABOVE * limit
        return [-far, -near, near, far] if limit > 0 else []
    return []


def _picture(mask: Tensor) -> bytes:
    """A PNG with a row for each output: opaque where all is kept, clear where nothing is."""
    rows = mask.reshape(1, 1, mask.shape[0], -1).float().cpu()
    height, width = (min(extent, _MOST_PIXELS) for extent in rows.shape[2:])
    share = adaptive_avg_pool2d(rows, (height, width))[0, 0].numpy()
    # What is kept anywhere in a pixel can be seen.
    alpha = np.where(share > 0, np.maximum(share, 0.25), 0)
    pixels = np.empty((height, width, 4), np.uint8)
    pixels[..., :3] = _INK
    pixels[..., 3] = np.round(255 * alpha)
    import cv2  # here, because importing it takes long and most runs do not need it

    done, png = cv2.imencode(".png", pixels)
    assert done
    return bytes(png)


#: Blue, green, red: to be seen on white and on black.
_INK = (208, 132, 40)
