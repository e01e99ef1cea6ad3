"""Whether a log can answer what is asked of it: weights, effective sample and support."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from rec_jax.simulate.feedback import Feedback, Floats
from rec_jax.simulate.intervals import standard_error
from rec_jax.simulate.off_policy import Parts

_SURE = 0.01
_ROUNDING = 1e-3  # a mean as near to 1 is 1, however sure the difference is
_FEW, _HEAVY = 100, 0.1


@dataclass(frozen=True)
class Support:
    """Diagnosis of the weights w, never capped.

    rows: n. effective_sample: (sum w)^2 / sum w^2 (Kish 1965), so many rows of equal weight would
      tell as much.
    mean_weight: near 1 if the propensities are true and every action that the evaluated policy
      takes has support; 1 - mean estimates the probability that it gives to other actions.
    mean_weight_p: of a two-sided test that the mean is 1 (normal, by groups where there are any);
      None where the weights do not differ.
    largest_weight, and largest_share: its share of all weight.
    never_taken: share of the rows whose action the evaluated policy never takes.
    """

    rows: int
    effective_sample: float
    mean_weight: float
    mean_weight_p: float | None
    largest_weight: float
    largest_share: float
    never_taken: float


def diagnose(feedback: Feedback) -> Support:
    """The diagnosis of one log."""
    weights = feedback.weights
    total, largest = float(weights.sum()), float(weights.max())
    squares = float(np.sum(weights ** 2))
    mean = total / feedback.rows
    error = standard_error(Parts(numerator=weights), feedback.group)
    if error > 0:
        chance: float | None = 2 * (1 - NormalDist().cdf(abs(mean - 1) / error))
    else:  # also NaN, of a single unit
        chance = None
    return Support(feedback.rows, total ** 2 / squares if squares else 0.0, mean, chance, largest,
                   largest / total if total else math.nan,
                   float(np.mean(feedback.probability == 0)))


def warnings(support: Support) -> list[str]:
    """What somebody who reads the estimates must know, a sentence each."""
    found = []
    mean, chance = support.mean_weight, support.mean_weight_p
    if mean == 0:
        return ["the evaluated policy never takes a logged action: the log says nothing about it"]
    off = abs(mean - 1) > _ROUNDING and (chance is None or chance < _SURE)
    if off and mean > 1:
        found.append(f"the weights' mean is {mean:.4g}, more than 1: the propensities, or the "
                     "evaluated probabilities, are wrong")
    elif off:
        found.append(f"the weights' mean is {mean:.4g}, less than 1: the evaluated policy takes "
                     "actions that the log cannot have, or that are too rare for it, or the "
                     "propensities are wrong")
    if support.effective_sample < _FEW:
        found.append(f"the effective sample is {support.effective_sample:.3g} of {support.rows:,} "
                     "rows: bootstrap and normal intervals are not to be trusted")
    if support.largest_share > _HEAVY:
        found.append(f"one row has {support.largest_share:.0%} of all weight")
    return found


def unsupported(policy: npt.ArrayLike, behaviour: npt.ArrayLike) -> tuple[float, float]:
    """Where both policies are known for all actions: what the log can never have.

    policy, behaviour: `[n, A]` each.

    Returns:
      the share of the actions that the evaluated policy may take which have no support, and the
      mean probability that it gives to such actions.
    """
    evaluated: Floats = np.asarray(policy, np.float64)
    without = (np.asarray(behaviour, np.float64) <= 0) & (evaluated > 0)
    taken = int(np.sum(evaluated > 0))
    return (float(without.sum()) / taken if taken else 0.0,
            float(np.sum(evaluated * without, axis=1).mean()))
