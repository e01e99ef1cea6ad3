"""Estimators of a policy's value from the log of another one.

With importance weight w = pi_e(a | x) / pi_b(a | x), reward r, reward model q, and q_e(x) = the
sum over actions of pi_e(a | x) q(x, a):

    ips        mean(w r)                                 Horvitz, Thompson 1952; Strehl et al. 2010
    snips      mean(w r) / mean(w)                       Swaminathan, Joachims 2015
    dm         mean(q_e)                                 direct method
    dr         mean(q_e) + mean(w (r - q))               Dudik et al. 2011, 2014
    sndr       mean(q_e) + mean(w (r - q)) / mean(w)     self-normalised DR
    switch_dr  mean(q_e) + mean(w 1{w <= tau} (r - q))   Wang, Agarwal, Dudik 2017
    dros       mean(q_e) + mean(w l / (w^2 + l) (r - q)) optimistic shrinkage, Su et al. 2020

`ips` and `dr` are unbiased where the behaviour policy can take every action that the evaluated one
takes, and the propensities are true. With a cap c the weight is min(w, c), which trades variance
for bias: with rewards of at least 0, capped `ips` is too low in the mean, never too high.

Each of them is mean(base) + mean(numerator) / mean(denominator) of three columns (`Parts`), which
is all that intervals need to know of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rec_jax.simulate.feedback import Feedback, Floats

WITHOUT_MODEL = ("ips", "snips")
WITH_MODEL = ("dm", "dr", "sndr", "switch_dr", "dros")


@dataclass(frozen=True)
class Parts:
    """An estimate as mean(base) + mean(numerator) / mean(denominator); columns f64 `[n]`.

    None stands for zeros in base and numerator, and for ones in the denominator.
    """

    base: Floats | None = None
    numerator: Floats | None = None
    denominator: Floats | None = None

    def columns(self) -> Iterator[tuple[str, Floats]]:
        """Those that are there, by name."""
        for name, column in vars(self).items():
            if column is not None:
                yield name, column

    @property
    def value(self) -> float:
        """The estimate; NaN where the denominator is zero, as no row tells anything."""
        base = 0.0 if self.base is None else float(np.mean(self.base))
        if self.numerator is None:
            return base
        below = 1.0 if self.denominator is None else float(np.mean(self.denominator))
        return base + float(np.mean(self.numerator)) / below if below else math.nan


def ips(feedback: Feedback, cap: float | None = None) -> Parts:
    """Inverse propensity scores: mean(w r)."""
    return Parts(numerator=capped(feedback, cap) * feedback.reward)


def snips(feedback: Feedback, cap: float | None = None) -> Parts:
    """Self-normalised IPS: it does not depend on a constant added to all rewards."""
    weights = capped(feedback, cap)
    return Parts(numerator=weights * feedback.reward, denominator=weights)


def dm(feedback: Feedback) -> Parts:
    """Direct method: the reward model is believed."""
    return Parts(base=_model(feedback)[1])


def dr(feedback: Feedback, cap: float | None = None) -> Parts:
    """Doubly robust: unbiased if the propensities or the reward model are right."""
    logged, policy = _model(feedback)
    return Parts(base=policy, numerator=capped(feedback, cap) * (feedback.reward - logged))


def sndr(feedback: Feedback, cap: float | None = None) -> Parts:
    """Doubly robust with self-normalised weights."""
    logged, policy = _model(feedback)
    weights = capped(feedback, cap)
    return Parts(policy, weights * (feedback.reward - logged), weights)


def switch_dr(feedback: Feedback, threshold: float, cap: float | None = None) -> Parts:
    """Doubly robust where w <= threshold; the reward model alone elsewhere.

    The threshold looks at the weight before a cap.
    """
    logged, policy = _model(feedback)
    weights = np.where(feedback.weights <= threshold, capped(feedback, cap), 0.0)
    return Parts(policy, weights * (feedback.reward - logged))


def dros(feedback: Feedback, shrinkage: float, cap: float | None = None) -> Parts:
    """Doubly robust with weights w l / (w^2 + l), l = shrinkage: 0 is `dm`, inf is `dr`."""
    logged, policy = _model(feedback)
    weights = capped(feedback, cap)
    if math.isfinite(shrinkage):
        below = weights ** 2 + shrinkage
        weights = np.divide(shrinkage * weights, below, out=np.zeros_like(weights),
                            where=below > 0)
    return Parts(policy, weights * (feedback.reward - logged))


def capped(feedback: Feedback, cap: float | None) -> Floats:
    """Weights f64 `[n]`, none above `cap`."""
    weights = feedback.weights
    return weights if cap is None else np.minimum(weights, cap)


def estimators(feedback: Feedback, *, cap: float | None = None, switch: float = 10.0,
               shrinkage: float = 100.0) -> dict[str, Parts]:
    """All that the columns of the log allow, by name.

    Without a reward model `ips` and `snips`; with the expected reward of the evaluated policy
    `dm` too; with that of the logged action the doubly robust ones too.
    """
    found = {"ips": ips(feedback, cap), "snips": snips(feedback, cap)}
    if feedback.expected_policy is not None:
        found["dm"] = dm(feedback)
    if feedback.expected_logged is not None:
        found |= {"dr": dr(feedback, cap), "sndr": sndr(feedback, cap),
                  "switch_dr": switch_dr(feedback, switch, cap),
                  "dros": dros(feedback, shrinkage, cap)}
    return found


def _model(feedback: Feedback) -> tuple[Floats, Floats]:
    """q of the logged action, and its mean under the evaluated policy: f64 `[n]` each."""
    if feedback.expected_policy is None:
        raise ValueError("this estimator needs expected_policy")
    logged = feedback.expected_logged
    return np.zeros(feedback.rows) if logged is None else logged, feedback.expected_policy
