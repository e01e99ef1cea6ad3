"""What is hidden, how much of it, and that nothing but what is hidden is predicted."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import losses

from rec_jax.data.features import Feature
from rec_jax.errors import InputError
from rec_jax.model.encoder import build_encoder, visible_times
from rec_jax.model.encoders import Inputs, hstu, transformer
from rec_jax.objectives import Task
from rec_jax.objectives.base import Keys
from rec_jax.objectives.masked_item import Config
from rec_jax.objectives.next_item import Config as NextItem

ROWS, LENGTH = 64, 40


def layout(seed: int = 0, rows: int = ROWS, longest: int = 15) -> tuple[np.ndarray, ...]:
    """items, targets and segments `[rows, L]` of packed users with 1 to `longest` items, and some
    padding at the end of each row."""
    random = np.random.default_rng(seed)
    items = random.integers(0, 1000, (rows, LENGTH)).astype(np.int32)
    segments = np.zeros((rows, LENGTH), np.int32)
    for row in range(rows):
        ends = np.cumsum(random.integers(1, longest + 1, LENGTH))
        for number, (first, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True), 1):
            if end > LENGTH - 2:
                break
            segments[row, first:end] = number
    return items, np.where(segments > 0, items, -1), segments


@functools.partial(jax.jit, static_argnums=0)
def tasks(config: Config, items: jax.Array, targets: jax.Array, segments: jax.Array,
          seeds: jax.Array) -> Task:
    """One micro-batch of the same places a seed."""
    batch = {name: jnp.broadcast_to(array, (len(seeds), *array.shape)) for name, array in (
        ("items", items), ("targets", targets), ("segments", segments))}
    return config.plan(batch, Keys(jax.vmap(jax.random.key)(seeds), jax.random.key(0)), 1000)


def drawn(config: Config, arrays: tuple[np.ndarray, ...], count: int = 50) -> Task:
    return jax.tree.map(np.asarray, tasks(config, *arrays, np.arange(count)))


@pytest.mark.parametrize("config", [Config(), Config(share=0.5, last=0.0), Config(last=1.0)],
                         ids=repr)
def test_the_hidden_places_are_those_that_are_predicted(config: Config) -> None:
    items, targets, segments = layout()
    made = drawn(config, (items, targets, segments))
    assert made.hidden is not None and made.where is not None
    for hidden, where, wanted, weights in zip(made.hidden, made.where, made.targets,
                                              made.weights, strict=True):
        used = weights > 0
        assert set(weights) <= {0.0, 1.0} and used.sum() == hidden.sum() > 0
        np.testing.assert_array_equal(np.flatnonzero(hidden), where[used])
        np.testing.assert_array_equal(items.reshape(-1)[where[used]], wanted[used])
        assert (wanted >= 0).all() and (where < items.size).all()
        assert not hidden[segments == 0].any()


@pytest.mark.parametrize("share", [0.1, 0.2, 0.6])
def test_a_share_of_all_places_is_hidden_on_average(share: float) -> None:
    arrays = layout()
    made = drawn(Config(share=share, last=0.0), arrays)
    filled = (arrays[2] > 0).sum() * len(made.hidden)
    error = (share * (1 - share) / filled) ** 0.5
    assert made.hidden.sum() / filled == pytest.approx(share, abs=5 * error)
    per_place = made.hidden.mean(axis=0)[arrays[2] > 0]  # every place gets its turn
    assert abs(per_place - share).max() < 6 * (share * (1 - share) / len(made.hidden)) ** 0.5


def newest(segments: np.ndarray) -> np.ndarray:
    """True at the last place of each segment, by a plain loop."""
    found = np.zeros(segments.shape, bool)
    for row in range(len(segments)):
        for number in range(1, segments[row].max() + 1):
            found[row, np.flatnonzero(segments[row] == number)[-1]] = True
    return found


def test_histories_of_which_the_newest_item_alone_is_hidden_are_as_many_as_asked() -> None:
    arrays = layout()
    always = drawn(Config(last=1.0), arrays, 3)
    np.testing.assert_array_equal(always.hidden, np.repeat(newest(arrays[2])[None], 3, axis=0))
    whole = drawn(Config(share=0.3, last=0.3), arrays, 400)
    at = newest(arrays[2])
    assert whole.hidden[:, at].mean() == pytest.approx(0.3 + 0.7 * 0.3, abs=0.01)
    others = (arrays[2] > 0) & ~at
    assert whole.hidden[:, others].mean() == pytest.approx(0.7 * 0.3, abs=0.01)


def test_the_choice_is_one_for_the_whole_history() -> None:
    arrays = layout(longest=15)
    made = drawn(Config(share=0.9, last=0.5), arrays, 20)
    _, _, segments = arrays
    for hidden in made.hidden:
        for row, numbers in enumerate(segments):
            for number in range(1, numbers.max() + 1):
                own = hidden[row, numbers == number]
                if len(own) > 8:
                    # All but a few of nine and more are hidden, or the newest alone.
                    assert own.sum() > 1 or own.tolist() == [False] * (len(own) - 1) + [True]


def test_there_is_room_for_what_chance_can_hide_and_not_for_much_more() -> None:
    for share in (0.05, 0.2, 0.8):
        for positions in (1, 10, 1600, 12800, 10**6):
            room = Config(share=share).capacity(positions)
            spread = (positions * share * (1 - share)) ** 0.5
            assert min(positions, positions * share + 5.9 * spread) <= room <= positions
            assert room <= positions * share + 6 * spread + 1


def test_more_hidden_places_than_there_is_room_for_stay_visible() -> None:
    rows, length = 8, LENGTH
    segments = np.repeat(np.arange(1, length + 1, dtype=np.int32)[None], rows, axis=0)
    items = np.ones((rows, length), np.int32)
    config = Config(share=0.1, last=1.0)  # every item is somebody's newest
    made = drawn(config, (items, items, segments), 1)
    room = config.capacity(rows * length)
    assert made.hidden.sum() == room < rows * length and made.weights.sum() == room
    assert made.hidden.reshape(-1)[:room].all()


def test_a_row_without_items_hides_nothing() -> None:
    empty = np.zeros((2, LENGTH), np.int32)
    made = drawn(Config(), (empty, empty - 1, empty), 3)
    assert not made.hidden.any() and not made.weights.any() and (made.targets == 0).all()


def test_another_key_hides_other_places() -> None:
    made = drawn(Config(), layout(), 2)
    assert (made.hidden[0] != made.hidden[1]).any()
    np.testing.assert_array_equal(made.hidden, drawn(Config(), layout(), 2).hidden)


def test_what_is_hidden_does_not_leak_into_any_query_and_what_is_seen_does() -> None:
    config = transformer.Config(layers=2, heads=2, dropout=0.0)
    encoder, params = build_encoder(config, dim=8, length=LENGTH, causal=Config().causal,
                                    precision="f32", seed=0)
    params = {path: leaf * 20 if path.endswith("kernel") else leaf
              for path, leaf in params.items()}
    _, _, segments = layout(rows=4)
    positions = np.arange(LENGTH, dtype=np.int32)[None].repeat(4, axis=0)
    vectors = np.random.default_rng(0).standard_normal((4, LENGTH, 8)).astype(np.float32)
    hidden = np.asarray(drawn(Config(), layout(rows=4), 1).hidden[0])
    apply = jax.jit(encoder.__call__)

    def queries(vectors: np.ndarray, mask: float = 1.0) -> np.ndarray:
        return np.asarray(apply({**params, "mask": params["mask"] * mask}, jnp.asarray(vectors),
                                Inputs(jnp.asarray(segments), jnp.asarray(positions)), None,
                                jnp.asarray(hidden)))

    before = queries(vectors)
    np.testing.assert_array_equal(
        before, queries(np.where(hidden[..., None], -vectors, vectors)))
    seen = queries(np.where(hidden[..., None] | (segments == 0)[..., None], vectors, -vectors))
    alone = np.array([[(segments[row] == segments[row, place]).sum() == 1
                       for place in range(LENGTH)] for row in range(4)])
    assert (np.abs(seen - before).max(axis=-1) > 1e-4)[hidden & ~alone].all()
    assert (np.abs(queries(vectors, -50.0) - before).max(axis=-1) > 1e-4)[hidden].all()


def test_a_hidden_item_has_the_time_of_the_last_one_seen_before_it() -> None:
    items, targets, segments = layout(seed=4, rows=6)
    hidden = np.asarray(drawn(Config(share=0.6), (items, targets, segments), 1).hidden[0])
    positions, times = np.zeros_like(segments), np.zeros_like(segments)
    random, expected = np.random.default_rng(5), np.zeros_like(segments)
    for row in range(len(segments)):
        for number in range(1, segments[row].max() + 1):
            own = np.flatnonzero(segments[row] == number)
            positions[row, own] = np.arange(len(own))
            times[row, own[1:]] = np.cumsum(random.integers(1, 1000, len(own) - 1))
            latest, first = 0, None
            for place in own:
                if not hidden[row, place]:
                    first = times[row, place] if first is None else first
                    latest = times[row, place] - first
                expected[row, place] = latest
    inputs = Inputs(*map(jnp.asarray, (segments, positions, times)))
    found = np.asarray(visible_times(inputs, jnp.asarray(hidden)))
    np.testing.assert_array_equal(found[segments > 0], expected[segments > 0])
    assert (found != times)[hidden].any()
    begins = hidden & (positions == 0) & (segments > 0)
    assert begins.sum() > 5  # of some histories the first item is hidden


@pytest.mark.parametrize("place", [0, 3, LENGTH // 2, LENGTH - 1])
def test_nothing_tells_when_a_hidden_item_was(place: int) -> None:
    """Neither a bias by time nor a gap; the places before and after tell when they were."""
    features = (Feature("time_gap", "features/time_gap", 0),)
    encoder, params = build_encoder(hstu.Config(layers=1, time_bias=True, dropout=0.0), dim=8,
                                    length=LENGTH, causal=False, precision="f32", seed=0,
                                    features=features)
    random = np.random.default_rng(0)
    params = {name: leaf + 0.3 * random.standard_normal(leaf.shape).astype(np.float32)
              for name, leaf in params.items()}
    vectors = random.standard_normal((1, LENGTH, 8)).astype(np.float32)
    cut = LENGTH // 2  # two histories in a row
    segments = np.where(np.arange(LENGTH) < cut, 1, 2)[None].astype(np.int32)
    positions = np.where(np.arange(LENGTH) < cut, np.arange(LENGTH), np.arange(LENGTH) - cut)[None]
    when = 1000 * np.arange(LENGTH)

    def queries(when: np.ndarray) -> np.ndarray:
        begins = np.where(segments[0] == 1, when[0], when[cut])
        inputs = Inputs(*map(jnp.asarray, (segments, positions, (when - begins)[None])))
        hidden = jnp.asarray(np.arange(LENGTH) == place)[None]
        return np.asarray(encoder(params, jnp.asarray(vectors), inputs, None, hidden))

    other = when.copy()
    other[place] += 400
    np.testing.assert_array_equal(queries(when), queries(other))
    if place not in (cut - 1, LENGTH - 1):
        later = when.copy()
        later[place + 1] += 400
        assert np.any(queries(when) != queries(later))


def test_the_loss_is_that_of_the_next_item() -> None:
    random = np.random.default_rng(3)
    queries, rows = random.standard_normal((5, 8)), random.standard_normal((20, 8))
    task = Task(None, jnp.arange(5, dtype=jnp.int32), jnp.ones(5))
    settings = {"label_smoothing": 0.1, "z_loss": 0.01, "scale": 0.5}
    found, expected = (losses(config, jnp.asarray(queries, jnp.float32),
                              jnp.asarray(rows, jnp.float32), task, num_items=17)
                       for config in (Config(**settings), NextItem(**settings)))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("settings", [{"share": 0.0}, {"share": 1.0}, {"last": -0.1},
                                      {"last": 1.1}, {"label_smoothing": 1.0}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(settings))} is .*expected"):
        Config(**settings)
