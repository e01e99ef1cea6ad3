"""Who is evaluated on what, and what becomes of a target that nobody may be recommended.

A protocol that filters seen items forbids to recommend a target that its user has met before. Such
a target is a miss, or its user is left out (`evaluate.seen_targets`). Users whose target is an
item that does not compete (`evaluate.filter_cold`) are always left out. Both are counted, and the
counts stand beside every number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.run_sections import EvaluateConfig

Split = Literal["valid", "test"]
AnySplit = Literal["valid", "test", "new"]
"""`new`: what was appended to the dataset before, of which every interaction is a target."""

_MOST = 1 << 20  # interactions that are looked at together


@dataclass(frozen=True)
class Panel:
    """The users that are evaluated, and who is not.

    users: int64 `[M]`, rising; targets: int32 `[M]`; ends: int64 `[M]`, absolute ends of their
    histories in `dataset.items`.
    seen: bool `[M]`, the target is in the user's own history.
    left_out_seen, left_out_cold: users of the whole split who are left out because their target
      is seen, or cold.
    """

    users: np.ndarray
    targets: np.ndarray
    ends: np.ndarray
    seen: np.ndarray
    left_out_seen: int = 0
    left_out_cold: int = 0


def choose_panel(dataset: Dataset, split: AnySplit, settings: EvaluateConfig,
                 limit: int | None = None, seed: int = 0,
                 filled: np.ndarray | None = None) -> Panel:
    """The users of a split that `settings` evaluate; `limit` of them by a seeded shuffle.

    filled: as `cold_items` takes it.

    Raises:
      InputError: nobody has a target in the split, or everybody is left out.
    """
    cold = cold_items(dataset, settings, filled)
    everybody = dataset.targets(split, settings.event, settings.cold_users)
    users, targets, ends = everybody if cold is None else _take(everybody, ~cold[everybody[1]])
    if not len(everybody[0]):
        if settings.event is not None:
            raise InputError(f"dataset {dataset.folder} has no event {settings.event!r} to "
                             f"{_VERB[split]} on; expected a split that holds some out "
                             "(split.event of `rec-jax prepare`)")
        if settings.cold_users:
            raise InputError(f"dataset {dataset.folder} has no user to {_VERB[split]} on who has "
                             "nothing before (evaluate.cold_users); expected a time split")
        raise InputError(f"dataset {dataset.folder} has no user to {_VERB[split]} on; expected "
                         "users with at least three items, or a time split with a period for it")
    warm = len(users)
    leaves_out = settings.filter_seen and settings.seen_targets == "leave_out"
    if leaves_out:
        unseen = ~seen_targets(dataset, users, targets, ends)
        users, targets, ends = _take((users, targets, ends), unseen)
    left_out_seen, left_out_cold = warm - len(users), len(everybody[0]) - warm
    if not len(users):
        raise InputError(
            f"dataset {dataset.folder} has nobody left to {_VERB[split]} on: of "
            f"{len(everybody[0])} users {left_out_seen} are left out because their target is in "
            f"their history (evaluate.seen_targets = leave_out), and {left_out_cold} because it "
            "is cold (evaluate.filter_cold)")
    users, targets, ends = _sample((users, targets, ends), limit, seed)
    seen = (np.zeros(len(users), bool) if leaves_out
            else seen_targets(dataset, users, targets, ends))
    return Panel(users, targets, ends, seen, left_out_seen, left_out_cold)


_VERB = {"valid": "validate", "test": "test", "new": "evaluate"}
_TARGET = {"valid": "first item of the split", "test": "first item of the split",
           "new": "every new interaction, asked after all before it"}
_Columns = tuple[np.ndarray, np.ndarray, np.ndarray]


def choose_users(dataset: Dataset, split: Split, limit: int | None, seed: int,
                 cold: np.ndarray | None = None) -> _Columns:
    """Users, targets and history ends of a split, whether or not their targets are seen.

    limit: so many of them, by a seeded shuffle.
    cold: bool `[V]`; users whose target is such an item are left out.
    """
    everybody = dataset.targets(split)
    return _sample(everybody if cold is None else _take(everybody, ~cold[everybody[1]]),
                   limit, seed)


def cold_items(dataset: Dataset, settings: EvaluateConfig, filled: np.ndarray | None = None
               ) -> np.ndarray | None:
    """Items that do not compete, bool `[V]`, or None: withheld ones, of which a model knows
    nothing, and with `evaluate.filter_cold` all that never occur in the training part.

    filled: bool `[V]`, items that compete in any case, since content gave them rows.
    """
    if settings.filter_cold:
        cold = dataset.popularity() == 0
    elif dataset.withheld is not None:
        cold = dataset.is_withheld()
    else:
        return None
    return cold if filled is None else cold & ~filled


def seen_targets(dataset: Dataset, users: np.ndarray, targets: np.ndarray,
                 ends: np.ndarray) -> np.ndarray:
    """Whether each target is in its user's history, bool `[M]`; reads every history once."""
    starts = np.asarray(dataset.offsets)[users]
    lengths = ends - starts
    seen = np.zeros(len(users), bool)
    total = np.concatenate([[0], np.cumsum(lengths)])
    first = 0
    while first < len(users):
        last = max(first + 1, int(np.searchsorted(total, total[first] + _MOST, "right")) - 1)
        owner = np.repeat(np.arange(first, last), lengths[first:last])
        place = starts[owner] + np.arange(total[first], total[last]) - total[owner]
        seen[owner[np.asarray(dataset.items[place]) == targets[owner]]] = True
        first = last
    return seen


def protocol(dataset: Dataset, split: AnySplit, settings: EvaluateConfig, panel: Panel,
             bias: dict[str, Any] | None = None, filled: dict[str, Any] | None = None
             ) -> dict[str, Any]:
    """What somebody needs to know to compare a number with another one.

    `users` are those in the mean; `users_missed_seen` of them are misses by `seen_targets`.
    bias: what is said of numbers that were added to the model's scores; filled: of the rows that
      cold items got; nothing where none were.
    """
    return {
        "split": split, "split_rule": dataset.meta["split"], "split_hash": dataset.split_hash,
        "candidates": dataset.num_items, "users": len(panel.users),
        "target": _TARGET[split] + (", of users with nothing before it"
                                    if settings.cold_users and split != "new" else ""),
        **({} if settings.event is None else {"event": settings.event}),
        "seen_items_filtered": settings.filter_seen,
        "seen_targets": settings.seen_targets if settings.filter_seen else "kept",
        "users_missed_seen": int(panel.seen.sum()) if settings.filter_seen else 0,
        "users_left_out_seen": panel.left_out_seen,
        "cold_items_filtered": settings.filter_cold,
        **({} if dataset.withheld is None else {"withheld": dataset.meta["withheld"]}),
        "users_left_out_cold": panel.left_out_cold, "ties": "against the target",
        "ranking": "full catalogue", **({} if bias is None else {"item_bias": bias}),
        **({} if filled is None else {"cold_items": filled}),
    }


def repeats_line(dataset: Dataset, settings: EvaluateConfig, panel: Panel) -> str | None:
    """One line on what validation does with repeated items; None where no target repeats one.

    panel: of the validation.
    """
    # Who is left out is counted among all, and a panel may be a part of those who are not.
    asked = float(panel.seen.mean()) if not panel.left_out_seen else repeat_share(dataset, "valid")
    shares = {"validation": asked, "test": repeat_share(dataset, "test")}
    if not any(shares.values()):
        return None
    rule = ("evaluate.filter_seen = false: they are ranked like all others"
            if not settings.filter_seen else
            "evaluate.seen_targets = miss: each is a miss, as seen items are never recommended; "
            "evaluate.filter_seen = false would keep them"
            if settings.seen_targets == "miss" else
            "evaluate.seen_targets = leave_out: their users are not evaluated")
    listed = " and ".join(f"{share:.1%} of {name}" for name, share in shares.items())
    return f"{listed} targets repeat an item of their user's history; {rule}"


def repeat_share(dataset: Dataset, split: Split) -> float:
    """Share of a split's targets that are in their user's history: as `prepare` counted it, or
    counted here where the dataset was made before it did."""
    known = dataset.meta.get("repeat_targets")
    if isinstance(known, dict) and isinstance(known.get(split), int | float):
        return float(known[split])
    seen = seen_targets(dataset, *dataset.targets(split))
    return float(seen.mean()) if seen.size else 0.0


def _take(columns: _Columns, which: np.ndarray) -> _Columns:
    users, targets, ends = columns
    return users[which], targets[which], ends[which]


def _sample(columns: _Columns, limit: int | None, seed: int) -> _Columns:
    count = len(columns[0])
    if limit is None or limit >= count:
        return columns
    return _take(columns, np.sort(np.random.default_rng(seed).permutation(count)[:limit]))
