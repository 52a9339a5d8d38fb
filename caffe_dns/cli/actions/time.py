"""`dns time`."""

from __future__ import annotations

from time import perf_counter

import torch

from caffe_dns import load_net, log
from caffe_dns.cli import flags
from caffe_dns.cli.output import Output, with_output
from caffe_dns.cli.progress import Progress
from caffe_dns.device.heap import keep_freed_memory
from caffe_dns.device.precision import use_precision
from caffe_dns.device.selection import CPU, scoring_device
from caffe_dns.errors import CaffeError
from caffe_dns.net import Net
from caffe_dns.net.multiplications import batch_size
from caffe_dns.profile.layer_memory import measure_memory
from caffe_dns.profile.report import LayerCost, NetCost, to_lines, to_table
from caffe_dns.profile.timing import LayerTimer, PassTimer


@with_output
def run(
    model: str,
    phase: str,
    iterations: int,
    gpu: str,
    precision: str,
    level: int,
    stage: str,
    no_surgery: bool,
    allow_python_layers: bool,
    output: Output,
    **unused: object,
) -> None:
    """Do what `dns time` is asked for, by the values of its flags."""
    if not model:
        raise CaffeError("time needs a model definition to time: --model FILE")
    if phase not in ("", "TRAIN", "TEST"):
        raise CaffeError(f"-phase must be TRAIN or TEST, not '{phase}'")
    flags.check_iterations(iterations)
    device = scoring_device(gpu)
    if device == CPU:
        keep_freed_memory()  # as training does
    net = load_net(
        model,
        phase or "TRAIN",
        surgery=not no_surgery,
        device=device,
        level=level,
        stages=flags.stages(stage),
        allow_python_layers=allow_python_layers,
        activations=use_precision(precision, device),
        quiet=output.silent,
    )
    try:
        timer = LayerTimer(net)
        _warm_up(timer)
        total = _run(timer, iterations, output)
        _log_averages(timer, iterations, total)
        _report(timer, iterations, total, output)
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


def _run(timer: LayerTimer, iterations: int, output: Output) -> float:
    """Time the passes; returns the milliseconds that all of them took."""
    log.info("*** Benchmark begins ***")
    log.info(f"Testing for {iterations} iterations.")
    start = perf_counter()
    with Progress("Timing", iterations, shown=not output.silent) as progress:
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


def _report(timer: LayerTimer, iterations: int, total: float, output: Output) -> None:
    """What Caffe does not tell, on stdout: its log stays as it is."""
    net = timer.net
    with log.silenced:  # the data layers', about starting again
        whole = _time_passes(net, iterations, output)
        memories = measure_memory(net)
    layers = [
        LayerCost(step.layer.name, step.layer.type, forward / iterations, backward / iterations, m)
        for step, forward, backward, m in zip(
            net.steps, timer.forward_ms, timer.backward_ms, memories, strict=True
        )
    ]
    for line in ["", *to_table(layers), "", *to_lines(net, layers, whole)]:
        output.line(line)
    output.result(
        {
            "iterations": iterations,
            "batch_size": batch_size(net),
            "layers": layers,
            "forward_ms": sum(timer.forward_ms) / iterations,
            "backward_ms": sum(timer.backward_ms) / iterations,
            "forward_backward_ms": total / iterations,
            "whole_pass_ms": whole.milliseconds,
            "peak_bytes": whole.peak,
        }
    )


def _time_passes(net: Net, iterations: int, output: Output) -> NetCost:
    """The time of whole passes, and the most memory that they take."""
    device = net.context.device
    if device != CPU:
        torch.cuda.reset_peak_memory_stats(device)
    with Progress("Timing whole passes", None, shown=not output.silent):
        milliseconds = PassTimer(net).run(iterations)
    if device == CPU:
        return NetCost(milliseconds, None)
    peak = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return NetCost(milliseconds, peak)
