"""DetectionOutput on maps, against the rules of SSD's on the same numbers in its own order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.layers.detection.test_detection_output import (
    CLASSES,
    IMAGES,
    PRIORS,
    bottoms,
    expected_rows,
)
from tests.layers.harness import make_layer, refused

#: Boxes at each place, rows and columns of the two maps.
MAPS = [(3, 2, 3), (4, 3, 1)]
TEXT = (
    "type: 'DetectionOutputOfMaps' detection_output_param { no_permute: true num_classes: 4 "
    "code_type: CENTER_SIZE nms_param { nms_threshold: 0.3 } %s }"
)


def as_maps(values: list[Tensor], box_classes: int, whole: bool) -> list[Tensor]:
    """Scores [class][ratio][place] and locations [ratio][class][4][y][x] of the maps, and boxes."""
    scores, codes, priors, first = [], [], [], 0
    for ratios, height, width in MAPS:
        some = slice(first, first + ratios * height * width)
        first = some.stop
        of_map = values[1].view(IMAGES, PRIORS, CLASSES)[:, some]
        of_map = of_map.reshape(IMAGES, height * width, ratios, CLASSES)
        scores.append(torch.einsum("npra->narp", of_map))
        of_map = values[0].view(IMAGES, PRIORS, -1)[:, some]
        of_map = of_map.reshape(IMAGES, height, width, ratios * box_classes * 4)
        codes.append(torch.einsum("nyxk->nkyx", of_map))
        priors.append(values[2].view(1, 2, PRIORS, 4)[:, :, some].flatten(2))
    return [*scores, *codes, *(values[2:] if whole else priors)]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("box_classes", [1, CLASSES])
def test_maps(box_classes: int, whole: bool) -> None:
    values = bottoms(box_classes)
    given = as_maps(values, box_classes, whole)
    shared = "true" if box_classes == 1 else "false"
    text = TEXT % f"nbottom: 2 share_location: {shared}"
    made = make_layer(text, *(tuple(each.shape) for each in given))
    rows = made(*given)[0, 0].numpy()
    expected = expected_rows(values, "CENTER_SIZE", box_classes)
    np.testing.assert_allclose(rows, expected, rtol=1e-10, atol=1e-10)


def test_what_maps_refuse() -> None:
    given = [tuple(each.shape) for each in as_maps(bottoms(), 1, True)]
    assert "nbottom: is 6; 13 or 18 bottoms would be right for it, not 5" in refused(
        TEXT % "", *given
    )
    text = TEXT % "nbottom: 2"
    assert "objectness_score: is not for no_permute" in refused(
        TEXT % "nbottom: 2 objectness_score: 0.1", *given
    )
    assert "N x classes x R x (H * W) and" in refused(text, (3, 4, 3, 7), *given[1:])
    assert "30 prior boxes need 120 scores of an image" in refused(text, (3, 4, 4, 6), *given[1:])
    plain = "type: 'DetectionOutput' detection_output_param { num_classes: 4 nbottom: 3 }"
    assert "nbottom: is for layers of type DetectionOutputOfMaps only" in refused(
        plain, (1, 4), (1, 4), (1, 2, 4)
    )
