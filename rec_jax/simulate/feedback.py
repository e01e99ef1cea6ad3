"""Logged bandit feedback as columns of f64, checked.

A row is one action that a policy took: the behaviour policy drew it with a known probability (the
propensity), and a reward followed. What an estimator needs of the policy to evaluate are its
probability of that same action and, for the direct method and the doubly robust ones, two numbers
of a reward model q: q of the logged action, and the mean of q over the actions as the evaluated
policy would take them. No array of rows x actions is needed; `from_actions` makes the columns
where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rec_jax.errors import InputError

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
ROUNDING = 1e-6
"""What a probability may be above 1: sums of f32 are not exact."""
MOST = 1e60
"""Size of rewards and weights: squares of their products, and sums of these, are f64."""


@dataclass(frozen=True)
class Feedback:
    """Rows of a log; made by `make_feedback` or `from_actions`, which check them.

    reward: f64 `[n]`. propensity: f64 `[n]`, the behaviour policy's probability of the logged
      action, above 0.
    probability: f64 `[n]`, the evaluated policy's probability of the logged action.
    expected_logged: f64 `[n]` or None, q(x, a) of the logged action.
    expected_policy: f64 `[n]` or None, sum over actions of the evaluated policy's pi(a | x)
      q(x, a).
    position: int64 `[n]` or None, place in a slate.
    group: int64 `[n]` from 0, without gaps, or None; rows of one group (a user, a slate) are not
      independent.
    """

    reward: Floats
    propensity: Floats
    probability: Floats
    expected_logged: Floats | None = None
    expected_policy: Floats | None = None
    position: Int64s | None = None
    group: Int64s | None = None

    @property
    def rows(self) -> int:
        return len(self.reward)

    @property
    def weights(self) -> Floats:
        """Importance weights f64 `[n]`: probability / propensity."""
        return self.probability / self.propensity

    def take(self, which: npt.NDArray[np.bool_]) -> Feedback:
        """The rows where `which`, bool `[n]`, is true; groups are numbered anew."""
        kept: dict[str, Any] = {name: None if values is None else values[which]
                                for name, values in vars(self).items()}
        if self.group is not None:
            kept["group"] = _numbered(kept["group"])
        return Feedback(**kept)


def make_feedback(reward: npt.ArrayLike, propensity: npt.ArrayLike, probability: npt.ArrayLike, *,
                  expected_logged: npt.ArrayLike | None = None,
                  expected_policy: npt.ArrayLike | None = None,
                  position: npt.ArrayLike | None = None, group: npt.ArrayLike | None = None,
                  where: Callable[[int], str] = lambda row: f"row {row}") -> Feedback:
    """Columns `[n]` as `Feedback`; a group is any value that can be sorted.

    where: names row i (from 0) in an error.

    Raises:
      InputError: no rows, columns of different lengths, values that are not finite, a propensity
        outside (0, 1], a probability outside [0, 1], or q of the logged action without the
        expected reward under the evaluated policy.
    """
    numbers = {"reward": reward, "propensity": propensity, "probability": probability,
               "expected_logged": expected_logged, "expected_policy": expected_policy}
    columns = {name: np.asarray(values, np.float64)
               for name, values in numbers.items() if values is not None}
    places = None if position is None else np.asarray(position)
    owners = None if group is None else np.asarray(group)
    rows = columns["reward"].shape
    for name, values in (*columns.items(), ("position", places), ("group", owners)):
        if values is None:
            continue
        if values.ndim != 1 or values.shape != rows:
            raise InputError(f"{name} has shape {list(values.shape)}; expected one value for each "
                             f"of {rows[0] if rows else 1} rewards")
    if rows == (0,):
        raise InputError("the log has no rows; expected at least one")
    for name, values in columns.items():
        _refuse(~np.isfinite(values), name, values, "a finite number", where)
        _refuse(np.abs(values) > MOST, name, values, f"at most {MOST:g} in size", where)
    behaviour, evaluated = columns["propensity"], columns["probability"]
    _refuse((behaviour <= 0) | (behaviour > 1 + ROUNDING), "propensity", behaviour,
            "more than 0 and at most 1", where)
    _refuse((evaluated < 0) | (evaluated > 1 + ROUNDING), "probability", evaluated,
            "0 to 1", where)
    with np.errstate(over="ignore"):
        _refuse(evaluated / behaviour > MOST, "propensity", behaviour,
                f"more, as probability / propensity is above {MOST:g}", where)
    if "expected_logged" in columns and "expected_policy" not in columns:
        raise InputError("expected_logged is given without expected_policy; doubly robust "
                         "estimators need the expected reward of the logged action and of the "
                         "evaluated policy")
    return Feedback(
        **columns, position=None if places is None else _whole(places, where),
        group=None if owners is None else _numbered(owners))


def from_actions(reward: npt.ArrayLike, action: npt.ArrayLike, propensity: npt.ArrayLike,
                 policy: npt.ArrayLike, *, expected: npt.ArrayLike | None = None,
                 position: npt.ArrayLike | None = None,
                 group: npt.ArrayLike | None = None) -> Feedback:
    """`Feedback` where the evaluated policy is known for all actions.

    reward, propensity: `[n]`; action: int `[n]`, 0 to A - 1.
    policy: `[n, A]`, or `[n, A, P]` with a distribution for each position, as in Open Bandit
      Pipeline; a first axis of 1 is the same for all rows. A distribution sums to 1.
    expected: q, of the same axes as `policy`, or None.
    position: int `[n]`, 0 to P - 1; needed with `[n, A, P]`.

    Raises:
      InputError: as `make_feedback`, or the axes do not fit, or a distribution does not sum to 1.
    """
    chosen = np.asarray(action)
    rows = np.arange(len(chosen))
    place = None if position is None else np.asarray(position)
    every = _at_position("policy", policy, rows, place)
    wrong = np.abs(every.sum(axis=1) - 1) > 1e-4
    if wrong.any():
        first = int(wrong.argmax())
        raise InputError(f"row {first}: the policy's probabilities sum to "
                         f"{every[first].sum():.6g}; expected 1")
    if chosen.dtype.kind not in "iu" or chosen.ndim != 1 or np.any(
            (chosen < 0) | (chosen >= every.shape[1])):
        raise InputError(f"action is not of whole numbers from 0 to {every.shape[1] - 1}")
    logged = mean = None
    if expected is not None:
        rewards = _at_position("expected", expected, rows, place)
        if rewards.shape[1] != every.shape[1]:
            raise InputError(f"expected has {rewards.shape[1]} actions; the policy has "
                             f"{every.shape[1]}")
        logged = rewards[rows if len(rewards) > 1 else 0, chosen]
        mean = np.broadcast_to(np.sum(rewards * every, axis=1), rows.shape)
    return make_feedback(reward, propensity, every[rows if len(every) > 1 else 0, chosen],
                         expected_logged=logged, expected_policy=mean, position=place,
                         group=group)


def _at_position(name: str, values: npt.ArrayLike, rows: Int64s,
                 position: npt.NDArray[Any] | None) -> Floats:
    """`[n, A]` or `[1, A]` of `[n, A]`, `[n, A, P]` or the same with a first axis of 1."""
    array = np.asarray(values, np.float64)
    if array.ndim not in (2, 3) or len(array) not in (1, len(rows)):
        raise InputError(f"{name} has shape {list(array.shape)}; expected [{len(rows)}, actions] "
                         f"or [{len(rows)}, actions, positions]")
    if array.ndim == 2:
        return array
    if position is None or position.dtype.kind not in "iu" or position.shape != rows.shape \
            or np.any((position < 0) | (position >= array.shape[2])):
        raise InputError(f"{name} has {array.shape[2]} positions; expected a position from 0 to "
                         f"{array.shape[2] - 1} for each row")
    return np.asarray(array[rows if len(array) > 1 else 0, :, position])


def _refuse(wrong: npt.NDArray[np.bool_], name: str, values: Floats, expected: str,
            where: Callable[[int], str]) -> None:
    if wrong.any():
        first = int(wrong.argmax())
        others = int(wrong.sum()) - 1
        also = f" (and {others} more)" if others else ""
        raise InputError(f"{where(first)}: {name} is {values[first]:g}; expected {expected}{also}")


def _numbered(values: npt.NDArray[Any]) -> Int64s:
    """Each different value a number from 0, int64 `[n]`."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _whole(values: npt.NDArray[Any], where: Callable[[int], str]) -> Int64s:
    numbers = values.astype(np.float64)
    wrong = ~np.isfinite(numbers) | (np.floor(numbers) != numbers)
    _refuse(wrong, "position", numbers, "a whole number", where)
    return numbers.astype(np.int64)
