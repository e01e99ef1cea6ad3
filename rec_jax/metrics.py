"""Ranking metrics from ranks alone, and what a set of recommendations covers.

With rank r of the one relevant item (1 = best):

    HR@k = [r <= k]     NDCG@k = [r <= k] / log2(1 + r)     MRR@k = [r <= k] / r     MRR = 1 / r

averaged over users. One relevant item makes the ideal DCG 1 (Järvelin & Kekäläinen, 2002).
An item that the protocol forbids to recommend has no rank: it is `MISSED`, and adds 0 to all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rec_jax.errors import InputError

MISSED = np.iinfo(np.int32).max
"""Stands for the rank of an item that cannot be recommended. It is no rank: a hit for no k."""


RATING_METRICS = ("rmse", "mae", "auc")
"""Names of `rating_metrics`."""
_ERRORS = ("rmse", "mae")


def signed(name: str, value: float) -> float:
    """The value of metric `name` so that larger is better: that of an error is its negative. The
    same again gives the value back."""
    return -value if name in _ERRORS else value


def rating_metrics(ratings: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """RMSE and MAE of predicted ratings `[M]`, and AUC where there are two ratings; in f64.

    AUC is the share of pairs of a higher and a lower rating that are predicted in this order; equal
    predictions count half (Mann & Whitney, 1947).
    """
    wanted, found = np.asarray(ratings, np.float64), np.asarray(predicted, np.float64)
    error = found - wanted
    result = {"rmse": float(np.sqrt(np.mean(error**2))), "mae": float(np.mean(np.abs(error)))}
    values = np.unique(wanted)
    if len(values) == 2:
        high = wanted == values[1]
        _, group, size = np.unique(found, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(size) - (size - 1) / 2)[group]  # ties share their mean
        above = ranks[high].sum() - high.sum() * (high.sum() + 1) / 2
        result["auc"] = float(above / (high.sum() * (~high).sum()))
    return result


def metric_names(ks: Sequence[int]) -> list[str]:
    """Every name that `rank_metrics` gives for cut-offs `ks`."""
    return [*(f"{name}@{k}" for k in ks for name in ("hr", "ndcg", "mrr")), "mrr"]


def check_asked(ks: Sequence[int], metric: str, others: Sequence[str] = ()) -> None:
    """Raises InputError where an evaluation has no cut-offs, or does not measure its `metric`: one
    of those at `ks`, or of the `others`."""
    if not ks:
        raise InputError("evaluate.ks is empty; expected one or more cut-offs")
    known = [*metric_names(ks), *others]
    if metric not in known:
        raise InputError(f"evaluate.metric {metric!r} is not measured; "
                         f"expected one of {', '.join(known)}")


def rank_metrics(ranks: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """Means over users of `ranks` int `[M]`, computed in f64; NaN where M = 0."""
    r = np.asarray(ranks, np.float64)
    if r.size == 0:
        return dict.fromkeys(metric_names(ks), float("nan"))
    ranked = np.asarray(ranks) != MISSED
    result: dict[str, float] = {}
    for k in ks:
        hit = ranked & (r <= k)
        result[f"hr@{k}"] = float(np.mean(hit))
        result[f"ndcg@{k}"] = float(np.mean(hit / np.log2(1.0 + r)))
        result[f"mrr@{k}"] = float(np.mean(hit / r))
    result["mrr"] = float(np.mean(ranked / r))
    return result


def nan_to_none(figures: Mapping[str, float]) -> dict[str, float | None]:
    """None for NaN, which JSON lacks: of nothing that is recommended there is no mean."""
    return {name: None if np.isnan(value) else value for name, value in figures.items()}


class Coverage:
    """Which items are recommended to anybody, and how popular they are, batch by batch."""

    def __init__(self, popularity: np.ndarray) -> None:
        """popularity: `[V]`, interactions of each item in the training part."""
        self._popularity = popularity
        self._shown = np.zeros(popularity.shape, bool)
        self._sum = 0
        self._count = 0

    def add(self, recommended: np.ndarray) -> None:
        """recommended: int `[M, k]` of items; -1 marks an empty place."""
        items = recommended[recommended >= 0]
        self._shown[items] = True
        self._sum += int(self._popularity[items].sum())
        self._count += items.size

    def result(self, k: int) -> dict[str, float]:
        """coverage@k: share of the catalogue; popularity@k: mean training interactions."""
        return {
            f"coverage@{k}": float(np.mean(self._shown)),
            f"popularity@{k}": self._sum / self._count if self._count else float("nan"),
        }
