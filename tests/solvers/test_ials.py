"""iALS against dense normal equations, on one device and on eight."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sparse
from solver_cases import dense_half, random_counts, training

from rec_jax.errors import InputError
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.solvers import ials, ials_layout, room
from rec_jax.solvers.base import Matrix

SMALL = ials.Config(dim=5, sweeps=3, alpha=4.0, reg=0.05, init_scale=1.0)


def ratings(seed: int) -> Matrix:
    """Ratings 1 to 5 where `random_counts` has entries; some are the mean, so 0 less the mean."""
    counts = random_counts(seed)
    given = np.random.default_rng(seed).integers(1, 6, counts.nnz).astype(np.float64)
    given[:-1][::4] = given.mean()
    return sparse.csr_array((given, counts.indices, counts.indptr), counts.shape)


def dense_sweeps(config: ials.Config, matrix: Matrix, first: np.ndarray) -> np.ndarray:
    """Item vectors in f64 after the sweeps of `config` from `first` `[V, d]`."""
    there, values = matrix.toarray() != 0, matrix.toarray()
    if config.feedback == "explicit":
        values = np.where(there, values - matrix.data.mean(), 0)
    rule: Any = {"alpha": config.alpha, "reg": config.reg, "power": config.power,
                 "implicit": config.feedback == "implicit"}
    items = first.astype(np.float64)
    for _ in range(config.sweeps):
        people = dense_half(items, values, there, **rule)
        solved = dense_half(people, values.T, there.T, **rule)
        items = np.where(there.any(axis=0)[:, None], solved, items)
    return items


def first_items(config: ials.Config, count: int) -> np.ndarray:
    from rec_jax.solvers.ials_sweep import new_table, rows_of

    mesh = make_mesh(MeshConfig())
    return rows_of(new_table(count, config.dim, mesh, seed=config.seed,
                             scale=config.init_scale / config.dim**0.5), count, mesh)


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of several pieces, and several batches, at this size."""
    monkeypatch.setattr(ials_layout, "LENGTH", 4)
    monkeypatch.setattr(ials_layout, "PIECES", 8)


@pytest.mark.parametrize("feedback", ["implicit", "explicit"])
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_sweeps_and_fold_in_are_their_definition(feedback: Any, power: float) -> None:
    config = dataclasses.replace(SMALL, feedback=feedback, power=power)
    matrix, asking = ((random_counts(1), random_counts(2)) if feedback == "implicit"
                      else (ratings(1), ratings(2)))
    fitted: Any = config.fit(training(matrix))
    expected = dense_sweeps(config, matrix, first_items(config, matrix.shape[1]))
    np.testing.assert_allclose(fitted.items, expected, atol=2e-4, rtol=2e-4)
    # Fold-in is held against the items that were found, so that its own error shows.
    mean = matrix.data.mean() if feedback == "explicit" else 0.0
    there = asking.toarray() != 0
    centred = np.where(there, asking.toarray() - mean, 0)
    people = dense_half(fitted.items.astype(np.float64), centred,
                        there, alpha=config.alpha, reg=config.reg, power=power,
                        implicit=feedback == "implicit")
    np.testing.assert_allclose(fitted.fold_in(asking), people, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(fitted.scores(asking), people @ fitted.items.T + mean, atol=2e-5)
    assert not fitted.fold_in(asking)[0].any()


@pytest.mark.parametrize(("cut", "solver"), [
    ((2, 4), "cg"), ((2, 3), "cholesky"),
    pytest.param((1, 8), "cholesky", marks=pytest.mark.slow)])
def test_devices_change_nothing(cut: tuple[int, int], solver: Any) -> None:
    config, counts = dataclasses.replace(SMALL, solver=solver), random_counts(5, 61, 41)
    mesh = make_mesh(MeshConfig(*cut))
    one, many = (config.fit(training(counts, where)) for where in (None, mesh))
    np.testing.assert_allclose(one.items, many.items,  # type: ignore[attr-defined]
                               atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(one.scores(counts), many.scores(counts), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("feedback", ["implicit", "explicit"])
def test_conjugate_gradients_reach_what_cholesky_finds(feedback: Any) -> None:
    matrix = random_counts(6) if feedback == "implicit" else ratings(6)
    config = dataclasses.replace(SMALL, feedback=feedback)
    exact: Any = config.fit(training(matrix))
    steps: Any = dataclasses.replace(config, solver="cg", cg_steps=12).fit(training(matrix))
    np.testing.assert_allclose(steps.items, exact.items, atol=2e-4)
    few: Any = dataclasses.replace(config, solver="cg", cg_steps=1).fit(training(matrix))
    assert np.abs(few.items - exact.items).max() > 1e-3


def test_every_entry_is_in_one_batch_of_its_owner() -> None:
    counts = random_counts(7, 61, 41)
    layout = ials_layout.Layout.of(counts, 4)
    where = ials_layout.places(41, 768, 4)
    found = np.zeros(counts.shape)
    columns = {place: column for column, place in enumerate(where.tolist())}
    assert len(columns) == 41
    batches = list(layout.batches(where))
    assert len(batches) > 1
    for batch in batches:
        for piece in range(len(batch.owner)):
            device = piece // layout.pieces
            for place in np.flatnonzero(batch.there[piece]):
                slot = device * layout.slots + batch.owner[piece]
                row = batch.row[slot] * 4 + device
                found[row, columns[batch.ids[piece, place]]] += batch.values[piece, place]
                assert batch.entries[slot] == np.diff(counts.indptr)[row]
    assert (found == counts.toarray()).all()


def test_more_entries_than_a_batch_holds() -> None:
    matrix = sparse.csr_array(np.vstack([np.ones((1, 200)), np.eye(200)[:3]]))
    fitted: Any = SMALL.fit(training(matrix))
    there = matrix.toarray() != 0
    people = dense_half(fitted.items.astype(np.float64), matrix.toarray(), there, alpha=SMALL.alpha,
                        reg=SMALL.reg, power=SMALL.power, implicit=True)
    np.testing.assert_allclose(fitted.fold_in(matrix), people, atol=1e-5)


def test_one_item_and_nobody() -> None:
    one = sparse.csr_array(np.ones((3, 1)))
    assert SMALL.fit(training(one)).scores(one).shape == (3, 1)
    nothing = sparse.csr_array((4, 5))
    fitted: Any = SMALL.fit(training(nothing))
    assert not fitted.scores(nothing).any()
    assert fitted.fold_in(nothing[:0]).shape == (0, 5)


def test_the_loss_falls_with_every_sweep() -> None:
    counts = random_counts(8)
    dense, losses = counts.toarray(), []
    for sweeps in (1, 2, 4, 8):
        config = dataclasses.replace(SMALL, sweeps=sweeps, power=0.0)
        fitted: Any = config.fit(training(counts))
        people = fitted.fold_in(counts)
        confidence = 1 + config.alpha * dense
        losses.append(np.sum(confidence * ((dense > 0) - people @ fitted.items.T) ** 2)
                      + config.reg * (np.sum(people**2) + np.sum(fitted.items**2)))
    assert losses == sorted(losses, reverse=True)


def test_no_room_is_said_before_anything_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_host_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"ials of 23 users and 17 items in 5 dimensions needs "
                                         r"[\d,]+ bytes .* and 1,000 \(0\.0 GiB\) are free"):
        SMALL.fit(training(random_counts(9)))
