"""Layers for each device: Synopsys', SpatialTransformer, and distances of happynear's fork."""

from __future__ import annotations

from tests.layers.detection.test_detection_output import bottoms
from tests.layers.device_cases import FILLED, IMAGES, Case, settings
from tests.layers.forks import test_distances as distances
from tests.layers.forks.test_detection_maps import TEXT, as_maps
from tests.layers.forks.test_spatial_transformer import THETA
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
    "detection_maps": Case(TEXT % "nbottom: 2", as_maps(bottoms(), 1, whole=True), ()),
    "darknet_batch_norm": Case(
        settings("DarknetBatchNorm", "batch_norm_param", "eps: 0.01", "phase: TRAIN"),
        [draw(*IMAGES)],
    ),
    "pooling like tensorflow": Case(
        settings("Pooling", "pooling_param", "kernel_size: 2 stride: 1 pad_type: 1"),
        [draw(*IMAGES)],
    ),
    "spatial_transformer": Case(
        settings("SpatialTransformer", "st_param", "output_H: 7"), [draw(2, 3, 5, 6), THETA], (0, 1)
    ),
    "inner_distance": Case(
        settings(
            "InnerDistance",
            "inner_distance_param",
            "num_output: 5 update_center_only: true weight_filler { type: 'gaussian' }",
        ),
        [draw(4, 3, 2), distances.LABELS],
    ),
    "inner_distance_l1": Case(
        settings("InnerDistance", "inner_distance_param", "distance_type: 'L1'"),
        [draw(4, 6), draw(5, 6, seed=1)],
        (0, 1),
    ),
    "general_contrastive": Case(
        distances.loss_text("exp_negative_weight: true"),
        [draw(4, 5, positive=True), distances.LABELS],
        tops=2,
    ),
    "hard_swish": Case("type: 'HardSwish'", [4 * draw(*IMAGES)]),
    "add": Case("type: 'Add'", [draw(*IMAGES), draw(2, 6, 1, 1, seed=1)], (0, 1)),
    "mul": Case("type: 'Mul'", [draw(2, 6, 1, 1, seed=1), draw(*IMAGES)], (0, 1)),
    "pad": Case(
        settings("Pad", "pad_param", "paddings: [0, 0, 0, 0, 1, 2, 3, 0] constant_values: 2"),
        [draw(*IMAGES)],
    ),
    "depth_to_space": Case(
        settings("DepthToSpace", "depth_to_space_param", "block_size: 2"), [draw(2, 3, 2, 8)]
    ),
    "space_to_batch": Case(
        settings(
            "SpaceToBatchND",
            "space_to_batch_nd_param",
            "block_shape: [2, 2] paddings: [0, 0, 1, 0]",
        ),
        [draw(2, 6, 9, 8)],
    ),
    "batch_to_space": Case(
        settings("BatchToSpaceND", "batch_to_space_nd_param", "block_shape: 2 crops: [1, 0]"),
        [draw(*IMAGES)],
    ),
    **{
        f"{kind} {way}": Case(
            settings(
                kind,
                field,
                f"output_height: 13 output_width: 5 data_format: 'NCHW' {way}",
            ),
            [draw(*IMAGES)],
        )
        for kind, field, way in (
            ("ResizeNearestNeighbor", "resize_nearest_neighbor_param", "align_corners: true"),
            ("ResizeBilinear", "resize_bilinear_param", "half_pixel_centers: true"),
        )
    },
    "squeeze": Case(settings("Squeeze", "squeeze_param", "axis: 1"), [draw(2, 1, 9, 8)]),
}
