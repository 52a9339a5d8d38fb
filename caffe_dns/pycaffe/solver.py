"""`caffe.SGDSolver` and its kin: solvers with pycaffe's names (`_caffe.cpp`).

They train layer by layer over the blobs that programs see, so that after a step these hold what
Caffe leaves there, including the update in the diff of every parameter. The loop is that of
`caffe_dns.solver`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from caffe_dns.errors import CaffeError
from caffe_dns.net.definition import asks_for_surgery
from caffe_dns.net.params import Param
from caffe_dns.parallel.ranks import Ranks
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.proto.upgrade import read_solver
from caffe_dns.pycaffe.mode import mode, set_random_seed
from caffe_dns.pycaffe.net import Net
from caffe_dns.solver.iteration import Batches, LastUpdate, Outcome, run_iteration
from caffe_dns.solver.nets import train_definition
from caffe_dns.solver.solver import Solver as CoreSolver
from caffe_dns.solver.update_rules.base import Tensors
from caffe_dns.surgery.stages import stage_at
from caffe_dns.user_code import as_raised


@runtime_checkable
class SolverCallback(Protocol):
    """Is called when an iteration begins, and when its gradients have been computed."""

    def on_start(self) -> object: ...

    def on_gradients_ready(self) -> object: ...


@dataclass(frozen=True)
class _Functions:
    """A callback of two functions."""

    on_start: Callable[[], object]
    on_gradients_ready: Callable[[], object]


class _KeptUpdate(LastUpdate):
    """The last update, as the diffs of the parameters hold it."""

    def __init__(self, net: Net, *, wanted: bool) -> None:
        super().__init__(net.core, wanted=wanted)
        self._execution = net.execution

    def diffs(self) -> dict[Param, Tensor] | None:
        if not self._wanted:
            return None
        self._execution.attach_diffs()
        gradients = {param: param.tensor.grad for param in self._net.learnable_params}
        return {param: diff for param, diff in gradients.items() if diff is not None}


class _Trainer(CoreSolver):
    """The solver itself, with each iteration run over the blobs of `train_net`."""

    def __init__(self, param: SolverParameter) -> None:
        super().__init__(
            param,
            device=mode.device(),
            surgery=_asks_for_surgery(param) if mode.surgery is None else mode.surgery,
            allow_python_layers=mode.python_layers,
            ranks=mode.ranks(),
        )
        self.callbacks: list[SolverCallback] = []
        self.train_net = Net.of(self.net)
        self._last_update = _KeptUpdate(self.train_net, wanted=param.snapshot_diff)
        self.rule.may_use_kernel = False
        self._update = self.rule.update
        self.rule.update = self._update_and_keep  # type: ignore[method-assign]
        self._apply_rule = self.rule.apply
        self.rule.apply = self._tell_and_apply  # type: ignore[method-assign]

    def apply_update(self) -> None:
        """One update from the diffs of the parameters, which counts as an iteration."""
        execution = self.train_net.execution
        execution.attach_diffs()
        execution.forget()
        rate, stepped = self._set_rate()
        self._apply()
        execution.attach_diffs()
        self._end_update(rate, stepped=stepped)

    def follow_root(self, ranks: Ranks) -> None:
        """Take the weights, masks and seed of rank 0, as all ranks do."""
        self.train_net.execution.forget()
        ranks.share(self.net.learnable_params)
        self._reseed(ranks.from_root(self.seed))

    def average(self, ranks: Ranks) -> None:
        """Replace the gradients by their means over the ranks."""
        self.train_net.execution.attach_diffs()
        gradients = [param.tensor.grad for param in self.net.learnable_params]
        ranks.to_means([gradient for gradient in gradients if gradient is not None])

    def _iterate(self, display: bool) -> Outcome:
        self.net.context.passes = self.iteration
        execution = self.train_net.execution
        execution.clear_param_diffs()
        for callback in self.callbacks:
            callback.on_start()
        debug = display and self.param.debug_info
        outcome = self._iterate_debugging() if debug else self._iterate_over_blobs()
        execution.forget()
        execution.attach_diffs()
        self._losses.append(outcome.loss)
        return outcome

    def _iterate_over_blobs(self) -> Outcome:
        execution, blobs = self.train_net.execution, self.train_net.blobs
        last = len(self.net.steps) - 1
        losses = []
        for _ in range(self.param.iter_size):
            losses.append(execution.forward(0, last))
            execution.backward(last, 0)
        self.rule.apply()
        outputs = {name: blobs[name].data_tensor().clone() for name in self.net.outputs}
        return Outcome(outputs, torch.stack(losses).mean())

    def _iterate_debugging(self) -> Outcome:
        inputs = {name: self.train_net.blobs[name].data_tensor() for name in self.net.inputs}
        batches = Batches(lambda _: {**inputs, **self.net.read_sources()}, self.param.iter_size)
        return run_iteration(self.net, self.rule, batches, debug=True)

    def _tell_and_apply(self) -> None:
        for callback in self.callbacks:
            callback.on_gradients_ready()
        self._apply()

    def _apply(self) -> None:
        self.rule.follow()
        with self._frozen.held():
            self._apply_rule()

    def _update_and_keep(
        self, gradients: Tensors, histories: list[Tensors], rate: Tensor
    ) -> Tensors:
        """The rule's update, which also replaces the gradients, as in Caffe's diffs."""
        updates = self._update(gradients, histories, rate)
        torch._foreach_copy_(gradients, updates)
        return updates


def _asks_for_surgery(param: SolverParameter) -> bool:
    """Whether the solver's definition or its train net's has any field about masks."""
    given = (field.name for field, _ in param.ListFields())
    return any(name.startswith("surgery_") for name in given) or asks_for_surgery(
        train_definition(param)
    )


class Solver:
    """A solver of the type that its class names, else of the type in the definition.

    Device, surgery and, where the definition has no random_seed, the seed are those of the process
    (`mode`) when the solver is made. Raises CaffeError for errors in the definitions.
    """

    #: The type of the solver definition that the class stands for.
    type: ClassVar[str] = ""

    def __init__(self, solver_file: str | Path) -> None:
        definition = read_solver(solver_file)
        param = definition.message
        if self.type:
            param.type = self.type
        if param.random_seed >= 0:
            set_random_seed(param.random_seed)  # for the whole process, as in Caffe
        param.random_seed = mode.new_seed()
        try:
            with as_raised():
                self.core = _Trainer(param)
        except CaffeError as error:
            raise definition.locate(error).locate(file=str(solver_file)) from None
        self.net = self.core.train_net
        self.test_nets = [Net.of(net) for net in self.core.test_nets]

    @property
    def param(self) -> SolverParameter:
        """The solver definition."""
        return self.core.param

    @property
    def iter(self) -> int:
        """How many iterations have been trained."""
        return self.core.iteration

    @property
    def lr(self) -> float:
        """The learning rate of the next iteration."""
        iteration = self.core.iteration
        return stage_at(self.core.stages, iteration).rate(iteration, self.core.current_step)[0]

    def step(self, iterations: int) -> None:
        """Train for a number of iterations, with the tests and snapshots that are due."""
        self.bring_writes()
        with as_raised():
            self.core.step(iterations)

    def add_callback(
        self,
        on_start: Callable[[], object] | SolverCallback,
        on_gradients_ready: Callable[[], object] | None = None,
    ) -> None:
        """From now on, call `on_start` when an iteration begins, after the tests that are due, and
        `on_gradients_ready` before each update of `step` and `solve`. An object that has both, as
        `NCCL`, can be given alone. Raises TypeError for anything else.
        """
        if callable(on_start) and callable(on_gradients_ready):
            self.core.callbacks.append(_Functions(on_start, on_gradients_ready))
        elif isinstance(on_start, SolverCallback) and on_gradients_ready is None:
            self.core.callbacks.append(on_start)
        else:
            raise TypeError(
                "add_callback takes two functions, or an object with on_start and "
                "on_gradients_ready"
            )

    def solve(self, resume_file: str | Path | None = None) -> None:
        """Train up to max_iter, from a solver state if one is given."""
        if resume_file is not None:
            self.restore(resume_file)
        self.bring_writes()
        with as_raised():
            self.core.solve()

    def apply_update(self) -> None:
        """One update of the weights from the diffs of `net.params`, after which `iter` is one more.

        The masks stay as they are: only `step` and `solve` renew them.
        """
        self.bring_writes()
        self.core.apply_update()

    def snapshot(self) -> None:
        """Write the model and the solver state."""
        self.bring_writes()
        self.core.snapshot()

    def restore(self, state_file: str | Path) -> None:
        """Resume from a solver state."""
        self.bring_writes()
        self.net.execution.forget()
        self.core.restore(str(state_file))

    def share_weights(self, net: Net) -> None:
        """Let `net` use the weights of the net that is trained."""
        net.share_with(self.net)

    def bring_writes(self) -> None:
        """Bring to the device what programs have written on the host."""
        for net in (self.net, *self.test_nets):
            net.execution.bring_writes()


class SGDSolver(Solver):
    type = "SGD"


class NesterovSolver(Solver):
    type = "Nesterov"


class AdaGradSolver(Solver):
    type = "AdaGrad"


class RMSPropSolver(Solver):
    type = "RMSProp"


class AdaDeltaSolver(Solver):
    type = "AdaDelta"


class AdamSolver(Solver):
    type = "Adam"


_SOLVERS: tuple[type[Solver], ...] = (
    SGDSolver,
    NesterovSolver,
    AdaGradSolver,
    RMSPropSolver,
    AdaDeltaSolver,
    AdamSolver,
)


def get_solver(solver_file: str | Path) -> Solver:
    """A solver of the type that the definition names."""
    wanted = read_solver(solver_file).message.type
    return next((cls for cls in _SOLVERS if cls.type == wanted), Solver)(solver_file)
