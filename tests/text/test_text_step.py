"""A text encoder inside the step: the gradient of the whole by a plain program, on every mesh."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import text_models as models
from marks import slow_but

from rec_jax.data.content import Content, ContentConfig
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.lora import Adapted
from rec_jax.model.rows import RowSource
from rec_jax.model.tuning import Tuning
from rec_jax.objectives import sampled_softmax
from rec_jax.tables import ITEMS, RowOptimizerConfig, TableConfig, init_table, row_optimizer
from rec_jax.tables.fixed import with_fixed
from rec_jax.text import bert
from rec_jax.text.architecture import Architecture
from rec_jax.text.in_step import TextModel, encode_texts
from rec_jax.text.item_encoder import ItemEncoder
from rec_jax.text.item_tokens import ItemTokens
from rec_jax.text.pooling import Pooling
from rec_jax.train.state import TrainState, init_state
from rec_jax.train.step import make_train_step

ITEM_COUNT, DIM, RANK, RATE = 24, 4, 2, 0.1
MATRIX = "text/blocks/0/qkv/kernel"
ABOUT = Architecture("bert", 1, 3, models.WIDTH, models.HIDDEN, models.VOCAB, models.PLACES, 0, 2,
                     "gelu", 1e-12)


class MeanSoFar:
    """Histories' running means, times a matrix `kernel`; rows are composed as an encoder does."""

    features = ()
    source = RowSource(DIM, (Content("content/name", models.WIDTH),))

    def __call__(self, params: Any, vectors: jax.Array, *_: Any) -> jax.Array:
        vectors = self.source.compose(params, vectors)
        count = jnp.arange(1.0, vectors.shape[1] + 1)[:, None]
        return jnp.cumsum(vectors, axis=1) / count @ params["kernel"]


def tensors() -> dict[str, np.ndarray]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "LAYERS", 1)
        return models.bert_tensors(3)


def texts() -> ItemTokens:
    """Of 0 to 17 tokens, the first of no text."""
    random = np.random.default_rng(0)
    lengths = random.integers(3, 18, ITEM_COUNT).astype(np.int32)
    lengths[5] = 0
    tokens = random.integers(4, models.VOCAB, (ITEM_COUNT, int(lengths.max()))).astype(np.int32)
    return ItemTokens(tokens, lengths)


def item_encoder(chunk: int = 8, sizes: tuple[int, ...] = (8,)) -> ItemEncoder:
    """sizes: lengths of chunks before that of the longest text."""
    found = {}
    stored = tensors()
    for path, source in bert.sources(ABOUT).items():
        parts = [stored[name].T if source.transposed else stored[name] for name in source.names]
        found[f"text/{path}"] = jnp.asarray(np.concatenate(parts, axis=-1), jnp.float32)
    tokens = texts()
    model = TextModel(ABOUT, Pooling("mean", False), (*sizes, tokens.tokens.shape[1]), chunk)
    return ItemEncoder(ContentConfig("name", encoder="x", train="all"), model, found, tokens,
                       (Adapted(MATRIX, RANK, 1.5),))


def start_params(encoder: ItemEncoder) -> dict[str, jax.Array]:
    random = np.random.default_rng(1)

    def make(*shape: int) -> jax.Array:
        return jnp.asarray(0.4 * random.standard_normal(shape), jnp.float32)

    return {**encoder.parameters, "kernel": make(DIM, DIM),
            "content/name": make(models.WIDTH, DIM),
            f"lora/{MATRIX}/a": make(models.WIDTH, RANK),
            f"lora/{MATRIX}/b": make(RANK, 3 * models.WIDTH)}


@functools.cache
def made(mode: str, mesh: tuple[int, int] = (1, 1), accumulate: int = 2
         ) -> tuple[Any, TrainState, Any, Any]:
    """State and metrics after one step, and the state before it; the gradient is in the optimizer's
    trace, and a table that is sparse moves by it."""
    # One length of chunks is compiled sooner.
    encoder = item_encoder(sizes=() if (mode, mesh) == ("sparse", (1, 1)) else (8,))
    where = make_mesh(MeshConfig(*mesh))
    table = TableConfig(dim=DIM, init_scale=0.5, optimizer=RowOptimizerConfig(kind="sgd"))
    tuning = Tuning({MATRIX: 0.0})
    optimizer = optax.chain(optax.trace(decay=0.0), optax.scale(-RATE))
    own = None if mode == "dense" else row_optimizer(table.optimizer)
    new = init_table(table, ITEM_COUNT, 2, where, optimizer=own)
    # What is stored is not what a step reads.
    new = with_fixed(new, where, models.WIDTH, lambda items: np.full(
        (len(items), models.WIDTH), 7.0, np.float32))
    params = {path: jnp.array(leaf) for path, leaf in start_params(encoder).items()}
    state = init_state(params, {ITEMS: new}, optimizer, seed=0, modes={ITEMS: mode}, mesh=where,
                       tuning=tuning)
    before = jax.tree.map(np.asarray, (state.encoder, state.items.rows))
    step = make_train_step(
        MeanSoFar(), sampled_softmax.Config(count=ITEM_COUNT, backend="xla"),  # type: ignore[arg-type]
        optimizer, tables={ITEMS: table}, modes={ITEMS: mode}, mesh=where,
        rate=optax.constant_schedule(RATE), tuning=tuning, texts=encoder)
    state, metrics = step(state, batch(accumulate))
    return before, jax.tree.map(np.asarray, state), metrics, encoder


def batch(accumulate: int) -> dict[str, np.ndarray]:
    items = np.random.default_rng(7).integers(0, ITEM_COUNT, (accumulate, 8 // accumulate, 6))
    items = items.astype(np.int32)
    ones = np.ones((*items.shape[:2], 5), np.int32)
    return {"items": items[..., :-1], "targets": items[..., 1:], "segments": ones,
            "positions": ones * np.arange(5, dtype=np.int32)}


def plain_loss(params: dict[str, np.ndarray], rows: np.ndarray) -> float:
    """In f64, a text at a time; negatives are all items, so the loss is that of the softmax."""
    t, known = tensors(), texts()
    params = {**params, MATRIX: params[MATRIX] + 1.5 * params[f"lora/{MATRIX}/a"] @ params[
        f"lora/{MATRIX}/b"]}
    for path, source in bert.sources(ABOUT).items():
        parts = np.split(params[f"text/{path}"], len(source.names), axis=-1)
        t |= {name: part.T if source.transposed else part
              for name, part in zip(source.names, parts, strict=True)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "LAYERS", 1)
        x = np.stack([models.states_of("bert", t, ids[:length].tolist()).mean(axis=0) if length else
                      np.zeros(models.WIDTH) for ids, length in zip(*known, strict=True)])
    vectors = rows + x @ params["content/name"]
    given = {name: array.reshape(8, -1) for name, array in batch(1).items()}
    means = np.cumsum(vectors[given["items"]], axis=1) / np.arange(1, 6)[:, None]
    scores = (means @ params["kernel"]) @ vectors.T
    peak = scores.max(axis=-1, keepdims=True)
    lse = np.log(np.exp(scores - peak).sum(axis=-1)) + peak[..., 0]
    return float((lse - np.take_along_axis(scores, given["targets"][..., None], -1)[..., 0]).mean())


def as_f64(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


@pytest.mark.parametrize("mode", slow_but("sparse", ["dense", "sparse"]))
def test_the_gradient_of_the_whole_is_that_of_finite_differences(mode: str) -> None:
    (params, rows), after, metrics, _ = made(mode)
    params, rows = as_f64(params), as_f64(rows)[:ITEM_COUNT, :DIM]
    np.testing.assert_allclose(float(metrics.loss), plain_loss(params, rows), rtol=1e-5)
    grads = after.optimizer[0].trace["encoder"]
    assert MATRIX not in grads
    random = np.random.default_rng(9)
    # Each group of parameters along a direction of its own, in f64.
    groups = {path: [path] for path in ("kernel", "content/name", f"lora/{MATRIX}/a",
                                        f"lora/{MATRIX}/b", "text/words")}
    groups["all"] = list(grads)
    for name, paths in groups.items():
        way = {path: random.standard_normal(grads[path].shape) for path in paths}
        sides = [plain_loss({**params, **{path: params[path] + sign * 1e-5 * way[path]
                                          for path in paths}}, rows) for sign in (1, -1)]
        found = sum(float((grads[path] * way[path]).sum()) for path in paths)
        np.testing.assert_allclose(found, (sides[0] - sides[1]) / 2e-5, rtol=2e-4, atol=2e-5,
                                   err_msg=name)
    moved = np.asarray(after.tables[ITEMS].rows, np.float64)[:ITEM_COUNT]
    np.testing.assert_array_equal(moved[:, DIM:], 7.0)
    way = random.standard_normal(rows.shape)
    sides = [plain_loss(params, rows + sign * 1e-5 * way) for sign in (1, -1)]
    np.testing.assert_allclose(((rows - moved[:, :DIM]) / RATE * way).sum(),
                               (sides[0] - sides[1]) / 2e-5, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(after.encoder[MATRIX], params[MATRIX].astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dense", "sparse"])
@pytest.mark.parametrize("mesh", [(2, 2), (1, 4)])
def test_on_a_mesh_the_step_is_that_of_one_device(mode: str, mesh: tuple[int, int]) -> None:
    one, other = made(mode)[1], made(mode, mesh)[1]
    for path, leaf in one.encoder.items():
        np.testing.assert_allclose(other.encoder[path], leaf, atol=2e-6, err_msg=path)
    np.testing.assert_allclose(other.tables[ITEMS].rows[:, :DIM], one.tables[ITEMS].rows[:, :DIM],
                               atol=2e-6)


def test_texts_of_no_use_cost_no_chunk_and_order_does_not_matter() -> None:
    encoder = item_encoder(chunk=4)
    known, weights = encoder.tokens, encoder.weights(start_params(encoder))
    run = jax.jit(lambda tokens, lengths: encode_texts(encoder.model, weights, tokens, lengths,
                                                       make_mesh(MeshConfig())))
    whole = np.asarray(run(*known))
    assert not whole[5].any() and np.abs(np.delete(whole, 5, 0)).max(axis=1).min() > 0.01
    order = np.random.default_rng(0).permutation(ITEM_COUNT)
    np.testing.assert_allclose(run(known.tokens[order], known.lengths[order]), whole[order],
                               atol=1e-5)
    few = np.where(np.arange(ITEM_COUNT) % 7 == 1, known.lengths, 0)
    np.testing.assert_allclose(run(known.tokens, few), np.where(few[:, None] > 0, whole, 0),
                               atol=1e-5)
