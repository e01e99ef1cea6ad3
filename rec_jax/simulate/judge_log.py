"""From a log to what it says of a policy: one whose probabilities the log holds, or a run's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rec_jax.errors import InputError
from rec_jax.inference.served import Served
from rec_jax.progress import Reporter
from rec_jax.simulate.feedback import Feedback, Floats, make_feedback
from rec_jax.simulate.judge import JudgeConfig, judge
from rec_jax.simulate.log_files import Log, LogColumns, LogSource, read_log
from rec_jax.simulate.run_policy import (
    codes,
    given_histories,
    probabilities,
    user_histories,
)


@dataclass(frozen=True)
class _Policy:
    """probability: f64 `[n]`, NaN in rows that are left out; about, notes: for the result."""

    probability: Floats
    about: dict[str, Any]
    notes: list[str]


def judge_log(source: LogSource, columns: LogColumns, settings: JudgeConfig, *,
              served: Served | None = None, temperature: float = 1.0,
              reporter: Reporter | None = None) -> dict[str, Any]:
    """What `judge` gives for the rows of a log, with what was left out and why.

    served: the policy to evaluate is this run's softmax at `temperature`; None: the log has its
    probabilities.

    Raises:
      InputError: the log or its columns are not as they should be, or nothing is left.
    """
    columns = _with_defaults(columns, served)
    log = read_log(source, columns)
    policy = (_Policy(log.numbers("probability"), {}, []) if served is None
              else _run_policy(served, log, columns, temperature, reporter))
    feedback = _feedback(log, columns, policy, left_out_ok=served is not None)
    result = judge(feedback, settings)
    result["notes"] = [*policy.notes, *result["notes"]]
    return {**policy.about, "columns": columns.roles, "log_hash": log.hash, **result}


def _with_defaults(columns: LogColumns, served: Served | None) -> LogColumns:
    """The columns that this kind of policy needs, by their usual names where none are given."""
    if served is None:
        if {"item", "user", "history", "time"} & columns.roles.keys():
            raise InputError("columns of items, users, histories and times belong to a run's "
                             "policy; expected a run")
        return replace(columns, probability=columns.probability or "probability")
    if columns.probability is not None:
        raise InputError("a run's probabilities are computed; expected a column of probabilities "
                         "or a run, not both")
    if columns.history is not None and (columns.user is not None or columns.time is not None):
        raise InputError("the log has histories and users, or times; expected columns.history "
                         "alone, or columns.user, and with it columns.time")
    user = None if columns.history is not None else columns.user or "user_id"
    return replace(columns, item=columns.item or "item_id", user=user)


def _feedback(log: Log, columns: LogColumns, policy: _Policy, *, left_out_ok: bool) -> Feedback:
    """The rows that the policy has a probability for; all values are checked, left out or not."""
    given: dict[str, Any] = {
        name: log.numbers(name) for name in ("expected_logged", "expected_policy", "position")
        if name in columns.roles}
    if columns.group is not None:
        labels = log.labels("group")
        if labels.null_count():
            row = int(labels.is_null().arg_max() or 0)
            raise InputError(f"{log.where(row)}: group is missing; expected one in each row")
        given["group"] = labels.rank("dense").to_numpy()
    without = np.isnan(policy.probability) if left_out_ok else np.zeros(len(log.lines), bool)
    feedback = make_feedback(log.numbers("reward"), log.numbers("propensity"),
                             np.where(without, 0.0, policy.probability), where=log.where, **given)
    if without.all():
        raise InputError(f"none of the {len(without)} rows has a history that the run can read; "
                         "expected users, or items, of its dataset")
    return feedback.take(~without) if without.any() else feedback


def _run_policy(served: Served, log: Log, columns: LogColumns, temperature: float,
                reporter: Reporter | None) -> _Policy:
    dataset = served.dataset
    items = codes(dataset.item_ids(), log.ids("item"))
    if columns.user is not None:
        before = log.seconds("time") if columns.time is not None else None
        histories = user_histories(dataset, log.ids("user"), before)
    else:
        histories = given_histories(dataset, log.frame["history"])
    found = probabilities(served, histories, items, temperature=temperature, reporter=reporter)
    readable = histories.readable
    unknown = int(np.sum((items < 0) & readable))
    left_out, nobody = int(np.sum(~readable)), int(np.sum(histories.users < 0))
    notes = []
    if unknown:
        notes.append(f"{unknown:,} rows show items that the catalogue lacks: the run never takes "
                     "them")
    if left_out:
        whose = f" ({nobody:,} of users that the dataset lacks)" if nobody else ""
        notes.append(f"{left_out:,} rows are left out, which have no history to read{whose}")
    if histories.unknown:
        notes.append(f"{histories.unknown:,} items of histories are not in the catalogue, and "
                     "were passed over")
    if served.config.evaluate.filter_seen:
        notes.append("the run's policy may take seen items again, although evaluate.filter_seen "
                     "is true")
    supported = float(np.mean(found.supported[readable])) if readable.any() else 0.0
    shown = len(np.unique(items[items >= 0]))
    about = {"run": served.run.folder.name, "step": served.step, "temperature": temperature,
             "split_hash": dataset.split_hash, "left_out": left_out, "unknown_items": unknown,
             "unknown_history_items": histories.unknown, "catalogue": dataset.num_items,
             "items_shown": shown, "probability_of_items_shown": supported}
    return _Policy(found.logged, about, notes)
