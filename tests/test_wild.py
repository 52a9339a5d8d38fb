"""tools/wild: how far small definitions get, and what is made up for their data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caffe_dns.errors import CaffeError
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.proto.text import parse_text
from tests import programs
from tools.trials.constant_data import Guess, guesses, with_constant_data
from tools.trials.faults import is_fault
from tools.trials.steps import Step, kind_of, try_net

DATA = 'layer { name: "d" type: "Data" top: "data" top: "label" data_param { source: "gone" } }\n'
SCORES = """layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 4 } }
"""
LOSS = 'layer { name: "l" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "l" }\n'
SHAPES = """layer { name: "i" type: "Input" top: "a" top: "b"
  input_param { shape { dim: 9 dim: 3 } shape { dim: 9 dim: 4 } } }
"""
FILES = {
    "a_net.prototxt": DATA + SCORES + LOSS,
    "b_same.prototxt": DATA + SCORES + LOSS,
    "c_deploy.prototxt": 'input: "data" input_shape { dim: 9 dim: 3 }\n' + SCORES,
    "d_broken.prototxt": DATA + SCORES.replace("num_output", "num_outputs") + LOSS,
    "e_unknown.prototxt": DATA + SCORES.replace("InnerProduct", "Teleporter") + LOSS,
    "f_wrong.prototxt": DATA + SCORES + LOSS.replace("label", "labels"),
    "k_template.prototxt": DATA + SCORES.replace("4", "CLASSES") + LOSS,
    "l_shapes.prototxt": SHAPES
    + 'layer { name: "e" type: "Eltwise" bottom: "a" bottom: "b" top: "e" }',
    "m_test.prototxt": DATA + SCORES.replace("{", "{ include { phase: TEST }", 1) + LOSS,
    "g_solver.prototxt": 'net: "gone" base_lr: 0.1 lr_policy: "fixed" max_iter: 3',
    "h_labels.prototxt": 'item { name: "x" }',
    "i_notes.txt": "layer {}",
    "j_python.prototxt": DATA
    + SCORES
    + 'layer { name: "p" type: "Python" bottom: "ip" top: "wanted" python_param { module: "x" } }\n'
    + LOSS.replace("label", "wanted"),
}


def test_how_far_files_get(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    said = programs.run("wild", "--json", f"{tmp_path}/all.json", str(tmp_path))
    results = json.loads((tmp_path / "all.json").read_text())
    reached = {Path(row["file"]).name[0]: (row["kind"], row["reached"]) for row in results}
    assert reached == {
        "a": ("net", "trained"),
        "c": ("net", "ran"),
        "d": ("net", "nothing"),
        "e": ("net", "parsed"),
        "f": ("net", "parsed"),
        "g": ("solver", "built"),
        "h": ("other", "nothing"),
        "j": ("net", "trained"),
        "k": ("net", "nothing"),
        "l": ("net", "parsed"),
        "m": ("net", "trained"),
    }
    reasons = {Path(row["file"]).name[0]: row["reason"] for row in results if row["reason"]}
    assert reasons.keys() == {"d", "e", "f", "k", "l"}
    faulty = {Path(row["file"]).name[0] for row in results if row["faulty"]}
    assert faulty == {"f", "k"}
    assert "unknown field 'num_outputs'" in reasons["d"]
    assert "e_unknown.prototxt:2: layer 'ip': unknown layer type 'Teleporter'" in reasons["e"]
    assert said.splitlines()[-9:] == [
        "9 nets: parsed 7 (77.8 %), built 4 (44.4 %), ran 4 (44.4 %), trained 4 (44.4 %)",
        "  2 (22.2 %) have fields or layer types that dns lacks",
        "  2 (22.2 %) are wrong for every Caffe",
        "  1 (11.1 %) do not fit together, or not with constant data",
        "  without those wrong for every Caffe, 7: parsed 6 (85.7 %), built 4 (57.1 %), "
        "ran 4 (57.1 %), trained 4 (57.1 %)",
        "1 solvers: parsed 1 (100.0 %)",
        "1 nets have no loss: what has run counts as trained",
        "1 nets have Python layers, for which constant data stand",
        "1 other files, 1 of a content seen before",
    ]


def test_a_file_has_so_much_time(tmp_path: Path) -> None:
    big = "input_shape { dim: 1 dim: 64 dim: 400 dim: 400 }"
    deep = "\n".join(
        f'layer {{ name: "c{i}" type: "Convolution" bottom: "{"data" if i == 0 else f"c{i - 1}"}" '
        f'top: "c{i}" convolution_param {{ num_output: 64 kernel_size: 3 pad: 1 }} }}'
        for i in range(40)
    )
    (tmp_path / "slow.prototxt").write_text(f'input: "data" {big}\n{deep}')
    said = programs.run("wild", "--seconds", "2", "--gigabytes", "30", str(tmp_path))
    assert "built    " in said
    assert "slow.prototxt: takes more than 2 s" in said


def constants(text: str, image: tuple[int, ...] = (3, 9, 9)) -> dict[str, list[int]]:
    """The shapes of what stands for the data of a net, by its top."""
    made = with_constant_data(parse_text(text, NetParameter).message, Guess(2, image))
    return {
        layer.top[0]: list(layer.dummy_data_param.shape[0].dim)
        for layer in made.layer
        if layer.name == f"constant {layer.top[0]}"
    }


@pytest.mark.parametrize(
    ("reader", "wanted"),
    [
        ('type: "SoftmaxWithLoss"', (2, 8, 8)),
        ('type: "SoftmaxWithLoss" softmax_param { axis: 3 }', (2, 5, 8)),
        ('type: "EuclideanLoss"', (2, 5, 8, 8)),
        ('type: "SigmoidCrossEntropyLoss"', (2, 5, 8, 8)),
        ('type: "Accuracy" accuracy_param { axis: 1 }', (2, 8, 8)),
        (
            'type: "DetectionLoss" detection_loss_param {'
            " cls_num: 1 coord_num: 4 field_w: 3 field_h: 3 downsample_rate: 8 }",
            (2, 6, 8, 8),
        ),
    ],
)
def test_labels_have_the_shape_that_their_reader_wants(
    reader: str, wanted: tuple[int, ...]
) -> None:
    text = DATA.replace("data_param", "transform_param { crop_size: 8 } data_param") + (
        'layer { name: "c" type: "Convolution" bottom: "data" top: "c"'
        " convolution_param { num_output: 5 kernel_size: 1 } }"
        f'layer {{ name: "x" {reader} bottom: "c" bottom: "label" top: "x" }}'
    )
    assert constants(text, (3, 99, 99)) == {"data": [2, 3, 8, 8], "label": list(wanted)}


def test_regions_have_the_axes_of_their_losses() -> None:
    """py-R-FCN's own labels are R x 1 x 1 x 1, and so are the losses of its boxes."""
    text = (
        DATA
        + SCORES
        + """
layer { name: "p" type: "Python" bottom: "ip" top: "labels" python_param { module: "x" } }
layer { name: "q" type: "Python" top: "all_rois" python_param { module: "x" } }
layer { name: "r" type: "Concat" bottom: "all_rois" bottom: "all_rois" top: "r" }
layer { name: "l" type: "SoftmaxWithLossOHEM" bottom: "ip" bottom: "labels"
  top: "a" top: "b" top: "each" }
layer { name: "box" type: "SmoothL1LossOHEM" bottom: "ip" bottom: "ip" top: "c" top: "each_box" }
layer { name: "sum" type: "Eltwise" bottom: "each" bottom: "each_box" top: "sum" }
"""
    )
    shapes = constants(text)
    assert shapes["labels"] == [2, 1, 1, 1]
    assert shapes["all_rois"] == [2, 5]


def test_files_that_layers_read_besides_their_data_are_left_out() -> None:
    text = """layer { name: "d" type: "AnnotatedData" top: "data" top: "label" }
layer { name: "i" type: "Input" top: "boxes" input_param { shape { dim: [1, 1, 5, 7] } } }
layer { name: "e" type: "DetectionEvaluate" bottom: "boxes" bottom: "label" top: "e"
  detection_evaluate_param { num_classes: 3 background_label_id: 0 name_size_file: "gone" } }"""
    made = with_constant_data(parse_text(text, NetParameter).message, Guess(2, (3, 9, 9)))
    settings = made.layer[-1].detection_evaluate_param
    assert settings.num_classes == 3 and not settings.name_size_file


def test_what_python_layers_change_keeps_its_shape() -> None:
    text = (
        DATA
        + SCORES
        + """
layer { name: "p" type: "Python" bottom: "ip" top: "dropped" python_param { module: "x" } }
layer { name: "e" type: "Eltwise" bottom: "dropped" bottom: "ip" top: "e" }"""
    )
    assert constants(text)["dropped"] == [2, 4]


@pytest.mark.parametrize(("points", "channels"), [("", 2), ("slice_point: 3", 6)])
def test_pairs_of_images_lie_in_one_blob(points: str, channels: int) -> None:
    text = (
        DATA
        + f"""layer {{ name: "s" type: "Slice" bottom: "data" top: "left" top: "right"
  slice_param {{ {points} }} }}"""
    )
    assert constants(text)["data"] == [2, channels, 9, 9]


def test_guesses_follow_what_the_definition_says_anywhere() -> None:
    text = """
    layer { name: "d" type: "MemoryData" top: "d" include { phase: TEST }
      memory_data_param { batch_size: 7 channels: 1 height: 1014 width: 1 } }
    layer { name: "r" type: "Reshape" bottom: "d" top: "r"
      reshape_param { shape { dim: 16 dim: 24 dim: 5 } } }"""
    tried = list(guesses(parse_text(text, NetParameter).message))
    assert tried[0] == Guess(2, (1, 1014, 1))
    assert list(dict.fromkeys(guess.batch for guess in tried)) == [2, 1, 7, 384]


def test_batches_of_each_phase_are_tried() -> None:
    """The two smallest, after small ones."""
    layer = 'layer {{ name: "d" type: "Data" top: "d" data_param {{ batch_size: {} }} }}'
    text = "\n".join(map(layer.format, (64, 16, 100)))
    tried = guesses(parse_text(text, NetParameter).message)
    assert list(dict.fromkeys(guess.batch for guess in tried)) == [2, 1, 16, 64, 100]


def test_as_many_regions_as_are_sliced() -> None:
    text = """
    layer { name: "p" type: "Python" top: "rois" python_param { module: "x" } }
    layer { name: "r" type: "ReLU" bottom: "rois" top: "r" }
    layer { name: "s" type: "Slice" bottom: "r" top: "objects" top: "others"
      slice_param { axis: 0 slice_point: 32 } }
    layer { name: "q" type: "Python" top: "data" top: "labels" python_param { module: "x" } }
    layer { name: "t" type: "Slice" bottom: "labels" top: "of_objects" top: "of_others"
      slice_param { axis: 0 slice_point: 32 } }"""
    # Detectors take one image at a time.
    assert constants(text) == {"rois": [64, 5], "data": [1, 3, 9, 9], "labels": [64]}


def test_objects_that_proposals_are_compared_with_have_a_class() -> None:
    text = """
    layer { name: "d" type: "Python" top: "rois" top: "objects" python_param { module: "x" } }
    layer { name: "t" type: "ProposalTarget" bottom: "rois" bottom: "objects"
      top: "a" top: "b" top: "c" top: "d" top: "e" top: "f"
      proposal_target_param { cls_num: 2 batch_size: 8 img_width: 224 img_height: 224 } }"""
    param = parse_text(text, NetParameter).message
    net = Net(with_constant_data(param, Guess(2, (3, 9, 9))))
    classes = net()["b"]
    assert classes.shape == (8, 1, 1, 1) and classes.eq(1).any()


def test_statistics_that_no_batch_has_taught_do_not_overflow(tmp_path: Path) -> None:
    """Divided by the square root of eps, 1e-5, sixteen times over, a score is beyond float32."""
    layer = """layer { name: "%d" type: "BatchNorm" bottom: "ip" top: "ip"
      batch_norm_param { use_global_stats: true } }\n"""
    file = tmp_path / "net.prototxt"
    file.write_text(DATA + SCORES + "".join(layer % index for index in range(20)) + LOSS)
    reached: list[Step] = []
    assert try_net(file, reached.append, Step.TRAINED, lambda: None)
    assert reached[-1] is Step.TRAINED


def test_objects_that_are_given_as_dummies_have_a_class() -> None:
    text = """
    layer { name: "l" type: "DummyData" top: "l"
      dummy_data_param { shape { dim: 1 dim: 1 dim: 5 dim: 8 } } }"""
    param = parse_text(text, NetParameter).message
    assert Net(with_constant_data(param, Guess(2, (3, 9, 9))))()["l"][..., 1].eq(1).all()


def test_batches_are_of_as_many_items_as_share_statistics() -> None:
    param = parse_text("bn_stats_batch_size: 8\n" + DATA, NetParameter).message
    assert next(guesses(param)).batch == 8


def test_kinds_of_files(tmp_path: Path) -> None:
    for name, kind in (("a_net", "net"), ("g_solver", "solver"), ("h_labels", "other")):
        path = tmp_path / name
        path.write_text(FILES[f"{name}.prototxt"])
        assert kind_of(path) == kind


@pytest.mark.parametrize(
    ("message", "is_one"),
    [
        ("expected a whole number, found 'N' (column 3)", True),
        ("expected a LayerType (NONE, DATA), found '\"Data\"' (column 3)", True),
        ("expected a LayerType (NONE, DATA), found 'BN' (column 3)", False),
        ("unknown field 'x' in LayerParameter", False),
        ("Top blob 'a' produced by multiple sources", True),
        ("must be given and positive", True),
        ("all bottoms must have one shape", False),
        ("'x' of a fork is not supported", False),
    ],
)
def test_what_is_wrong_for_every_caffe(message: str, is_one: bool) -> None:
    assert is_fault(CaffeError(message)) == is_one
