"""What is wrong with a solver has the line of its field."""

from __future__ import annotations

import pytest

from tests.cli.harness import complaint
from tests.cli.workspace import TRAIN, Workspace


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("iter_size: 0", "iter_size: must be at least 1, not 0"),
        ("type: 'Adm'", "type: unknown solver type 'Adm' (did you mean 'Adam'?)"),
        ("average_loss: 0", "average_loss: must be at least 1, not 0"),
        ("net: 'gone.prototxt'", "net: gone.prototxt: there is no such file"),
        (
            "surgery_stage { sparsity: 2 }",
            "surgery_stage[0].sparsity: must be at least 0 and below 1, but is 2",
        ),
        ("surgery_stage { interval: 0 }", "surgery_stage[0].interval: must be at least 1, not 0"),
        ("snapshot_prefix: 'gone/x'", "snapshot_prefix: the folder 'gone' of the snapshots does"),
        ("snapshot_prefix: 'gone/x'\nsnapshot: 0", "snapshot_prefix: the folder 'gone' of the"),
    ],
)
def test_errors_about_a_solver_have_its_line(
    lines: str, message: str, work: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    solver = work.folder / "solver.prototxt"
    changed = [line.partition(":")[0] for line in lines.splitlines()]
    kept = [line for line in solver.read_text().splitlines() if line.split(":")[0] not in changed]
    solver.write_text("\n".join([*kept, lines]))
    assert f"solver.prototxt:{len(kept) + 1}: {message}" in complaint(TRAIN, capfd)
