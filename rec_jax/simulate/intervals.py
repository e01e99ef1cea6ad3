"""How far an estimate may be off: bootstrap and normal intervals, and bounds for any sample.

Bootstrap and normal intervals hold for many rows. They know only the weights that the log has:
where a rare, large weight is missing from it, they are too short, and nothing in the log tells.

Hoeffding's and the empirical Bernstein bounds hold for every number of rows and for the policy's
true value, if rewards are in a range that is known beforehand. They need no bound on the weights,
since a cap c, chosen without a look at the log, is all right on both sides (Bottou et al. 2013,
section 4.4). For rewards from l to h and actions of the behaviour policy,

    l + E[min(w, c) (r - l)]  <=  value  <=  h - E[min(w, c) (h - r)]

because what a cap, or an action without support, leaves out of a mean of things that are not
negative only makes it smaller. Each side is then a mean of numbers from 0 to c (h - l), bounded
from below by a one-sided inequality at half of the error that the interval may make.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist

import numpy as np

from rec_jax.simulate.feedback import Feedback, Floats, Int64s
from rec_jax.simulate.off_policy import Parts

Interval = tuple[float, float]
NONE: Interval = (math.nan, math.nan)
_MOST = 1 << 14  # counts that are held together; more of them fall out of the CPU's cache


def resampled(parts: Mapping[str, Parts], *, groups: Int64s | None = None, resamples: int = 1000,
              seed: int = 0) -> dict[str, Floats]:
    """Each estimate on the same `resamples` bootstrap samples of the log: f64 `[resamples]`.

    groups: int `[n]` from 0, drawn as a whole; None: rows are drawn. NaN where a sample has no
    weight at all. The same seed draws the same samples, whatever the estimates are.
    """
    rows = len(next(iter(next(iter(parts.values())).columns()))[1])
    columns = [np.ones(rows)]
    places: dict[tuple[str, str], int] = {}
    for name, part in parts.items():
        for role, values in part.columns():
            places[name, role] = next((place for place, known in enumerate(columns)
                                       if known is values), len(columns))
            if places[name, role] == len(columns):
                columns.append(values)
    sums = _by_group(np.stack(columns, axis=1), groups)  # [units, columns]
    units, drawn = len(sums), np.empty((resamples, sums.shape[1]))
    random = np.random.default_rng(seed)
    step = max(1, _MOST // units)
    for first in range(0, resamples, step):
        count = min(step, resamples - first)
        picks = random.integers(0, units, (count, units))
        picks += np.arange(count)[:, None] * units
        counts = np.bincount(picks.ravel(), minlength=count * units).reshape(count, units)
        drawn[first:first + count] = counts.astype(np.float64) @ sums

    def column(name: str, role: str, default: Floats) -> Floats:
        return drawn[:, places[name, role]] if (name, role) in places else default

    size, nothing = drawn[:, 0], np.zeros(resamples)
    return {name: column(name, "base", nothing) / size
            + _ratio(column(name, "numerator", nothing), column(name, "denominator", size))
            for name in parts}


def percentile(values: Floats, confidence: float) -> Interval:
    """The middle `confidence` of bootstrap values; NaN where one of them is undefined."""
    if np.isnan(values).any():
        return NONE
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def normal(part: Parts, confidence: float, groups: Int64s | None = None) -> Interval:
    """The estimate and a normal quantile of its standard error; by linearisation for ratios.

    NaN for fewer than two independent units.
    """
    error = standard_error(part, groups)
    reach = NormalDist().inv_cdf(0.5 + confidence / 2) * error
    return part.value - reach, part.value + reach


def standard_error(part: Parts, groups: Int64s | None = None) -> float:
    """Of an estimate, from the spread of each row's (or group's) influence on it."""
    influence: Floats = np.zeros(len(next(part.columns())[1]))
    if part.base is not None:
        influence = part.base - np.mean(part.base)
    if part.numerator is not None:
        below = np.ones_like(influence) if part.denominator is None else part.denominator
        mean = float(np.mean(below))
        if mean == 0:
            return math.nan
        influence = influence + (
            part.numerator - below * (float(np.mean(part.numerator)) / mean)) / mean
    units = _by_group(influence[:, None], groups)[:, 0]
    if len(units) < 2:
        return math.nan
    spread = float(np.sum(units ** 2)) * len(units) / (len(units) - 1)
    return math.sqrt(spread) / len(influence)


def hoeffding_lower(values: Floats, most: float, error: float) -> float:
    """What the mean of independent values from 0 to `most` is at least, but for probability
    `error` (Hoeffding 1963): mean - most sqrt(ln(1 / error) / 2 n)."""
    return float(np.mean(values)) - most * math.sqrt(math.log(1 / error) / (2 * len(values)))


def bernstein_lower(values: Floats, most: float, error: float) -> float:
    """The same from the variance that the values have (Maurer, Pontil 2009, theorem 4):
    mean - sqrt(2 var ln(2 / error) / n) - 7 most ln(2 / error) / (3 (n - 1))."""
    count = len(values)
    if count < 2:
        return -math.inf
    log = math.log(2 / error)
    variance = float(np.var(values, ddof=1))
    return (float(np.mean(values)) - math.sqrt(2 * variance * log / count)
            - 7 * most * log / (3 * (count - 1)))


Lower = Callable[[Floats, float, float], float]
BOUNDS: Mapping[str, Lower] = {"hoeffding": hoeffding_lower,
                               "empirical_bernstein": bernstein_lower}


def default_cap(rows: int) -> float:
    """sqrt(n), which depends on nothing that was observed (Ionides 2008)."""
    return math.sqrt(rows)


def bound_value(feedback: Feedback, lower: Lower, *, low: float, high: float, cap: float,
                confidence: float) -> Interval:
    """An interval that has the policy's value with probability `confidence` at least.

    low, high: between which all rewards are, known beforehand, as `cap` is. With groups, these
    are the independent units, and all must be of one size: NaN otherwise.
    """
    weights = np.minimum(feedback.weights, cap)
    above = _units(weights * (feedback.reward - low), feedback.group)
    below = _units(weights * (high - feedback.reward), feedback.group)
    if above is None or below is None:
        return NONE
    most, error = cap * (high - low), (1 - confidence) / 2
    return (low + max(0.0, lower(above, most, error)),
            high - max(0.0, lower(below, most, error)))


def _units(values: Floats, groups: Int64s | None) -> Floats | None:
    """The values, or the means of groups of one size; None where sizes differ."""
    if groups is None:
        return values
    sizes = np.bincount(groups)
    if np.any(sizes != sizes[0]):
        return None
    return np.bincount(groups, weights=values) / sizes[0]


def _by_group(columns: Floats, groups: Int64s | None) -> Floats:
    """Sums `[G, K]` of `[n, K]` by group; the columns themselves without groups."""
    if groups is None:
        return columns
    return np.stack([np.bincount(groups, weights=column) for column in columns.T], axis=1)


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)
