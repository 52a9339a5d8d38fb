"""Tries out a training run for `dns doctor`: files, nets, a batch, a few iterations, snapshots."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from google.protobuf.message import Message

from caffe_dns import log
from caffe_dns.cli.card import duration
from caffe_dns.cli.findings import NOTE, OK, WRONG, Finding
from caffe_dns.encoding import on_disk
from caffe_dns.errors import CaffeError, first_line, is_out_of_memory
from caffe_dns.net import Net
from caffe_dns.profile.report import bytes_text
from caffe_dns.proto.caffe_pb2 import NetParameter, SolverParameter
from caffe_dns.solver.iteration import CapturedIteration
from caffe_dns.solver.nets import test_definition, train_definition
from caffe_dns.solver.snapshot import check_writable
from caffe_dns.solver.solver import Solver
from caffe_dns.weights import weight_files

#: Fields of layers that name files to read.
_FILE_FIELDS = {"source", "mean_file", "label_map_file", "name_size_file", "label_file"}
#: Layers that write when they are made or run.
_WRITERS = {"HDF5Output", "DetectionOutput", "DetectionOutputOfMaps"}
#: Iterations that are timed.
_ITERATIONS = 3


@dataclass(frozen=True)
class Trial:
    """A training to be tried: its definition, and how `dns train` would make the solver."""

    param: SolverParameter
    device: torch.device
    surgery: bool
    allow_python_layers: bool
    activations: torch.dtype | None

    def examine(self) -> Iterator[Finding]:
        """All findings, in the order in which `dns train` would come upon them."""
        missing = list(_missing(_files_of(self.param)))
        definitions = []
        if not missing:
            definitions = [train_definition(self.param), test_definition(self.param).param]
            missing = list(_missing(named for net in definitions for named in _files_in(net)))
        yield from missing
        if self.param.snapshot or self.param.snapshot_after_train:
            yield from _examine_folder(self.param)
        writers = {layer.type for net in definitions for layer in net.layer} & _WRITERS
        if writers:
            yield Finding(NOTE, f"not tried: {', '.join(sorted(writers))} would write files")
        if missing or writers:
            return
        yield Finding(OK, "all files that the definitions name are there")
        solver = Solver(
            _without_files(self.param),
            device=self.device,
            surgery=self.surgery,
            allow_python_layers=self.allow_python_layers,
            activations=self.activations,
        )
        try:
            yield from self._run(solver)
        finally:
            solver.close()

    def _run(self, solver: Solver) -> Iterator[Finding]:
        for title, net in (("train net", solver.net), *_titled(solver.test_nets)):
            yield _describe(title, net)
            yield from _read(title, net)
        before = time.perf_counter()
        loss = float(solver.net.loss(solver.net()).detach())
        if loss != loss or abs(loss) == float("inf"):
            yield Finding(WRONG, f"the first loss is {loss}", "look at the data and the fillers")
        solver.step(CapturedIteration.WARM_UP + 1 if self.device.type == "cuda" else 1)
        _wait(self.device)
        start = time.perf_counter()
        solver.step(_ITERATIONS)
        _wait(self.device)
        each = (time.perf_counter() - start) / _ITERATIONS
        total = each * self.param.max_iter + _seconds_of_tests(self.param, solver)
        yield Finding(
            OK,
            f"first loss {log.number(loss)}; an iteration takes {1000 * each:.1f} ms "
            f"({start - before:.1f} s to warm up), {self.param.max_iter} of them with their tests "
            f"about {duration(total)}",
        )
        yield _memory(self.device)
        yield from _disk(self.param, solver)


def _missing(named: Iterable[tuple[str, str]]) -> Iterator[Finding]:
    """The files that are named and not there, each once."""
    seen = set()
    for file, field in named:
        if file and file not in seen and not os.path.exists(on_disk(file)):
            seen.add(file)
            relative = "" if Path(file).is_absolute() else f" in {Path.cwd()}"
            yield Finding(
                WRONG,
                f"{field}: there is no '{file}'{relative}",
                "put it there, correct the name, or go to the folder that it is relative to",
            )


def _files_of(param: SolverParameter) -> Iterator[tuple[str, str]]:
    """The files that a solver names, and its fields that name them."""
    for field in ("net", "train_net"):
        yield getattr(param, field), field
    for file in param.test_net:
        yield file, "test_net"
    for entry in param.weights:
        for file in weight_files(entry):
            yield file, "weights"


def _files_in(net: NetParameter) -> Iterator[tuple[str, str]]:
    """The files that the layers of a net name, and the layers and fields that name them."""
    for layer in net.layer:
        for parameter, settings in layer.ListFields():
            if isinstance(settings, Message):
                for field, value in settings.ListFields():
                    if field.name in _FILE_FIELDS and isinstance(value, str):
                        yield value, f"layer '{layer.name}': {parameter.name}.{field.name}"


def _examine_folder(param: SolverParameter) -> Iterator[Finding]:
    try:
        check_writable(param)
    except CaffeError as error:
        folder = Path(on_disk(param.snapshot_prefix)).parent
        yield Finding(WRONG, str(error), f"mkdir -p '{folder}', or another snapshot_prefix")


def _without_files(param: SolverParameter) -> SolverParameter:
    """The definition of a run that writes nothing, shows nothing and tests nothing."""
    quiet = SolverParameter()
    quiet.CopyFrom(param)
    quiet.snapshot = quiet.display = 0
    quiet.snapshot_after_train = quiet.test_initialization = quiet.debug_info = False
    if quiet.test_interval:
        quiet.test_interval = 2**31 - 1
    return quiet


def _titled(nets: Iterable[Net]) -> Iterator[tuple[str, Net]]:
    for index, net in enumerate(nets):
        yield f"test net #{index}", net


def _describe(title: str, net: Net) -> Finding:
    parameters = sum(p.tensor.numel() for p in net.learnable_params if p.counts)
    name = f" '{net.name}'" if net.name else ""
    return Finding(
        OK, f"{title}{name}: {len(net.steps)} layers, {parameters:,} parameters, the shapes fit"
    )


def _read(title: str, net: Net) -> Iterator[Finding]:
    """The time that a batch takes, once reading ahead has begun."""
    if not any(step.layer.is_source for step in net.steps):
        yield Finding(
            WRONG, f"{title}: no layer brings data", "a data layer for this phase is missing"
        )
        return
    net.read_sources()
    start = time.perf_counter()
    blobs = net.read_sources()
    milliseconds = 1000 * (time.perf_counter() - start)
    shapes = ", ".join(f"{name} {'x'.join(map(str, b.shape))}" for name, b in blobs.items())
    yield Finding(OK, f"{title}: a batch is read and decoded in {milliseconds:.1f} ms: {shapes}")


def _seconds_of_tests(param: SolverParameter, solver: Solver) -> float:
    """About how long all tests of the run take."""
    if not param.test_interval:
        return 0.0
    seconds = 0.0
    for net, batches in zip(solver.test_nets, param.test_iter, strict=True):
        with torch.no_grad():
            start = time.perf_counter()
            net()
            _wait(net.context.device)
        seconds += batches * (time.perf_counter() - start)
    tests = param.max_iter // param.test_interval + param.test_initialization
    return tests * seconds


def _memory(device: torch.device) -> Finding:
    if device.type == "cuda":
        used, total = torch.cuda.max_memory_reserved(device), torch.cuda.mem_get_info(device)[1]
        where = "GPU's memory"
    elif sys.platform == "linux":
        import resource

        used = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        where = "memory"
    else:
        return Finding(NOTE, "memory use is known on Linux only")
    what = f"{bytes_text(used)} of {bytes_text(total)} of the {where} are in use at most"
    if used > total * 0.9:
        return Finding(NOTE, what, "that is close; a smaller batch_size takes less")
    return Finding(OK, what)


def _disk(param: SolverParameter, solver: Solver) -> Iterator[Finding]:
    """Whether all snapshots find room."""
    if not (param.snapshot or param.snapshot_after_train):
        yield Finding(NOTE, "no snapshots will be written", "snapshot and snapshot_prefix would be")
        return
    size = sum(4 * p.tensor.numel() for p in solver.net.learnable_params)
    each = size * (1 + solver.rule.num_histories)
    number = (param.max_iter // abs(param.snapshot) if param.snapshot else 0) or 1
    folder = Path(on_disk(param.snapshot_prefix)).parent
    if not os.path.isdir(folder):
        return
    free = shutil.disk_usage(folder).free
    snapshots = "1 snapshot goes" if number == 1 else f"{number} snapshots go"
    what = f"{snapshots} to '{folder}', {bytes_text(each)} each; {bytes_text(free)} are"
    if number * each > free:
        yield Finding(WRONG, f"{what} free", "keep fewer of them: dns train --keep 3")
    else:
        yield Finding(OK, f"{what} free")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def failed(error: Exception) -> Finding:
    """What ended a trial."""
    if isinstance(error, CaffeError):
        return Finding(WRONG, " ".join(str(error).split()))
    if is_out_of_memory(error):
        return Finding(
            WRONG,
            f"not enough memory: {first_line(error)}",
            "a smaller batch_size; iter_size 2 with half of it computes the same",
        )
    raise error
