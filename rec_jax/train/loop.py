"""Train a run from its config to its best checkpoint; stop and go on at any step.

    batches -> step -> log line         every `log_every` steps
                    -> validation       every `evaluate_every` epochs, then a checkpoint
                    -> checkpoint       every `checkpoint_every` steps

Everything that decides the numbers is in the checkpoint (arrays, data position, early-stopping
counters) or in the config, so a resumed run repeats the bits of one that was left alone.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rec_jax.checkpoint.older import TABLES
from rec_jax.config import save as save_config
from rec_jax.config import to_mapping
from rec_jax.data.batches import prefetch
from rec_jax.errors import Preempted, TrainingError
from rec_jax.inference.protocol import protocol, repeats_line
from rec_jax.kernels.auto import pinned
from rec_jax.metrics import signed
from rec_jax.processes import run_on_all
from rec_jax.progress import Reporter, Silent
from rec_jax.run import Run, RunConfig
from rec_jax.tables.choose import optimizer_of, trained_by
from rec_jax.tables.placement import placement_lines
from rec_jax.train import backends
from rec_jax.train.build import Built, build
from rec_jax.train.continuing import found_before, measure_before, start_of
from rec_jax.train.counts import Counts, count_parameters
from rec_jax.train.feed import whole_batches
from rec_jax.train.growing import Start, start_from
from rec_jax.train.log import MetricsLog
from rec_jax.train.new_run import new_run
from rec_jax.train.preemption import Preemption
from rec_jax.train.resume import Position, resume
from rec_jax.train.saving import Saver, make_saver, moving_share, open_to_save
from rec_jax.train.starting import StartClock
from rec_jax.train.state import TrainState
from rec_jax.train.step import StepMetrics, check_finite, check_ids, place_batch


def run_training(run: Run, config: RunConfig, reporter: Reporter | None = None, *,
                 force: bool = False, start: Start | None = None,
                 new: bool = False, since: float | None = None) -> dict[str, Any]:
    """Train from the newest checkpoint of `run`, or from the start where there is none.

    Returns a summary: steps, best metric with its step and protocol, seconds. One process at a
    time trains a run. With several processes of one training, every one of them calls this, and
    the first has the run's lock for all.

    force: go on from a checkpoint of another config or dataset; see `resume`.
    start: the run whose rows a new one starts with; see `start_from`.
    new: there must be no run in the folder yet.
    since: when the program began, for the seconds before the first step.

    Raises:
      InputError: another process trains the run; the dataset is not the run's, or config and data
        do not fit.
      TrainingError: the loss stopped being finite, or a checkpoint could not be written.
      Preempted: a signal asked to stop; a checkpoint of the step is complete.
    """
    reporter = reporter or Silent()
    with ExitStack() as held:
        clock = held.enter_context(StartClock(since))
        lock = _Lock(run, held)
        # A second start is refused before it takes memory for a table; a new run's folder is
        # made only when all else is known to fit.
        run_on_all(lambda: lock.take() if run.config_path.exists() else None)
        begun = run.config_path.exists()
        built = build(config)
        if start is None and not begun:
            start = start_of(config, run, built)
        if start is not None or config.continual is not None:
            built.tiers.check_alone("a run that starts from the rows of another one")
        clock.mark("data and model")
        run_on_all(lambda: lock.take(new=new))
        if jax.process_index() == 0 and not run.config_path.exists():
            held.enter_context(new_run(run, config))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("run folder")
        return _train(run, config, built, reporter, force, start, clock)


@dataclass
class _Lock:
    """The lock of a run, which process 0 takes for all, until `held` ends."""

    run: Run
    held: ExitStack
    taken: bool = False

    def take(self, new: bool = False) -> None:
        """Take it, unless that is done. new: refuse a run that somebody has begun meanwhile."""
        if jax.process_index() == 0 and not self.taken:
            self.held.enter_context(self.run.locked())
            self.taken = True
        if jax.process_index() == 0 and new:
            self.run.check_free()


def _train(run: Run, config: RunConfig, built: Built, reporter: Reporter, force: bool,
           start: Start | None, clock: StartClock) -> dict[str, Any]:
    tables = "item table" if config.table.tied else "item tables, inputs apart"
    mode = built.choice.mode
    reporter.say(f"{tables}: {mode}, {built.choice.reason}; {trained_by(config.table, mode)}")
    for line in placement_lines(built.placements):
        reporter.say(line)
    counts = count_parameters(built.state, built.tuning)
    if built.tuning.rates:
        reporter.say(counts.line())
    repeats = repeats_line(built.dataset, config.evaluate, built.validator.panel)
    if repeats:
        reporter.say(repeats)
    settings = config.checkpoint
    with (Preemption(config.train.log_every) as preemption,
          open_to_save(run.checkpoints, settings,
                       moving_share(built.choice.mode)) as checkpoints):
        built.tiers.open(run.folder)
        state, done, position = resume(checkpoints, built, config, reporter, force=force)
        clock.mark("data and model")
        position.backends = backends.agree(position.backends, reporter)
        clock.mark("library")
        if start is None and done == 0:  # it was killed before its first checkpoint
            start = start_of(config, run, built)
        if start is not None and done == 0:
            state = start_from(start, built, run, reporter)
        if jax.process_index() == 0 and run.saved_config() != to_mapping(config):
            save_config(config, run.config_path)  # what a resumed run was allowed to change
        reporter.begin(built.horizon.total, done)
        with MetricsLog(run, first_step=done, primary=jax.process_index() == 0) as log:
            if start is not None and done == 0 and config.continual is not None:
                measure_before(state, built, run, log, reporter)
            saver = make_saver(checkpoints, settings, built.choice.mode, built.tiers, reporter)
            state = saver.begin(state, done or None)
            loop = _Loop(config, built, saver, log, reporter, position, preemption, clock,
                         counts)
            try:
                with pinned(position.backends):
                    return loop.run(state, done)
            except OSError as error:  # such as a disk that is full while a line is logged
                raise TrainingError(f"{error.strerror or error} while writing to {run.folder}; "
                                    "the last complete checkpoint stands") from error


@dataclass
class _Loop:
    """The loop's fixed surroundings and its position."""

    config: RunConfig
    built: Built
    saver: Saver
    log: MetricsLog
    reporter: Reporter
    position: Position
    preemption: Preemption
    clock: StartClock
    counts: Counts

    def run(self, state: TrainState, done: int) -> dict[str, Any]:
        settings, horizon = self.config.train, self.built.horizon
        tiers = self.built.tiers
        batches = prefetch(tiers.feed(
            whole_batches(self.built.stream, settings.accumulate, self.built.log_share),
            state.key, done), settings.lookahead)
        window = _Window()
        mark = time.perf_counter()
        first = True
        try:
            while done < horizon.total and not self._stale():
                batch, sequences, loaded = next(batches)
                state, places = tiers.enter(state, loaded)
                state, metrics = self.built.step(state, place_batch(batch, self.built.mesh),
                                                 places)
                if first:
                    self._started(metrics)
                    first = False
                done += 1
                window.add(metrics, sequences)
                last = done == horizon.total
                validate = horizon.validates(done)
                stop = None if last else self.preemption.asked(done)
                save = validate or stop is not None or (settings.checkpoint_every is not None
                                    and done % settings.checkpoint_every == 0)
                # A line never spans a checkpoint: a resumed run starts with an empty window.
                if save or done % settings.log_every == 0:
                    figures = window.close()  # waits for the step
                    now = time.perf_counter()
                    self.position.seconds += now - mark
                    self._log_train(done, figures, now - mark)
                    mark, window = now, _Window()
                if save:
                    state = self.built.refreshed(state)
                metric = self._validate(done, state) if validate else None
                if save:
                    state = self._save(done, state, metric)
                if validate:
                    mark = time.perf_counter()
                self.reporter.advance()
                if stop is not None:
                    self.saver.checkpoints.wait()
                    raise Preempted(f"{stop}: stopped after step {done}, which is saved; resume "
                                    f"the run to go on")
        finally:
            tiers.close()  # before the batches, which may wait for rows
            batches.close()
        self.saver.checkpoints.wait()
        position, stopped = self.position, self._why_stopped()
        if stopped is not None:
            self.reporter.say(f"training ended after step {done}: {stopped}")
        return {"steps": done, "steps_per_epoch": round(horizon.per_epoch, 3),
                "best_step": position.best_step, "metric": self.config.evaluate.metric,
                "best": None if position.best is None else signed(
                    self.config.evaluate.metric, position.best),
                "protocol": self._protocol,
                **found_before(self.log.path, self.config),
                "parameters": self.counts._asdict(),
                "table_update": self.built.choice.mode,
                "stopped": stopped,
                "table_optimizer": optimizer_of(self.config.table, self.built.choice.mode),
                "backends": backends.said(position.backends or {}),
                "train_seconds": round(position.seconds, 3),
                "start_seconds": None if first else self.clock.figures()}

    def _started(self, metrics: StepMetrics) -> None:
        """Say where the time before the first step went; called when that step was begun."""
        self.clock.mark("tracing")
        jax.block_until_ready(metrics)
        self.clock.mark("step")
        self.reporter.say(self.clock.line())

    @cached_property
    def _protocol(self) -> dict[str, Any]:
        return protocol(self.built.dataset, "valid", self.config.evaluate,
                        self.built.validator.panel)

    def _stale(self) -> bool:
        patience = self.config.train.patience
        return patience is not None and self.position.stale >= patience

    def _why_stopped(self) -> str | None:
        """Why training ended before its last step; None where it did not."""
        if not self._stale():
            return None
        position, config = self.position, self.config
        return (f"no better {config.evaluate.metric} in {position.stale} validations "
                f"(train.patience), best after step {position.best_step}")

    def _epoch(self, done: int) -> float:
        return round(done / self.built.horizon.per_epoch, 4)

    def _log_train(self, done: int, figures: dict[str, float], seconds: float) -> None:
        check_ids(int(figures.pop("bad_ids")))
        check_finite(figures, done)
        positions, sequences = figures.pop("positions"), figures.pop("sequences")
        figures["positions_per_second"] = positions / seconds
        figures["sequences_per_second"] = sequences / seconds
        self.log.write("train", done, {"epoch": self._epoch(done),
                                       "seconds": self.position.seconds, **figures})
        self.reporter.advance(0, f"loss {figures['loss']:.4f}  "
                              f"{figures['positions_per_second']:,.0f} positions/s  "
                              f"{figures['sequences_per_second']:,.0f} sequences/s")

    def _validate(self, done: int, state: TrainState) -> float:
        metrics = self.built.validator(state, self.built.tiers.apart(state))
        # What is best is the largest here and in checkpoints: errors count by their negatives.
        name = self.config.evaluate.metric
        value = signed(name, metrics[name])
        position = self.position
        if position.best is None or value > position.best:
            position.best, position.best_step, position.stale = value, done, 0
        else:
            position.stale += 1
        self.log.write("valid", done, {"epoch": self._epoch(done),
                                       "seconds": position.seconds, **metrics},
                       {"protocol": self._protocol})
        self.reporter.say(f"epoch {self._epoch(done):g}: " + "  ".join(
            f"{name} {metrics[name]:.4f}" for name in _headline(self.config)))
        return value

    def _save(self, done: int, state: TrainState, metric: float | None) -> TrainState:
        extra = {"position": asdict(self.position), "config": to_mapping(self.config),
                 "dataset": self.built.dataset.split_hash,
                 "data": self.built.stream.state(done * self.config.train.accumulate),
                 "row_map": state.items.row_map.to_json(), TABLES: sorted(state.tables)}
        return self.saver.save(done, state, extra, metric)


class _Window:
    """Metrics since the last log line, left on the device until somebody asks."""

    def __init__(self) -> None:
        self._metrics: list[StepMetrics] = []
        self._sequences = 0

    def add(self, metrics: StepMetrics, sequences: int) -> None:
        self._metrics.append(metrics)
        self._sequences += sequences

    def close(self) -> dict[str, float]:
        """Loss weighted as within the steps, mean gradient norm, and the counts."""
        host = jax.device_get(self._metrics)
        positions = np.array([m.positions for m in host], np.float64)
        loss, divisor = (np.array([getattr(m, name) for m in host], np.float64)
                         for name in ("loss", "divisor"))
        return {"loss": float((loss * divisor).sum() / (divisor.sum() or 1.0)),
                "gradient_norm": float(np.mean([m.gradient_norm for m in host])),
                "positions": float(positions.sum()), "sequences": float(self._sequences),
                "bad_ids": float(sum(int(m.bad_ids) for m in host))}


def _headline(config: RunConfig) -> list[str]:
    k = 10 if 10 in config.evaluate.ks else max(config.evaluate.ks)
    return list(dict.fromkeys([f"hr@{k}", f"ndcg@{k}", config.evaluate.metric]))

