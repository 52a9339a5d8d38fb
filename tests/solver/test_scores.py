"""Average precisions against the curve summed up by hand, and tests of detectors by solvers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_dns.errors import CaffeError
from caffe_dns.solver.scores import AveragePrecisions, MeanOutputs, average_precision
from tests.layers.detection.test_detection_evaluate import FOUND, OBJECTS
from tests.nets import recorded_log
from tests.solver.harness import make_solver

#: Right, wrong, right, right, wrong of 4 objects: recall 1/4, 1/4, 1/2, 3/4, 3/4 at precision 1,
#: 1/2, 2/3, 3/4, 3/5.
FIVE = [(0.5, False), (0.9, True), (0.6, True), (0.8, False), (0.7, True)]


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        # 1 for 0, 0.1, 0.2; 3/4 for 0.3 to 0.7; 0 for 0.8 to 1.
        ("11point", (3 + 5 * 0.75) / 11),
        # 1 from 0, 1 from 1/4 (and none to the next), 3/4 from 1/4 and from 1/2.
        ("MaxIntegral", (1 + 0.75 + 0.75) / 4),
        ("Integral", (1 + 2 / 3 + 0.75) / 4),
    ],
)
def test_average_precision(version: str, expected: float) -> None:
    assert average_precision(FIVE, 4, version) == pytest.approx(expected, rel=1e-6)
    assert average_precision([], 4, version) == 0
    assert average_precision([(0.9, False)], 0, version) == 0
    assert average_precision([(0.9, True)], 1, version) == pytest.approx(1)


def test_a_recall_of_seven_tenths_is_less_in_float32() -> None:
    found = [(1 - 0.01 * i, True) for i in range(7)]
    # Precision 1 at recalls of 0 to 0.6.
    assert average_precision(found, 10, "11point") == pytest.approx(7 / 11)


def test_steps_of_max_integral_begin_where_they_count() -> None:
    # Recall 0, 1/2, 1 at precision 0, 1/2, 2/3: both steps count 2/3, from 0 and from 1/2.
    found = [(0.9, False), (0.8, True), (0.7, True)]
    assert average_precision(found, 2, "MaxIntegral") == pytest.approx(2 / 3)
    # Recall 1/2, 1/2, 1 at precision 1, 1/2, 2/3.
    found = [(0.9, True), (0.8, False), (0.7, True)]
    assert average_precision(found, 2, "MaxIntegral") == pytest.approx((1 + 2 / 3) / 2)


def rows(*lines: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(lines)[None, None]


def test_batches_are_taken_together() -> None:
    scores = AveragePrecisions("Integral", per_class=True)
    scores.add({"map": rows((-1, 1, 3, -1, -1), (-1, 2, 2, -1, -1), (0, 1, 0.9, 1, 0))})
    scores.add(
        {
            "map": rows(
                (-1, 1, 1, -1, -1),
                (-1, 2, 0, -1, -1),
                (0, 1, 0.95, 0, 1),
                (1, 1, 0.2, 1, 0),
                (1, 1, 0.1, 0, 0),  # a difficult object
            )
        }
    )
    with recorded_log() as messages:
        result = scores.result()
    # Class 1: wrong, right, right of 4; of class 2 nothing was found.
    first = (1 / 2 + 2 / 3) / 4
    assert messages == [f"class1: {first:.6g}", "Missing true_pos for label: 2"]
    assert float(result["map"]) == pytest.approx(first / 2)


def test_outputs_that_are_no_boxes_are_named() -> None:
    with pytest.raises(CaffeError, match=r"'loss' is of shape .*DetectionEvaluate"):
        AveragePrecisions("Integral", per_class=False).add({"loss": torch.zeros(())})
    means = MeanOutputs()
    means.add({"boxes": torch.zeros(1, 1, 3, 7)})
    with pytest.raises(CaffeError, match=r"'boxes' has the shape \(1, 1, 3, 7\) in one batch and"):
        means.add({"boxes": torch.zeros(1, 1, 4, 7)})


# Solvers ----------------------------------------------------------------------------------------

NET = """
layer { name: "data" type: "HDF5Data" top: "found" top: "objects" include { phase: TEST }
  hdf5_data_param { source: "FOLDER/list.txt" batch_size: 1 } }
layer { name: "evaluate" type: "DetectionEvaluate" bottom: "found" bottom: "objects"
  top: "detection_eval" include { phase: TEST } detection_evaluate_param { num_classes: 4 } }
layer { name: "data" type: "DummyData" top: "x" top: "y" include { phase: TRAIN }
  dummy_data_param { shape { dim: 2 dim: 3 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" include { phase: TRAIN }
  inner_product_param { num_output: 3 } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "y" include { phase: TRAIN } }
"""


def detection_net(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A definition on boxes from a file in the folder, which becomes the current one."""
    import h5py

    with h5py.File(folder / "boxes.h5", "w") as file:
        file["found"] = np.array(FOUND, np.float32)[None, None]
        file["objects"] = np.array(OBJECTS, np.float32)[None, None]
    monkeypatch.chdir(folder)  # whose name may have a blank, at which a path in a list ends
    (folder / "list.txt").write_text("boxes.h5\n")
    return NET.replace("FOLDER", str(folder))


def test_a_solver_says_the_mean_average_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = 'eval_type: "detection" test_iter: 2 test_interval: 100 show_per_class_result: true'
    solver = make_solver(tmp_path, settings, detection_net(tmp_path, monkeypatch))
    with recorded_log() as messages:
        result = solver.test(0)
    # Twice the same batch: of 6 objects of class 1, two each of 0.9 and 0.8 and 0.3 are right.
    first = (1 + 1 + 1 + 1 + 5 / 9 + 6 / 10) / 6
    assert messages[-4:] == [
        f"class1: {first:.6g}",
        "class2: 0",
        "class3: 0",
        f"    Test net output #0: detection_eval = {first / 3:.6g}",
    ]
    assert float(result["detection_eval"]) == pytest.approx(first / 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('eval_type: "segmentation"', "eval_type: is 'segmentation'; classification or detection"),
        ('ap_version: "VOC"', "ap_version: is 'VOC'; 11point, MaxIntegral, Integral would be"),
    ],
)
def test_wrong_settings_are_named(settings: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CaffeError, match=message):
        make_solver(tmp_path, settings)
