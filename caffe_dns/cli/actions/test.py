"""`dns test`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch

from caffe_dns import load_net, log
from caffe_dns.cli import definitions, flags
from caffe_dns.cli.output import Output, with_output
from caffe_dns.cli.predictions import Predictions
from caffe_dns.cli.progress import Progress
from caffe_dns.device.precision import use_precision
from caffe_dns.device.selection import scoring_device
from caffe_dns.errors import CaffeError
from caffe_dns.export.shrink import with_data
from caffe_dns.layers.base import Context
from caffe_dns.net import Net
from caffe_dns.net.debug_info import DebugInfo
from caffe_dns.reports.kept import count_kept, kept_lines
from caffe_dns.solver.scores import AveragePrecisions, MeanOutputs, check_ap_version
from caffe_dns.sparse.plan import use_sparse
from caffe_dns.weights import weight_files


@with_output
def run(
    model: str,
    weights: str,
    iterations: int,
    gpu: str,
    precision: str,
    level: int,
    stage: str,
    no_surgery: bool,
    shrink: bool,
    fold: bool,
    sparse: bool,
    allow_python_layers: bool,
    decode_on_gpu: bool,
    ap_version: str,
    output: Output,
    **unused: object,
) -> None:
    """Do what `dns test` is asked for, by the values of its flags."""
    if not model:
        raise CaffeError("test needs a model definition to score: --model FILE")
    if not weights:
        raise CaffeError("test needs model weights to score: --weights FILE")
    flags.check_iterations(iterations)
    check_ap_version(ap_version, "-ap_version")
    device = scoring_device(gpu)
    context = Context(
        device=device,
        surgery=not no_surgery,
        allow_python_layers=allow_python_layers,
        decode_on_gpu=decode_on_gpu,
        activations=use_precision(precision, device),
    )
    if shrink or fold:
        plain = Context(allow_python_layers=allow_python_layers)
        param, given = definitions.load_unmasked(model, weights, (), level, stage, plain)
        reduced = definitions.reduce_model(given, shrink=shrink, fold=fold, say=output.log)
        net = with_data(reduced, param).to_net(context)
        predictions = Predictions(lambda: given.to_net(replace(context)), net)
    else:
        predictions = None
        net = _load(model, weights, level, stage, context, output)
    try:
        definitions.require_data(net, model)
        if sparse:
            use_sparse(net)
        loss, scores = _score(net, iterations, ap_version, output, predictions)
        kept = count_kept(net)
        for line in kept_lines(kept):
            output.log(line)
        result = {"iterations": iterations, "loss": loss, "outputs": scores, "layers_kept": kept}
        if predictions is not None:
            result["predictions"] = predictions.result()
        output.result(result)
    finally:
        net.close()


def _load(
    model: str, weights: str, level: int, stage: str, context: Context, output: Output
) -> Net:
    return load_net(
        model,
        "TEST",
        weight_files(weights),
        context.surgery,
        device=context.device,
        level=level,
        stages=flags.stages(stage),
        allow_python_layers=context.allow_python_layers,
        activations=context.activations,
        decode_on_gpu=context.decode_on_gpu,
        quiet=output.silent,
    )


@torch.no_grad()
def _score(
    net: Net,
    iterations: int,
    ap_version: str,
    output: Output,
    predictions: Predictions | None,
) -> tuple[float, dict[str, float | list[float]]]:
    """The mean loss and the mean outputs, which are told, too."""
    log.info(f"Running for {iterations} iterations.")
    detectors = {
        top for step in net.steps if step.layer.type == "DetectionEvaluate" for top in step.tops
    }
    scores, precisions = MeanOutputs(), AveragePrecisions(ap_version, per_class=False)
    loss = torch.zeros((), device=net.context.device)
    debug = DebugInfo(net) if net.param.debug_info else nullcontext()
    with debug, Progress("Testing", iterations, shown=not output.silent) as progress:
        for iteration in range(iterations):
            data = net.read_sources()
            blobs = net.compute(data)
            loss += net.loss(blobs)
            if predictions is not None:
                predictions.compare(data, blobs)
            precisions.add({name: blobs[name] for name in net.outputs if name in detectors})
            outputs = {name: blobs[name] for name in net.outputs if name not in detectors}
            scores.add(outputs)
            for name, top in outputs.items():
                for value in top.reshape(-1).tolist():
                    log.info(f"Batch {iteration}, {name} = {log.number(value)}")
            progress.advance(iteration + 1)
    for line in predictions.lines() if predictions is not None else ():
        output.log(line)
    output.log(f"Loss: {log.number(float(loss) / iterations)}")
    results = {**scores.result(), **precisions.result()}
    means: dict[str, float | list[float]] = {}
    for name in net.outputs:
        weight = net.loss_weights.get(name, 0.0)
        values = results[name].reshape(-1).tolist()
        means[name] = values[0] if len(values) == 1 else values
        for mean in values:
            text = f"{name} = {log.number(mean)}"
            if weight:
                text += f" (* {log.number(weight)} = {log.number(weight * mean)} loss)"
            output.log(text)
    return float(loss) / iterations, means
