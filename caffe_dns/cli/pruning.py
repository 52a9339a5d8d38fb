"""The flags of `dns train` that say how a net is pruned, and which masks it starts with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from caffe_dns import log
from caffe_dns.cli.bits import BitsFlag, find_limit, put_bits
from caffe_dns.cli.flags import AUTO
from caffe_dns.cli.latency import LatencyTarget
from caffe_dns.cli.target import add_target, write_definition
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import SolverParameter, SurgeryStage
from caffe_dns.solver.solver import Solver
from caffe_dns.surgery.stages import AMOUNTS, MOST_BITS

#: From this share of zeros on, they count as pruned, not as zero by chance.
_PRUNED = 0.01
#: The flags that set these fields of a stage.
_FLAGS = {"pattern": "--pattern", "layer": "--target-sparsity"}
_FLAGS |= {field: f"--target-{field}" for field in AMOUNTS}


@dataclass(frozen=True)
class Pruning:
    """The values of the flags. Raises CaffeError if they contradict each other."""

    surgery: bool
    target: SurgeryStage | None
    hold_masks: bool
    masks_from_zeros: bool
    #: Layers share 2^bits values, their masks held; None for as many values as weights.
    bits: BitsFlag = None
    #: The loss of accuracy allowed for bits that are found.
    loss: float | None = None
    #: The target, once the times of layers have been measured.
    latency: LatencyTarget | None = None

    def __post_init__(self) -> None:
        find_limit(self.bits, self.loss)
        if self.bits is not None and self.target is not None:
            raise CaffeError("--bits and a target for surgery exclude each other: it holds masks")
        if not self.surgery and (self.hold_masks or self.masks_from_zeros):
            flag = "--hold-masks" if self.hold_masks else "--masks-from-zeros"
            raise CaffeError(f"{flag} and --no-surgery exclude each other: that has no masks")
        if self.hold_masks and self.target is not None:
            raise CaffeError("--hold-masks and a target for surgery exclude each other")

    def check_alone(self, alone: bool) -> None:
        """Raises CaffeError if the flags do not work with several processes."""
        if self.latency is not None and not alone:
            raise CaffeError("--target-latency measures on one GPU; give --gpu one of them")

    def plan(self, param: SolverParameter, *, resumed: bool) -> None:
        """Write the flags into the solver definition. Raises CaffeError if they do not fit it."""
        if self.masks_from_zeros and (resumed or not param.weights):
            raise CaffeError("--masks-from-zeros needs the weights that have them: --weights FILE")
        if self.target is not None:
            add_target(param, self.target, surgery=self.surgery)
        if self.latency is not None and resumed:
            raise CaffeError(
                "--target-latency would measure anew: resume with the definition that the run has "
                "written, --solver PREFIX_target_solver.prototxt"
            )
        if self.hold_masks or self.bits is not None:
            if not param.surgery_stage:
                param.surgery_stage.add(iterations=param.max_iter)
            for stage in param.surgery_stage:
                stage.surgery = False
                for field in ("layer", "pattern", "latency_table", *AMOUNTS):
                    stage.ClearField(field)
                if self.bits is not None:
                    stage.bits = MOST_BITS if isinstance(self.bits, str) else self.bits

    def of_flags(self, error: CaffeError) -> CaffeError | None:
        """Errors about a stage name the flag that made it, if one did."""
        stage, _, field = (error.field or "").partition(".")
        if self.target is None or stage != "surgery_stage[0]" or field not in _FLAGS:
            return None
        return CaffeError(f"{_FLAGS[field]}: {error.message}")

    def measure(self, param: SolverParameter, build: Callable[[SolverParameter], Solver]) -> None:
        """Measure what a target needs, with solvers that `build` makes from a definition."""
        if self.latency is not None:
            self.latency.measure(param, build)

    def begin(self, trainer: Solver) -> None:
        """Prepare and report masks before the first iteration of a run that is not resumed.

        Raises CaffeError if masks are wanted but no layer has any, or if bits are to be found but
        no net can be scored.
        """
        if trainer.surgeon is not None:
            if self.masks_from_zeros:
                _mask_zeros(trainer)
            _tell_masks(trainer, held=self.hold_masks)
        if self.bits == AUTO:
            put_bits(trainer, find_limit(self.bits, self.loss))
        if trainer.ranks.is_root:
            if self.target is not None:
                write_definition(trainer, "target", "the flags for a target")
            elif self.bits == AUTO:
                write_definition(trainer, "bits", f"--bits {AUTO}")


def _mask_zeros(trainer: Solver) -> None:
    assert trainer.surgeon is not None
    if not trainer.surgeon.masked_layers:
        raise CaffeError(
            "--masks-from-zeros: no layer of the net has masks; those of type Convolution and "
            "InnerProduct do unless they say sparsity_term: false"
        )
    for layer in trainer.surgeon.masked_layers:
        layer.mask_zeros()


def _tell_masks(trainer: Solver, *, held: bool) -> None:
    assert trainer.surgeon is not None
    layers = trainer.surgeon.masked_layers
    total, kept = sum(layer.size for layer in layers), sum(layer.kept() for layer in layers)
    if kept < total:
        log.info(f"The masks keep {kept} of {total} parameters to begin with")
        return
    if held:
        log.warning(
            "--hold-masks holds nothing: no mask prunes anything, so that the net stays dense"
        )
    if trainer.param.weights:
        zeros = sum(layer.zeros() for layer in layers)
        if zeros > _PRUNED * total:
            log.info(
                f"{zeros} of {total} parameters are zero, but no mask says so; to begin with masks "
                "of them: --masks-from-zeros"
            )
