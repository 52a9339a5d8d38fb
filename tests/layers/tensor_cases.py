"""What Synopsys' fork has for operators of TensorFlow and ONNX, for each device."""

from __future__ import annotations

from tests.layers.device_cases import FILLED, IMAGES, Case, settings
from tests.layers.harness import draw

CASES = {
    "padding of sides": Case(
        settings(
            "Convolution",
            "convolution_param",
            f"num_output: 6 kernel_size: 3 stride: 2 pad_r: 1 pad_b: 1 {FILLED}",
        ),
        [draw(*IMAGES)],
    ),
    "cut sides": Case(
        settings(
            "Deconvolution",
            "convolution_param",
            f"num_output: 6 kernel_size: 3 stride: 2 pad_r: 1 pad_b: -1 {FILLED}",
        ),
        [draw(*IMAGES)],
    ),
    "maxima with padding of sides": Case(
        settings("Pooling", "pooling_param", "kernel_size: 3 stride: 2 pad_r: 1 pad_t: 2"),
        [draw(*IMAGES)],
    ),
    "means inside": Case(
        settings("Pooling", "pooling_param", "pool: AVE_EXC_PAD kernel_size: 3 stride: 2 pad_r: 1"),
        [draw(*IMAGES)],
    ),
    "squeeze": Case(settings("Squeeze", "squeeze_param", "axis: 1"), [draw(2, 1, 9, 8)]),
}
