"""What the parser accepts, against protobuf's own parser, and what its errors say."""

import time

import pytest
from google.protobuf import text_format
from google.protobuf.message import Message

from caffe_dns.errors import CaffeError
from caffe_dns.layers import layer_types
from caffe_dns.proto.caffe_pb2 import Datum, NetParameter, SolverParameter
from caffe_dns.proto.text import parse_text, read_text
from tests.oracle import GOLDEN


def parse(text: str) -> NetParameter:
    return parse_text(text, NetParameter).message


def error_of(text: str, message_type: type[Message] = NetParameter) -> str:
    with pytest.raises(CaffeError) as caught:
        parse_text(text, message_type, "net.prototxt")
    return str(caught.value)


DEFINITIONS = sorted(GOLDEN.rglob("*.prototxt"))


def test_all_recorded_definitions_read_like_protobuf_reads_them() -> None:
    assert len(DEFINITIONS) > 150
    for path in DEFINITIONS:
        kind = SolverParameter if "solver" in path.name else NetParameter
        assert read_text(path, kind).message == text_format.Parse(path.read_text(), kind()), path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a comment",
        'name: "a" # comment with " and }\nlayer { }',
        "layer < name: 'x' bottom: \"d\" >; layer: { top: 'y' },",
        'layer { name: "a" \'b\'\n  "c" }',
        r'name: "tab\t nl\n quote\" \' back\\ oct\101 hex\x41"',
        'layer { top: ["a", "b"] loss_weight: [1, 0.5,2] } layer { bottom: [] }',
        "layer [{ name: 'a' }, < name: 'b' >]",
        "input_dim: 0x10 input_dim: -3 input_dim: 2147483647",
        "layer { loss_weight: 1. loss_weight: .5 loss_weight: 1e-3 loss_weight: -2.5E+2 }",
        "layer { loss_weight: 3f loss_weight: 0.25f loss_weight: inf loss_weight: -Infinity }",
        "force_backward: true debug_info: f",
        "force_backward: 0 debug_info: True",
        "layer { pooling_param { pool: AVE } include { phase: 1 } }",
        'state: { phase: TEST stage: "x" }',
        "layer { clip_param { min: -1 max: 1 } }",
    ],
)
def test_forms_that_protobuf_accepts(text: str) -> None:
    assert parse(text) == text_format.Parse(text, NetParameter())


def test_forms_that_protobuf_accepts_in_cpp_but_not_in_every_python_release() -> None:
    assert list(parse("input_dim: 017 input_dim: - 4").input_dim) == [15, -4]
    assert list(parse("layer { loss_weight: 0.25F }").layer[0].loss_weight) == [0.25]
    assert parse(r'name: "caf\u00e9 \U0001F600"').name == "caf\u00e9 \U0001f600"


def test_a_string_may_go_over_several_lines() -> None:
    assert parse('name: "one\ntwo"').name == "one\ntwo"


def test_bytes_need_not_be_text() -> None:
    datum = parse_text(r'data: "\377\x00a"', Datum).message
    assert datum.data == b"\xff\x00a"


def layer(body: str) -> str:
    return f'layer {{\n  name: "conv1"\n  {body}\n}}\n'


PARAM = "layer.convolution_param"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            layer("convolution_param { kernal_size: 3 }"),
            f"3: {PARAM}.kernal_size: unknown field 'kernal_size' in ConvolutionParameter "
            "(column 23) (did you mean 'kernel_size'?)",
        ),
        (
            layer("video_data_param { skip_frames: 3 }"),
            "3: layer.video_data_param.skip_frames: unknown field 'skip_frames' in "
            "VideoDataParameter (column 22): this is a field of SSD, which dns does not have",
        ),
        (
            layer("pooling_param { pool: MIX }"),
            "3: layer.pooling_param.pool: expected a PoolMethod (MAX, AVE, STOCHASTIC, "
            "AVE_EXC_PAD, AVE_TF), found 'MIX' (column 25) (did you mean 'MAX'?)",
        ),
        (
            layer('pooling_param { pool: "AVE" }'),
            "3: layer.pooling_param.pool: expected a PoolMethod (MAX, AVE, STOCHASTIC, "
            "AVE_EXC_PAD, AVE_TF), found '\"AVE\"' (column 25); AVE without quotes would be right",
        ),
        (
            layer("eltwise_param { operation: ADD }"),
            "3: layer.eltwise_param.operation: expected an EltwiseOp (PROD, SUM, MAX), found 'ADD' "
            "(column 30)",
        ),
        (
            layer("type: RELU"),
            "3: layer.type: expected a string in quotes, found 'RELU' (column 9); types without "
            "quotes are for 'layers', not 'layer'",
        ),
        (
            layer("inner_product_param { kernel_size: 3 }"),
            "3: layer.inner_product_param.kernel_size: unknown field 'kernel_size' in "
            "InnerProductParameter (column 25) (convolution_param, pooling_param, "
            "convolution3d_param, 2 more have it)",
        ),
        (
            layer("decay_mult: 3"),
            "3: layer.decay_mult: unknown field 'decay_mult' in LayerParameter (column 3) "
            "(param has it)",
        ),
        (
            "layers { type: CROP }",
            "1: layers.type: unknown layer type 'CROP' (column 16): this is of the first FCN, "
            'which dns does not have; a layer of type "Crop" with the offset in its crop_param '
            "would do",
        ),
        (
            "layers { type: RELUE }",
            "1: layers.type: unknown layer type 'RELUE' (column 16) (did you mean 'RELU'?)",
        ),
        (
            'layers { type: "RELU" }',
            "1: layers.type: expected a LayerType (NONE, ABSVAL, ACCURACY, ARGMAX, BNLL, CONCAT, "
            "CONTRASTIVE_LOSS, CONVOLUTION, DATA, DECONVOLUTION, DROPOUT, DUMMY_DATA, 32 more), "
            "found '\"RELU\"' (column 16); types in quotes are for 'layer', not 'layers'",
        ),
        (
            layer("param { prune_ratio: 3 }"),
            "3: layer.param.prune_ratio: unknown field 'prune_ratio' in ParamSpec (column 11): "
            "this is a field of kaiqzhan's ADMM pruning, which dns does not have; dns train "
            "--target-compression prunes while training",
        ),
        (
            layer("pooling_param { pool: 3 }"),
            "3: layer.pooling_param.pool: expected a PoolMethod (MAX, AVE, STOCHASTIC, "
            "AVE_EXC_PAD, AVE_TF), found '3' (column 25)",
        ),
        (
            'layer {\n  name: "a"\nlayer {\n  name: "b"\n}\n',
            "3: layer.layer: unknown field 'layer' in LayerParameter (column 1) "
            "(NetParameter has it; is the '{' of line 1 not closed?)",
        ),
        (
            'name: "x"\nlayer {\n  name: "a"\n',
            "2: layer: '{' is never closed (column 7)",
        ),
        ('name: "x"\n}\n', "2: '}' has no partner (column 1)"),
        ("layer { >", "1: layer: '>' has no partner (column 9)"),
        (
            'name: "a"\nname: "b"',
            "2: name: 'name' is given twice, first on line 1, but is not repeated (column 1)",
        ),
        (
            "state { }\nstate { }",
            "2: state: 'state' is given twice, first on line 1, but is not repeated (column 1)",
        ),
        (
            layer("clip_param { min: 0 }"),
            "3: layer.clip_param: ClipParameter needs the field 'max' (column 14)",
        ),
        (
            'layer {\n  name: "conv1\n  type: "Convolution"\n}',
            "3: layer.Convolution: unknown field 'Convolution' in LayerParameter (column 10)"
            "; the string of line 2 goes over several lines: "
            "is a quote missing?",
        ),
        ('name: "x', '1: name: the string that starts with " is never closed (column 7)'),
        ("name: 5", "1: name: expected a string in quotes, found '5' (column 7)"),
        (
            "type: CONV",
            "1: type: unknown field 'type' in NetParameter (column 1)",
        ),
        ('name "x"', "1: name: expected ':' after 'name', found '\"x\"' (column 6)"),
        ("name:", "1: name: expected a string in quotes, found the end of the file (column 6)"),
        ("layer: 3", "1: layer: expected '{' after 'layer', found '3' (column 8)"),
        ("input_dim: 1.5", "1: input_dim: expected a whole number, found '1.5' (column 12)"),
        ("input_dim: 08", "1: input_dim: expected a whole number, found '08' (column 12)"),
        (
            "input_dim: 3000000000",
            "1: input_dim: expected a whole number from -2147483648 to 2147483647, "
            "found '3000000000' (column 12)",
        ),
        (
            layer("convolution_param { pad: -1 }"),
            f"3: {PARAM}.pad: expected a whole number from 0 to 4294967295, found '-1' (column 28)",
        ),
        (
            layer("loss_weight: x"),
            "3: layer.loss_weight: expected a decimal number, found 'x' (column 16)",
        ),
        (
            layer("loss_weight: }"),
            "3: layer.loss_weight: expected a decimal number, found '}' (column 16)",
        ),
        (
            "force_backward: yes",
            "1: force_backward: expected true or false, found 'yes' (column 17)",
        ),
        ("force_backward: -1", "1: force_backward: expected true or false, found '-1' (column 17)"),
        (
            "// note",
            "1: expected the name of a field (a comment begins with '#'), found '/' (column 1)",
        ),
        (
            layer("loss_weight: 0,5"),
            "3: layer: expected the name of a field (a number has a point, not a comma), found '5'",
        ),
        ("input_dim: 1 3", "1: expected the name of a field, found '3' (column 14)"),
        ("input_dim: [1 2]", "1: input_dim: expected ',' or ']', found '2' (column 15)"),
        (r'name: "\q"', "1: name: expected a known escape instead of \\q, found '\"\\\\q\"'"),
        (r'name: "\ud800"', "1: name: expected a character of Unicode instead of \\ud800"),
        ("\u00a0name: 'x'", "1: expected the name of a field, found '\\xa0' (column 1)"),
        (
            "name: 'x'\x1a",
            "1: expected the name of a field, found '\\x1a' (column 10); no text has",
        ),
        (
            "\n\0",
            "2: expected the name of a field, found '\\x00' (column 1); no text has this byte",
        ),
    ],
)
def test_errors_say_where_and_what_would_be_right(text: str, expected: str) -> None:
    actual = error_of(text)
    assert actual.startswith(f"net.prototxt:{expected}")
    assert "\n" not in actual


def test_every_prefix_of_a_definition_reads_or_ends_in_one_line() -> None:
    text = (GOLDEN / "legacy" / "v1.prototxt").read_text()[:600]
    for end in range(len(text)):
        try:
            parse(text[:end])
        except CaffeError as error:
            assert "\n" not in str(error)


def test_a_large_definition_reads_quickly() -> None:
    block = (GOLDEN / "runs" / "bn_inception" / "train_val.prototxt").read_text()
    layers = parse_text(block, NetParameter).message
    large = NetParameter()
    while len(large.layer) < 600:
        large.layer.extend(layers.layer)
    text = text_format.MessageToString(large)
    start = time.process_time()
    parse(text)
    seconds = time.process_time() - start
    assert text.count("\n") > 6000
    # Of the processor, which is 0.1 s for 6000 lines, however busy the machine is.
    assert seconds < 2, seconds


def test_all_that_is_unknown_is_named_at_once() -> None:
    assert "ReLU" in layer_types  # without the table, only what forks have is known to be missing
    text = """layer { name: "a" type: "AnnotatedBoxes"
  transform_param { upper_size { a: 1 b: [1, 2] c: "x" 'y' <d: -1> } flop: -3
    upper_size { } mean_valu: 3 } }
layer { name: "b" type: "SparseData" pooling_param { pool: MIN kernel_size: 3 } }
layer { name: "c" dense_crf_param <> }
"""
    assert error_of(text) == (
        "net.prototxt:2: layer.transform_param.upper_size: unknown field 'upper_size' in "
        "TransformationParameter (column 21): this is a field of TSN, which dns does not have; "
        "also unknown: layer type 'AnnotatedBoxes' (line 1), "
        "'flop' in TransformationParameter (line 2), 'upper_size' in "
        "TransformationParameter (line 3, TSN), 'mean_valu' in TransformationParameter "
        "(line 3), pool: MIN (line 4), layer type 'SparseData' (line 4, DeepDetect), "
        "'dense_crf_param' in LayerParameter (line 5, DeepLab)"
    )


def test_of_many_unknown_fields_some_are_named() -> None:
    text = " ".join(f"wrong{index}: {{ }}" for index in range(20))
    assert error_of(text).endswith("'wrong12' in NetParameter (line 1), 7 more")


def test_an_error_behind_something_unknown_is_not_the_first() -> None:
    assert "unknown field 'wrong'" in error_of("wrong: 3 name: }")
    assert "unknown field 'wrong'" in error_of("wrong: { ")
    assert "expected a value" not in error_of("wrong: [ }")


def test_messages_in_messages_have_an_end() -> None:
    """Where Python's own limit would end in a traceback."""
    inner = "surgery_stage { solver { " * 300 + "} } " * 300
    said = "net.prototxt:1: more than 100 messages inside one another"
    assert error_of(inner, SolverParameter) == said
    deep = "surgery_stage { solver { " * 49 + "} } " * 49
    assert parse_text(deep, SolverParameter).message == text_format.Parse(deep, SolverParameter())


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e39", "-3.5e38"])
def test_numbers_that_are_not_finite_are_noted(value: str) -> None:
    """The text format has them, and says so; definitions may not."""
    parsed = parse_text(f"\n\nlayer {{ loss_weight: 2\nloss_weight: {value} }}", NetParameter, "n")
    with pytest.raises(CaffeError) as caught:
        parsed.check_finite()
    said = f"expected a finite number, found '{value}' (column 14)"
    assert str(caught.value) == f"n:4: layer.loss_weight: {said}"


@pytest.mark.parametrize("value", ["010", "-010", "08", "0x10", "x", "'1'"])
def test_real_numbers_are_decimal(value: str) -> None:
    """Protobuf's releases do not agree what an octal or hexadecimal one is."""
    said = error_of(f"layer {{ loss_weight: {value} }}")
    assert "loss_weight: expected a decimal number, found" in said
    assert parse("layer { loss_weight: 07 loss_weight: 00 }").layer[0].loss_weight == [7, 0]


@pytest.mark.parametrize("text", ["loss_weight: 3.4028235e38", "clip_param { min: 0 max: inf }"])
def test_numbers_that_are_finite(text: str) -> None:
    parse_text(f"layer {{ {text} }}", NetParameter).check_finite()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("layer { type: \udcff }", "layer.type: expected a string in quotes, found '\\xff'"),
        ("layer { pooling_param { pool: \udcff } }", "found '\\xff' (column 31)"),
        ("layer { pooling_param { pool: '\udcff' } }", "found \"'\\xff'\" (column 31)"),
        ("layer { type: \ue000 }", "layer.type: expected a string in quotes, found '\\ue000'"),
        ("layers { type: '\udcff' }", "types in quotes are for 'layer', not 'layers'"),
    ],
)
def test_a_value_that_is_no_text_is_named(text: str, found: str) -> None:
    """Protobuf's tables of names leave an error behind, which ended something else."""
    assert found in error_of(text)
    assert len("abc") == 3
