"""All that one log says of a policy: estimates, intervals, bounds, and whether to believe them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rec_jax.errors import InputError
from rec_jax.ranges import above, at_least, between, check
from rec_jax.simulate.feedback import Feedback
from rec_jax.simulate.intervals import (
    BOUNDS,
    Interval,
    bound_value,
    default_cap,
    normal,
    percentile,
    resampled,
)
from rec_jax.simulate.off_policy import Parts, estimators
from rec_jax.simulate.support import diagnose, warnings

LOGGED = "logged"
"""The name of the policy that made the log, among the estimates."""


@dataclass(frozen=True)
class JudgeConfig:
    """How a log is judged.

    confidence: of every interval. resamples, seed: of the bootstrap.
    cap: largest weight of all estimates; none by default.
    bound_cap: largest weight of the bounds for any sample, which must not be chosen by a look at
      the log; by default `cap`, or else the square root of the number of rows.
    reward_low, reward_high: between which rewards can be, for those bounds; 0 and 1 by default
      where all rewards are.
    switch: weight above which `switch_dr` believes the reward model alone.
    shrinkage: of `dros`; 0 is the direct method, more is nearer to doubly robust.
    """

    confidence: float = 0.95
    resamples: int = 1000
    seed: int = 0
    cap: float | None = None
    bound_cap: float | None = None
    reward_low: float | None = None
    reward_high: float | None = None
    switch: float = 10.0
    shrinkage: float = 100.0

    def __post_init__(self) -> None:
        check(self, "", confidence=between(0, 1),
              resamples=at_least(2), seed=at_least(0), cap=above(0), bound_cap=above(0),
              switch=at_least(0), shrinkage=at_least(0))
        if (self.reward_low is None) != (self.reward_high is None):
            raise InputError("reward_low and reward_high belong together; expected both or none")
        if self.reward_low is not None and self.reward_high is not None \
                and not self.reward_low < self.reward_high:
            raise InputError(f"reward_low is {self.reward_low:g} and reward_high is "
                             f"{self.reward_high:g}; expected the lower one first")


def judge(feedback: Feedback, settings: JudgeConfig | None = None) -> dict[str, Any]:
    """Estimates, bounds, diagnosis and notes as one mapping; numbers that do not exist are None.

    estimates: by estimator, and `logged` for the mean reward of the log itself. value; bootstrap
      and normal: [low, high]; relative: value / mean reward of the log; gain: value - that mean,
      with its bootstrap interval from the same samples.
    bounds: of the policy's true value, for any sample; or why there are none.
    positions: estimates at each place of the slate, where the log has places.

    Raises:
      InputError: a reward is outside of the range that was said.
    """
    settings = settings or JudgeConfig()
    found = {LOGGED: Parts(base=feedback.reward)} | _estimators(feedback, settings)
    support = diagnose(feedback)
    values = resampled(found, groups=feedback.group, resamples=settings.resamples,
                       seed=settings.seed)
    base = found[LOGGED].value
    estimates = {}
    for name, part in found.items():
        estimate = {"value": _number(part.value),
                    "bootstrap": _pair(percentile(values[name], settings.confidence)),
                    "normal": _pair(normal(part, settings.confidence, feedback.group))}
        if name != LOGGED:
            gain = percentile(values[name] - values[LOGGED], settings.confidence)
            estimate |= {"relative": _number(part.value / base) if base else None,
                         "gain": _number(part.value - base), "gain_bootstrap": _pair(gain)}
        estimates[name] = estimate
    bounds, lacking = _bounds(feedback, settings)
    result: dict[str, Any] = {
        "rows": feedback.rows, "estimates": estimates, "bounds": bounds,
        "support": {name: _number(value) for name, value in asdict(support).items()},
        "settings": {name: value for name, value in asdict(settings).items()
                     if value is not None},
        "notes": [*warnings(support), *lacking]}
    if feedback.group is not None:
        result["groups"] = int(feedback.group.max()) + 1
    if feedback.position is not None:
        result["positions"] = _by_position(feedback, settings)
    return result


def _estimators(feedback: Feedback, settings: JudgeConfig) -> dict[str, Parts]:
    return estimators(feedback, cap=settings.cap, switch=settings.switch,
                      shrinkage=settings.shrinkage)


def _by_position(feedback: Feedback, settings: JudgeConfig) -> list[dict[str, Any]]:
    assert feedback.position is not None
    rows = []
    for place in np.unique(feedback.position):
        part = feedback.take(feedback.position == place)
        rows.append({"position": int(place), "rows": part.rows,
                     LOGGED: _number(float(np.mean(part.reward))),
                     **{name: _number(one.value)
                        for name, one in _estimators(part, settings).items()}})
    return rows


def _bounds(feedback: Feedback, settings: JudgeConfig) -> tuple[dict[str, Any], list[str]]:
    """The bounds for any sample, and a sentence where there are none or they rest on a guess."""
    least, most = float(feedback.reward.min()), float(feedback.reward.max())
    low, high = settings.reward_low, settings.reward_high
    if low is None or high is None:
        if least < 0 or most > 1:
            return {}, [f"no bounds for any sample: rewards are {least:g} to {most:g}; expected "
                        "reward_low and reward_high, between which they can be"]
        low, high = 0.0, 1.0
    elif least < low or most > high:
        raise InputError(f"rewards are {least:g} to {most:g}; expected none outside of reward_low "
                         f"= {low:g} and reward_high = {high:g}")
    units = feedback.rows if feedback.group is None else int(feedback.group.max()) + 1
    cap = settings.bound_cap or settings.cap or default_cap(units)
    found: dict[str, Any] = {"cap": cap, "reward_low": low, "reward_high": high}
    for name, lower in BOUNDS.items():
        pair = _pair(bound_value(feedback, lower, low=low, high=high, cap=cap,
                                 confidence=settings.confidence))
        if pair is None:
            return {}, ["no bounds for any sample: the groups have different numbers of rows"]
        found[name] = pair
    return found, []


def _pair(interval: Interval) -> list[float] | None:
    return None if any(map(math.isnan, interval)) else list(interval)


def _number(value: float | None) -> float | int | None:
    return None if value is None or math.isnan(value) else value
