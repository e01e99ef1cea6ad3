"""Train a run from its config to its best checkpoint; stop and go on at any step.

    batches -> step -> log line         every `log_every` steps, and before each checkpoint
                    -> validation       every `evaluate_every` epochs, then a checkpoint
                    -> checkpoint       every `checkpoint_every` steps

Everything that decides the numbers is in the checkpoint (arrays, data position, early-stopping
counters) or in the config, so a resumed run repeats the bits of one that was left alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from rec_jax.checkpoint import Checkpoints
from rec_jax.data.batches import BatchStream, prefetch
from rec_jax.data.dataset import Dataset
from rec_jax.errors import TrainingError
from rec_jax.evaluate import Ranker, choose_users, make_ranker, rank_users
from rec_jax.metrics import rank_metrics
from rec_jax.model import Encoder, build_encoder
from rec_jax.optimizer import dense_optimizer
from rec_jax.progress import Reporter, Silent
from rec_jax.run import Run, RunConfig
from rec_jax.served import check_dataset
from rec_jax.tables import init_table
from rec_jax.train.log import MetricsLog
from rec_jax.train.state import TrainState, from_items, init_state, served, to_items
from rec_jax.train.step import Batch, Step, StepMetrics, make_train_step


@dataclass
class Position:
    """Where a run stands, beside its arrays; saved with every checkpoint.

    best, best_step: largest validation metric and the update it was measured after.
    stale: validations since then.
    seconds: training time over all starts, without validation.
    """

    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Steps of a run, computed once from config and data."""

    per_epoch: float
    total: int
    validate_every: int

    @staticmethod
    def of(config: RunConfig, per_epoch: float) -> Plan:
        settings = config.train
        total = settings.steps if settings.steps is not None else round(
            settings.epochs * per_epoch)
        return Plan(per_epoch, max(1, total),
                    max(1, round(settings.evaluate_every * per_epoch)))


def run_training(run: Run, config: RunConfig,
                 reporter: Reporter | None = None) -> dict[str, Any]:
    """Train from the newest checkpoint of `run`, or from the start where there is none.

    Returns a summary: steps, best metric and step, seconds. The run folder and its config exist
    already (see `rec_jax.train.start`).

    Raises:
      InputError: the dataset is not the run's, or config and data do not fit.
      TrainingError: the loss stopped being finite.
    """
    reporter = reporter or Silent()
    dataset = Dataset.open(config.data.path)
    stream = BatchStream(dataset, length=config.data.length, rows=config.train.rows,
                         pack=config.data.pack, window=config.data.window, seed=config.seed)
    plan = Plan.of(config, stream.steps_per_epoch)
    encoder, params = build_encoder(
        config.encoder, dim=config.table.dim, length=config.data.length,
        causal=config.objective.causal, precision=config.train.precision, seed=config.seed)
    optimizer = dense_optimizer(config.optimizer, plan.total)
    table = init_table(config.table, dataset.num_items, config.seed)
    state = init_state(params, table, optimizer, average=config.train.ema is not None,
                       seed=config.seed)
    step = make_train_step(encoder, config.objective, optimizer,
                           precision=config.train.precision, ema=config.train.ema)
    validator = Validator(config, dataset, encoder)
    with Checkpoints(run.checkpoints) as checkpoints:
        done, position = 0, Position()
        latest = checkpoints.latest()
        if latest is not None:
            extra = checkpoints.extra(latest)
            check_dataset(dataset, extra["dataset"])
            state = from_items(checkpoints.restore(latest, to_items(state)), dataset.num_items)
            position = Position(**extra["position"])
            stream.restore(extra["data"])
            done = latest
        reporter.begin(plan.total, done)
        with MetricsLog(run, first_step=done) as log:
            loop = _Loop(config, plan, stream, checkpoints, log, reporter, validator, position)
            return loop.run(step, state, done)


class Validator:
    """Ranks the validation users with the weights of a state."""

    def __init__(self, config: RunConfig, dataset: Dataset, encoder: Encoder) -> None:
        self._config, self._dataset = config, dataset
        self._chosen = choose_users(dataset, "valid", config.evaluate.users, config.seed)
        self._ranker: Ranker = make_ranker(encoder, dataset.num_items,
                                           filter_seen=config.evaluate.filter_seen)

    def __call__(self, state: TrainState) -> dict[str, float]:
        params, rows = served(state)
        users, targets, ends = self._chosen
        ranks = rank_users(self._ranker, params, rows, self._dataset, users, targets, ends,
                           length=self._config.data.length, batch=self._config.evaluate.batch)
        return rank_metrics(ranks, self._config.evaluate.ks)


@dataclass
class _Loop:
    """The loop's fixed surroundings and its position."""

    config: RunConfig
    plan: Plan
    stream: BatchStream
    checkpoints: Checkpoints
    log: MetricsLog
    reporter: Reporter
    validator: Validator
    position: Position

    def run(self, step: Step, state: TrainState, done: int) -> dict[str, Any]:
        settings = self.config.train
        batches = prefetch(_micro_batches(self.stream, settings.accumulate))
        window = _Window()
        mark = time.perf_counter()
        try:
            while done < self.plan.total and not self._stale():
                batch, sequences = next(batches)
                state, metrics = step(state, batch)
                done += 1
                window.add(metrics, sequences)
                last = done == self.plan.total
                validate = last or done % self.plan.validate_every == 0
                save = validate or (settings.checkpoint_every is not None
                                    and done % settings.checkpoint_every == 0)
                # A line never spans a checkpoint: a resumed run starts with an empty window.
                if save or done % settings.log_every == 0:
                    figures = window.close()  # waits for the step
                    now = time.perf_counter()
                    self.position.seconds += now - mark
                    self._log_train(done, figures, now - mark)
                    mark, window = now, _Window()
                if validate:
                    self._validate(done, state)
                elif save:
                    self._save(done, state, None)
                if validate:
                    mark = time.perf_counter()
                self.reporter.advance()
        finally:
            batches.close()
        self.checkpoints.wait()
        position = self.position
        return {"steps": done, "steps_per_epoch": round(self.plan.per_epoch, 3),
                "best_step": position.best_step, "metric": self.config.evaluate.metric,
                "best": position.best, "train_seconds": round(position.seconds, 3)}

    def _stale(self) -> bool:
        patience = self.config.train.patience
        return patience is not None and self.position.stale >= patience

    def _epoch(self, done: int) -> float:
        return round(done / self.plan.per_epoch, 4)

    def _log_train(self, done: int, figures: dict[str, float], seconds: float) -> None:
        for name in ("loss", "gradient_norm"):
            if not np.isfinite(figures[name]):
                raise TrainingError(f"the {name.replace('_', ' ')} is {figures[name]} at step "
                                    f"{done}; the last checkpoint stands (try a smaller "
                                    "optimizer.rate or a clip)")
        positions, sequences = figures.pop("positions"), figures.pop("sequences")
        figures["positions_per_second"] = positions / seconds
        figures["sequences_per_second"] = sequences / seconds
        self.log.write("train", done, {"epoch": self._epoch(done),
                                       "seconds": self.position.seconds, **figures})
        self.reporter.advance(0, f"loss {figures['loss']:.4f}  "
                              f"{figures['positions_per_second']:,.0f} positions/s  "
                              f"{figures['sequences_per_second']:,.0f} sequences/s")

    def _validate(self, done: int, state: TrainState) -> None:
        metrics = self.validator(state)
        value = metrics[self.config.evaluate.metric]
        position = self.position
        if position.best is None or value > position.best:
            position.best, position.best_step, position.stale = value, done, 0
        else:
            position.stale += 1
        self.log.write("valid", done, {"epoch": self._epoch(done),
                                       "seconds": position.seconds, **metrics})
        self.reporter.say(f"epoch {self._epoch(done):g}: " + "  ".join(
            f"{name} {metrics[name]:.4f}" for name in _headline(self.config)))
        self._save(done, state, value)

    def _save(self, done: int, state: TrainState, metric: float | None) -> None:
        extra = {"position": asdict(self.position), "data": self.stream.state(done),
                 "dataset": self.stream.dataset.split_hash}
        self.checkpoints.save(done, to_items(state), extra, metric)


class _Window:
    """Metrics since the last log line, left on the device until somebody asks."""

    def __init__(self) -> None:
        self._metrics: list[StepMetrics] = []
        self._sequences = 0

    def add(self, metrics: StepMetrics, sequences: int) -> None:
        self._metrics.append(metrics)
        self._sequences += sequences

    def close(self) -> dict[str, float]:
        """Loss weighted by positions, mean gradient norm, and the counts."""
        host = jax.device_get(self._metrics)
        positions = np.array([m.positions for m in host], np.float64)
        loss = np.array([m.loss for m in host], np.float64)
        return {"loss": float((loss * positions).sum() / max(positions.sum(), 1.0)),
                "gradient_norm": float(np.mean([m.gradient_norm for m in host])),
                "positions": float(positions.sum()), "sequences": float(self._sequences)}


def _micro_batches(stream: BatchStream, accumulate: int) -> Iterator[tuple[Batch, int]]:
    """Batches `[A, B, L]` and the number of histories in each."""
    for batch in stream:
        micro = {name: value.reshape(accumulate, -1, value.shape[-1])
                 for name, value in batch.items()}
        yield micro, int(batch["segments"].max(axis=1).sum())


def _headline(config: RunConfig) -> list[str]:
    k = 10 if 10 in config.evaluate.ks else max(config.evaluate.ks)
    return list(dict.fromkeys([f"hr@{k}", f"ndcg@{k}", config.evaluate.metric]))

