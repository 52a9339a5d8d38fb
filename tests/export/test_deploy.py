"""deploy.prototxt from train_val.prototxt."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_dns import load_net
from caffe_dns.errors import CaffeError
from caffe_dns.export.deploy import Deployment, deploy
from caffe_dns.layers.base import Shape
from caffe_dns.proto.caffe_pb2 import LayerParameter, NetParameter
from caffe_dns.proto.text import parse_text
from caffe_dns.proto.upgrade import read_net
from tests.oracle import GOLDEN

MODELS = Path(__file__).parents[2] / "models"
DATA = (
    'layer { name: "d" type: "Data" top: "data" top: "label" transform_param { scale: 0.5 }'
    ' data_param { source: "gone" batch_size: 9 } }'
)
SCORES = (
    'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"'
    " inner_product_param { num_output: 4 } }"
)


def make(text: str, *, shapes: tuple[Shape, ...] = ((3, 8, 6),), batch: int = 1) -> Deployment:
    return deploy(parse_text(text, NetParameter).message, shapes=shapes, batch=batch)


def shown(param: NetParameter) -> list[str]:
    """Every layer as `type bottoms > tops`."""
    return [f"{x.type} {','.join(x.bottom)}>{','.join(x.top)}" for x in param.layer]


def settings(layer: LayerParameter) -> LayerParameter:
    """What a layer computes: all but its name, and stride 1, which says nothing."""
    copy = LayerParameter()
    copy.CopyFrom(layer)
    copy.ClearField("name")
    return copy


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in MODELS.glob("*/deploy.*")))
@pytest.mark.parametrize("file", ["train_val.prototxt", "prune_train_val.prototxt"])
def test_models_have_the_deploy_net_that_is_made_of_them(folder: str, file: str) -> None:
    if not (MODELS / folder / file).exists():
        pytest.skip("this model has one definition for training only")
    expected = read_net(MODELS / folder / "deploy.prototxt").message
    item = tuple(expected.layer[0].input_param.shape[0].dim)[1:]
    given = read_net(MODELS / folder / file).message
    has_data = any(layer.type in ("Data", "AnnotatedData") for layer in given.layer)
    made = deploy(given, shapes=[item] if has_data else []).param
    assert [settings(layer) for layer in made.layer] == [settings(x) for x in expected.layer]


def test_official_layers_become_standard_ones(tmp_path: Path) -> None:
    given = read_net(MODELS / "lenet" / "guo_train_val.prototxt").message
    expected = read_net(MODELS / "lenet" / "deploy.prototxt").message
    assert shown(deploy(given, shapes=[(1, 28, 28)]).param) == shown(expected)


def test_layers_of_forks_become_standard_ones() -> None:
    """The same numbers in stock Caffe, where it has a layer for them."""
    text = DATA + (
        'layer { name: "a" type: "ConvolutionDepthwise" bottom: "data" top: "a"'
        " convolution_param { num_output: 3 kernel_size: 3 } }"
        'layer { name: "b" type: "DepthwiseConvolution" bottom: "a" top: "b"'
        " convolution_param { num_output: 3 group: 3 kernel_size: 1 } }"
        'layer { name: "c" type: "Pooling" bottom: "b" top: "c"'
        " pooling_param { kernel_size: 2 stride: 2 ceil_mode: false } }"
        'layer { name: "d" type: "Dropout" bottom: "c" top: "d"'
        " dropout_param { dropout_ratio: 0.25 scale_train: false } }"
        'layer { name: "e" type: "Slice" bottom: "d" top: "e1" top: "e2"'
        " slice_param { slice_dim: 2 } }"
        'layer { name: "f" type: "Concat" bottom: "e1" bottom: "e2" top: "f"'
        " concat_param { concat_dim: 3 } }"
    )
    a, b, c, d, e, f = make(text).param.layer[1:]
    assert {a.type, b.type} == {"Convolution"}
    assert a.convolution_param.group == b.convolution_param.group == 3
    assert c.pooling_param.round_mode == c.pooling_param.FLOOR
    assert not c.pooling_param.HasField("ceil_mode")
    assert (d.type, d.power_param.scale) == ("Power", 0.75)
    assert not d.HasField("dropout_param")
    assert (e.slice_param.axis, f.concat_param.axis) == (2, 3)
    assert not e.slice_param.HasField("slice_dim")
    assert not f.concat_param.HasField("concat_dim")


def test_where_sequences_begin_is_no_data() -> None:
    """A layer that says it without a bottom stays, and no shape has to be given for it."""
    text = (
        'layer { name: "d" type: "Data" top: "x" data_param { source: "gone" batch_size: 9 } }'
        'layer { name: "c" type: "ContinuationIndicator" top: "begin"'
        " continuation_indicator_param { time_step: 1 batch_size: 3 } }"
        'layer { name: "r" type: "LSTM" bottom: "x" bottom: "begin" top: "r"'
        " recurrent_param { num_output: 2 } }"
    )
    assert shown(make(text).param) == [
        "Input >x",
        "ContinuationIndicator >begin",
        "LSTM x,begin>r",
    ]


def test_shapes_come_from_the_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(GOLDEN)
    parsed = read_net(GOLDEN / "runs" / "sgd_inv" / "train_val.prototxt")
    made = deploy(parsed.message, batch=7)
    assert list(made.param.layer[0].input_param.shape[0].dim) == [7, 1, 28, 28]
    (tmp_path / "deploy.prototxt").write_text(made.to_text())
    net = load_net(
        tmp_path / "deploy.prototxt", weights=GOLDEN / "runs/sgd_inv/snap_iter_20.caffemodel"
    )
    assert net.inputs == ["data"]
    assert net.outputs == ["prob"]
    assert net.blob_shapes["prob"] == (7, 10)


def test_remarks_say_what_the_data_layers_did() -> None:
    loss = 'layer { name: "l" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" }'
    text = make(DATA + SCORES + loss).to_text()
    assert text.startswith("# data: has to come as the layer 'd' made it: scale: 0.5\n")
    assert parse_text(text, NetParameter).message.layer[-1].name == "prob"


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (
            'layer { name: "l" type: "SigmoidCrossEntropyLoss" bottom: "ip" bottom: "label" }',
            ["Sigmoid ip>prob"],
        ),
        ('layer { name: "l" type: "HingeLoss" bottom: "ip" bottom: "label" }', []),
        (
            'layer { name: "p" type: "Softmax" bottom: "ip" top: "p" }'
            'layer { name: "a" type: "Accuracy" bottom: "p" bottom: "label" top: "a" }'
            'layer { name: "l" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" }',
            ["Softmax ip>p"],
        ),
        (
            'layer { name: "l" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label"'
            " include { phase: TRAIN } }"
            'layer { name: "a" type: "Accuracy" bottom: "ip" bottom: "label" top: "a" }',
            ["Softmax ip>prob"],
        ),
        ('layer { name: "a" type: "Accuracy" bottom: "ip" bottom: "label" top: "a" }', []),
        (
            'layer { name: "m" type: "Power" bottom: "label" top: "m" }'
            'layer { name: "l" type: "EuclideanLoss" bottom: "m" bottom: "ip" }'
            'layer { name: "s" type: "Silence" bottom: "label" }',
            [],
        ),
        (
            'layer { name: "r" type: "Reduction" bottom: "ip" top: "r" loss_weight: 2 }'
            'layer { name: "x" type: "ArgMax" bottom: "ip" top: "x" }',
            ["ArgMax ip>x"],
        ),
        (
            'layer { name: "f" type: "Flatten" bottom: "data" top: "flat" }'
            'layer { name: "l" type: "EuclideanLoss" bottom: "ip" bottom: "flat" }',
            [],
        ),
        (
            'layer { name: "one" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" }'
            'layer { name: "two" type: "SigmoidCrossEntropyLoss" bottom: "ip" bottom: "label" }',
            ["Softmax ip>prob_one", "Sigmoid ip>prob_two"],
        ),
        (
            'layer { name: "prob" type: "ReLU" bottom: "ip" top: "prob" }'
            'layer { name: "l" type: "SoftmaxWithLoss" bottom: "prob" bottom: "label" }',
            ["ReLU ip>prob", "Softmax prob>l_prob"],
        ),
        (  # a loss_weight on what others read
            'layer { name: "r" type: "ReLU" bottom: "ip" top: "r" loss_weight: 0.1 }'
            'layer { name: "s" type: "TanH" bottom: "r" top: "r" loss_weight: 0.1 }'
            'layer { name: "l" type: "SoftmaxWithLoss" bottom: "r" bottom: "label" }',
            ["ReLU ip>r", "TanH r>r", "Softmax r>prob"],
        ),
        (  # and on what learns
            'layer { name: "c" type: "InnerProduct" bottom: "ip" top: "c" loss_weight: 1'
            " inner_product_param { num_output: 1 } }",
            ["InnerProduct ip>c"],
        ),
        (  # probabilities that a loss makes, read by others
            'layer { name: "l" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "l"'
            ' top: "p" } layer { name: "x" type: "ArgMax" bottom: "p" top: "x" }',
            ["Softmax ip>p", "ArgMax p>x"],
        ),
        (  # or only judged
            'layer { name: "l" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "l"'
            ' top: "p" } layer { name: "a" type: "Accuracy" bottom: "p" bottom: "label" }',
            ["Softmax ip>prob"],
        ),
        (  # a loss made of losses
            'layer { name: "l" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "l" }'
            'layer { name: "e" type: "EuclideanLoss" bottom: "ip" bottom: "ip" top: "e" }'
            'layer { name: "s" type: "Eltwise" bottom: "l" bottom: "e" top: "s" loss_weight: 1 }',
            ["Softmax ip>prob"],
        ),
    ],
)
def test_heads(layers: str, expected: list[str]) -> None:
    made = shown(make(DATA + SCORES + layers).param)
    assert made == ["Input >data", "InnerProduct data>ip", *expected]


def test_siamese_nets_lose_the_similarity_and_keep_shared_names() -> None:
    def branch(bottom: str, top: str) -> str:
        return (
            f'layer {{ name: "{top}" type: "InnerProduct" bottom: "{bottom}" top: "{top}"'
            ' param { name: "w" lr_mult: 1 } param { lr_mult: 2 }'
            " inner_product_param { num_output: 2 weight_filler { type: 'xavier' } } }"
        )

    text = (
        DATA.replace('"label"', '"sim"')
        + 'layer { name: "s" type: "Slice" bottom: "data" top: "a" top: "b" }'
        + branch("a", "feat")
        + branch("b", "feat_p")
        + 'layer { name: "l" type: "ContrastiveLoss" bottom: "feat" bottom: "feat_p"'
        + ' bottom: "sim" }'
    )
    made = make(text, shapes=((2, 4, 4),)).param
    assert shown(made) == [
        "Input >data",
        "Slice data>a,b",
        "InnerProduct a>feat",
        "InnerProduct b>feat_p",
    ]
    specs = made.layer[-1].param
    assert [spec.name for spec in specs] == ["w"]
    assert not specs[0].HasField("lr_mult")
    assert not made.layer[-1].inner_product_param.HasField("weight_filler")


def test_auxiliary_losses() -> None:
    param = read_net(MODELS / "googlenet" / "train_val.prototxt").message
    made = deploy(param, shapes=[(3, 224, 224)])
    assert made.remarks[-1] == "Left out, as its loss_weight is lower: loss1/loss, loss2/loss"
    every = deploy(param, shapes=[(3, 224, 224)], all_losses=True).param
    assert [layer.top[0] for layer in every.layer if layer.type == "Softmax"] == [
        "prob_loss1/loss",
        "prob_loss2/loss",
        "prob_loss3/loss3",
    ]


def test_a_deploy_net_stays_what_it_is_but_for_the_batch() -> None:
    given = read_net(MODELS / "lenet" / "deploy.prototxt").message
    assert deploy(given).param == given
    made = deploy(given, batch=5).param
    assert made.layer[0].input_param.shape[0].dim[0] == 5


def test_wrong_input() -> None:
    param = read_net(MODELS / "lenet" / "train_val.prototxt").message
    with pytest.raises(CaffeError, match=r"2 shape.s. given for 1 data layer"):
        deploy(param, shapes=[(1, 28, 28), (3,)])
    with pytest.raises(CaffeError, match=r"layer 'd'.*give the shape of an item: --shape"):
        make(DATA + SCORES, shapes=())
    with pytest.raises(CaffeError, match="nothing is left"):
        make(DATA + 'layer { name: "s" type: "Silence" bottom: "data" bottom: "label" }')


def test_layers_with_weights_of_one_name_are_refused() -> None:
    again = SCORES.replace('top: "ip"', 'top: "other"')
    with pytest.raises(CaffeError, match=r"layer .ip.: 2 layers have this name, and one"):
        make(DATA + again + SCORES)


def test_a_bn_stays_of_its_kind_without_its_fillers() -> None:
    text = DATA + (
        'layer { name: "a" type: "BN" bottom: "data" top: "a"'
        " bn_param { scale_filler { value: 1 } shift_filler { value: 0.001 } } }"
        'layer { name: "b" type: "BN" bottom: "a" top: "b"'
        " bn_param { slope_filler { value: 1 } frozen: true } }"
    )
    a, b = make(text).param.layer[1:]
    assert a.bn_param.HasField("bn_mode")
    assert not a.bn_param.HasField("scale_filler")
    assert b.bn_param.frozen
    assert not b.bn_param.HasField("bn_mode")


def test_a_net_without_data_is_refused_with_the_stages_that_have_some() -> None:
    staged = DATA.replace("top", 'include { stage: "val" stage: "deploy" } top', 1) + SCORES
    message = "no layer brings data into the net of the phase TEST"
    with pytest.raises(
        CaffeError, match=message + "; layers do in the stages val, deploy: --stage"
    ):
        make(staged)
    assert deploy(
        parse_text(staged, NetParameter).message, shapes=[(3, 8, 6)], stages=["val", "deploy"]
    )
    with pytest.raises(CaffeError, match=message + "; those that there are include the phase TRA"):
        make(DATA.replace("top", "include { phase: TRAIN } top", 1) + SCORES)
    with pytest.raises(CaffeError, match=message + "$"):
        make(SCORES)
    with pytest.raises(CaffeError, match=r"layer 'ip': bottom: Unknown bottom blob 'dota'"):
        make(DATA + SCORES.replace('"data"', '"dota"'))
    with pytest.raises(
        CaffeError, match=r"layer 'x': 'DetectionGroupLoss' is a layer type of MS-CNN"
    ):
        make(DATA + SCORES + 'layer { name: "x" type: "DetectionGroupLoss" bottom: "ip" top: "x" }')
