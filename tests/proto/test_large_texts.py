"""Texts that are large, deep, or of another kind: what reading them may take."""

import tracemalloc

import pytest

from caffe_dns.errors import CaffeError
from caffe_dns.proto import parser
from caffe_dns.proto.tokens import Token, Tokens
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
    monkeypatch.setattr(parser, "_MOST_TIMES", 10)
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
        assert wrong == (None if depth == 100 else Token("{", 400))


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
