"""ContinuationIndicator against its definition."""

from __future__ import annotations

import pytest

from tests.layers.harness import draw, make_layer, refused, run


@pytest.mark.parametrize(("axis", "sequences"), [(0, 2), (1, 4), (-1, 5)])
def test_continuation_indicator(axis: int, sequences: int) -> None:
    text = f"time_step: 3 axis: {axis}"
    made = make_layer(
        f"type: 'ContinuationIndicator' continuation_indicator_param {{ {text} }}", (2, 4, 5)
    )
    (top,) = run(made, draw(2, 4, 5))
    assert top.tolist() == [[0] * sequences, [1] * sequences, [1] * sequences]


def test_what_does_not_fit() -> None:
    text = "type: 'ContinuationIndicator' continuation_indicator_param { %s }"
    assert "time_step: must be positive" in refused(text % "", (2, 4))
    assert "axis: axis 2 is out of range" in refused(text % "time_step: 3 axis: 2", (2, 4))
