"""Layers of forks and of SSD with bottoms whose numbers are far from a tie.

Where an order or a threshold decides, float32 and float64 have to decide alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.layers.detection import test_detection_evaluate as evaluation
from tests.layers.detection import test_detection_output as detection
from tests.layers.detection import test_multibox_loss as multibox
from tests.layers.detection.reference_loss import Settings
from tests.layers.forks import test_conv_lstm as conv_lstm
from tests.layers.forks import test_detection_loss as mscnn
from tests.layers.forks import test_proposal_target as proposals
from tests.layers.forks import test_yolo_loss as yolo_loss
from tests.layers.forks import test_yolo_regions as regions_of_yolo
from tests.layers.harness import draw

IMAGES = (2, 6, 9, 8)
LABELS = torch.tensor([3.0, 1]).double()
LINES = torch.tensor([[1.0, 0, 2], [3, 3, 0]]).double()


@dataclass
class Case:
    """A layer and its bottoms; those in `learned` get gradients."""

    definition: str
    bottoms: Sequence[Tensor]
    learned: tuple[int, ...] = (0,)
    tops: int = 1


def settings(kind: str, message: str, text: str, more: str = "") -> str:
    return f"type: '{kind}' {more} {message} {{ {text} }}"


def positive(*shape: int, seed: int = 0) -> Tensor:
    return draw(*shape, seed=seed, positive=True)


def regions() -> Tensor:
    """Number of the image and box of each region; one lies outside, one has no area."""
    rows = [[0, 8, 16, 50, 60], [1, 0, 0, 55, 71], [1, 30, 30, 90, 99], [0, 9, 9, 9, 9]]
    return torch.tensor(rows).double()


def labels(count: int, classes: int) -> Tensor:
    return torch.arange(count).remainder(classes).double()


def pooled() -> list[Tensor]:
    """What a Pooling with two tops makes: values, and the places that they come from."""
    values, places = torch.nn.functional.max_pool2d(draw(*IMAGES), 2, return_indices=True)
    return [values, places.double()]


FILLED = "weight_filler { type: 'gaussian' }"
CASES = {
    "depthwise": Case(
        settings(
            "DepthwiseConvolution",
            "convolution_param",
            f"num_output: 6 group: 6 kernel_size: 3 pad: 1 {FILLED}",
        ),
        [draw(*IMAGES)],
    ),
    "convolution_depthwise": Case(
        settings(
            "ConvolutionDepthwise",
            "convolution_param",
            f"num_output: 6 kernel_size: 3 stride: 2 {FILLED}",
        ),
        [draw(*IMAGES)],
    ),
    "roi_pooling": Case(
        settings("ROIPooling", "roi_pooling_param", "pooled_h: 3 pooled_w: 2 spatial_scale: 0.125"),
        [draw(*IMAGES), regions()],
    ),
    "psroi_pooling": Case(
        settings(
            "PSROIPooling", "psroi_pooling_param", "output_dim: 2 group_size: 2 spatial_scale: 0.1"
        ),
        [draw(2, 8, 9, 8), regions()],
    ),
    "smooth_l1": Case("type: 'SmoothL1Loss'", [draw(3, 8), draw(3, 8, seed=1)], (0, 1)),
    "smooth_l1_weighted": Case(
        settings("SmoothL1Loss", "smooth_l1_loss_param", "sigma: 3"),
        [draw(3, 8, seed=i) for i in range(4)],
        (0, 1),
    ),
    "smooth_l1_ohem": Case(
        "type: 'SmoothL1LossOHEM'", [draw(5, 8, seed=i) for i in range(3)], (0, 1), tops=2
    ),
    "softmax_ohem": Case(
        "type: 'SoftmaxWithLossOHEM' loss_param { ignore_label: 1 }",
        [draw(6, 4), labels(6, 4)],
        tops=3,
    ),
    "annotator": Case(
        settings("BoxAnnotatorOHEM", "box_annotator_ohem_param", "roi_per_img: 2"),
        [labels(7, 3)[:, None].repeat(1, 5), draw(7, 1), labels(7, 5)[:, None], draw(7, 8)],
        (),
        tops=2,
    ),
    "bn_pspnet": Case(settings("BN", "bn_param", "momentum: 0.9", "phase: TRAIN"), [draw(*IMAGES)]),
    "bn_segnet": Case(
        settings("BN", "bn_param", "bn_mode: LEARN scale_filler { value: 1 }", "phase: TRAIN"),
        [draw(*IMAGES)],
    ),
    "bn_frozen": Case(settings("BN", "bn_param", "frozen: true", "phase: TRAIN"), [draw(*IMAGES)]),
    "batch_norm_nvcaffe": Case(
        settings("BatchNorm", "batch_norm_param", "scale_bias: true", "phase: TRAIN"),
        [draw(*IMAGES)],
    ),
    "interp": Case(
        settings("Interp", "interp_param", "zoom_factor: 2 pad_beg: -1"), [draw(*IMAGES)]
    ),
    "upsample": Case(settings("Upsample", "upsample_param", "scale: 2"), [draw(*IMAGES)]),
    "upsample_mask": Case(
        settings("Upsample", "upsample_param", "upsample_h: 9 upsample_w: 8"), pooled()
    ),
    "axpy": Case("type: 'Axpy'", [draw(2, 6, 1, 1), draw(*IMAGES), draw(*IMAGES, seed=1)], (0, 1)),
    "shuffle": Case(
        settings("ShuffleChannel", "shuffle_channel_param", "group: 3"), [draw(*IMAGES)]
    ),
    "reorg": Case(settings("Reorg", "reorg_param", "stride: 2"), [draw(2, 8, 4, 6)]),
    "relu6": Case("type: 'ReLU6'", [4 * draw(*IMAGES)]),
    "margin": Case(
        settings("MarginInnerProduct", "margin_inner_product_param", "num_output: 4 type: TRIPLE"),
        [draw(*IMAGES), LABELS],
    ),
    "large_margin": Case(
        settings(
            "LargeMarginInnerProduct",
            "largemargin_inner_product_param",
            "num_output: 4 type: QUADRUPLE",
        ),
        [draw(*IMAGES), LABELS],
    ),
    "normalized_inner_product": Case(
        settings("NormalizedInnerProduct", "inner_product_param", "num_output: 4 normalize: true"),
        [draw(*IMAGES)],
    ),
    "label_specific_add": Case(
        settings("LabelSpecificAdd", "label_specific_add_param", "bias: -0.35", "phase: TRAIN"),
        [draw(2, 4), LABELS],
        tops=2,
    ),
    "dense_block": Case(
        settings(
            "DenseBlock", "denseblock_param", "numTransition: 2 growthRate: 3", "phase: TRAIN"
        ),
        [draw(*IMAGES)],
    ),
    "channel_scale": Case(
        "type: 'ChannelScale'", [draw(*IMAGES), draw(2, 1, 9, 8, seed=1)], (0, 1)
    ),
    "center_loss": Case(
        settings("CenterLoss", "center_loss_param", "num_output: 4"), [draw(*IMAGES), LABELS]
    ),
    "proposal": Case(
        settings("Proposal", "proposal_param", "ratio: [1, 2] scale: [2, 3] post_nms_topn: 9"),
        [draw(1, 8, 4, 5), 0.3 * draw(1, 16, 4, 5, seed=1), torch.tensor([[60.0, 80, 1]]).double()],
        (),
        2,
    ),
    "pooling3d": Case(
        settings("Pooling3D", "pooling3d_param", "kernel_size: 3 kernel_depth: 2 stride: 2"),
        [draw(2, 3, 5, 9, 8)],
    ),
    "one window": Case(
        settings("Pooling", "pooling_param", "pool: AVE global_pooling: true"), [draw(*IMAGES)]
    ),
    "nd_pooling": Case(
        settings("NdPooling", "pooling_param", "pool: AVE kernel_shape { dim: [2, 3, 3] }"),
        [draw(2, 3, 5, 9, 8)],
    ),
    "seg_accuracy": Case(
        "type: 'SegAccuracy'",
        [draw(*IMAGES), torch.arange(144).double().view(2, 1, 9, 8) % 6],
        (),
    ),
    "lstm": Case(
        settings("Lstm", "lstm_param", "num_output: 3 batch_size: 2"),
        [draw(8, 5), torch.tensor([0.0, 0, 1, 1, 0, 1, 1, 1]).double()],
    ),
    "transpose": Case(
        settings("Transpose", "transpose_param", "dim: [2, 3, 0, 1]"), [draw(*IMAGES)]
    ),
    "reverse": Case(settings("Reverse", "reverse_param", "axis: 1"), [draw(*IMAGES)]),
    "roi_align": Case(
        settings("ROIAlign", "roi_pooling_param", "pooled_h: 3 pooled_w: 2 spatial_scale: 0.11"),
        [draw(*IMAGES), regions()],
    ),
    "roi_warping": Case(
        settings("ROIWarping", "roi_warping_param", "pooled_h: 3 pooled_w: 2 spatial_scale: 0.11"),
        [draw(*IMAGES), regions()],
        (0, 1),
    ),
    "mask_resize": Case(
        settings("MaskResize", "mask_resize_param", "output_height: 5 output_width: 21"),
        [draw(*IMAGES)],
    ),
    "mask_pooling": Case("type: 'MaskPooling'", [draw(*IMAGES), draw(2, 1, 9, 8, seed=1)], (0, 1)),
    "conv_lstm": Case(conv_lstm.text(), conv_lstm.bottoms(), (0, 2, 3), tops=3),
    "ctc_loss": Case(
        settings("CtcLoss", "ctc_loss_param", "alphabet_size: 4 time_step: 6"),
        [draw(6, 2, 4), LINES],
    ),
    "warp_ctc_loss": Case("type: 'WarpCTCLoss'", [draw(6, 2, 4), LINES]),
    "greedy_decoder": Case("type: 'CTCGreedyDecoder'", [draw(6, 2, 4), LINES], ()),
    "labelsequence_accuracy": Case(
        "type: 'LabelsequenceAccuracy'",
        [draw(2, 6, 4), LINES],
        (),
    ),
    "flip": Case(settings("Flip", "flip_param", "flip_height: true"), [draw(*IMAGES)]),
    "normalize_channels": Case(
        settings("NormalizeChannels", "normalize_param", "bp_norm: true"), [draw(*IMAGES)], tops=2
    ),
    "insanity": Case("type: 'Insanity'", [draw(*IMAGES)]),
    "mish": Case("type: 'Mish'", [draw(*IMAGES)]),
    "balanced_loss": Case(
        "type: 'SigmoidCrossEntropyBalanceLoss'", [draw(*IMAGES), labels(864, 3).view(*IMAGES)]
    ),
    "dice_loss": Case("type: 'DiceCoefLoss'", [draw(*IMAGES), draw(*IMAGES, seed=1)], (0, 1)),
    "selu": Case("type: 'SeLu'", [draw(*IMAGES)]),
    "selu_dropout": Case("type: 'SeLuDropout'", [draw(*IMAGES)]),
    "continuation_indicator": Case(
        settings("ContinuationIndicator", "continuation_indicator_param", "time_step: 3"),
        [draw(*IMAGES)],
        (),
    ),
    "batch_norm_parts": Case(
        settings("BatchNorm", "batch_norm_param", "stats_batch_size: 2", "phase: TRAIN"),
        [draw(4, 6, 9, 8)],
    ),
    "detection_loss": Case(
        mscnn.loss_text("sample_mode: 'bootstrap' pos_neg_weighted: true", mscnn.NORM),
        mscnn.bottoms(),
    ),
    "detection_accuracy": Case(mscnn.accuracy_text(), mscnn.bottoms(), (), tops=2),
    "proposal_target": Case(
        settings(
            "ProposalTarget",
            "proposal_target_param",
            "cls_num: 3 batch_size: -1 bg_thr_lw: 0.1 bg_thr_hg: 0.4",
        ),
        proposals.given(),
        (),
        tops=7,
    ),
    "bbox_accuracy": Case(
        "type: 'BboxAccuracy'",
        [0.3 * draw(3, 12), *(bottom[:3] for bottom in proposals.found())],
        (),
        tops=2,
    ),
    "region_loss": Case(regions_of_yolo.loss_text(), regions_of_yolo.bottoms()),
    "region_loss_centred": Case(
        regions_of_yolo.loss_text(),
        [regions_of_yolo.bottoms()[0], regions_of_yolo.centred(regions_of_yolo.OBJECTS)],
    ),
    "yolov3": Case(yolo_loss.loss_text("use_logic_gradient: true"), yolo_loss.bottoms()),
    "eval_detection": Case(regions_of_yolo.eval_text(), regions_of_yolo.bottoms(), ()),
    "permute": Case(
        settings("Permute", "permute_param", "order: 0 order: 2 order: 3 order: 1"),
        [draw(*IMAGES)],
    ),
    "normalize": Case(
        settings("Normalize", "norm_param", "across_spatial: false channel_shared: false"),
        [draw(*IMAGES)],
    ),
    "normalize_whole": Case("type: 'Normalize'", [draw(*IMAGES)]),
    "prior_box": Case(
        settings("PriorBox", "prior_box_param", "min_size: 9 max_size: 20 aspect_ratio: 2"),
        [draw(2, 8, 3, 2), draw(2, 3, 40, 30)],
        (),
    ),
    "detection_evaluate": Case(
        settings("DetectionEvaluate", "detection_evaluate_param", "num_classes: 4"),
        [
            torch.tensor(rows).double()[None, None]
            for rows in (evaluation.FOUND, evaluation.OBJECTS)
        ],
        (),
    ),
    **{
        f"detection_output_{code.lower()}": Case(
            settings(
                "DetectionOutput",
                "detection_output_param",
                f"num_classes: {detection.CLASSES} code_type: {code} keep_top_k: 9 "
                "nms_param { top_k: 12 nms_threshold: 0.4 }",
            ),
            detection.bottoms(),
            (),
        )
        for code in ("CORNER", "CENTER_SIZE", "CORNER_SIZE")
    },
}


CASES |= {
    "sparsify": Case("type: 'Sparsify' sparsify_param { }", [draw(*IMAGES)]),
    "prior_box_clustered": Case(
        settings(
            "PriorBoxClustered", "prior_box_param", "width: [9.4, 25.1] height: [15, 39.6] step: 16"
        ),
        [draw(2, 8, 3, 2), draw(2, 3, 40, 30)],
        (),
    ),
    "box_output": Case(
        settings(
            "BoxOutput",
            "box_output_param",
            "field_w: 20 field_h: 30 downsample_rate: 8 iou_thr: 0.4 max_nms_num: 12",
        ),
        [draw(2, 7, 4, 5)],
        (),
        tops=2,
    ),
    "decode_bbox": Case(
        "type: 'DecodeBBox' bbox_reg_param { bbox_mean: [0, 0, 0, 0] bbox_std: [1, 1, 2, 2] }",
        [0.3 * draw(4, 8), regions()],
        (),
    ),
    "yolo_2": Case(
        settings(
            "YoloDetectionOutput",
            "yolo_detection_output_param",
            "num_classes: 3 num_box: 2 biases: [1.5, 2, 3, 1] confidence_threshold: 0.3",
        ),
        [draw(2, 16, 3, 3)],
        (),
    ),
    "yolo_3": Case(
        settings(
            "Yolov3DetectionOutput",
            "yolov3_detection_output_param",
            "num_classes: 3 num_box: 2 biases: [30, 40, 60, 20] confidence_threshold: 0.4 "
            "mask_group_num: 1 mask: [1, 0] anchors_scale: 16",
        ),
        [2 * draw(2, 16, 3, 4)],
        (),
    ),
    "contrastive": Case(
        "type: 'ContrastiveLoss'", [draw(4, 3), draw(4, 3, seed=1), labels(4, 2)], (0, 1)
    ),
    "contrastive_two_labels": Case(
        "type: 'ContrastiveLoss'",
        [draw(4, 3), draw(4, 3, seed=1), labels(4, 2), labels(4, 3)],
        (0, 1),
    ),
}
CASES["detection_output_refined"] = Case(
    settings(
        "DetectionOutput",
        "detection_output_param",
        f"num_classes: {detection.CLASSES} code_type: CENTER_SIZE objectness_score: 0.4",
    ),
    [*detection.bottoms(), *detection.refinement()],
    (),
)


def multibox_case(more: Sequence[Tensor] = (), **options: Any) -> Case:
    chosen = Settings(**{"num_classes": multibox.CLASSES, **options})
    box_classes = 1 if chosen.share_location else chosen.num_classes
    bottoms = multibox.bottoms(box_classes, chosen.num_classes)
    return Case(chosen.text(), [*bottoms, *more], (0, 1))


ALL = {
    **CASES,
    **{f"multibox_{name}": multibox_case(**options) for name, options in multibox.CASES.items()},
    "multibox_refined": multibox_case(multibox.refinements(), objectness_score=0.6),
}
