"""The training loop: `Solver::Step`, `Solver::Solve` and `Solver::Test` of Caffe (solver.cpp).

`step` reads from top to bottom like an iteration. The update rules, the nets, the snapshots and the
surgery schedule have modules of their own.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext

import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.layers.base import Context
from caffe_dns.net import Net
from caffe_dns.net.debug_info import DebugInfo
from caffe_dns.parallel.ranks import Ranks
from caffe_dns.parallel.sufficient_factors import share_gradients
from caffe_dns.proto.caffe_pb2 import DataPosition, SolverParameter, SolverState
from caffe_dns.proto.text import to_text
from caffe_dns.solver.checks import check_definition, check_sizes
from caffe_dns.solver.divergence import Guard
from caffe_dns.solver.iteration import Batches, LastUpdate, Outcome, capture, due, run_iteration
from caffe_dns.solver.nets import build_test_nets, build_train_net
from caffe_dns.solver.observers import Display, Observer, log_scores
from caffe_dns.solver.readings import smoothed, take_readings
from caffe_dns.solver.scores import new_scores
from caffe_dns.solver.signals import BY_URGENCY, Action
from caffe_dns.solver.snapshot import (
    check_writable,
    data_positions,
    restore_snapshot,
    seek_data,
    write_snapshot,
)
from caffe_dns.solver.update_rules import solver_types
from caffe_dns.surgery.frozen import FrozenZeros
from caffe_dns.surgery.sharing import Sharing
from caffe_dns.surgery.stages import plan, stage_at
from caffe_dns.surgery.surgeon import Surgeon
from caffe_dns.weights.transfer import share_weights


class Solver:
    """Trains a net as a solver definition says (`Solver` of solver.cpp).

    The constructor builds the nets, those for testing on rank 0 only. `param` is the message of a
    solver, such as `proto.upgrade.read_solver(file).message`; `activations` is torch.bfloat16 to
    compute most layers in that. When training diverges, `on_nan` "stop" ends it and "warn" goes on
    without snapshots. `skip_bad_records` is how many records that cannot be decoded are skipped.
    Raises CaffeError for anything wrong with the definitions.
    """

    def __init__(
        self,
        param: SolverParameter,
        *,
        device: torch.device | None = None,
        surgery: bool = True,
        allow_python_layers: bool = False,
        activations: torch.dtype | None = None,
        ranks: Ranks | None = None,
        on_nan: str = "stop",
        skip_bad_records: int = 0,
        decode_on_gpu: bool = False,
    ) -> None:
        self.param = param
        self.ranks = ranks or Ranks()
        log.info(f"Initializing solver from parameters: \n{to_text(param)}")
        check_definition(param)
        self.stages = plan(param)
        param.max_iter = self.stages[-1].end
        if param.snapshot and self.ranks.is_root:
            check_writable(param)
        #: Whether the definition gives the seed; otherwise it was drawn.
        self.seed_given = param.HasField("random_seed") and param.random_seed >= 0
        drawn = secrets.randbits(31)
        self.seed = self.ranks.from_root(param.random_seed if self.seed_given else drawn)
        self._contexts = [
            Context(
                device=device or torch.device("cpu"),
                seed=self.seed,
                rank=self.ranks.rank,
                world_size=self.ranks.size,
                local_size=self.ranks.local_size,
                surgery=surgery,
                allow_python_layers=allow_python_layers,
                skip_bad_records=skip_bad_records,
                decode_on_gpu=decode_on_gpu,
                activations=activations,
            )
            for _ in range(1 + len(param.test_iter))
        ]
        self._contexts[0].counts_passes = False
        self.net = build_train_net(param, self._contexts[0])
        self.test_nets = build_test_nets(param, self._contexts[1:]) if self.ranks.is_root else []
        self.ranks.share(self.net.learnable_params)
        self.rule = solver_types[param.type](param, self.net.learnable_params)
        self.surgeon = Surgeon.of_net(self.net, self.stages, self.seed) if surgery else None
        if self.surgeon is not None and self.surgeon.needs_squares:
            self.surgeon.squares = self.rule.keep_squares()
        #: What makes gradients those of all ranks.
        self._sharing = share_gradients(self.net, self.ranks, self.rule)
        self._captured = capture(self.net, self.rule, self._sharing)
        check_sizes(param, self.net, self.rule.num_histories)
        self._frozen = FrozenZeros(self.net)
        self._sharing_values = Sharing(self.net, self.stages)
        log.info("Solver scaffolding done.")
        if self.surgeon is not None:
            self.surgeon.announce()
        self._guard = Guard(param, self.net, on_nan)
        self._begin()

    def _begin(self) -> None:
        """Set the state before the first iteration, without observers."""
        #: How many times the weights have been updated.
        self.iteration = 0
        self.current_step = 0
        self.stopped_early = False
        #: Called once per iteration for the action that a signal requests.
        self.poll: Callable[[], Action] = lambda: Action.NONE
        #: Called after each iteration.
        self.on_iteration: Callable[[], None] = lambda: None
        #: Told of each display and each test.
        self.observers: list[Observer] = []
        #: Called after each snapshot with its iteration and its state's file.
        self.on_snapshot: Callable[[int, str], None] = lambda iteration, state: None
        self._losses: deque[Tensor] = deque(maxlen=self.param.average_loss)
        #: The last iteration's batch, kept where divergence may have to be traced.
        self._batch: dict[str, Tensor] = {}
        self._last_update = LastUpdate(self.net, wanted=self.param.snapshot_diff)
        #: The data's positions before the current tests; a resumed run repeats the tests.
        self._positions_before_tests: list[DataPosition] = []
        self._last_display = (0, time.perf_counter())

    # Training -----------------------------------------------------------------------------------

    def solve(self) -> None:
        """Train up to max_iter, then take the last snapshot, the last loss and the last test."""
        param = self.param
        log.info(f"Solving {self.net.name}")
        log.info(f"Learning Rate Policy: {param.lr_policy}")
        self.stopped_early = False
        if param.snapshot_after_train and self.ranks.is_root:
            check_writable(param)
        self.step(param.max_iter - self.iteration)
        if param.snapshot_after_train and not due(self.iteration, param.snapshot):
            self.snapshot()
        if self.stopped_early:
            log.info("Optimization stopped early.")
            return
        if due(self.iteration, param.display):
            self.net.context.passes = self.iteration
            if self.surgeon is not None and self.iteration > 0:
                self.surgeon.update_masks_for_last_display(self.iteration - 1)
            # Debug info is logged as in the last iteration.
            debug = param.debug_info and due(self.iteration - 1, param.display)
            with torch.no_grad(), DebugInfo(self.net) if debug else nullcontext():
                self._losses.append(self.net.loss(self.net()))
            loss = float(smoothed(self._losses))
            log.info(f"Iteration {self.iteration}, loss = {log.number(loss)}")
        if due(self.iteration, param.test_interval):
            self.test_all()
        log.info("Optimization Done.")

    def step(self, iterations: int) -> None:
        """Train for a number of iterations, or until a signal asks to stop."""
        param = self.param
        stop = self.iteration + iterations
        self._losses.clear()
        self._last_display = (self.iteration, time.perf_counter())
        while self.iteration < stop:
            self._last_update.forget()
            self._positions_before_tests.clear()
            wanted = self.iteration > 0 or param.test_initialization
            if wanted and due(self.iteration, param.test_interval):
                self._positions_before_tests = data_positions(self._nets)
                self.test_all()
                if self.stopped_early:
                    break
                self._positions_before_tests.clear()
            if self.surgeon is not None:
                self.surgeon.update_masks(self.iteration)
            self._sharing_values.enter(self.iteration)
            display = due(self.iteration, param.display)
            rate, stepped = self._set_rate()
            outcome = self._iterate(display)
            self._sharing_values.renew()
            if display and self.ranks.is_root:
                self._display(outcome.outputs, rate)
            self._end_update(rate, stepped=stepped)
            action = BY_URGENCY[self.ranks.agree(lambda: BY_URGENCY.index(self.poll()))]
            if due(self.iteration, param.snapshot) or action is Action.SNAPSHOT:
                self.snapshot()
            self.on_iteration()
            if action is Action.STOP:
                self.stopped_early = True
                break

    def _set_rate(self) -> tuple[float, bool]:
        """Set the rule's rate; returns it, and whether the multistep policy has taken a step."""
        stage = stage_at(self.stages, self.iteration)
        before = self.current_step
        rate, self.current_step = stage.rate(self.iteration, before)
        self.rule.begin(self.iteration, rate)
        return rate, stage.param.lr_policy == "multistep" and self.current_step > before

    def _end_update(self, rate: float, *, stepped: bool) -> None:
        """Log what Caffe logs of an update, and count it."""
        display = due(self.iteration, self.param.display)
        if stepped:
            log.info(f"MultiStep Status: Iteration {self.iteration}, step = {self.current_step}")
        if display:
            log.info(f"Iteration {self.iteration}, lr = {log.number(rate)}")
        if display or self._captured is None:
            self.rule.log_clipping()
        self.iteration += 1

    def _iterate(self, display: bool) -> Outcome:
        """iter_size times forward and backward, then one update."""
        self.net.context.passes = self.iteration
        batches = Batches(self._read, self.param.iter_size)
        self._last_update.begin()
        debug = display and self.param.debug_info
        with self._frozen.held():
            if self._captured is None or debug:
                outcome = run_iteration(self.net, self.rule, batches, *self._sharing, debug=debug)
            else:
                outcome = self._captured.run(batches)
        if not (display or due(self.iteration + 1, self.param.snapshot)):
            self._batch = {}
        self._last_update.end()
        # A replayed iteration overwrites the loss of the one before.
        keep = self.param.average_loss > 1 and self._captured is not None
        self._losses.append(outcome.loss.clone() if keep else outcome.loss)
        return outcome

    def _read(self, into: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        self._batch = self.net.read_sources(into)
        return self._batch

    def _display(self, outputs: Mapping[str, Tensor], rate: float) -> None:
        last_iteration, last_time = self._last_display
        self._last_display = (self.iteration, time.perf_counter())
        lapse = self._last_display[1] - last_time
        readings = take_readings(self.net, self._losses, outputs, self.surgeon)
        loss, outputs = readings.loss, readings.outputs
        speed = (self.iteration - last_iteration) / (lapse or 1.0)
        log.info(
            f"Iteration {self.iteration} ({log.number(speed)} iter/s, {log.number(lapse)}s/"
            f"{self.param.display} iters), loss = {log.number(loss)}"
        )
        log_scores("Train", outputs, self.net.loss_weights)
        counts = self.surgeon.display(readings.tallies) if self.surgeon is not None else []
        display = Display(self.iteration, loss, rate, outputs, counts)
        for observer in self.observers:
            observer.displayed(display)
        self._guard.check(self.iteration, readings.last, outputs, self._batch, readings.largest)

    # Testing ------------------------------------------------------------------------------------

    def test_all(self) -> None:
        """Score every test net; other ranks wait for rank 0, which has them."""
        self.ranks.complete(self.rule.histories_apart())  # a signal may ask for a snapshot
        for index in range(len(self.test_nets)):
            if not self.stopped_early:
                self.test(index)
        self.stopped_early = bool(self.ranks.largest(self.stopped_early))

    @torch.no_grad()
    def test(self, index: int) -> dict[str, Tensor]:
        """The scores of one test net over its test_iter batches; empty when interrupted."""
        log.info(f"Iteration {self.iteration}, Testing net (#{index})")
        net = self.test_nets[index]
        share_weights(net, self.net)
        batches = self.param.test_iter[index]
        scores = new_scores(self.param)
        loss = torch.zeros((), device=net.context.device)
        with DebugInfo(net) if self.param.debug_info else nullcontext():
            for _ in range(batches):
                self._heed_signals()
                if self.stopped_early:
                    log.info("Test interrupted.")
                    return {}
                blobs = net()
                if self.param.test_compute_loss:
                    loss += net.loss(blobs)
                scores.add({name: blobs[name] for name in net.outputs})
        if self.param.test_compute_loss:
            log.info(f"Test loss: {log.number(float(loss / batches))}")
        result = scores.result()
        log_scores("Test", result, net.loss_weights)
        for observer in self.observers:
            observer.tested(self.iteration, index, result)
        return result

    def _heed_signals(self) -> None:
        while (action := self.poll()) is not Action.NONE:
            if action is Action.SNAPSHOT:
                self._write_snapshot()
            else:
                self.stopped_early = True

    # State --------------------------------------------------------------------------------------

    def snapshot(self) -> None:
        """Write the model, then the state that names it, unless training has diverged.

        All ranks call this; rank 0 writes.
        """
        self.ranks.complete(self.rule.histories_apart())
        if self.ranks.is_root:
            self._write_snapshot()

    def _write_snapshot(self) -> None:
        loss = self._losses[-1] if self._losses else None
        if not self._guard.check(self.iteration, loss, {}, self._batch):
            log.warning(f"Iteration {self.iteration}: no snapshot is written")
            return
        state = SolverState(
            iter=self.iteration,
            current_step=self.current_step,
            data_position=self._positions_before_tests or data_positions(self._nets),
            surgery_moments=self.surgeon.moments() if self.surgeon else [],
            random_seed=self.seed,
            shared_values=self._sharing_values.state(),
        )
        diffs = self._last_update.diffs()
        self.on_snapshot(
            self.iteration, write_snapshot(state, self.param, self.net, self.rule, diffs)
        )

    def restore(self, file: str) -> None:
        """Resume from a solver state of dns, of Caffe or of a fork.

        Raises CaffeError when it, or the model that it names, cannot be read or does not fit.
        """
        state = restore_snapshot(file, self.net, self.rule)
        self.iteration = state.iter
        self.current_step = state.current_step
        if state.HasField("random_seed") and not self.seed_given:
            self._reseed(state.random_seed)
        self.ranks.share(self.net.learnable_params)
        if self.surgeon is not None:
            self.surgeon.restore(list(state.surgery_moments))
        self._sharing_values.restore(list(state.shared_values))
        seek_data(self._nets, state.data_position)

    def close(self) -> None:
        """Stop the threads of all nets and finish their files."""
        if self._captured is not None and self.ranks.size > 1:
            self._captured.forget()
        with ExitStack() as stack:
            for net in self._nets:
                stack.callback(net.close)

    @property
    def _nets(self) -> list[Net]:
        """The training net, then the test nets."""
        return [self.net, *self.test_nets]

    def _reseed(self, seed: int) -> None:
        self.seed = seed
        for context in self._contexts:
            context.seed = seed
        if self.surgeon is not None:
            self.surgeon.seed = seed
