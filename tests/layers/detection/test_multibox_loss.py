"""MultiBoxLoss and its gradients against the loss written out box by box, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_dns.errors import CaffeError
from caffe_dns.layers import Layer
from tests.layers.detection.reference_loss import Settings, multibox_loss
from tests.layers.detection.test_boxes import draw_boxes
from tests.layers.harness import make_layer, refused
from tests.nets import recorded_log

PRIORS, CLASSES, IMAGES = 40, 4, 4


def draw_objects() -> Tensor:
    """Objects of three of four images; some are difficult, and some rows say nothing."""
    boxes = draw_boxes(7, seed=11)
    boxes[6] = torch.tensor([0.2, 0.2, 0.2, 0.2])  # matches nothing
    rows = torch.zeros(1, 1, 8, 8).double()
    rows[0, 0, :7, 0] = torch.tensor([0.0, 0, 0, 1, 1, 3, 3])
    rows[0, 0, :7, 1] = torch.tensor([1.0, 2, 3, 1, 3, 2, 3])
    rows[0, 0, :7, 3:7] = boxes
    rows[0, 0, :7, 7] = torch.tensor([0.0, 1, 0, 0, 1, 0, 0])
    rows[0, 0, 7] = -1
    return rows


def bottoms(box_classes: int = 1, classes: int = CLASSES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    codes = 0.5 * torch.randn(IMAGES, PRIORS * box_classes * 4, generator=generator).double()
    scores = 2 * torch.randn(IMAGES, PRIORS * classes, generator=generator).double()
    variances = 0.1 + torch.rand(PRIORS * 4, generator=generator).double()
    priors = draw_boxes(PRIORS, seed=7) * 0.8
    priors[:3] = draw_boxes(7, seed=11)[:3] + 0.01  # objects, almost
    priors[3:6] = draw_boxes(7, seed=11)[:3] + 0.03
    return [codes, scores, torch.stack([priors.flatten(), variances])[None], draw_objects()]


def refinements() -> list[Tensor]:
    """How likely each box is an object's, and how it is to be moved."""
    generator = torch.Generator().manual_seed(5)
    likely = torch.rand(IMAGES, PRIORS * 2, generator=generator).double()
    return [likely, 0.3 * torch.randn(IMAGES, PRIORS * 4, generator=generator).double()]


def check(settings: Settings, more: Sequence[Tensor] = ()) -> float:
    box_classes = 1 if settings.share_location else settings.num_classes
    values = [*bottoms(box_classes, settings.num_classes), *more]
    layer = make_layer(settings.text(), *[tuple(value.shape) for value in values])
    codes, scores = (value.requires_grad_() for value in values[:2])
    loss = layer(*values)
    assert isinstance(loss, Tensor)
    assert loss.shape == ()
    loss.backward()
    priors, variances = values[2].view(2, PRIORS, 4).numpy()
    expected, code_gradient, score_gradient = multibox_loss(
        codes.detach().view(IMAGES, PRIORS, box_classes, 4).numpy(),
        scores.detach().view(IMAGES, PRIORS, -1).numpy(),
        priors,
        variances,
        values[3].view(-1, 8).numpy(),
        settings,
        *(value.view(IMAGES, PRIORS, -1).numpy() for value in more),
    )
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-10)
    for leaf, gradient in ((codes, code_gradient), (scores, score_gradient)):
        assert leaf.grad is not None
        np.testing.assert_allclose(leaf.grad.view(gradient.shape), gradient, rtol=1e-9, atol=1e-12)
    return expected


CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "bipartite": {"match_type": "BIPARTITE"},
    "low_threshold": {"overlap_threshold": 0.25, "neg_overlap": 0.25, "neg_pos_ratio": 1.5},
    "centre_size": {"code_type": "CENTER_SIZE", "overlap_threshold": 0.375},
    "corner_size": {"code_type": "CORNER_SIZE", "loc_loss_type": "L2", "loc_weight": 0.5},
    "variance_in_target": {"code_type": "CENTER_SIZE", "encode_variance_in_target": True},
    "variance_in_target_corner": {"encode_variance_in_target": True, "bp_inside": True},
    "logistic": {"conf_loss_type": "LOGISTIC", "normalization": "FULL"},
    "no_mining": {"mining_type": "NONE", "normalization": "BATCH_SIZE"},
    "no_mining_logistic": {"mining_type": "NONE", "conf_loss_type": "LOGISTIC"},
    "easy_objects": {"use_difficult_gt": False, "normalization": "NONE"},
    "by_predictions": {"use_prior_for_matching": False, "code_type": "CENTER_SIZE"},
    "by_predictions_inside": {
        "use_prior_for_matching": False,
        "bp_inside": True,
        "overlap_threshold": 0.25,
    },
    "cross_boundary": {"ignore_cross_boundary_bbox": True, "overlap_threshold": 0.25},
    "own_boxes": {"share_location": False, "mining_type": "NONE", "overlap_threshold": 0.25},
    "own_boxes_logistic": {
        "share_location": False,
        "mining_type": "NONE",
        "conf_loss_type": "LOGISTIC",
        "use_prior_for_matching": False,
        "code_type": "CENTER_SIZE",
    },
    "own_boxes_by_predictions": {
        "share_location": False,
        "mining_type": "NONE",
        "use_prior_for_matching": False,
    },
    "agnostic": {"map_object_to_agnostic": True, "num_classes": 2},
    "few_negatives": {"neg_pos_ratio": 0.5},
    "hard_examples": {"mining_type": "HARD_EXAMPLE", "sample_size": 10},
    "hard_examples_of_all": {
        "mining_type": "HARD_EXAMPLE",
        "sample_size": 5,
        "loc_loss_type": "L2",
        "overlap_threshold": 0.25,
        "ignore_cross_boundary_bbox": True,
    },
    "hard_examples_apart": {
        "mining_type": "HARD_EXAMPLE",
        "sample_size": 6,
        "nms": {"nms_threshold": 0.25, "top_k": 30},
        "code_type": "CENTER_SIZE",
    },
    "negatives_apart": {"nms": {"nms_threshold": 0.125}, "use_prior_for_nms": True},
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_loss_and_gradients(name: str) -> None:
    check(Settings(**{"num_classes": CLASSES, **CASES[name]}))


@pytest.mark.parametrize("more", [1, 2])
@pytest.mark.parametrize("code_type", ["CENTER_SIZE", "CORNER"])
def test_refined_boxes(code_type: str, more: int) -> None:
    """More negatives are asked for than there are likely boxes, so that the score counts."""
    settings = Settings(
        CLASSES, code_type=code_type, objectness_score=0.6, neg_pos_ratio=9, bp_inside=True
    )
    losses = {check(settings, refinements()[:given]) for given in (0, more)}
    assert len(losses) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("nms_param { }", "nms_param: is not for five bottoms"),
        ("share_location: false mining_type: NONE", "share_location: has to be true for six"),
        ("use_prior_for_matching: false", "use_prior_for_matching: has to be true for six"),
        ("mining_type: HARD_EXAMPLE", "mining_type: is HARD_EXAMPLE; any other is for six"),
    ],
)
def test_what_refined_boxes_are_not_for(settings: str, message: str) -> None:
    shapes = [tuple(value.shape) for value in (*bottoms(), *refinements())]
    text = f"type: 'MultiBoxLoss' multibox_loss_param {{ num_classes: 4 {settings} }}"
    assert f"multibox_loss_param.{message}" in refused(text, *shapes)
    text = "type: 'MultiBoxLoss' multibox_loss_param { num_classes: 4 }"
    assert "is (4, 79); 4 x 80 would be right" in refused(text, *shapes[:4], (4, 79))


def test_the_cases_differ() -> None:
    losses = {
        name: check(Settings(**{"num_classes": CLASSES, **case})) for name, case in CASES.items()
    }
    assert len({round(loss, 9) for loss in losses.values()}) == len(losses)


def loss_layer(more: str = "", definition: str = "") -> Layer:
    text = f"type: 'MultiBoxLoss' {definition} multibox_loss_param {{ num_classes: 4 {more} }}"
    return make_layer(text, *[tuple(value.shape) for value in bottoms()])


def test_gradients_by_differences() -> None:
    """On two images and twelve boxes."""
    codes, scores, priors, truth = bottoms()
    leaves = [codes[:2, : 12 * 4].clone(), scores[:2, : 12 * CLASSES].clone()]
    priors = priors.view(1, 2, PRIORS, 4)[:, :, :12].reshape(1, 2, 12 * 4)
    truth[truth[..., 0] > 1] = -1
    shapes = [tuple(value.shape) for value in (*leaves, priors, truth)]
    kind = "type: 'MultiBoxLoss' multibox_loss_param { num_classes: 4 code_type: CENTER_SIZE }"
    layer = make_layer(kind, *shapes)
    assert layer(*leaves, priors, truth) > 0
    for leaf in leaves:
        leaf.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: layer(a, b, priors, truth), leaves)


def test_bottoms_that_do_not_learn_do_not_count() -> None:
    values = bottoms()
    both, one, other = (
        float(loss_layer("", "".join(f" propagate_down: {flag}" for flag in flags))(*values))
        for flags in (
            ("true", "true", "false", "false"),
            ("true", "false", "false", "false"),
            ("false", "true", "false", "false"),
        )
    )
    assert one > 0 and other > 0
    assert both == pytest.approx(one + other)


@pytest.mark.parametrize("rows", [1, 0])
def test_without_objects_there_is_no_loss(rows: int) -> None:
    values = bottoms()
    values[3] = torch.full((1, 1, rows, 8), -1.0).double()
    codes = values[0].requires_grad_()
    loss = loss_layer()(*values)
    loss.backward()
    assert loss == 0
    assert codes.grad is not None
    assert not codes.grad.any()
    # All boxes are background.
    assert loss_layer("mining_type: NONE")(*values) > 0


def test_the_old_forms_of_settings() -> None:
    values = bottoms()
    by_images = float(loss_layer("", "loss_param { normalize: false }")(*values))
    same = float(loss_layer("", "loss_param { normalization: BATCH_SIZE }")(*values))
    assert by_images == same
    with recorded_log() as messages:
        layer = loss_layer("do_neg_mining: false mining_type: NONE")
    assert messages == ["do_neg_mining is deprecated, use mining_type instead."]
    assert layer(*values) == loss_layer("mining_type: NONE")(*values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("", "num_classes: must be given, and be positive"),
        ("num_classes: 5", "40 prior boxes need 200 scores of an image, not 160"),
        ("num_classes: 4 do_neg_mining: false", "do_neg_mining: contradicts mining_type"),
        ("num_classes: 4 share_location: false", "share_location: has to be true, or mining_type"),
        ("num_classes: 4 sample_size: 0", "sample_size: is 0; at least 1 would be right"),
        ("num_classes: 4 background_label_id: 4", "background_label_id: is 4; 0 to 3 would be"),
        ("num_classes: 4 map_object_to_agnostic: true", "num_classes: is 4; map_object_to"),
    ],
)
def test_wrong_settings_are_named(settings: str, message: str) -> None:
    shapes = [tuple(value.shape) for value in bottoms()]
    definition = f"type: 'MultiBoxLoss' multibox_loss_param {{ {settings} }}"
    assert message in refused(definition, *shapes)


@pytest.mark.parametrize(
    ("label", "message"),
    [(0, "an object has the background's label 0"), (4, "label 4 is out of range; 0 to 3")],
)
def test_wrong_labels_are_named(label: int, message: str) -> None:
    values = bottoms()
    values[3][0, 0, 2, 1] = label
    with pytest.raises(CaffeError, match=message):
        loss_layer()(*values)
