"""Scores of a test from the outputs of its batches: means, or average precisions of boxes.

Restates `Solver::Test`, and `Solver::TestClassification` and `Solver::TestDetection` of SSD.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import SolverParameter

AP_VERSIONS = ("11point", "MaxIntegral", "Integral")
#: Values of a row of DetectionEvaluate.
_ROW = 5

Curve: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"


class Scores(Protocol):
    """Accumulates the outputs of a test net."""

    def add(self, outputs: Mapping[str, Tensor]) -> None:
        """Take the outputs of a batch."""

    def result(self) -> dict[str, Tensor]:
        """The score over all batches, by output; logs the details, if there are any."""


class MeanOutputs:
    """The mean of each output over the batches. Raises CaffeError where their shapes differ."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._batches = 0

    def add(self, outputs: Mapping[str, Tensor]) -> None:
        self._batches += 1
        for name, top in outputs.items():
            if name not in self._sums:
                self._sums[name] = top.clone()
                continue
            total = self._sums[name]
            if total.shape != top.shape:
                raise CaffeError(
                    f"the output '{name}' has the shape {tuple(total.shape)} in one batch and "
                    f"{tuple(top.shape)} in another, so it has no mean (of DetectionEvaluate's "
                    'tops, a solver with eval_type: "detection" makes average precisions)'
                )
            self._sums[name] = total + top

    def result(self) -> dict[str, Tensor]:
        return {name: total / self._batches for name, total in self._sums.items()}


class AveragePrecisions:
    """The mean average precision of each output, all of which are tops of DetectionEvaluate.

    `version` is one of AP_VERSIONS; `per_class` asks for a line for each class.
    """

    def __init__(self, version: str, *, per_class: bool) -> None:
        self.version = version
        self._per_class = per_class
        self._objects: dict[str, dict[int, int]] = {}
        self._found: dict[str, dict[int, list[tuple[float, bool]]]] = {}

    def add(self, outputs: Mapping[str, Tensor]) -> None:
        for name, top in outputs.items():
            if top.dim() != 4 or top.shape[3] != _ROW:
                raise CaffeError(
                    f"the output '{name}' is of shape {tuple(top.shape)}; for eval_type "
                    '"detection", all outputs have to be tops of DetectionEvaluate'
                )
            objects = self._objects.setdefault(name, defaultdict(int))
            found = self._found.setdefault(name, defaultdict(list))
            for image, label, value, right, wrong in top.reshape(-1, _ROW).tolist():
                if image == -1:
                    objects[int(label)] += int(value)
                elif right or wrong:
                    found[int(label)].append((value, bool(right)))

    def result(self) -> dict[str, Tensor]:
        return {name: torch.tensor(self._mean(name)) for name in self._objects}

    def _mean(self, name: str) -> float:
        total = 0.0
        objects, found = self._objects[name], self._found[name]
        for label in sorted(objects):
            if label not in found:
                log.warning(f"Missing true_pos for label: {label}")
                continue
            precision = average_precision(found[label], objects[label], self.version)
            total += precision
            if self._per_class:
                log.info(f"class{label}: {log.number(precision)}")
        return total / len(objects)


def new_scores(param: SolverParameter) -> Scores:
    """The scores that a solver's tests ask for."""
    if param.eval_type == "detection":
        return AveragePrecisions(param.ap_version, per_class=param.show_per_class_result)
    return MeanOutputs()


def check_eval_type(param: SolverParameter) -> None:
    """Raise CaffeError for an unknown kind of test."""
    kinds = ("classification", "detection")
    if param.eval_type not in kinds:
        raise CaffeError(
            f"is '{param.eval_type}'; {' or '.join(kinds)} would be right", field="eval_type"
        )
    check_ap_version(param.ap_version, "ap_version")


def check_ap_version(version: str, field: str) -> None:
    """Raise CaffeError for an unknown way of averaging."""
    if version not in AP_VERSIONS:
        raise CaffeError(f"is '{version}'; {', '.join(AP_VERSIONS)} would be right", field=field)


def average_precision(found: Sequence[tuple[float, bool]], objects: int, version: str) -> float:
    """The area under the curve of precision over recall (`ComputeAP`).

    `found` has the score of each box and whether it is right; `objects` is the number of objects.
    "11point" takes the mean of the best precisions at recalls of at least 0, 0.1, ..., 1;
    "MaxIntegral" the best at a recall or a larger one, "Integral" the precision itself.
    """
    if not found or not objects:
        return 0.0
    order = np.argsort([-score for score, _ in found], kind="stable")
    right = np.array([is_right for _, is_right in found], float)[order].cumsum()
    # In float32, as there: a recall of 7 / 10 does not reach 0.7.
    precision = (right / np.arange(1, len(right) + 1)).astype(np.float32).astype(float)
    recall = (right / objects).astype(np.float32).astype(float)
    if version == "11point":
        return float(np.mean([_best_from(precision, recall, point / 10) for point in range(11)]))
    if version == "MaxIntegral":
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        # A step counts by the best precision from where it begins.
        precision = np.concatenate([precision[:1], precision[:-1]])
    return float((precision * np.diff(recall, prepend=0)).sum())


def _best_from(precision: Curve, recall: Curve, least: float) -> float:
    """The best precision at a recall of `least` or more; 0 where that is not reached."""
    return float(precision[recall >= least].max(initial=0))
