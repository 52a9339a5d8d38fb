"""`--bits auto` of `dns train` and `dns export`: bits for each layer, found by scoring."""

from __future__ import annotations

import tempfile

from caffe_dns import load_net, log
from caffe_dns.cli import flags
from caffe_dns.cli.definitions import require_data
from caffe_dns.errors import CaffeError
from caffe_dns.export import compact
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.files import write_atomically
from caffe_dns.solver.solver import Solver
from caffe_dns.surgery.bits import Bits, choose_bits
from caffe_dns.surgery.kept_entries import weighted_layers
from caffe_dns.surgery.stages import MOST_BITS
from caffe_dns.weights import share_weights, weight_files

#: What the flag gives.
BitsFlag = int | str | None


def find_limit(bits: BitsFlag, loss_of_accuracy: float | None) -> float:
    """What bits that are found may cost. Raises CaffeError for flags that make no sense."""
    if loss_of_accuracy is None:
        return flags.DEFAULT_LOSS
    if bits != flags.AUTO:
        raise CaffeError(f"--loss-of-accuracy needs --bits {flags.AUTO}")
    flags.check_loss_of_accuracy(loss_of_accuracy)
    return loss_of_accuracy


def find_bits(
    plain: UnmaskedModel, model: str, limit: float, batches: int, level: int, stage: str
) -> Bits:
    """Bits for the layers of a model, by what `model`, a definition with data, scores with it."""
    if not model:
        raise CaffeError(f"--bits {flags.AUTO} needs a definition with data to score: --model FILE")
    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/model.dnsz"
        write_atomically(weights, compact.to_bytes(plain))
        net = load_net(
            model,
            "TEST",
            weight_files(weights),
            level=level,
            stages=flags.stages(stage),
            allow_python_layers=plain.allow_python_layers,
        )
    was_quiet = log.set_quiet(True)  # the data layer's, about starting again
    try:
        require_data(net, model)
        return choose_bits(net, batches, limit)
    except CaffeError as error:
        raise error.locate(file=model) from None
    finally:
        log.set_quiet(was_quiet)
        net.close()


def put_bits(trainer: Solver, limit: float) -> None:
    """Give the layers of a run that shares values bits of their own, by what its test net scores.

    Raises CaffeError where there is none.
    """
    found = _score(trainer, limit) if trainer.ranks.is_root else {}
    for layer in weighted_layers(trainer.net):
        bits = trainer.ranks.from_root(found.get(layer.name, MOST_BITS))
        for stage in trainer.param.surgery_stage:
            stage.layer.add(name=layer.name, bits=bits)


def _score(trainer: Solver, limit: float) -> dict[str, int]:
    if not trainer.test_nets:
        raise CaffeError(f"--bits {flags.AUTO} needs a test net to score, and a test_iter")
    net = trainer.test_nets[0]
    share_weights(net, trainer.net)
    was_quiet = log.set_quiet(True)
    try:
        found = choose_bits(net, trainer.param.test_iter[0], limit)
    finally:
        log.set_quiet(was_quiet)
    log.info(f"Bits: {found}")
    return dict(found.of_layer)
