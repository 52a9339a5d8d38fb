"""`dns doctor`."""

from __future__ import annotations

from collections.abc import Iterator

from caffe_dns import log
from caffe_dns.cli import flags
from caffe_dns.cli.findings import NOTE, OK, WRONG, Finding
from caffe_dns.cli.installation import examine_gpus, examine_installation
from caffe_dns.cli.output import Output, with_output
from caffe_dns.cli.trial import Trial, failed
from caffe_dns.device.precision import use_precision
from caffe_dns.device.selection import scoring_device
from caffe_dns.encoding import in_message
from caffe_dns.errors import CaffeError
from caffe_dns.proto.upgrade import read_solver


@with_output
def run(
    solver: str,
    weights: str,
    gpu: str,
    precision: str,
    level: int,
    stage: str,
    no_surgery: bool,
    allow_python_layers: bool,
    output: Output,
) -> int:
    """Do what `dns doctor` is asked for, by the values of its flags; returns the exit code."""
    findings = []
    with log.silenced:
        for finding in _examine(
            solver, weights, gpu, precision, level, stage, not no_surgery, allow_python_layers
        ):
            findings.append(finding)
            if finding.level != OK or not output.silent:
                output.line(finding.line())
    wrong, notes = (sum(f.level == level for f in findings) for level in (WRONG, NOTE))
    output.line(f"{wrong or 'nothing'} wrong, {notes or 'nothing'} to note")
    output.result(findings)
    return 1 if wrong else 0


def _examine(
    solver: str,
    weights: str,
    gpu: str,
    precision: str,
    level: int,
    stage: str,
    surgery: bool,
    allow_python_layers: bool,
) -> Iterator[Finding]:
    yield from examine_installation()
    yield from examine_gpus()
    if not solver:
        return
    definition = None
    try:
        device = scoring_device(gpu)
        definition = read_solver(solver)
        param = definition.message
        param.train_state.level = level
        param.train_state.stage.extend(flags.stages(stage))
        if weights:
            param.weights[:] = [in_message(weights)]
        trial = Trial(param, device, surgery, allow_python_layers, use_precision(precision, device))
        yield from trial.examine()
    except (CaffeError, RuntimeError, MemoryError) as error:
        if isinstance(error, CaffeError):
            located = error if definition is None else definition.locate(error)
            error = located.locate(file=solver)
        yield failed(error)
