"""Train an agent from its config to its best checkpoint; stop and go on at any step.

    step        play, store, update       a log line every `log_every` steps
    evaluation  users who meet its policy and its best items, every `evaluate_every` steps, then a
                checkpoint

Everything that decides the numbers is in the checkpoint (weights, optimizer, the store of episodes,
steps done) or in the config, so a resumed run repeats the bits of one that was left alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import numpy as np

from rec_jax import streams
from rec_jax.checkpoint import Checkpoints, Damaged
from rec_jax.config import save as save_config
from rec_jax.config import to_mapping
from rec_jax.errors import InputError, Preempted, TrainingError
from rec_jax.kernels.auto import pinned
from rec_jax.progress import Reporter, Silent
from rec_jax.run import Run
from rec_jax.simulate.agent import (
    Agent,
    AgentMetrics,
    AgentState,
    agent_items,
    build_agent,
    evaluated,
    from_agent_items,
    make_player,
)
from rec_jax.simulate.agent_config import AgentConfig
from rec_jax.tables.choose import trained_by
from rec_jax.train import backends
from rec_jax.train.log import MetricsLog
from rec_jax.train.new_run import new_run
from rec_jax.train.preemption import Preemption
from rec_jax.train.resume import changes
from rec_jax.train.saving import open_to_save
from rec_jax.train.step import check_finite, check_ids

METRIC = "return"
"""Mean return of users who meet the best items: what decides the best checkpoint."""


@dataclass
class Position:
    """Where a run stands, beside its arrays; saved with every checkpoint. best, best_step: largest
    mean return and the step it was measured after; seconds: of training, over all starts."""

    best: float | None = None
    best_step: int | None = None
    seconds: float = 0.0
    backends: dict[str, str] | None = field(default=None)


def run_agent(run: Run, config: AgentConfig, reporter: Reporter | None = None, *,
              force: bool = False, new: bool = False) -> dict[str, Any]:
    """Train from the newest checkpoint of `run`, or from the start where there is none.

    force: go on from a checkpoint of another config; new: there must be no run in the folder.

    Returns a summary: steps, best return with its step, seconds.

    Raises:
      InputError: another process trains the run, or the config does not fit.
      TrainingError: the loss stopped being finite, or a checkpoint could not be written.
      Preempted: a signal asked to stop; a checkpoint of the step is complete.
    """
    reporter = reporter or Silent()
    if jax.process_count() > 1:
        raise InputError("an environment is played in one process; expected one")
    with ExitStack() as held:
        if run.config_path.exists():
            held.enter_context(run.locked())
        agent = build_agent(config)
        if not run.config_path.exists():
            held.enter_context(new_run(run, config))
            held.enter_context(run.locked())
        elif new:
            run.check_free()
        settings = config.checkpoint
        preemption = held.enter_context(Preemption(config.train.log_every))
        checkpoints = held.enter_context(open_to_save(run.checkpoints, settings))
        state, position = _resume(checkpoints, agent, reporter, force)
        position.backends = backends.agree(position.backends, reporter)
        if run.saved_config() != to_mapping(config):
            save_config(config, run.config_path)  # what a resumed run was allowed to change
        mode = agent.choice.mode
        reporter.say(f"item table: {mode}, {agent.choice.reason}; "
                     f"{trained_by(config.table, mode)}")
        done = int(state.steps)
        reporter.begin(config.train.steps, done)
        log = held.enter_context(MetricsLog(run, first_step=done))
        with pinned(position.backends):
            try:
                return _Loop(agent, checkpoints, log, reporter, position, preemption).run(state)
            except OSError as error:
                raise TrainingError(f"{error.strerror or error} while writing to {run.folder}; "
                                    "the last complete checkpoint stands") from error


def _resume(checkpoints: Checkpoints, agent: Agent, reporter: Reporter, force: bool
            ) -> tuple[AgentState, Position]:
    def load(step: int) -> tuple[AgentState, Position]:
        opened = checkpoints.open(step)
        extra = opened.info.extra
        try:
            position, saved = Position(**extra["position"]), dict(extra["config"])
        except (KeyError, TypeError) as error:
            raise Damaged(f"checkpoint of step {step} says nothing usable of where the run stood: "
                          f"{type(error).__name__} {error}") from None
        changed = changes(saved, agent.config)
        if changed and not force:
            raise InputError(f"the checkpoint was saved with another config ({changed}); go back "
                             "to that one, or force it")
        if changed:
            reporter.say(f"forced: {changed}")
        return restored(agent, opened), position

    found = checkpoints.newest(load)
    return (agent.first(), Position()) if found is None else found[1]


def restored(agent: Agent, opened: Any) -> AgentState:
    """The state of a checkpoint that is open."""
    first = agent.first(fill=False)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=leaf.sharding), agent_items(first))
    return from_agent_items(opened.restore(like), first)


@dataclass
class _Loop:
    """The loop's fixed surroundings and its position."""

    agent: Agent
    checkpoints: Checkpoints
    log: MetricsLog
    reporter: Reporter
    position: Position
    preemption: Preemption

    def run(self, state: AgentState) -> dict[str, Any]:
        settings = self.agent.config.train
        players = {policy: make_player(self.agent, policy) for policy in ("greedy", "sample")}
        done, window = int(state.steps), list[AgentMetrics]()
        mark = time.perf_counter()
        while done < settings.steps:
            state, metrics = self.agent.step(state)
            done += 1
            window.append(metrics)
            last = done == settings.steps
            evaluate = last or done % settings.evaluate_every == 0
            stop = None if last else self.preemption.asked(done)
            save = evaluate or stop is not None or (
                settings.checkpoint_every is not None and done % settings.checkpoint_every == 0)
            # A line never spans a checkpoint: a resumed run starts with an empty window.
            if save or done % settings.log_every == 0:
                figures = _mean(window)
                now = time.perf_counter()
                self.position.seconds += now - mark
                mark, window = now, []
                self._log_train(done, figures)
            earned = self._evaluate(done, state, players) if evaluate else None
            if save:
                self.checkpoints.save(done, agent_items(state), {
                    "position": asdict(self.position),
                    "config": to_mapping(self.agent.config)}, earned)
            if evaluate:
                mark = time.perf_counter()
            self.reporter.advance()
            if stop is not None:
                self.checkpoints.wait()
                raise Preempted(f"{stop}: stopped after step {done}, which is saved; resume the "
                                "run to go on")
        self.checkpoints.wait()
        position, config = self.position, self.agent.config
        return {"steps": done, "episodes": done * config.acting.episodes,
                "updates": config.updates, "best_step": position.best_step, "metric": METRIC,
                "best": position.best, "table_update": self.agent.choice.mode,
                "backends": backends.said(position.backends or {}),
                "train_seconds": round(position.seconds, 3)}

    def _log_train(self, done: int, figures: dict[str, float]) -> None:
        check_ids(int(figures.pop("bad_ids")))
        check_finite(figures, done)
        self.log.write("train", done, {"episodes": done * self.agent.config.acting.episodes,
                                       "seconds": self.position.seconds, **figures})
        self.reporter.advance(0, f"loss {figures['loss']:.4f}  earned {figures['earned']:,.1f}")

    def _evaluate(self, done: int, state: AgentState, players: Mapping[str, Any]) -> float:
        key = streams.of_run(self.agent.config.seed, streams.PLAY)
        weights = evaluated(state.training)
        earned = {policy: float(np.mean(np.asarray(player(weights, key), np.float64)))
                  for policy, player in players.items()}
        value = earned["greedy"]
        if self.position.best is None or value > self.position.best:
            self.position.best, self.position.best_step = value, done
        self.log.write("valid", done, {
            "episodes": done * self.agent.config.acting.episodes, "seconds": self.position.seconds,
            METRIC: value, f"{METRIC}_sampled": earned["sample"]})
        self.reporter.say(f"step {done:,}: return {value:,.2f} by its best items, "
                          f"{earned['sample']:,.2f} by draws")
        return value


def _mean(window: list[AgentMetrics]) -> dict[str, float]:
    """Means over the steps of a window; ids that are no items are added up."""
    host = jax.device_get(window)
    figures = {name: float(np.mean([getattr(one, name) for one in host]))
               for name in AgentMetrics._fields}
    return figures | {"bad_ids": float(sum(int(one.bad_ids) for one in host))}
