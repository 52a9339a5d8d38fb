"""A folder for `dns train` and `dns test`, to be spoiled."""

from __future__ import annotations

from pathlib import Path

from tests.oracle import GOLDEN

RUN = GOLDEN / "runs" / "sgd_inv"
TRAIN = ["train", "-solver", "solver.prototxt"]


class Workspace:
    """The current folder: a net, a solver and weights that are right, to be spoiled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "data").symlink_to(GOLDEN / "data")
        (folder / "net.prototxt").write_text((RUN / "train_val.prototxt").read_text())
        solver = (RUN / "solver.prototxt").read_text()
        solver = solver.replace("runs/sgd_inv/train_val", "net").replace("runs/sgd_inv/", "")
        (folder / "solver.prototxt").write_text(solver.replace("max_iter: 40", "max_iter: 2"))
        for file in ("snap_iter_20.caffemodel", "snap_iter_20.solverstate"):
            (folder / file).write_bytes((RUN / file).read_bytes())

    def replace(self, file: str, old: str, new: str) -> None:
        text = (self.folder / file).read_text()
        assert old in text
        (self.folder / file).write_text(text.replace(old, new))

    def names(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}
