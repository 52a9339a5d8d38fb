"""`--bits auto` of `dns train` and `dns export`: finds the bits of each layer by scoring."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from caffe_dns import load_net, log
from caffe_dns.cli import flags
from caffe_dns.cli.definitions import require_data
from caffe_dns.cli.output import Output
from caffe_dns.encoding import on_disk
from caffe_dns.errors import CaffeError
from caffe_dns.export import compact
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.export.sharing import share_values
from caffe_dns.files import temporary_beside, write_atomically
from caffe_dns.solver.solver import Solver
from caffe_dns.surgery.bits import Bits, choose_bits
from caffe_dns.surgery.kept_entries import weighted_layers
from caffe_dns.surgery.stages import MOST_BITS
from caffe_dns.weights import share_weights

#: What the flag gives.
BitsFlag = int | str | None


def find_limit(bits: BitsFlag, loss: float | None) -> float:
    """The loss of accuracy allowed for bits found by `auto`. Raises CaffeError if invalid."""
    if loss is None:
        return flags.DEFAULT_LOSS
    if bits != flags.AUTO:
        raise CaffeError(f"--loss-of-accuracy needs --bits {flags.AUTO}")
    flags.check_loss_of_accuracy(loss)
    return loss


@dataclass(frozen=True)
class Scoring:
    """Finds bits for a model by scoring it with a definition that has data."""

    model: str
    #: The loss of accuracy that is allowed.
    limit: float
    batches: int
    level: int
    stage: str
    #: The file to write; temporary files for scoring are put beside it.
    output_file: str

    def find_bits(self, plain: UnmaskedModel) -> Bits:
        """Bits for the layers of a model. Raises CaffeError if nothing can be scored."""
        if not self.model:
            raise CaffeError(f"--bits {flags.AUTO} needs a definition with data: --model FILE")
        weights = temporary_beside(Path(on_disk(self.output_file)))
        try:
            write_atomically(weights, compact.to_bytes(plain))
            net = load_net(
                self.model,
                "TEST",
                weights,
                level=self.level,
                stages=flags.stages(self.stage),
                allow_python_layers=plain.allow_python_layers,
            )
        finally:
            weights.unlink(missing_ok=True)
        with log.silenced:  # the data layer's lines about restarting
            try:
                require_data(net, self.model)
                return choose_bits(net, self.batches, self.limit)
            except CaffeError as error:
                raise error.locate(file=self.model) from None
            finally:
                net.close()


def share(
    plain: UnmaskedModel, bits: BitsFlag, scoring: Scoring, output: Output
) -> tuple[UnmaskedModel, int | dict[str, int] | None]:
    """The model with as few values as the flag says, and the bits, by layer if they were found."""
    if bits is None:
        return plain, None
    if isinstance(bits, int):
        return share_values(plain, bits), bits
    found = scoring.find_bits(plain)
    output.line(f"Bits: {found}")
    return share_values(plain, found.of_layer), dict(found.of_layer)


def put_bits(trainer: Solver, limit: float) -> None:
    """Set the bits of each layer in a run that shares values, found by scores of its test net.

    Raises CaffeError if there is no test net.
    """
    found = _score(trainer, limit) if trainer.ranks.is_root else {}
    for layer in weighted_layers(trainer.net):
        bits = trainer.ranks.from_root(found.get(layer.name, MOST_BITS))
        for stage in trainer.param.surgery_stage:
            stage.layer.add(name=layer.name, bits=bits)


def _score(trainer: Solver, limit: float) -> dict[str, int]:
    if not trainer.test_nets or not trainer.param.test_iter[0]:
        raise CaffeError(f"--bits {flags.AUTO} needs a test net to score, and a test_iter")
    net = trainer.test_nets[0]
    share_weights(net, trainer.net)
    with log.silenced:
        found = choose_bits(net, trainer.param.test_iter[0], limit)
    log.info(f"Bits: {found}")
    return dict(found.of_layer)
