"""One step of plain gradient descent, held against a loss written densely in f64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.encoder import build_encoder
from rec_jax.tables import (
    ITEMS,
    USERS,
    RowOptimizerConfig,
    TableConfig,
    init_table,
    row_optimizer,
    rows_over,
)
from rec_jax.tables.bias import bias_state, place_bias
from rec_jax.tables.fixed import with_fixed
from rec_jax.tables.row_map import row_map_of
from rec_jax.train.state import TrainState, init_state
from rec_jax.train.step import make_train_step, place_batch

V, U, D, ROWS, LENGTH, RATE = 37, 11, 8, 8, 6, 0.5
Array = np.ndarray


def make_batch(seed: int, accumulate: int = 1) -> dict[str, Array]:
    """Two histories a row and padding; some targets are missing; rewards of either sign."""
    random = np.random.default_rng(seed)
    segments = np.tile([1, 1, 1, 2, 2, 0], (ROWS, 1))
    items = np.where(segments > 0, random.integers(0, V, (ROWS, LENGTH)), 0)
    targets = np.where((segments > 0) & (random.random((ROWS, LENGTH)) < 0.9),
                       random.integers(0, V, (ROWS, LENGTH)), -1)
    positions = np.tile([0, 1, 2, 0, 1, 0], (ROWS, 1))
    users = np.where(segments > 0, random.integers(0, U, (ROWS, 3))[
        np.arange(ROWS)[:, None], segments], 0)
    batch = {"items": items, "targets": targets, "segments": segments, "positions": positions,
             "users": users, "histories": np.tile([2, 4, -1, -1, -1, -1], (ROWS, 1)),
             "values/rating": np.where(targets >= 0, random.integers(1, 6, items.shape), 0),
             "values/reward": np.where(targets >= 0, random.standard_normal(items.shape), 0)}
    batch["values/propensity"] = np.where(targets >= 0, random.uniform(0.005, 0.1, items.shape), 0)
    batch["log_q"] = np.where(targets >= 0, np.log(random.uniform(0.01, 0.1, items.shape)), 0)
    return {name: value.reshape(accumulate, -1, LENGTH).astype(
        np.float32 if "/" in name or name == "log_q" else np.int32)
        for name, value in batch.items()}


class Trained:
    """One step of plain gradient descent of an objective, in a mode, on a mesh."""

    def __init__(self, objective: Any, encoder: Any, mode: str, mesh: tuple[int, int],
                 accumulate: int = 1, source: Any = None,
                 fixed: Array | None = None, bias: Array | None = None,
                 trains_bias: bool = False, init_scale: float = 0.5, graph: Any = None,
                 more: dict[str, Any] | None = None) -> None:
        at = make_mesh(MeshConfig(*mesh))
        users = getattr(encoder, "uses_users", False)
        sgd = TableConfig(dim=D, init_scale=init_scale, optimizer=RowOptimizerConfig(
            kind="sgd", rate=RATE))
        tables = {ITEMS: sgd, **({USERS: sgd} if users else {})}
        modes = {ITEMS: mode, **({USERS: "dense" if mode == "dense" else "sparse"} if users
                                 else {})}
        built, params = build_encoder(encoder, dim=D, length=LENGTH, causal=True, precision="f32",
                                      seed=0, heads=objective.needs.heads)
        if source is not None:
            built = built._replace(source=source)
            params |= {name: value + 0.1 * jnp.arange(D)
                       for name, value in source.init_parameters(0, 0.1).items()}
        params |= more or {}
        rule = optax.sgd(RATE)
        step = make_train_step(built, objective, rule, tables=tables, modes=modes, mesh=at,  # type: ignore[arg-type]
                               rate=optax.constant_schedule(RATE), graph=graph)
        made = {name: init_table(
            sgd, U if name == USERS else V, 0, at, name=name, over=rows_over(mode),
            row_map=None if name == USERS else row_map_of(mode, V),
            optimizer=None if modes[name] == "dense" else row_optimizer(sgd.optimizer))
            for name in tables}
        if fixed is not None:
            made[ITEMS] = with_fixed(made[ITEMS], at, fixed.shape[1], lambda items: np.where(
                (items < V)[:, None], fixed[np.minimum(items, V - 1)], 0.0))
        if bias is not None:
            table = made[ITEMS]
            total = table.rows.shape[0]
            made[ITEMS] = table.replace(
                bias=place_bias(total, at, values=bias, over=table.over, row_map=table.row_map),
                bias_state=() if mode == "dense" else bias_state(row_optimizer(sgd.optimizer),
                                                                 total),
                trains_bias=trains_bias)
        state = init_state(params, made, rule, seed=0, modes=modes, mesh=at)
        self.encoder, self.before = built, Weights(state)
        self.batch = make_batch(3, accumulate)
        given = {name: value for name, value in self.batch.items() if users or name != "users"}
        new, metrics = step(state, place_batch(given, at))
        self.loss, self.after = float(metrics.loss), Weights(new)

    def check(self, loss: Any) -> None:
        """The step's loss, and its descent, are those of `loss(items, users, queries)` in f64.

        loss: `(items [V, d], users [U, d], queries [R, L, d]) -> sum of losses / divisor`, in jax.
        """
        with jax.enable_x64(True):
            def whole(params: Any, items: Any, users: Any) -> Any:
                return loss(params, items, users)

            before = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), self.before.parts)
            value, grads = jax.value_and_grad(whole, argnums=(0, 1, 2))(*before)
            moved = jax.tree.map(lambda x, g: np.asarray(x - RATE * g), before, grads)
            value = float(value)
        np.testing.assert_allclose(self.loss, value, rtol=1e-5, atol=1e-6)
        jax.tree.map(lambda found, wanted: np.testing.assert_allclose(
            found, wanted, rtol=1e-5, atol=1e-5), self.after.parts, moved)
        assert any(np.abs(np.asarray(a) - np.asarray(b)).max() > 1e-3 for a, b in zip(
            jax.tree.leaves(moved), jax.tree.leaves(before), strict=True))

    def queries(self, params: Any, items: Any, users: Any) -> Any:
        """The encoder's, `[R, L, d]`, of plain rows; written out for both encoders."""
        flat = {name: value.reshape(-1, LENGTH) for name, value in self.batch.items()}
        if not params:
            return users[flat["users"]]
        place = np.arange(LENGTH)
        age = place[:, None] - place[None, :]
        same = flat["segments"][:, :, None] == flat["segments"][:, None, :]
        share = np.where((age >= 0) & same, 0.5 ** np.maximum(age, 0), 0.0)
        vectors = items[flat["items"]]
        return (share @ vectors) @ params["kernel"]


class Weights:
    """Encoder parameters, rows of the items by item, and of the users; numpy f32."""

    def __init__(self, state: TrainState) -> None:
        table = state.items
        rows = np.asarray(table.row_map.rows(np.arange(V)))
        people = state.tables.get(USERS)
        self.parts = (jax.tree.map(np.array, state.encoder), np.array(table.trained)[rows],
                      np.zeros((U, D), np.float32) if people is None
                      else np.array(people.rows)[:U])
        self.fixed = np.array(table.rows)[rows][:, D:]
        self.bias = None if table.bias is None else np.array(table.bias)[rows]


def log_softmax(scores: Any) -> Any:
    shifted = scores - jnp.max(scores, axis=-1, keepdims=True)
    return shifted - jnp.log(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True))
