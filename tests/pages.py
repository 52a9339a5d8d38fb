"""Runs what stands in the pages: commands, Python and definitions, where a reader would.

A block says what it is: `sh` has commands, `python` code, `prototxt` a definition; `text` is what
something prints. Commands run in this process, in a folder like a reader's after the first page:
the models, MNIST and trained weights, but with so few iterations and images that it takes a moment.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from caffe_dns import load_net, log
from caffe_dns.cli import main as cli
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import LayerParameter, NetParameter, SolverParameter
from caffe_dns.proto.text import parse_text
from caffe_dns.weights import save_weights
from tests.oracle import GOLDEN

ROOT = Path(__file__).parents[1]
KINDS = {"sh", "python", "prototxt", "text"}
#: How many iterations a recipe's runs are cut down to.
ITERATIONS = 4
#: What is looked at only: it would take the network, a GPU, other machines, or too long.
_NOT_RUN = ("pip", "make")
_NOT_RUN_OF_OURS = ("get_mnist", "demo")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_REDIRECT = re.compile(r"\s(2?)>\s*(\S+)\s*$")


@dataclass(frozen=True)
class Block:
    """A block of a page, and the line that it begins on."""

    kind: str
    text: str
    line: int

    def commands(self) -> Iterator[str]:
        """The commands of a block, without comments; a backslash joins lines."""
        for line in self.text.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s)#.*", "", line).strip()
            if command:
                yield command


def blocks_of(page: Path) -> list[Block]:
    """All blocks of a page."""
    text = page.read_text()
    return [
        Block(match[1], match[2], text[: match.start()].count("\n") + 1)
        for match in _FENCE.finditer(text)
    ]


@dataclass
class Desk:
    """A reader's folder."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "page"})
    #: By the prefix of snapshots: the iterations of the whole run.
    lengths: dict[str, int] = field(default_factory=dict)

    def lay_out(self) -> None:
        """Put there what a reader has who has read the first page."""
        # Without what training there has left.
        left_out = shutil.ignore_patterns("*_iter_*", "*_pruned.*", "*_surgery.csv")
        shutil.copytree(
            ROOT / "models" / "lenet", self.folder / "models" / "lenet", ignore=left_out
        )
        for file in (self.folder / "models" / "lenet").glob("*.prototxt"):
            file.write_text(self._shortened(file.read_text()))
        data = self.folder / "data" / "mnist"
        data.mkdir(parents=True)
        for name, there in (("train", "mnist1k_train_lmdb"), ("test", "mnist500_test_lmdb")):
            (data / f"mnist_{name}_lmdb").symlink_to(GOLDEN / "data" / there)
        for name in ("solver.prototxt", "train_val.prototxt"):
            text = (self.folder / "models" / "lenet" / name).read_text()
            (self.folder / name).write_text(text.replace("models/lenet/", ""))
        self.monkeypatch.chdir(self.folder)
        self.monkeypatch.setattr("caffe_dns.reports.comparison.LEAST_TIME", 0)
        self._train_at_once()

    def _shortened(self, text: str) -> str:
        """A definition with few iterations, small batches and a small layer for the large one."""
        prefix = re.search(r'snapshot_prefix: "(.*)"', text)
        longest = re.search(r"max_iter: (\d+)", text)
        if prefix and longest:
            self.lengths[prefix[1]] = int(longest[1])
        text = re.sub(r"(max_iter|snapshot): \d+", rf"\1: {ITERATIONS}", text)
        text = re.sub(r"(test_interval|display|iterations): \d+", rf"\1: {ITERATIONS // 2}", text)
        text = re.sub(r"(test_iter|end_iter): \d+", r"\1: 1", text)
        text = text.replace("num_output: 500", "num_output: 100")
        return re.sub(r"batch_size: \d+", "batch_size: 4", text)

    def _train_at_once(self) -> None:
        """The weights that pages begin with, random ones."""
        for definition, name in (
            ("train_val", "models/lenet/lenet_iter_6000.caffemodel"),
            ("prune_train_val", "models/lenet/lenet_pruned_iter_4000.caffemodel"),
            ("guo_train_val", "guo_pruned.caffemodel"),
        ):
            net = load_net(f"models/lenet/{definition}.prototxt", "TRAIN")
            for step in net.steps:
                if step.layer.mask_indices:
                    step.layer.blobs[step.layer.mask_indices[0]].data[:, ::2] = 0
            save_weights(net, name)
            net.close()
        shutil.copy("models/lenet/lenet_iter_6000.caffemodel", "lenet.caffemodel")

    # Running ------------------------------------------------------------------------------------

    def run(self, block: Block) -> None:
        """Do what a reader does with a block."""
        assert block.kind in KINDS, f"a block of kind '{block.kind}'"
        if block.kind == "sh":
            for command in block.commands():
                self.run_command(command)
        elif block.kind == "python":
            exec(compile("\n" * block.line + block.text, "page", "exec"), self.names)
        elif block.kind == "prototxt":
            check_definition(block.text)

    def run_command(self, command: str) -> None:
        """Run a command of ours, or look at one of others."""
        redirect = _REDIRECT.search(command)
        words = shlex.split(command[: redirect.start()] if redirect else command)
        if words[0] in _NOT_RUN:
            look_at(words)
            return
        assert words[0] == "dns", f"{command}: what is that?"
        if words[1] in _NOT_RUN_OF_OURS or any("gpu" in word for word in words):
            check_flags(words[1:])
            return
        if words[1] in ("test", "time", "sensitivity"):
            words += ["-iterations", "1"]  # the last one counts
        lines: list[str] = []
        log.set_sink(lines.append)
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main(words[1:])
        finally:
            log.set_sink(None)
        assert ended.value.code == 0, f"{command}: {lines[-3:]}"
        if redirect:
            Path(redirect[2]).write_text("".join(f"{line}\n" for line in lines))
        if words[1] == "train":
            self._name_snapshots()

    def _name_snapshots(self) -> None:
        """Call what a short run left as the whole run would have called it."""
        for prefix, length in self.lengths.items():
            for file in self.folder.glob(f"{prefix}_iter_{ITERATIONS}.*"):
                shutil.copy(file, str(file).replace(f"_iter_{ITERATIONS}.", f"_iter_{length}."))


def check_flags(arguments: list[str]) -> None:
    """Take the flags of a command apart without running it. Raises click's errors."""
    name, *flags = cli.normalize(arguments)
    cli._load(name).make_context(name, flags)


def look_at(words: list[str]) -> None:
    """Whether what a command of others speaks of is there."""
    program, *rest = words
    if program == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert set(rest) <= targets, words
    elif program == "pip":
        _, _, extras = (ROOT / "pyproject.toml").read_text().partition("optional-dependencies]")
        known = set(re.findall(r"^(\w+) = \[", extras, re.MULTILINE))
        for extra in re.findall(r"\[(.*)\]", " ".join(rest)):
            assert set(extra.split(",")) <= known, words
        assert "-c" not in rest or (ROOT / rest[rest.index("-c") + 1]).exists()


def check_definition(text: str) -> None:
    """Whether a block is a definition of a solver, of a net, or some fields of a layer."""
    text = text.replace("…", "")
    errors = []
    for kind in (SolverParameter, NetParameter, LayerParameter):
        try:
            parse_text(text, kind)
            return
        except CaffeError as error:
            errors.append(str(error))
    raise AssertionError(f"no definition: {errors}")
