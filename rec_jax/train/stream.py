"""A model that learns from interactions as they come, of users and items that come and go.

Rows of users and items are those of `rec_jax.tier.dynamic_ids`: an id gets one when it was seen
often enough, and loses it at a barrier; until then, and from then on, it reads the shared row of
its table. A user's row is the query, an item's row its vector, and the loss is the sampled softmax
over negatives that are drawn from the live rows.

    learn     interactions in their order, some to a step: ids to rows, new rows begin, negatives
              are drawn, and the rows that the step names move
    barrier   rows are given back, and are 0 from then on
    save      a checkpoint of the tables and the files of ids beside it, after a barrier
    publish   the live items as an export, and the ids that are gone from it (`rec-jax deltas`)

What is learnt is a function of the config and of the interactions. Ids are known to the host alone,
so their rows depend on no mesh.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import polars as pl
from jax.sharding import Mesh

from rec_jax.checkpoint import Checkpoints
from rec_jax.errors import InputError
from rec_jax.jsons import dumps
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import user
from rec_jax.objectives.given_negatives import EXPECTED, GIVEN, Config
from rec_jax.ranges import above, at_least, check
from rec_jax.run_sections import CheckpointConfig
from rec_jax.tables import ITEMS, USERS, TableConfig, init_table, row_optimizer
from rec_jax.tables.new_rows import given_to, rows_at, taken_away
from rec_jax.tier.dynamic_ids import DynamicIds, DynamicIdsConfig, Evicted
from rec_jax.tier.live_draws import Draw, LiveDraws
from rec_jax.train.saving import open_to_save
from rec_jax.train.state import TrainState, from_items, init_state, to_items
from rec_jax.train.step import Step, check_finite, make_train_step, place_batch
from rec_jax.train.stream_export import write_rows

NAMES = (USERS, ITEMS)
_MODES: dict[str, Any] = dict.fromkeys(NAMES, "sparse")
_NOTHING = optax.sgd(0.0)
"""The optimizer of an encoder that has no parameters."""


@dataclass(frozen=True)
class StreamConfig:
    """Settings of a model of a stream.

    table: of rows of users and items alike; it trains sparse, on the devices.
    users, items: which ids have rows.
    positions: interactions of a step; the devices must divide them.
    negatives: rows that are drawn for a step, about; as many for each position.
    draw: uniform over live rows, or by count, as they were seen until the last barrier.
    scale: factor on every score (an inverse temperature).
    rate: learning rate, unless `table.optimizer` has its own.
    seed: of first values, draws, and which interactions are tested.
    """

    table: TableConfig = field(default_factory=TableConfig)
    users: DynamicIdsConfig = field(default_factory=DynamicIdsConfig)
    items: DynamicIdsConfig = field(default_factory=DynamicIdsConfig)
    positions: int = 512
    negatives: int = 1024
    draw: Draw = "uniform"
    scale: float = 1.0
    rate: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, "stream.", positions=at_least(1, 2**24), negatives=at_least(1, 2**24),
              rate=at_least(0, 1e6), scale=above(0), seed=at_least(0, 2**31 - 1))

    @property
    def each(self) -> int:
        """Negatives that a position brings for all."""
        return -(-self.negatives // self.positions)


class Learnt(NamedTuple):
    """loss: f64 `[steps]`; new: by table how many ids got a row."""

    loss: np.ndarray
    new: dict[str, int]


class Stream:
    """The model, its ids, and where it stands: `steps` are done. about: what the checkpoint that it
    goes on from says beside."""

    def __init__(self, config: StreamConfig, mesh: Mesh | None = None, *,
                 native: bool | None = None) -> None:
        """native: which kind of map of ids; no bit depends on it."""
        self.config, self.mesh = config, mesh or make_mesh(MeshConfig())
        self.ids = {name: DynamicIds(self._settings(name), native=native) for name in NAMES}
        self._draws, self._native = LiveDraws(config.draw), native
        self.state, self._step = _first_state(config, self.mesh), _step_of(config, self.mesh)
        self.steps = 0
        self.about: dict[str, Any] = {}
        self._settled = True

    def learn(self, users: np.ndarray, items: np.ndarray, times: np.ndarray,
              checks: dict[str, np.ndarray] | None = None) -> Learnt:
        """Learn from interactions `[n]` in their order: ids and times int64.

        checks: by table, int64 `[n]`, where ids are hashes of texts (`rec_jax.tier.text_ids`).

        Raises:
          InputError: lengths differ, or two texts have one hash.
          TrainingError: the loss is no number.
        """
        if not len(users) == len(items) == len(times):
            raise InputError(f"{len(users)} users, {len(items)} items and {len(times)} times; "
                             "expected one of each an interaction")
        losses, new = [], dict.fromkeys(NAMES, 0)
        for first in range(0, len(users), self.config.positions):
            part = slice(first, first + self.config.positions)
            rows = {}
            for name, ids in ((USERS, users[part]), (ITEMS, items[part])):
                seen = self.ids[name].observe(ids, times[part],
                                              checks[name][part] if checks else None)
                self._give(name, seen.new, seen.ids)
                rows[name], new[name] = seen.rows, new[name] + len(seen.new)
            self.state, metrics = self._step(self.state, place_batch(self._batch(rows), self.mesh))
            self.steps, self._settled = self.steps + 1, False
            losses.append(metrics.loss)
        found = np.array([float(loss) for loss in losses])
        if len(found):
            check_finite({"loss": float(found.sum()), "gradient_norm": 0.0}, self.steps)
        return Learnt(found, new)

    def barrier(self) -> dict[str, Evicted]:
        """Take the rows of ids that lose theirs, by table; draws see the counts of now."""
        gone = {name: ids.barrier() for name, ids in self.ids.items()}
        for name, evicted in gone.items():
            table = taken_away(self.state.tables[name], evicted.rows, mesh=self.mesh)
            self._set(name, table)
        self._draws.refresh(self.ids[ITEMS].live)
        self._settled = True
        return gone

    def rows_of(self, name: str, ids: np.ndarray) -> np.ndarray:
        """f32 `[n, d]`: what `ids` int64 `[n]` of a table read: own rows, or the shared one."""
        return rows_at(self.state.tables[name], self.ids[name].find(ids))

    def save(self, folder: Path | str, about: Mapping[str, Any] | None = None,
             settings: CheckpointConfig | None = None) -> int:
        """Save into the folder of checkpoints. Returns the step.

        about: as JSON has it, for `resume`; settings: which checkpoints stay, by default two.

        Raises:
          InputError: it is not the moment behind a barrier.
        """
        if not self._settled:
            raise InputError("a stream is saved behind a barrier; expected barrier() before save()")
        folder = Path(folder)
        for name, ids in self.ids.items():
            ids.save(_ids_path(folder, name, self.steps))
        with open_to_save(folder / "checkpoints", settings or CheckpointConfig()) as checkpoints:
            checkpoints.save(self.steps, to_items(self.state), {
                "stream": json.loads(dumps(dataclasses.asdict(self.config))),
                "about": dict(about or {})})
            checkpoints.wait()
            stays = {_ids_path(folder, name, step) for step in checkpoints.steps()
                     for name in NAMES}
        for path in (folder / "ids").iterdir():
            if path not in stays:
                path.unlink(missing_ok=True)
        return self.steps

    def resume(self, folder: Path | str) -> int:
        """Stand where the newest checkpoint of a folder was saved, on any mesh. Returns its step.

        Raises:
          InputError: there is none, or it is of another config.
        """
        folder = Path(folder)
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=leaf.sharding), to_items(self.state))

        def load(step: int) -> tuple[dict[str, Any], dict[str, DynamicIds], dict[str, Any]]:
            opened = checkpoints.open(step)
            if opened.info.extra.get("stream") != json.loads(dumps(dataclasses.asdict(
                    self.config))):
                raise InputError(f"{folder} was saved by a stream of another config: "
                                 f"{opened.info.extra.get('stream')}")
            ids = {name: DynamicIds.load(_ids_path(folder, name, step), self._settings(name),
                                         native=self._native) for name in NAMES}
            return opened.restore(like), ids, dict(opened.info.extra.get("about", {}))

        if not (folder / "checkpoints").is_dir():
            raise InputError(f"{folder} has no checkpoints of a stream")
        with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
            found = checkpoints.newest(load)
        if found is None:
            raise InputError(f"{folder} has no checkpoints of a stream")
        self.steps, (items, self.ids, self.about) = found
        self.state = from_items(items, self.state.tables)
        self._draws.refresh(self.ids[ITEMS].live)
        self._settled = True
        return self.steps

    def publish(self, out: Path | str, names: pl.Series | None = None) -> np.ndarray:
        """Write the live items as a new export, in the order of their rows. Returns the ids int64
        that are gone since the last one, ascending.

        names: text `[n]` of the live items in that order; by default their ids as numbers.
        """
        live = self.ids[ITEMS].live
        rows = live.live()
        ids = pl.Series("id", live.ids[rows]).cast(pl.String) if names is None else names
        write_rows(out, ids, self.state.items, rows, run="stream", step=self.steps)
        return self.ids[ITEMS].publish()

    def _settings(self, name: str) -> DynamicIdsConfig:
        return self.config.users if name == USERS else self.config.items

    def _give(self, name: str, rows: np.ndarray, ids: np.ndarray) -> None:
        self._set(name, given_to(self.state.tables[name], self.config.table, rows, ids,
                                 seed=self.config.seed, name=name, mesh=self.mesh))

    def _set(self, name: str, table: Any) -> None:
        self.state = self.state._replace(tables={**self.state.tables, name: table})

    def _batch(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One micro-batch of a place a row; what is left of the last step of all is padding."""
        config, count = self.config, len(rows[ITEMS])

        def column(values: np.ndarray, spare: int) -> np.ndarray:
            whole = np.full((1, config.positions, 1), spare, np.int32)
            whole[0, :count, 0] = values
            return whole

        drawn = self._draws.draw(self.ids[ITEMS].live, config.positions * config.each,
                                 (config.seed, self.steps))
        shape = (1, config.positions, config.each)
        return {"items": column(rows[ITEMS], 0), "targets": column(rows[ITEMS], -1),
                "segments": column(np.ones(count), 0), "positions": column(np.zeros(count), 0),
                USERS: column(rows[USERS], 0), GIVEN: drawn.rows.reshape(shape),
                EXPECTED: drawn.log_expected.reshape(shape)}


def _first_state(config: StreamConfig, mesh: Mesh) -> TrainState:
    tables = {name: init_table(config.table, ids.capacity + 1, config.seed, mesh, name=name,
                               optimizer=row_optimizer(config.table.optimizer))
              for name, ids in ((USERS, config.users), (ITEMS, config.items))}
    return init_state({}, tables, _NOTHING, seed=config.seed, modes=_MODES, mesh=mesh)


@functools.lru_cache(8)
def _step_of(config: StreamConfig, mesh: Mesh) -> Step:
    """The step, compiled once for all streams of a config."""
    encoder, _ = build_encoder(user.Config(), dim=config.table.dim, length=1, causal=True,
                               precision="f32", seed=config.seed)
    return make_train_step(
        encoder, Config(count=config.positions * config.each, scale=config.scale), _NOTHING,
        tables=dict.fromkeys(NAMES, config.table), modes=_MODES, mesh=mesh,
        rate=optax.constant_schedule(config.rate))


def _ids_path(folder: Path, name: str, step: int) -> Path:
    return folder / "ids" / f"{name}-{step}"
