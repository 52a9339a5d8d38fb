"""Texts that are large, deep, or of another kind: what reading them may take."""

import tracemalloc

import pytest
from google.protobuf import text_format
from google.protobuf.message import Message

from caffe_dns.errors import CaffeError
from caffe_dns.proto import parser, tokens
from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.proto.fields import KnownField
from caffe_dns.proto.text import parse_text
from caffe_dns.proto.tokens import Token, Tokens
from caffe_dns.proto.unknown import UnknownNames
from tests.proto.test_parser import error_of, parse


@pytest.mark.parametrize(
    "text",
    [
        "name: '" + r"x\n" * 10_000 + "'",
        "name: " + "'x' " * 10_000,
        "input_shape { " + "dim: 1 " * 10_000 + "}",
        "input_dim: [" + "1, " * 10_000 + "1]",
        "name: 'x'\n" + "\n# a comment" * 5_000,
        "layer { name: '" + "x\n" * 20_000,
    ],
    ids=lambda text: text[:20],
)
def test_memory_is_a_few_times_the_text(text: str) -> None:
    tracemalloc.start()
    try:
        parse(text)
    except CaffeError as error:
        assert "is never closed" in str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * len(text)


def test_words_with_nothing_between_them_are_cut_into_pieces() -> None:
    """So are those behind a word that is longer than a piece."""
    unit = ["ab", ".", "cd1", ".5", ".5e+5"]
    text = "a" * 50_000 + "-" + "".join(unit) * 40_000
    tracemalloc.start()
    found = Tokens(text)
    assert len(found.take()) == 50_000 and found.skip("-")
    assert all(found.take() == unit[number % 5] for number in range(200_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not found.next and peak < 2 * len(text)


def test_another_kind_of_text_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words by the million: what was meant is looked for once, and not all names are kept."""
    looked: list[str] = []

    def nearest(word: str, known: list[str]) -> str:
        looked.append(word)
        return ""

    monkeypatch.setattr(parser, "nearest", nearest)
    said = error_of("".join(f"word{n} x\n" for n in range(100_000)))
    assert said == "net.prototxt:1: word0: unknown field 'word0' in NetParameter (column 1)"
    assert looked == ["word0"]


def test_one_unknown_name_is_not_read_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[str] = []
    monkeypatch.setattr(UnknownNames, "MOST_TIMES", 10)
    monkeypatch.setattr(parser, "forks_with_field", lambda message, field: met.append(field))
    assert "unknown field 'word' in NetParameter" in error_of("word x\n" * 1000)
    assert 10 <= len(met) < 20


def test_messages_are_bounded_by_the_size_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protobuf takes 1,146 bytes for a layer of seven letters."""
    monkeypatch.setattr(parser, "_MOST_MEMORY", 100_000)
    assert len(parse("layer{}\n" * 50).layer) == 50
    said = error_of("layer{}\n" * 1000)
    assert "layer: the messages up to here take more memory than a text of its size may" in said
    assert len(parse(("layer{name:'" + "x" * 200 + "'}\n") * 1000).layer) == 1000


def test_unknown_messages_may_be_as_deep_as_known_ones() -> None:
    for depth in (100, 101, 100_000):
        wrong = Tokens("{ a " * depth + "}" * depth).skip_value()
        assert wrong == (None if depth == 100 else Token("{", 200))


@pytest.mark.parametrize(
    "again",
    [
        "layers { type: CROPP }",
        "layer { pooling_param { pool: CROPP } }",
        "layer { param { prune_ratio: 3 } }",
        "layer { batch_norm_param { relu: 7 } }",
    ],
)
def test_an_error_is_made_once(again: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each of thousands, what was meant and its column would take minutes."""
    made: list[str] = []
    make = parser.Parser._error

    def counted(self: parser.Parser, token: Token, message: str, hint: str = "") -> CaffeError:
        made.append(message)
        return make(self, token, message, hint)

    monkeypatch.setattr(parser.Parser, "_error", counted)
    assert error_of(again * 50).startswith(f"net.prototxt:1: {again.split()[0]}.")
    assert len(made) == 1


RUNS = [
    "input_dim: [1, 2, 3, -4, 5, -1, -2, -0x3, 1, 0x10, 017, 7, 8, 9]",
    "input_dim: 1 input_dim: 2 input_dim: 3 input_dim: -7 input_dim: -8 input_dim: -9 input_dim: 1",
    "layer { loss_weight: 1 loss_weight: -2 loss_weight: 3f loss_weight: 1e-999999 }",
    "layer { loss_weight: [1, 2.5, inf, 3, 4, 5] top: ['a', 'b', 'c' 'd', \"\\x41\", 'e'] }",
    "layer { top: 'a' top: 'b', top: 'c'; top: 'd' 'e' top: 'f' # top: 'g'\n top: 'h' }",
    "layer { propagate_down: [true, false, t, 1, 0] } input_shape { dim: 1 # 2\n dim: 3 }",
]


@pytest.mark.parametrize("text", RUNS)
@pytest.mark.parametrize("piece", [1, 2, 5, 1 << 12])
def test_values_in_a_row_are_read_as_protobuf_reads_them(
    text: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_PIECE", piece)
    known = text.replace("017", "15")  # which protobuf's releases for Python refuse
    assert parse(text) == text_format.Parse(known, NetParameter())


@pytest.mark.parametrize("text", [*RUNS, "name: 'a\\'' 'b\n#' # \" '\n", "layer { top: 'x\\\\' }"])
def test_pieces_may_end_anywhere(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text, and all of its beginnings, say the same however small the pieces are."""
    texts = [text[:end] + "\n} wrong: 1.5e-3" for end in range(len(text) + 1)]
    whole = [error_of(beginning) for beginning in texts]
    for piece in (1, 3):
        monkeypatch.setattr(tokens, "_PIECE", piece)
        assert [error_of(beginning) for beginning in texts] == whole


@pytest.mark.parametrize(
    "text",
    [
        "input_dim: [" + "1," * 100_000 + "1]",
        "input_dim: 1 " * 100_000,
        ("input_dim:-1 " * 999 + "input_dim:1;") * 100,
        "layer { top: [" + "'x'," * 100_000 + "'x'] }",
    ],
    ids=lambda text: text[:20],
)
def test_values_in_a_row_are_read_together(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, 5 MB of them took half a minute."""
    alone: list[str] = []
    value = parser.Parser._value

    def counted(self: parser.Parser, message: Message, field: KnownField) -> None:
        alone.append(field.name)
        value(self, message, field)

    monkeypatch.setattr(parser.Parser, "_value", counted)
    message = parse(text)
    values = message.layer[0].top if message.layer else message.input_dim
    assert len(values) in (100_000, 100_001)
    assert len(alone) < 1000


def test_a_run_that_is_none_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one value of a piece is wrong here, its thousands are not looked through for each."""
    read: list[str] = []
    read_one = KnownField.read_one

    def counted(self: KnownField, text: str, negative: bool) -> object:
        read.append(text)
        return read_one(self, text, negative)

    monkeypatch.setattr(KnownField, "read_one", counted)
    text = f"input_dim: [{'1, 2, ' * 10_000} 1.5]"
    assert error_of(text).startswith("net.prototxt:1: input_dim: expected a whole number")
    assert len(read) < 1000
    text = f"layer {{ loss_weight: [{'1, inf, ' * 10_000} 1] }}"
    assert len(parse(text).layer[0].loss_weight) == 20_001
    assert len(read) < 1000


def test_what_looks_like_a_run_is_read_as_it_is() -> None:
    values = [f"input_dim: -{number}\n" for number in range(2, 50)]
    text = "".join([*values[:20], "input_dim = - 1\n", *values[20:]])
    assert error_of(text).startswith("net.prototxt:21: input_dim: expected ':' after 'input_dim'")


@pytest.mark.parametrize(
    ("begin", "each", "end"), [("loss_weight: [", "{},\n", "1]"), ("", "loss_weight: {}\n", "")]
)
def test_a_run_has_a_number_that_is_not_finite(begin: str, each: str, end: str) -> None:
    values = "".join(each.format(value) for value in [*["1"] * 20, "nan", *["1"] * 20])
    parsed = parse_text(f"layer {{ {begin}{values}{end} }}", NetParameter)
    with pytest.raises(CaffeError, match="expected a finite number, found 'nan'") as caught:
        parsed.check_finite()
    assert caught.value.line == 21


def test_nothing_comes_after_a_quote_without_its_partner() -> None:
    found = Tokens("name: 'x' \"y 'z' # w")
    assert [found.take() for _ in range(6)] == ["name", ":", "'x'", '"', "", ""]


def test_an_error_behind_a_long_list_has_its_place() -> None:
    text = "input_dim: [" + "1,\n" * 100_000 + "x]"
    assert error_of(text).startswith("net.prototxt:100001: input_dim: expected a whole number")
    assert error_of(text.replace("x]", "1]\n wrong: 1")) == (
        "net.prototxt:100002: wrong: unknown field 'wrong' in NetParameter (column 2)"
    )
    positions = parse_text(text.replace("x]", "1]\nlayer {}"), NetParameter).positions
    assert positions.line("input_dim[70000]") == 70001
    assert positions.layer_line(0) == 100_002


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("w" * 10**6, f"{'w' * 200}...: unknown field '{'w' * 200}...' in NetParameter (column 1)"),
        (
            "input_dim: " + "7" * 10**6,
            f"input_dim: expected a whole number, found '{'7' * 200}...'",
        ),
        ("name: '" + "x" * 10**6 + r"\q'", "name: expected a known escape instead of \\q, found"),
        (
            "layers { type: " + "T" * 10**6 + "}",
            f"layers.type: unknown layer type '{'T' * 200}...'",
        ),
    ],
    ids=lambda text: text[:20],
)
def test_an_error_shows_the_beginning_of_a_long_word(text: str, said: str) -> None:
    error = error_of(text)
    assert error.startswith(f"net.prototxt:1: {said}")
    assert len(error) < 1000


@pytest.mark.parametrize("text", ["layer { top: [%s''] }" % ("''," * 300), "input_dim: 1 " * 500])
def test_values_are_bounded_by_the_size_of_the_text(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protobuf takes 24 bytes and more for a number of two letters."""
    monkeypatch.setattr(parser, "_MOST_MEMORY", 30_000)
    parse(text)
    monkeypatch.setattr(parser, "_MOST_MEMORY", 2000)
    monkeypatch.setattr(parser, "_PER_LETTER", 1)
    said = error_of(text)
    assert "the values up to here take more memory than a text of its size may" in said
