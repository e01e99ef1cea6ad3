"""What a step is told reaches the numbers: keys, seeds, weights, divisors, rates."""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from marks import fast_where
from steps import MeanSoFar, make_step, modes_of, new_state

from rec_jax.errors import InputError
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.encoder import Encoder
from rec_jax.objectives import Task, next_item, sampled_softmax
from rec_jax.objectives.base import Batch, Keys
from rec_jax.tables import INPUTS, RowOptimizerConfig, TableConfig, init_table, row_optimizer
from rec_jax.tables.bias import bias_state
from rec_jax.train import dense
from rec_jax.train import tables as opening
from rec_jax.train.mode import weighted
from rec_jax.train.state import TrainState, init_state, state_shardings
from rec_jax.train.step import Step, make_train_step, place_batch

ITEMS, DIM, LENGTH, ROWS = 60, 8, 6, 8
MESH = make_mesh(MeshConfig())
MODES = ["dense", "sparse", "streamed"]


ENCODER = cast(Encoder, MeanSoFar())


@dataclass(frozen=True)
class Weighted(next_item.Config):
    """Positions have weights in turn; `present` and `divisor` may say more."""

    kind: str = "weighted"
    turn: tuple[float, ...] = (1.0,)
    absent: tuple[bool, ...] | None = None
    divided_by: float | None = None

    def plan(self, batch: Batch, keys: Keys, num_items: int) -> Task:
        return in_turn(super().plan(batch, keys, num_items), self)


@dataclass(frozen=True)
class WeightedSample(sampled_softmax.Config):
    """The same against all items as negatives."""

    kind: str = "weighted_sample"
    count: int = ITEMS
    turn: tuple[float, ...] = (1.0,)
    absent: tuple[bool, ...] | None = None
    divided_by: float | None = None

    def plan(self, batch: Batch, keys: Keys, num_items: int) -> Task:
        return in_turn(super().plan(batch, keys, num_items), self)


def in_turn(task: Task, settings: Weighted | WeightedSample) -> Task:
    """The task with weights, and perhaps presence and divisor, of `settings`."""
    count, size = task.targets.shape
    repeats = -(-size // len(settings.turn))
    weights = task.weights * jnp.tile(jnp.asarray(settings.turn), repeats)[:size]
    present = None if settings.absent is None else jnp.broadcast_to(jnp.logical_not(jnp.tile(
        jnp.asarray(settings.absent), repeats)[:size]), (count, size))
    divisor = None if settings.divided_by is None else jnp.full(count, settings.divided_by)
    return task._replace(weights=weights, present=present, divisor=divisor)


def batch_of(number: int, accumulate: int = 1) -> dict[str, jax.Array]:
    items = np.random.default_rng(number).integers(0, ITEMS, (ROWS, LENGTH + 1))
    batch = {"items": items[:, :-1], "targets": items[:, 1:],
             "segments": np.ones((ROWS, LENGTH)),
             "positions": np.broadcast_to(np.arange(LENGTH), (ROWS, LENGTH))}
    return place_batch({name: np.ascontiguousarray(
        value.reshape(accumulate, -1, LENGTH), np.int32) for name, value in batch.items()}, MESH)


def setup(mode: str, objective: Any, kind: str = "sgd", *, dtype: str = "f32", tied: bool = True,
          rate: Any = 1.0, scale: float = 0.3) -> tuple[Step, TrainState]:
    table = TableConfig(dim=DIM, dtype=dtype, tied=tied, init_scale=scale,  # type: ignore[arg-type]
                        optimizer=RowOptimizerConfig(kind=kind))  # type: ignore[arg-type]
    rule = optax.sgd(rate) if kind == "sgd" else optax.adam(rate)
    step = make_step(ENCODER, objective, rule, table, mode, mesh=MESH,
                     rate=rate if callable(rate) else optax.constant_schedule(rate))
    return step, new_state({"kernel": jnp.eye(DIM)}, rule, table, mode, ITEMS, MESH)


def objective_of(mode: str, **settings: Any) -> Any:
    made = WeightedSample if mode == "sparse" else Weighted
    return made(backend="xla", **settings)


# ---- keys and seeds

def test_every_draw_of_every_step_has_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[tuple[int, ...]]] = defaultdict(list)

    def note(name: str, key: jax.Array) -> None:
        data = key if jnp.issubdtype(key.dtype, jnp.uint32) else jax.random.key_data(key)
        jax.debug.callback(lambda data: seen[name].append(tuple(np.ravel(data).tolist())), data)

    class Noted(Weighted):
        def plan(self, batch: Batch, keys: Keys, num_items: int) -> Task:
            for number in range(len(batch["items"])):
                note("task", keys.each[number])
            note("negatives", keys.step)
            return super().plan(batch, keys, num_items)

    class NotedEncoder(MeanSoFar):
        def __call__(self, params: Any, vectors: jax.Array, *others: Any) -> jax.Array:
            _, key, _ = others
            note("dropout", key)
            return super().__call__(params, vectors)

    def open_table(*parts: Any) -> Any:
        opened = dense.open_table(*parts)

        def close(gradients: Any) -> Any:
            note("rounding", gradients.seed)
            return opened.close(gradients)

        return opened._replace(close=close)

    monkeypatch.setitem(opening.MODES, "dense", open_table)
    table, rule = TableConfig(dim=DIM), optax.sgd(1.0)
    step = make_step(cast(Encoder, NotedEncoder()), Noted(backend="xla"), rule, table, mesh=MESH)
    state = new_state({"kernel": jnp.eye(DIM)}, rule, table, "dense", ITEMS, MESH)
    first = tuple(np.asarray(state.key).tolist())
    for number in range(3):
        state, _ = step(state, batch_of(number, accumulate=2))
    jax.effects_barrier()
    # The forward pass of a loss may run more than once, with the same key.
    distinct = {name: set(keys) for name, keys in seen.items()}
    assert {name: len(keys) for name, keys in distinct.items()} == {
        "task": 6, "negatives": 3, "rounding": 3, "dropout": 6}
    every = [key for keys in distinct.values() for key in keys]
    assert len(set(every)) == len(every) and first not in every
    assert tuple(np.asarray(state.key).tolist()) == first  # the run's key stays


@functools.cache
def rounded(mode: str, biased: bool, start: int, kind: str = "bf16"
            ) -> list[tuple[np.ndarray, np.ndarray]]:
    """(before, after) of both tables f64 `[ITEMS, d]`, all of whose values are 1 or -1, in a step
    whose updates are an eighth or a quarter of the distance to the next bf16 value."""
    step, state = setup(mode, objective_of(mode), "adam", dtype=kind, tied=False, rate=2.0**-10)
    tables = {
        name: table.replace(rows=jnp.sign(table.rows.astype(jnp.float32)).astype(table.rows.dtype))
        for name, table in state.tables.items()}
    if biased:
        total = len(state.items.rows)
        own = row_optimizer(RowOptimizerConfig(kind="adam"))
        tables["items"] = tables["items"].replace(
            bias=jnp.zeros(total), trains_bias=True, bias_state=bias_state(own, total))
    state = state._replace(step=jnp.int32(start), tables=tables)

    def values(state: TrainState) -> list[np.ndarray]:
        return [np.array(state.tables[name].rows, np.float64)[:ITEMS]
                for name in ("items", INPUTS)]

    before = values(state)
    state, _ = step(state, batch_of(0))
    return list(zip(before, values(state), strict=True))


# A streamed table whose bias trains has a way of its own to its new rows.
ROUNDED = pytest.mark.parametrize(
    ("mode", "biased"), [*((mode, False) for mode in MODES), ("streamed", True)])


@ROUNDED
def test_both_tables_are_rounded_by_chance_and_right_on_average(mode: str, biased: bool) -> None:
    """To nearest, nothing would move at all."""
    for (before, after), (_, exact) in zip(rounded(mode, biased, 0),
                                           rounded(mode, biased, 0, "f32"), strict=True):
        moves, wanted = after - before, exact - before
        live = np.abs(wanted) > 2.0**-11  # what Adam moves by its rate
        assert live.sum() > 150
        share = np.mean(moves[live] != 0)
        assert 0.08 < share < 0.35, share
        gain = np.sum(moves[live] * np.sign(wanted[live])) / np.sum(np.abs(wanted[live]))
        assert 0.6 < gain < 1.4, gain


@ROUNDED
def test_rounding_differs_between_steps_and_between_tables(mode: str, biased: bool) -> None:
    one, other = rounded(mode, biased, 0), rounded(mode, biased, 1)
    moved = [[after != before for before, after in pairs] for pairs in (one, other)]
    for first, second in ((moved[0][0], moved[1][0]), (moved[0][1], moved[1][1]),
                          (moved[0][0], moved[0][1])):
        assert np.sum(first & second) < 0.5 * min(first.sum(), second.sum())


# ---- weights, presence, divisor

def plain(rows: Any, kernel: Any, batch: Any) -> Any:
    """f32 `[N]`: the loss of each position, with scores as an array."""
    vectors = rows[batch["items"].reshape(-1, LENGTH)]
    queries = ENCODER({"kernel": kernel}, vectors, None).reshape(-1, DIM)  # type: ignore[arg-type]
    scores = jnp.dot(queries, rows[:ITEMS].T, precision="highest")
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch["targets"].reshape(-1))


WEIGHTS = {
    "of both signs": ({"turn": (1.0, -1.0, 0.5, 0.0)}, [1, -1, 0.5, 0], None),
    "of which the sum is 0": ({"turn": (1.0, -1.0)}, [1, -1], None),
    "less than 1 in all": ({"turn": (0.001,)}, [0.001], None),
    "with a divisor of their own": ({"turn": (2.0, -3.0), "divided_by": 5.0}, [2, -3], 5.0),
    "with a negative divisor": ({"turn": (2.0, -3.0), "divided_by": -5.0}, [2, -3], -5.0),
    "where some have no target": ({"turn": (2.0, -3.0, 1.0), "absent": (False, False, True)},
                                  [2, -3, 0], None)}


@pytest.mark.parametrize(("name", "mode"), fast_where(
    lambda name, mode: mode == "streamed" or name == "with a divisor of their own",
    WEIGHTS, MODES))
def test_weights_are_factors_of_either_sign(mode: str, name: str) -> None:
    settings, turn, divisor = WEIGHTS[name]
    step, state = setup(mode, objective_of(mode, **settings))
    rows, kernel = jnp.copy(state.items.rows), jnp.copy(state.encoder["kernel"])
    batch = batch_of(3)
    weights = np.resize(turn, ROWS * LENGTH)
    total = np.abs(weights).sum() if divisor is None else divisor

    def mean(rows: Any, kernel: Any) -> Any:
        return jnp.sum(plain(rows, kernel, batch) * weights) / total

    value, (to_rows, to_kernel) = jax.value_and_grad(mean, argnums=(0, 1))(rows, kernel)
    new, metrics = step(state, batch)
    assert float(metrics.loss) == pytest.approx(float(value), rel=1e-4, abs=1e-6)
    assert float(metrics.divisor) == pytest.approx(total, rel=1e-6)
    assert float(metrics.positions) == np.count_nonzero(weights)
    np.testing.assert_allclose(rows - new.items.rows, to_rows, atol=2e-6)
    np.testing.assert_allclose(kernel - new.encoder["kernel"], to_kernel, atol=2e-6)


def test_divisors_of_micro_batches_add_up() -> None:
    found = []
    for accumulate in (1, 4):
        step, state = setup("dense", objective_of("dense", turn=(1.0, -0.5, 0.25)))
        new, metrics = step(state, batch_of(3, accumulate))
        found.append((float(metrics.loss), float(metrics.divisor), np.array(new.items.rows)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1] == pytest.approx(found[1][1])
    np.testing.assert_allclose(found[0][2], found[1][2], atol=1e-6)


def test_a_position_of_weight_0_cannot_spoil_a_loss_and_one_of_weight_minus_1_counts() -> None:
    loss = jnp.array([1.0, jnp.nan, 3.0, jnp.inf])
    assert float(weighted(loss, jnp.array([1.0, 0.0, -1.0, 0.0]))) == -2.0
    assert np.isnan(float(weighted(loss, jnp.array([1.0, -1.0, 1.0, 0.0]))))


# ---- what a loss is made of

def scored(rows: Any, kernel: Any, batch: Any, *, scale: float = 1.0, softcap: float | None = None,
           z_loss: float = 0.0, label_smoothing: float = 0.0) -> Any:
    """Mean loss from an array of scores."""
    vectors = rows[batch["items"].reshape(-1, LENGTH)]
    queries = ENCODER({"kernel": kernel}, vectors, None).reshape(-1, DIM)  # type: ignore[arg-type]
    scores = scale * jnp.dot(queries, rows[:ITEMS].T, precision="highest")
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    labels = jax.nn.one_hot(batch["targets"].reshape(-1), ITEMS)
    labels = (1 - label_smoothing) * labels + label_smoothing / ITEMS
    lse = jax.nn.logsumexp(scores, axis=1)
    return jnp.mean(lse - jnp.sum(labels * scores, axis=1) + z_loss * lse**2)


@pytest.mark.parametrize(("mode", "settings"), [
    ("dense", {"scale": 3.0, "softcap": 2.0, "z_loss": 0.1}),
    ("streamed", {"scale": 3.0, "softcap": 2.0, "z_loss": 0.1}),
    ("dense", {"scale": 3.0, "label_smoothing": 0.3, "z_loss": 0.1}),
    ("sparse", {"scale": 3.0})])
def test_every_setting_of_a_loss_reaches_the_rows(mode: str, settings: dict[str, float]) -> None:
    step, state = setup(mode, objective_of(mode, **settings))
    rows, kernel = jnp.copy(state.items.rows), jnp.copy(state.encoder["kernel"])
    value, (to_rows, to_kernel) = jax.value_and_grad(
        functools.partial(scored, batch=batch_of(3), **settings), argnums=(0, 1))(rows, kernel)
    new, metrics = step(state, batch_of(3))
    assert float(metrics.loss) == pytest.approx(float(value), rel=1e-4)
    np.testing.assert_allclose(rows - new.items.rows, to_rows, atol=2e-6)
    np.testing.assert_allclose(kernel - new.encoder["kernel"], to_kernel, atol=2e-6)
    norms = [to_kernel, *([to_rows] if mode == "dense" else [])]
    assert float(metrics.gradient_norm) == pytest.approx(float(optax.tree.norm(norms)), rel=1e-4)


# ---- rates

@pytest.mark.parametrize("mode", ["sparse", "streamed"])
def test_rows_with_their_own_optimizer_need_a_rate(mode: str) -> None:
    with pytest.raises(InputError, match=rf"a {mode} table .* expected `rate` or table\.optimizer"):
        make_step(ENCODER, objective_of(mode), optax.sgd(1.0), TableConfig(), mode, mesh=MESH)
    own = TableConfig(dim=DIM, optimizer=RowOptimizerConfig(rate=0.5))
    make_step(ENCODER, objective_of(mode), optax.sgd(1.0), own, mode, mesh=MESH)


def test_a_dense_table_has_the_rate_of_its_optimizer() -> None:
    make_train_step(ENCODER, objective_of("dense"), optax.sgd(1.0), mesh=MESH)


@pytest.mark.parametrize("mode", ["sparse", "streamed"])
def test_the_rate_of_the_rows_follows_its_schedule_from_the_first_step(mode: str) -> None:
    step, state = setup(mode, objective_of(mode), rate=lambda step: jnp.asarray([1.0, 0.0])[step])
    rows = [np.array(state.items.rows)]
    for number in range(2):
        state, _ = step(state, batch_of(number))
        rows.append(np.array(state.items.rows))
    assert np.any(rows[1] != rows[0]) and np.array_equal(rows[2], rows[1])


@pytest.mark.parametrize("mode", ["sparse", "streamed"])
def test_a_rate_of_the_rows_own_goes_before_the_schedule(mode: str) -> None:
    moved = []
    for own in (None, 0.25):
        table = TableConfig(dim=DIM, init_scale=0.3,
                            optimizer=RowOptimizerConfig(kind="sgd", rate=own))
        step = make_step(ENCODER, objective_of(mode), optax.sgd(1.0), table, mode, mesh=MESH,
                         rate=optax.constant_schedule(1.0))
        state = new_state({"kernel": jnp.eye(DIM)}, optax.sgd(1.0), table, mode, ITEMS, MESH)
        before = np.array(state.items.rows)
        state, _ = step(state, batch_of(0))
        moved.append(np.asarray(state.items.rows) - before)
    assert np.abs(moved[0]).max() > 1e-3
    np.testing.assert_allclose(0.25 * moved[0], moved[1], atol=1e-7)


# ---- by path

def test_only_what_belongs_to_a_table_is_cut_by_rows() -> None:
    """768 is the padded size of the table, and the encoder has arrays of that size too."""
    mesh = make_mesh(MeshConfig(1, 8))
    rule = optax.chain(optax.adam(1.0), optax.adafactor(1.0, min_dim_size_to_factor=1))
    encoder = {"rows": jnp.ones((768, DIM)), "table/inputs": jnp.ones((768,)), "x": jnp.ones(3),
               "tables": jnp.ones((768, DIM)), "items": jnp.ones((768,))}
    config = TableConfig(dim=DIM, tied=False)
    tables = {name: init_table(config, ITEMS, 0, mesh) for name in ("items", INPUTS)}
    state = init_state(encoder, tables, rule, seed=0, modes=modes_of(config, "dense"), mesh=mesh,
                       average=True)
    cut = {jax.tree_util.keystr(path) for path, where in jax.tree.leaves_with_path(
        state_shardings(state, mesh)) if where.spec}
    assert not [path for path in cut if "encoder" in path]
    adam = {f".optimizer[0][0].{part}['tables']['{name}']" for part in ("mu", "nu")
            for name in ("items", "inputs")}
    rows = {f"{part}.tables['{name}']{of}" for part, of in (
        ("", ".rows"), (".average", ""), (".rest", "")) for name in ("items", "inputs")}
    assert adam | rows <= cut
    # Adafactor keeps one mean a row and one a column of each table, and cuts none but the former.
    assert len(cut - adam - rows) == 2
    for path, leaf in jax.tree.leaves_with_path(state):
        assert leaf.is_fully_replicated != (jax.tree_util.keystr(path) in cut)
