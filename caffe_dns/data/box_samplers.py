"""Parts of an image to train on, drawn so that they fit the objects in it (`sampler.cpp`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from caffe_dns.data.boxes import Boxes, areas, intersections, overlaps, shares
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import BatchSampler, SampleConstraint, Sampler


def check_sampler(sampler: BatchSampler) -> None:
    """Raise CaffeError, with the field, for ranges that are none."""
    for name, most in (("scale", 1.0), ("aspect_ratio", math.inf)):
        low = getattr(sampler.sampler, f"min_{name}")
        high = getattr(sampler.sampler, f"max_{name}")
        if not 0 < low <= high <= most or math.isinf(high):
            limit = " and at most 1" if most == 1 else ""
            raise CaffeError(
                f"from {low:g} to {high:g} is no range above 0{limit}", field=f"sampler.max_{name}"
            )


def draw_parts(
    samplers: Sequence[BatchSampler], objects: Boxes, draws: np.random.Generator
) -> list[Boxes]:
    """The parts that all samplers find, boxes [4] in shares of the image.

    `objects` [N, 4] are those that the constraints are about (`GenerateBatchSamples`).
    """
    found: list[Boxes] = []
    for sampler in samplers:
        if not sampler.use_original_image:
            continue
        before = len(found)
        for _ in range(sampler.max_trials):
            if sampler.HasField("max_sample") and len(found) - before >= sampler.max_sample:
                break
            part = draw_part(sampler.sampler, draws)
            if satisfies(part, objects, sampler.sample_constraint):
                found.append(part)
    return found


def draw_part(sampler: Sampler, draws: np.random.Generator) -> Boxes:
    """A box [4] of a random size, shape and place (`SampleBBox`)."""
    scale = draws.uniform(sampler.min_scale, sampler.max_scale)
    ratio = draws.uniform(sampler.min_aspect_ratio, sampler.max_aspect_ratio)
    # So that no side is longer than the image's.
    ratio = min(max(ratio, scale**2), 1 / scale**2)
    width, height = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
    left = draws.uniform() * max(0, 1 - width)
    top = draws.uniform() * max(0, 1 - height)
    return np.array([left, top, left + width, top + height], np.float32)


def draw_jitter(most: float, draws: np.random.Generator, *, square: bool) -> Boxes:
    """A box [4] that leaves out up to a share `most` of each side (`GenerateJitterSamples`).

    Once in five it is the whole image, once up to half as much; `square` leaves out the same share
    of both sides.
    """
    kind = draws.choice(3, p=[0.2, 0.2, 0.6])
    if kind == 0:
        return np.array([0, 0, 1, 1], np.float32)
    sides = draws.uniform(1 - (most / 2 if kind == 1 else most), 1, 2)
    if square:
        sides[1] = sides[0]
    low = draws.uniform(0, 1 - sides)
    return np.concatenate([low, low + sides]).astype(np.float32)


def satisfies(part: Boxes, objects: Boxes, constraint: SampleConstraint) -> bool:
    """Whether one object at least is to the part what the constraint asks for.

    Of several kinds of constraints only the first counts, as in the fork
    (`SatisfySampleConstraint`).
    """
    for kind in ("jaccard_overlap", "sample_coverage", "object_coverage"):
        least, most = f"min_{kind}", f"max_{kind}"
        if not constraint.HasField(least) and not constraint.HasField(most):
            continue
        values = _measure(kind, part, objects)
        good = np.ones(len(values), bool)
        if constraint.HasField(least):
            good &= values >= np.float32(getattr(constraint, least))
        if constraint.HasField(most):
            good &= values <= np.float32(getattr(constraint, most))
        return bool(good.any())
    return True


def _measure(kind: str, part: Boxes, objects: Boxes) -> Boxes:
    if kind == "jaccard_overlap":
        return overlaps(part[None], objects)
    common = intersections(part[None], objects)
    whole = areas(objects) if kind == "object_coverage" else np.full_like(common, areas(part))
    return shares(common, whole)
