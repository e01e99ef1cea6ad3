"""A solved recommender that answers with the ids of the source."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.inference.protocol import cold_items
from rec_jax.inference.retrieve import Recommendation, check_question, listed, shortfall
from rec_jax.run_sections import EvaluateConfig
from rec_jax.solvers.base import Fitted, Matrix, Values
from rec_jax.solvers.interactions import history_matrix, matrix_of
from rec_jax.solvers.ranking import allowed, best_items, seen_items


class FittedBaseline:
    """What `fit_baseline` returns.

    fitted: the solver's own object: `scores(histories)`, and `fold_in(histories)` of iALS.
    """

    def __init__(self, dataset: Dataset, fitted: Fitted, values: Values,
                 settings: EvaluateConfig) -> None:
        self.fitted = fitted
        self._dataset, self._values, self._settings = dataset, values, settings

    def recommend(self, history: Sequence[str] | None = None, k: int = 10, *,
                  user: str | None = None, filter_seen: bool | None = None,
                  tell: Callable[[str], None] | None = None) -> list[Recommendation]:
        """The k best items after a history of item ids, or for a user of the dataset with all of
        theirs; best first, fewer where no more may be recommended.

        filter_seen: items of the history may not come again; replaces the protocol's. tell: is
          told in one line why there are fewer than k items.

        Raises:
          InputError: unknown ids, not exactly one of a user and a history, an empty history, k
            below 1, or a history of ids for a solver that reads ratings.
        """
        dataset = self._dataset
        check_question(user, history, k, dataset.num_items)
        seen, given, own = self._read(user, history)
        if filter_seen is None:
            filter_seen = self._settings.filter_seen
        cold = cold_items(dataset, self._settings)
        scores = allowed(self.fitted.scores(given, own), cold, seen if filter_seen else None)
        found = best_items(scores, min(k, dataset.num_items))[0]
        if tell is not None and np.sum(found >= 0) < k:
            tell(shortfall(int(np.sum(found >= 0)), k, dataset.num_items,
                           seen.indices if filter_seen else seen.indices[:0], cold))
        return listed(dataset, found, scores[0, found])

    def _read(self, user: str | None, history: Sequence[str] | None
              ) -> tuple[Matrix, Matrix, np.ndarray | None]:
        """Seen items `[1, V]`, the history as the solver reads it, and the user's row."""
        dataset = self._dataset
        if user is not None:
            users = dataset.user_index([user])
            ends = np.asarray(dataset.offsets)[users + 1]
            given = history_matrix(dataset, users, ends, self._values)
            return seen_items(dataset, users, ends, given, self._values), given, users
        ids = [history] if isinstance(history, str) else list(history or ())
        if not ids:
            raise InputError("the history is empty; expected at least one item id")
        if self._values != "counts":
            raise InputError("explicit feedback reads ratings, which a history of item ids does "
                             "not have; expected a user of the dataset")
        given = matrix_of([dataset.item_index(ids)], dataset.num_items)
        return given, given, None
