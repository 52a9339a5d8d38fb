"""`dns time`."""

from __future__ import annotations

from time import perf_counter

import click

from caffe_dns import load_net, log
from caffe_dns.cli import flags
from caffe_dns.cli.progress import Progress
from caffe_dns.devices import scoring_device
from caffe_dns.errors import CaffeError
from caffe_dns.precision import use_precision
from caffe_dns.timing import LayerTimer


@click.command()
@flags.model
@click.option("--phase", default="", metavar="PHASE", help="TRAIN or TEST. Default: TRAIN.")
@flags.iterations
@flags.gpu
@flags.precision
@flags.level
@flags.stage
@flags.no_surgery
@flags.python_layers
@flags.unused("solver", "weights", "snapshot", "sigint_effect", "sighup_effect")
def command(
    model: str,
    phase: str,
    iterations: int,
    gpu: str,
    precision: str,
    level: int,
    stage: str,
    no_surgery: bool,
    allow_python_layers: bool,
    **unused: object,
) -> None:
    """Benchmark a model: the time that each layer takes, forward and backward."""
    if not model:
        raise CaffeError("time needs a model definition to time: --model FILE")
    if phase not in ("", "TRAIN", "TEST"):
        raise CaffeError(f"-phase must be TRAIN or TEST, not '{phase}'")
    if iterations < 1:
        raise CaffeError(f"-iterations must be at least 1, not {iterations}")
    device = scoring_device(gpu)
    net = load_net(
        model,
        phase or "TRAIN",
        surgery=not no_surgery,
        device=device,
        level=level,
        stages=flags.stages(stage),
        allow_python_layers=allow_python_layers,
        activations=use_precision(precision, device),
        quiet=False,
    )
    try:
        timer = LayerTimer(net)
        _warm_up(timer)
        total = _run(timer, iterations)
        _log_averages(timer, iterations, total)
    finally:
        net.close()


def _warm_up(timer: LayerTimer) -> None:
    """A pass that is not counted, in which memory is allocated and kernels are chosen."""
    log.info("Performing Forward")
    log.info(f"Initial loss: {log.number(float(timer.forward()))}")
    log.info("Performing Backward")
    timer.backward()
    timer.finish()
    timer.reset()


def _run(timer: LayerTimer, iterations: int) -> float:
    """Time the passes; returns the milliseconds that all of them took."""
    log.info("*** Benchmark begins ***")
    log.info(f"Testing for {iterations} iterations.")
    start = perf_counter()
    with Progress("Timing", iterations) as progress:
        for iteration in range(1, iterations + 1):
            milliseconds = log.number(timer.run())
            log.info(f"Iteration: {iteration} forward-backward time: {milliseconds} ms.")
            progress.advance(iteration)
    return 1000 * (perf_counter() - start)


def _log_averages(timer: LayerTimer, iterations: int, total: float) -> None:
    log.info("Average time per layer: ")
    for step, forward, backward in zip(
        timer.net.steps, timer.forward_ms, timer.backward_ms, strict=True
    ):
        log.info(f"{step.layer.name:>10}\tforward: {log.number(forward / iterations)} ms.")
        log.info(f"{step.layer.name:>10}\tbackward: {log.number(backward / iterations)} ms.")
    log.info(f"Average Forward pass: {log.number(sum(timer.forward_ms) / iterations)} ms.")
    log.info(f"Average Backward pass: {log.number(sum(timer.backward_ms) / iterations)} ms.")
    log.info(f"Average Forward-Backward: {log.number(total / iterations)} ms.")
    log.info(f"Total Time: {log.number(total)} ms.")
    log.info("*** Benchmark ends ***")
