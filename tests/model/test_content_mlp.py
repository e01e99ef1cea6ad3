"""Content through an MLP: its definition in NumPy, gradients, the step, and what is refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_step import LENGTH, D, Trained, V, log_softmax
from examples import example
from mlp import by_definition

from rec_jax.config import build
from rec_jax.data.content import Content, ContentConfig, check_mode
from rec_jax.errors import InputError
from rec_jax.model.rows import RowSource
from rec_jax.objectives import next_item
from rec_jax.run import RunConfig, update_of

history = example("weighted_history")

PART = Content("content/text", 4, hidden=(5, 3))
SOURCE = RowSource(D, (Content("content/image", 2), PART))


def of_text(params: dict[str, Any]) -> dict[str, Any]:
    return {path.removeprefix("content/text/"): np.asarray(leaf, np.float64)
            for path, leaf in params.items() if path.startswith("content/text/")}


def test_a_row_is_its_own_values_and_f_of_its_content_and_so_is_the_gradient() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((2, 7, D + 6))
    rows[0, 3, D + 2:] = 0  # no text, so nothing of the biases either
    back = random.standard_normal((2, 7, D))
    assert PART.paths == SOURCE.paths[1:] and not SOURCE.linear
    shapes = jax.eval_shape(lambda: SOURCE.init_parameters(0, 0.1))
    with jax.enable_x64(True):
        params = {path: jnp.asarray(random.standard_normal(leaf.shape))
                  for path, leaf in shapes.items()}
        found, to_rows = jax.jit(jax.grad(lambda p, r: jnp.sum(back * SOURCE.compose(p, r)),
                                          argnums=(0, 1)))(params, rows)
        vectors = np.asarray(jax.jit(SOURCE.compose)(params, jnp.asarray(rows)))

    def whole(params: dict[str, Any], rows: np.ndarray = rows) -> np.ndarray:
        return np.asarray(rows[..., :D] + rows[..., D:D + 2] @ np.asarray(params["content/image"])
                          + by_definition(of_text(params), rows[..., D + 2:]))

    np.testing.assert_allclose(vectors, whole(params), rtol=1e-12, atol=1e-12)
    for path in SOURCE.paths:
        for place in list(np.ndindex(params[path].shape))[::2]:
            moved = []
            for way in (1e-5, -1e-5):
                leaf = np.array(params[path])
                leaf[place] += way
                moved.append(np.sum(back * whole({**params, path: leaf})))
            np.testing.assert_allclose(found[path][place], (moved[0] - moved[1]) / 2e-5,
                                       rtol=1e-6, atol=1e-7, err_msg=f"{path} {place}")
    for column in range(D, D + 6):
        step = np.zeros(rows.shape)
        step[1, 2, column] = 1e-5
        slope = np.sum(back * (whole(params, rows + step) - whole(params, rows - step))) / 2e-5
        np.testing.assert_allclose(to_rows[1, 2, column], slope, rtol=1e-6, atol=1e-7)
    with pytest.raises(InputError, match="a query cannot be turned for rows of an MLP"):
        SOURCE.expand(params, jnp.zeros((1, D)))


@pytest.mark.slow
def test_vectors_of_content_begin_with_the_scale_of_the_table() -> None:
    part = Content("content/text", 64, hidden=(128, 96))
    source = RowSource(D, (part,))
    content = np.random.default_rng(1).standard_normal((300, 64)).astype(np.float32)
    content /= np.linalg.norm(content, axis=1, keepdims=True)

    @jax.jit
    def made(rows: Any) -> Any:
        params = source.init_parameters(0, 0.1)
        return params, source.compose(params, rows)

    params, found = made(np.pad(content, ((0, 0), (D, 0))))
    assert 0.05 < np.asarray(found).std() < 0.2
    assert not np.array_equal(params["content/text/1/kernel"][:64],
                              params["content/text/0/kernel"][:, :96])


@pytest.mark.slow  # the loss of a step with an MLP is in train/test_begin_places.py each time
@pytest.mark.parametrize("drop", [0.0, 1.0])
def test_the_step_is_that_of_e_plus_f_of_x(drop: float) -> None:
    part = Content("content/text", 5, drop, hidden=(D,))
    content = np.random.default_rng(1).standard_normal((V, 5)).astype(np.float32)
    content[4] = 0
    trained = Trained(next_item.Config(backend="xla"), history.Config(), "dense", (1, 1),
                      source=RowSource(D, (part,)), fixed=content, init_scale=0.5 * (1 - drop))
    batch = {name: value.reshape(-1, LENGTH) for name, value in trained.batch.items()}
    live = batch["targets"] >= 0

    def loss(params: Any, items: Any, users: Any) -> Any:
        inner = content @ params["content/text/0/kernel"] + params["content/text/0/bias"]
        inner = 0.5 * inner * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
        made = inner @ params["content/text/1/kernel"] + params["content/text/1/bias"]
        vectors = items * (1 - drop) + made * (content != 0).any(axis=1)[:, None]
        logs = log_softmax(trained.queries(params, vectors, users) @ vectors.T)
        chosen = jnp.take_along_axis(logs, np.maximum(batch["targets"], 0)[..., None], -1)[..., 0]
        return -jnp.sum(jnp.where(live, chosen, 0.0)) / live.sum()

    trained.check(loss)
    assert trained.after.parts[1].any() == (drop == 0)


def test_other_modes_say_which_one_carries_it() -> None:
    content = [ContentConfig("text", kind="mlp", hidden=(8,))]
    check_mode(content, "dense")
    for mode in ("sparse", "streamed"):
        with pytest.raises(InputError, match=r"expected table\.update = 'dense', which carries it"):
            check_mode(content, mode)
        check_mode([ContentConfig("text")], mode)
    given = {"data": {"path": "x"}, "content": [{"name": "text", "kind": "mlp", "hidden": [8]}]}
    assert update_of(build(RunConfig, given), 1000).mode == "dense"
    with pytest.raises(InputError, match="a streamed table does not have the vectors of all"):
        update_of(build(RunConfig, given), 10**7)
    with pytest.raises(InputError, match=r"content\.hidden: objective 'hard_negatives' searches"):
        build(RunConfig, {**given, "objective": {"kind": "hard_negatives"}})


@pytest.mark.parametrize(("wrong", "said"), [
    ({"kind": "mlp"}, r"content\.hidden is \[\]"),
    ({"hidden": (8,)}, "expected the widths of hidden layers"),
    ({"kind": "mlp", "hidden": (8, 0)}, r"content\.hidden"),
    ({"kind": "mlp", "hidden": (8,), "codes": 2}, r"expected no content\.codes"),
    ({"kind": "mlp", "hidden": (8,), "encoder": "m"}, r"and no content\.encoder")])
def test_what_does_not_go_together_is_one_line(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ContentConfig("text", **wrong)
