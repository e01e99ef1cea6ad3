"""The ranks of a panel's targets by a solver's scores, block by block of people.

The rules are those of `rec_jax.evaluate`: ties and NaN count against the target, and what may not
be recommended has no rank.
"""

from __future__ import annotations

import numpy as np

from rec_jax.data.dataset import Dataset
from rec_jax.inference.protocol import Panel, cold_items
from rec_jax.metrics import MISSED, Coverage
from rec_jax.run_sections import EvaluateConfig
from rec_jax.solvers.base import Fitted, Matrix, Values
from rec_jax.solvers.interactions import history_matrix
from rec_jax.solvers.neighbours import best, blocks


def rank_panel(fitted: Fitted, values: Values, dataset: Dataset, panel: Panel,
               settings: EvaluateConfig, coverage: Coverage | None = None,
               filled: np.ndarray | None = None) -> np.ndarray:
    """Ranks int32 `[M]`, `MISSED` where the target may not be recommended.

    coverage: is given everybody's first `max(settings.ks)` items; filled: as `cold_items` takes it.
    """
    cold = cold_items(dataset, settings, filled)
    ranks = np.zeros(len(panel.users), np.int32)
    for block in blocks(len(ranks), dataset.num_items):
        users, targets = panel.users[block], panel.targets[block]
        histories = history_matrix(dataset, users, panel.ends[block], values)
        scores = allowed(fitted.scores(histories, users), cold,
                         seen_items(dataset, users, panel.ends[block], histories, values)
                         if settings.filter_seen else None)
        wanted = scores[np.arange(len(users)), targets]
        ahead = np.sum(~(scores < wanted[:, None]), axis=1)  # the target included
        ranks[block] = np.where(wanted > -np.inf, ahead, MISSED)
        if coverage is not None:
            coverage.add(best_items(scores, min(max(settings.ks), dataset.num_items)))
    return ranks


def seen_items(dataset: Dataset, users: np.ndarray, ends: np.ndarray, histories: Matrix,
               values: Values) -> Matrix:
    """`[M, V]`, an entry for every item of a history, rated or not."""
    return histories if values == "counts" else history_matrix(dataset, users, ends)


def allowed(scores: np.ndarray, cold: np.ndarray | None, seen: Matrix | None) -> np.ndarray:
    """`scores` `[B, V]`, changed in place: -inf where an item may not be recommended.

    cold: bool `[V]`; seen: `[B, V]`, its entries are left out.
    """
    if cold is not None:
        scores[:, cold] = -np.inf
    if seen is not None:
        scores[np.repeat(np.arange(len(scores)), np.diff(seen.indptr)), seen.indices] = -np.inf
    return scores


def best_items(scores: np.ndarray, k: int) -> np.ndarray:
    """The k items of the highest scores of each row, best first: int64 `[B, k]`, -1 where there
    are no more; of equal ones those of the smaller index."""
    found = np.full((len(scores), k), -1)
    for row, values in enumerate(np.where(scores > -np.inf, scores, -np.inf)):
        items = np.flatnonzero(best(values, k) & (values > -np.inf))
        items = items[np.argsort(-values[items], kind="stable")]
        found[row, :len(items)] = items
    return found


