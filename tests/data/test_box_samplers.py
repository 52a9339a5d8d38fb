"""Parts of images that samplers draw: their sizes, shapes, places and constraints."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_dns.data.box_samplers import check_sampler, draw_part, draw_parts, satisfies
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import BatchSampler, SampleConstraint, Sampler
from tests.layers.detection import reference

OBJECTS = np.array([[0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 0.7, 0.8]], np.float32)


def sampler(text: str) -> BatchSampler:
    return text_format.Parse(text, BatchSampler())


def test_parts_have_the_sizes_and_shapes_that_are_asked_for() -> None:
    draws = np.random.default_rng(0)
    param = Sampler(min_scale=0.3, max_scale=1, min_aspect_ratio=0.5, max_aspect_ratio=2)
    parts = np.array([draw_part(param, draws) for _ in range(2000)])
    sides = parts[:, 2:] - parts[:, :2]
    assert (parts >= 0).all() and (parts <= 1 + 1e-6).all()
    scales, ratios = np.sqrt(sides.prod(1)), sides[:, 0] / sides[:, 1]
    assert 0.3 - 1e-6 <= scales.min() < 0.31 and 0.98 < scales.max() <= 1 + 1e-6
    assert 0.5 - 1e-5 <= ratios.min() < 0.52 and 1.95 < ratios.max() <= 2 + 1e-5
    # Where the image is too small for the ratio, the longer side is all of it.
    assert (sides <= 1 + 1e-6).all() and (np.abs(sides - 1) < 1e-6).any(1).sum() > 100
    spare = 1 - sides[:, 0]
    wide = spare > 0.2
    places = parts[wide, 0] / spare[wide]
    assert places.min() < 0.02 and places.max() > 0.98
    assert abs(places.mean() - 0.5) < 0.03


@pytest.mark.parametrize(
    ("constraint", "part", "expected"),
    [
        ("", [0, 0, 0.05, 0.05], True),
        # Overlaps of 0.16 / 0.25 and 0.
        ("min_jaccard_overlap: 0.6", [0, 0, 0.5, 0.5], True),
        ("min_jaccard_overlap: 0.65", [0, 0, 0.5, 0.5], False),
        ("max_jaccard_overlap: 0.5", [0, 0, 0.5, 0.5], True),
        ("min_jaccard_overlap: 0.1 max_jaccard_overlap: 0.5", [0, 0, 0.5, 0.5], False),
        # The first object covers 0.64 of the part.
        ("min_sample_coverage: 0.6", [0, 0, 0.5, 0.5], True),
        ("min_sample_coverage: 0.7", [0, 0, 0.5, 0.5], False),
        # All of it lies in the part; of the second, half.
        ("min_object_coverage: 0.99", [0, 0, 0.5, 0.5], True),
        ("min_object_coverage: 0.4 max_object_coverage: 0.6", [0.6, 0.6, 0.65, 0.9], True),
        # Of several kinds, the first counts.
        ("min_jaccard_overlap: 0.6 min_sample_coverage: 0.7", [0, 0, 0.5, 0.5], True),
    ],
)
def test_constraints(constraint: str, part: list[float], expected: bool) -> None:
    param = text_format.Parse(constraint, SampleConstraint())
    assert satisfies(np.array(part, np.float32), OBJECTS, param) is expected
    if constraint:
        assert not satisfies(np.array(part, np.float32), OBJECTS[:0], param)


def test_trials_and_samples() -> None:
    samplers = [
        sampler("max_sample: 1 max_trials: 1"),  # the whole image
        sampler(
            "sampler { min_scale: 0.3 max_scale: 0.6 } max_sample: 3 max_trials: 50"
            " sample_constraint { min_jaccard_overlap: 0.5 }"
        ),
        sampler("use_original_image: false max_trials: 5"),
        sampler("sampler { min_scale: 0.5 max_scale: 0.5 } max_trials: 4"),
        sampler("sample_constraint { min_jaccard_overlap: 0.9 }"),
    ]
    parts = draw_parts(samplers, OBJECTS, np.random.default_rng(1))
    assert len(parts) == 1 + 3 + 4
    np.testing.assert_allclose(parts[0], [0, 0, 1, 1], atol=1e-6)
    for part in parts[1:4]:
        assert max(reference.overlap(part.tolist(), each) for each in OBJECTS.tolist()) >= 0.5
    again = draw_parts(samplers, OBJECTS, np.random.default_rng(1))
    np.testing.assert_array_equal(parts, again)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min_scale: 0", "sampler.max_scale: from 0 to 1 is no range above 0 and at most 1"),
        ("max_scale: 1.5", "sampler.max_scale: from 1 to 1.5"),
        ("min_scale: 0.5 max_scale: 0.4", "sampler.max_scale: from 0.5 to 0.4"),
        ("max_aspect_ratio: 0.5", "sampler.max_aspect_ratio: from 1 to 0.5 is no range above 0"),
        ("max_aspect_ratio: inf", "sampler.max_aspect_ratio: from 1 to inf"),
    ],
)
def test_ranges_that_are_none_are_named(text: str, message: str) -> None:
    with pytest.raises(CaffeError, match=message):
        check_sampler(sampler(f"sampler {{ {text} }}"))
