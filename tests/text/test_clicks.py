"""Search learned from clicks: the losses by their formulas, a known mapping, and the log."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow_but

from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError, TrainingError
from rec_jax.text.clicks import Clicks, read_clicks, split_clicks
from rec_jax.text.learned import LOSSES, ClickConfig, batch_loss, learn_matrix, mrr_of, regressed
from rec_jax.text.learned_file import Learned, probe_of, read_learned, write_learned
from rec_jax.text.search import unit

C, D, V = 6, 5, 40


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def by_formula(loss: str, led: np.ndarray, items: np.ndarray, targets: np.ndarray,
               weights: np.ndarray, share: np.ndarray, temperature: float) -> float:
    """The mean loss, a click at a time, in f64."""
    there, total = np.any(items != 0, axis=1), 0.0
    batch = np.flatnonzero(weights)
    for row in batch:
        scores = items @ led[row] / np.linalg.norm(led[row]) / temperature
        own = scores[targets[row]]
        if loss == "exact":
            terms = [np.exp(scores[item]) for item in range(len(items)) if there[item]]
        else:
            terms = [np.exp(own)] + [
                np.exp(scores[targets[other]]) / (len(batch) * share[targets[other]])
                for other in batch if targets[other] != targets[row]]
        total += np.log(np.sum(terms)) - own
    return float(total / len(batch))


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_are_those_of_the_formula(loss: str) -> None:
    led, items = numbers(0, 9, D), unit(numbers(1, V, D).astype(np.float32))
    items[3] = 0
    targets = np.array([0, 7, 7, 2, 9, 0, 11, 7, 5])
    weights = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0.0])
    share = np.bincount(np.arange(V) % 12, minlength=V) / V + 0.01
    wanted = functools.partial(by_formula, loss, items=items.astype(np.float64), targets=targets,
                               weights=weights, share=share, temperature=0.3)
    value, gradient = jax.jit(jax.value_and_grad(lambda led: batch_loss(
        loss, led, jnp.asarray(items), jnp.asarray(targets, jnp.int32),  # type: ignore[arg-type]
        jnp.asarray(weights, jnp.float32), log_share=jnp.log(jnp.asarray(share, jnp.float32)),
        there=jnp.asarray(np.any(items != 0, axis=1)), temperature=0.3)))(
            jnp.asarray(led, jnp.float32))
    np.testing.assert_allclose(value, wanted(led), rtol=1e-5)
    for place in [(0, 0), (2, 3), (6, 4), (7, 1)]:
        step = np.zeros_like(led)
        step[place] = 1e-6
        slope = (wanted(led + step) - wanted(led - step)) / 2e-6
        np.testing.assert_allclose(gradient[place], slope, rtol=1e-3, atol=1e-5)


def known_log(count: int = 300) -> tuple[Clicks, np.ndarray, np.ndarray]:
    """Texts whose clicks are on the items that are nearest where a known matrix leads them; some
    items have no vector. The vectors of the texts, and of the items."""
    texts, truth = unit(numbers(2, count, C).astype(np.float32)), numbers(3, C, D)
    items = unit(numbers(4, V, D).astype(np.float32))
    items[[1, 6]] = 0
    clicked = np.argmax(np.where(np.any(items != 0, axis=1), unit(texts @ truth) @ items.T, -9),
                        axis=1)
    return (Clicks([f"text {number}" for number in range(count)], np.arange(count), clicked),
            texts, items)


@pytest.mark.parametrize("loss", slow_but("exact", LOSSES))
def test_a_known_mapping_is_found_and_ranks_texts_that_nobody_learned_from(loss: str) -> None:
    clicks, texts, items = known_log()
    learned, held = split_clicks(clicks, 0.2, seed=0)
    place = {text: number for number, text in enumerate(clicks.texts)}
    assert not set(learned.texts) & set(held.texts) and 40 < len(held.texts) < 80
    begin = numbers(5, C, D).astype(np.float32)

    def mrr(matrix: np.ndarray) -> float:
        return mrr_of(held, lambda asked: unit(texts[[place[text] for text in asked]] @ matrix)
                      @ items.T, V)

    config = ClickConfig(loss, epochs=30, rows=64, rate=0.1, decay=0.0)  # type: ignore[arg-type]
    given = texts[[place[text] for text in learned.texts]]
    matrix, losses = learn_matrix(config, learned, given, items, begin)
    assert losses[-1] < 0.3 * losses[0] and len(losses) == 30
    assert mrr(begin) < 0.3 and mrr(matrix) > 0.8
    again, _ = learn_matrix(config, learned, given, items, begin)
    np.testing.assert_array_equal(matrix, again)


@pytest.mark.slow
def test_decay_pulls_back_to_where_it_began() -> None:
    clicks, texts, items = known_log(30)
    begin = numbers(5, C, D).astype(np.float32)
    near, far = (np.abs(learn_matrix(ClickConfig(epochs=5, rows=64, decay=decay), clicks, texts,
                                     items, begin)[0] - begin).max() for decay in (100.0, 0.0))
    assert 0 < near < 0.5 * far


def test_clicks_on_items_without_vectors_teach_nothing() -> None:
    clicks, texts, items = known_log(30)
    items[:] = 0
    with pytest.raises(InputError, match="no item that was clicked has a vector"):
        learn_matrix(ClickConfig(), clicks, texts, items, numbers(5, C, D).astype(np.float32))


def test_a_matrix_that_is_no_number_is_not_given_out() -> None:
    clicks, texts, items = known_log(30)
    with pytest.raises(TrainingError, match=r"rate 1000, decay 1000\); expected a smaller rate"):
        learn_matrix(ClickConfig(rows=64, rate=1e3, decay=1e3), clicks, texts, items,
                     numbers(5, C, D).astype(np.float32))


def test_a_regression_begins_where_texts_are_nearest_to_items() -> None:
    texts, truth = numbers(6, 200, C).astype(np.float32), numbers(7, C, D)
    np.testing.assert_allclose(regressed(texts, (texts @ truth).astype(np.float32), 1e-6), truth,
                               atol=1e-3)


def test_mrr_is_the_mean_over_clicks_and_ties_count_against() -> None:
    scores = {"a": [3, 1, 2, 0], "b": [1, 1, 0, 5]}
    clicks = Clicks(["a", "b"], np.array([0, 0, 1]), np.array([2, 0, 1]))
    found = mrr_of(clicks, lambda texts: np.array([scores[text] for text in texts], np.float32), 4)
    assert found == pytest.approx((1 / 2 + 1 + 1 / 3) / 3)
    assert mrr_of(clicks, lambda texts: np.array([scores[text] for text in texts], np.float32), 4,
                  k=1) == pytest.approx(1 / 3)
    blocks = mrr_of(clicks, lambda texts: np.array([scores[text] for text in texts], np.float32),
                    1 << 24)
    assert blocks == pytest.approx(found)  # a text at a time


def test_a_log_is_read_and_split_by_its_words(tiny_dataset: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(tiny_dataset)
    lines = ["text,item", "red car,0003", "Red  CAR!,0004", "blue,nothing", "--,0003", "__,0003",
             "red car,0005", *(f"word{number},{number:04d}" for number in range(20))]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    clicks = read_clicks(dataset, tmp_path / "log.csv", "text", "item")
    assert clicks.left_out == 3 and clicks.texts[:3] == ["red car", "Red  CAR!", "word0"]
    assert clicks.query[:4].tolist() == [0, 1, 0, 2]
    ids = dataset.item_ids()
    assert [ids[int(item)] for item in clicks.item[:3]] == ["0003", "0004", "0005"]
    for seed in range(4):
        learned, held = split_clicks(clicks, 0.4, seed)
        assert ("red car" in held.texts) == ("Red  CAR!" in held.texts)
        assert len(learned.item) + len(held.item) == len(clicks.item)
        for part in (learned, held):
            for query, item in zip(part.query, part.item, strict=True):
                assert (clicks.texts.index(part.texts[query]), item) in set(
                    zip(clicks.query.tolist(), clicks.item.tolist(), strict=True))
    with pytest.raises(InputError, match="0 are held out"):
        split_clicks(clicks.of(np.arange(len(clicks.texts)) == 0), 0.01, 0)
    with pytest.raises(InputError, match="no click on an item of"):
        (tmp_path / "other.csv").write_text("query,item_id\nred,9999\n")
        read_clicks(dataset, tmp_path / "other.csv")


def test_a_file_knows_the_items_that_it_leads_to(tmp_path: Path) -> None:
    items = unit(numbers(8, V, D).astype(np.float32))
    about = {"space": "text", "of": "the item vectors 'x'"}
    matrix = numbers(9, C, D).astype(np.float32)
    write_learned(tmp_path / "m", Learned(matrix, probe_of(items), about))
    found = read_learned(tmp_path / "m")
    np.testing.assert_array_equal(found.matrix, matrix)
    assert found.about == about
    found.check_items(items, "here")
    for other in (items[:-1], items[::-1], items[:, 1:]):
        with pytest.raises(InputError, match="here is not what the learned matrix leads texts to"):
            found.check_items(other, "here")
    (tmp_path / "n").write_bytes((tmp_path / "m").read_bytes()[:40])
    for name in ("n", "missing"):
        with pytest.raises(InputError, match=f"{name} cannot be read as a matrix of a search"):
            read_learned(tmp_path / name)
