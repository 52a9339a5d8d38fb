"""What everything else stands on: name tables, errors, log lines and random keys."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from caffe_dns import log, rng
from caffe_dns.errors import CaffeError, first_line, nearest
from caffe_dns.registry import Registry

# Registry -----------------------------------------------------------------------------------------


def test_registry() -> None:
    table: Registry[object] = Registry("animal type")

    @table.register("Dog", "Wolf")
    class Dog:
        pass

    @table.register("Cat")
    class Cat:
        pass

    assert table["Dog"] is table["Wolf"] is Dog
    assert list(table) == ["Cat", "Dog", "Wolf"]
    assert "Cat" in table
    assert "Cow" not in table
    with pytest.raises(CaffeError) as caught:
        table["Dgo"]
    wanted = "unknown animal type 'Dgo' (did you mean 'Dog'?); known: Cat, Dog, Wolf"
    assert str(caught.value) == wanted
    with pytest.raises(ValueError, match="animal type 'Cat' is registered twice"):
        table.register("Cat")(Dog)


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("places", "wanted"),
    [
        ({}, "is wrong"),
        ({"file": "f"}, "f: is wrong"),
        ({"line": 7}, "line 7: is wrong"),
        ({"file": "f", "line": 7}, "f:7: is wrong"),
        ({"layer": "l", "field": "a.b"}, "layer 'l': a.b: is wrong"),
        ({"file": "f", "line": 7, "layer": "l", "field": "a"}, "f:7: layer 'l': a: is wrong"),
    ],
)
def test_places_of_errors(places: dict, wanted: str) -> None:
    assert str(CaffeError("is wrong", **places)) == wanted
    assert str(CaffeError("is wrong").locate(**places)) == wanted


def test_locate_fills_in_what_is_not_known() -> None:
    error = CaffeError("is wrong", file="first", field="f")
    assert error.locate(file="second", line=3, layer="l") is error
    assert str(error) == "first:3: layer 'l': f: is wrong"


def test_words_for_errors() -> None:
    assert (
        nearest("convolutoin", ["Convolution", "convolution"]) == " (did you mean 'convolution'?)"
    )
    assert nearest("xyz", ["Convolution"]) == ""


@pytest.mark.parametrize(
    ("word", "known", "near"),
    [
        ("tets", "test", True),
        ("Relu", "ReLU", True),
        ("pool_param", "pooling_param", True),
        ("InerProdct", "InnerProduct", True),
        ("box_output_param", "hdf5_output_param", False),
        ("foo_param", "log_param", False),
        ("convolutoin_param", "convolution_param", True),
        ("weight_fillr", "weight_filler", True),
        ("PSROIPooling", "SPPooling", False),
        ("trian", "train", True),
        ("fp16", "bf16", False),
        ("BatchReNorm", "BatchNorm", True),
    ],
)
def test_only_what_is_near_is_proposed(word: str, known: str, near: bool) -> None:
    assert nearest(word, [known]) == (f" (did you mean '{known}'?)" if near else "")
    assert first_line(OSError("one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"


# Log ----------------------------------------------------------------------------------------------

GLOG = re.compile(
    r"([IWEF])(\d\d)(\d\d) (\d\d):(\d\d):(\d\d)\.(\d{6}) ( *\d+) (\S+):(\d+)\] (.*)", re.S
)


@pytest.fixture
def lines() -> Iterator[list[str]]:
    taken: list[str] = []
    log.set_sink(taken.append)
    yield taken
    log.set_sink(None)


def test_a_line_has_glogs_format(lines: list[str]) -> None:
    before = time.time()
    log.info("Solving LeNet")
    match = GLOG.fullmatch(lines[0])
    assert match is not None
    severity, month, day, hour, minute, second, micros, thread, file, line, message = match.groups()
    assert (severity, file, message) == ("I", "test_registry_errors_log.py", "Solving LeNet")
    assert int(thread) == threading.get_native_id()
    assert len(thread) >= 5
    assert int(line) > 0
    year = time.localtime(before).tm_year
    text = f"{year}{month}{day}{hour}{minute}{second}"
    stamp = time.mktime(time.strptime(text, "%Y%m%d%H%M%S"))
    assert before - 0.001 <= stamp + int(micros) / 1e6 <= time.time() + 0.001


def test_the_format_is_that_of_a_recorded_line() -> None:
    from tests.oracle import GOLDEN

    for line in (GOLDEN / "logs" / "train.log").read_text().splitlines()[:2]:
        assert GLOG.fullmatch(line)


def test_severities(lines: list[str]) -> None:
    log.info("a")
    log.warning("b")
    log.error("c")
    log.fatal("d")
    assert [line[0] + line[-1] for line in lines] == ["Ia", "Wb", "Ec", "Fd"]


def test_one_line_break_at_the_end_is_taken_off(lines: list[str]) -> None:
    log.info("one\n")
    log.info("two\n\n")
    assert [line.split("] ", 1)[1] for line in lines] == ["one", "two\n"]


def test_no_name_tells_a_terminal_what_to_do(lines: list[str]) -> None:
    log.info("Creating layer \033[2J\rx\x9b\x7f\ta\nb\u00e9")
    assert lines[-1].endswith("] Creating layer \\x1b[2J\\x0dx\\x9b\\x7f\ta\nb\u00e9")


def test_quiet_keeps_information_back(lines: list[str]) -> None:
    assert log.set_quiet(True) is False
    log.info("a")
    log.warning("b")
    log.error("c")
    log.fatal("d")
    assert log.set_quiet(False) is True
    log.info("e")
    assert [line[-1] for line in lines] == ["c", "d", "e"]


def test_silence_is_of_all_threads_and_ends_with_the_last_block(lines: list[str]) -> None:
    with log.silenced:
        with pytest.raises(KeyError), log.silenced:
            raise KeyError
        reader = threading.Thread(target=log.info, args=["a"])
        reader.start()
        reader.join()
        log.error("b")
    log.info("c")
    assert [line[-1] for line in lines] == ["b", "c"]


def test_lines_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    log.info("over here")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("] over here\n")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"),
        (2.339294, "2.33929"),
        (1.0, "1"),
        (100000.0, "100000"),
        (1234567.0, "1.23457e+06"),
        (0.00001234, "1.234e-05"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (-0.0, "-0"),
    ],
)
def test_numbers_as_streams_print_them(value: float, text: str) -> None:
    assert log.number(value) == text


# Random keys --------------------------------------------------------------------------------------


def test_keys_depend_on_everything() -> None:
    base = rng.key(1, "stream", 2, 3)
    others = [
        rng.key(2, "stream", 2, 3),
        rng.key(1, "other", 2, 3),
        rng.key(1, "stream", 3, 3),
        rng.key(1, "stream", 2, 4),
        rng.key(1, "stream/2", 3),
    ]
    assert len({base, *others}) == 6
    assert all(0 <= key < 2**63 for key in (base, *others))


def test_keys_never_change() -> None:
    # Runs are resumed by later versions.
    assert rng.key(7, "surgery/solver", 1000) == 7104269210565385640


def test_generators_of_equal_keys_draw_the_same() -> None:
    numbers = [rng.numpy_generator(5, "a", 1).random(4).tolist() for _ in range(2)]
    assert numbers[0] == numbers[1] != rng.numpy_generator(5, "a", 2).random(4).tolist()
    draws = [torch.rand(4, generator=rng.torch_generator(5, name)).tolist() for name in "aab"]
    assert draws[0] == draws[1] != draws[2]
