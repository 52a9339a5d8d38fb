"""`dns sensitivity`."""

from __future__ import annotations

from caffe_dns import load_net, log
from caffe_dns.cli import flags
from caffe_dns.cli.definitions import require_data
from caffe_dns.cli.output import Output, with_output
from caffe_dns.cli.progress import Progress
from caffe_dns.device.selection import scoring_device
from caffe_dns.errors import CaffeError
from caffe_dns.net import Net
from caffe_dns.proto.upgrade import read_net
from caffe_dns.reports.sensitivity import to_text_table
from caffe_dns.reports.sensitivity_files import check_prefix, save
from caffe_dns.surgery.prunable_layers import find_prunable_layers
from caffe_dns.surgery.sensitivity import Bench, Proposal, Study, find_objective, measure, propose
from caffe_dns.weights import weight_files


@with_output
def run(
    model: str,
    weights: str,
    iterations: int,
    gpu: str,
    level: int,
    stage: str,
    allow_python_layers: bool,
    layers: str,
    loss_of_accuracy: float,
    prefix: str,
    output: Output,
) -> None:
    """Do what `dns sensitivity` is asked for, by the values of its flags."""
    _check_flags(model, weights, iterations, loss_of_accuracy)
    files = weight_files(weights)
    if prefix:
        check_prefix(prefix, [model, *files])
    definition = read_net(model).message
    wanted = [name.strip() for name in layers.split(",") if name.strip()]
    net = load_net(
        model,
        "TEST",
        files,
        device=scoring_device(gpu),
        level=level,
        stages=flags.stages(stage),
        allow_python_layers=allow_python_layers,
    )
    with log.silenced:  # the data layer's, about starting again
        try:
            require_data(net, model)
            study, proposal = _study(net, iterations, wanted, loss_of_accuracy, output)
        except CaffeError as error:
            raise error.locate(file=model) from None
        finally:
            net.close()
    for line in to_text_table(study, proposal).splitlines():
        output.line(line)
    written = save(prefix, study, proposal, definition) if prefix else []
    for name in written:
        output.line(f"Wrote {name}")
    output.result({"study": study, "proposal": proposal, "files": written})


def _check_flags(model: str, weights: str, iterations: int, loss_of_accuracy: float) -> None:
    if not model:
        raise CaffeError("sensitivity needs a model definition to score: --model FILE")
    if not weights:
        raise CaffeError("sensitivity needs model weights to prune: --weights FILE")
    flags.check_iterations(iterations)
    flags.check_loss_of_accuracy(loss_of_accuracy)


def _study(
    net: Net, batches: int, wanted: list[str], limit: float, output: Output
) -> tuple[Study, Proposal]:
    bench = Bench(net, find_objective(net), batches)
    prunable_layers = [
        prunable_layer
        for prunable_layer in find_prunable_layers(net, wanted)
        if bench.depends_on(prunable_layer)
    ]
    if not prunable_layers:
        raise CaffeError(f"none of these layers has any influence on '{bench.objective.name}'")
    with Progress("Scoring", batches, shown=not output.silent) as progress:
        study = measure(bench, prunable_layers, progress.advance)
    return study, propose(bench, prunable_layers, study, limit)
