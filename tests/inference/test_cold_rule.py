"""The vectors of cold items are those of the formulas, written out one by one in f64."""

from __future__ import annotations

import numpy as np
import pytest

from rec_jax.errors import InputError
from rec_jax.inference import cold_rule
from rec_jax.inference.cold_rule import FILLS, ColdRule, Known, cold_vectors

W, C, D, X = 23, 7, 5, 4


def problem(seed: int, warm: int = W) -> tuple[Known, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    return Known(draw(warm, D), draw(warm, D), draw(warm, X)), draw(C, D), draw(C, X) + 0.5


def one_by_one(rule: ColdRule, warm: Known, alone: np.ndarray, content: np.ndarray) -> np.ndarray:
    vectors, base, known = (np.asarray(part, np.float64) for part in warm)
    centre = known.mean(axis=0)
    units = [(x - centre) / np.linalg.norm(x - centre) for x in known]
    middle, mean = np.mean(units, axis=0), (vectors - base).mean(axis=0)
    gram, cross = rule.ridge * np.eye(X), np.zeros((X, D))
    for unit, wanted in zip(units, vectors - base, strict=True):
        gram += np.outer(unit - middle, unit - middle)
        cross += np.outer(unit - middle, wanted - mean)
    regression = np.linalg.inv(gram) @ cross
    found = []
    for own, x in zip(alone.astype(np.float64), content.astype(np.float64), strict=True):
        asked = (x - centre) / np.linalg.norm(x - centre)
        similar = np.array([unit @ asked for unit in units])
        nearest = np.argsort(-similar)[:rule.neighbours]
        weights = np.exp(similar[nearest] / rule.temperature)
        by_neighbours = weights @ vectors[nearest] / weights.sum()
        projected = own + mean + (asked - middle) @ regression
        found.append({"neighbours": by_neighbours, "projection": projected,
                      "both": (by_neighbours + projected) / 2}[rule.fill])
    return np.array(found)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("seed", range(3))
def test_cold_vectors_are_those_of_the_formulas(fill: str, seed: int,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    warm, alone, content = problem(seed)
    rule = ColdRule(fill, neighbours=4, temperature=0.3, ridge=2.0)
    wanted = one_by_one(rule, warm, alone, content)
    np.testing.assert_allclose(cold_vectors(rule, warm, alone, content), wanted, atol=2e-5)
    monkeypatch.setattr(cold_rule, "_MOST", 2 * W)  # two items at once, and one at the end
    np.testing.assert_allclose(cold_vectors(rule, warm, alone, content), wanted, atol=2e-5)


@pytest.mark.parametrize("fill", FILLS)
def test_one_warm_item_is_enough(fill: str) -> None:
    warm, alone, content = problem(5, warm=1)
    found = cold_vectors(ColdRule(fill), warm, alone, content)
    projected = alone + warm.vectors - warm.alone
    wanted = {"neighbours": np.tile(warm.vectors, (C, 1)), "projection": projected,
              "both": (warm.vectors + projected) / 2}[fill]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_an_item_with_the_content_of_a_warm_one_is_near_it() -> None:
    warm, alone, _ = problem(1)
    sharp = ColdRule("neighbours", temperature=1e-3)
    found = cold_vectors(sharp, warm, alone, warm.content[:C])
    np.testing.assert_allclose(found, warm.vectors[:C], atol=1e-5)


def test_without_warm_items_or_with_wrong_settings_it_says_so() -> None:
    warm, alone, content = problem(2, warm=0)
    with pytest.raises(InputError, match="no item has both a history and content"):
        cold_vectors(ColdRule(), warm, alone, content)
    with pytest.raises(InputError, match="expected one of neighbours, projection, both"):
        ColdRule("nearest")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"cold\.temperature"):
        ColdRule(temperature=0.0)
