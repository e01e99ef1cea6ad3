"""Cold items of solved models: the columns that content gives them, and how well these do.

The rule is that of trained models (`rec_jax.inference.cold_rule`), and so is the protocol
(`rec_jax.inference.cold_evaluate`). EASE alone has something of its own for each item to make a
column of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rec_jax.data.dataset import Dataset
from rec_jax.data.item_vectors import open_item_vectors
from rec_jax.errors import InputError
from rec_jax.inference.cold import ColdFill, only_vectors, read_content_of
from rec_jax.inference.cold_evaluate import (
    Ask,
    Asked,
    People,
    check_withheld,
    measure_cold,
    nothing_yet,
)
from rec_jax.inference.cold_rule import EDGES
from rec_jax.inference.protocol import Split
from rec_jax.progress import Reporter
from rec_jax.run_sections import EvaluateConfig
from rec_jax.solvers.base import Fitted
from rec_jax.solvers.ease import EASE
from rec_jax.solvers.interactions import history_matrix
from rec_jax.solvers.neighbours import blocks
from rec_jax.solvers.ranking import allowed


def check_cold(dataset: Dataset, names: Sequence[str], fill: ColdFill) -> None:
    """Refuse what could not be measured, before anything is fitted.

    Raises:
      InputError: a solver is not EASE, the dataset withholds no items, or there is no content.
    """
    if set(names) != {"ease"}:
        raise InputError("of the models that are solved, ease alone has columns for cold items; "
                         "expected --model ease")
    check_withheld(dataset)
    if fill.rule.fill == EDGES:
        raise InputError("ease has no vectors of users to make an item's of; expected --cold "
                         "neighbours, projection or both")
    for name in fill.vectors or only_vectors(dataset):
        open_item_vectors(dataset, name)


def evaluate_cold_solver(fitted: Fitted, dataset: Dataset, fill: ColdFill, *, split: Split,
                         settings: EvaluateConfig,
                         asked: npt.NDArray[np.bool_] | None = None) -> dict[str, Any]:
    """As `rec_jax.inference.cold_evaluate.evaluate_cold`, of a solver that `check_cold` knows.
    asked: as `measure_cold` has it."""
    assert isinstance(fitted, EASE)
    content, has = read_content_of(dataset, fill.vectors or only_vectors(dataset))
    met, out = dataset.popularity() > 0, dataset.is_withheld()
    filled = fitted.with_cold(fill.rule, content, np.flatnonzero(met & has),
                              np.flatnonzero(out & has))
    return measure_cold(dataset, asker_of(filled, dataset, settings), split, settings, asked=asked,
                        about={"cold_items": {**fill.about(), "bias": 0.0},
                               "filled": int((out & has).sum())})


def asker_of(filled: Fitted, dataset: Dataset, settings: EvaluateConfig) -> Ask:
    """What `measure_cold` asks of a solver that has columns for withheld items."""
    length, first = min(max(settings.ks), dataset.num_trained), dataset.num_trained

    def ask(people: People, reporter: Reporter) -> Asked:
        count = len(people.users)
        reporter.begin(count)
        found = nothing_yet(people, length, dataset.num_items - first)
        for block in blocks(count, dataset.num_items):
            users = people.users[block]
            histories = history_matrix(dataset, users, people.ends[block])
            scores = filled.scores(histories, users).astype(np.float32)
            found.tell(np.arange(count)[block], scores[:, first:], people)
            warm = scores[:, :first]
            found.score[block] = warm[np.arange(len(users)), np.maximum(people.warm[block], 0)]
            warm = allowed(warm, None, histories if settings.filter_seen else None)
            found.best[block] = -np.sort(-warm, axis=1)[:, :length]
            # A target is ranked though it was seen; whether that is a miss, the protocol says.
            better = np.sum(~(warm < found.score[block][:, None]), axis=1)
            own = np.isneginf(warm[np.arange(len(users)), np.maximum(people.warm[block], 0)])
            found.ranks[block] = better + own
            reporter.advance(len(users))
        return found

    return ask
