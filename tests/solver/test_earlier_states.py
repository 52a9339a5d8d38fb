"""States of earlier releases resume bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.solver.earlier import CASES, FIRST, LAST, STATES, build, contents, files, train

RECORDED = sorted(path for path in STATES.glob("*/*") if path.is_dir())


def test_there_are_recorded_states() -> None:
    assert {path.name for path in RECORDED} == set(CASES)


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_recorded_state_leads_where_it_led(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, state = files(recorded, FIRST)
    shutil.copy(model, tmp_path)
    solver = build(recorded)
    solver.restore(str(state))
    train(solver, LAST)
    solver.close()
    fields, arrays = contents(tmp_path, LAST)
    wanted_fields, wanted = contents(recorded, LAST)
    assert fields == wanted_fields
    assert arrays.keys() == wanted.keys()
    for name, array in wanted.items():
        assert array.size and np.array_equal(arrays[name], array), name
    # Not because nothing happens on the way.
    assert any(
        not np.array_equal(contents(recorded, FIRST)[1][name], wanted[name]) for name in wanted
    )
