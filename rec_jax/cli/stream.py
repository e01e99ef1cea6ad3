"""What `rec-jax train` of a stream did, in words for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rec_jax.cli.show import duration, number, print_facts, print_table


def learnt(summary: Mapping[str, Any]) -> None:
    """Each period that was learnt, and where the run stands."""
    metric = summary["metric"]
    columns = {"period": "period", metric: metric, "popularity": f"popularity_{metric}",
               "count": "interactions", "users": "users_live", "items": "items_live",
               "new": "items_new", "gone": "items_gone"}
    if summary["periods"]:
        print_table(list(columns), [
            [number(one[key]) if isinstance(one.get(key), int | float) else one.get(key, "")
             for key in columns.values()] for one in summary["periods"]],
            numbers=list(columns)[1:])
    print_facts(f"Run {summary['run']}", [
        ("steps", number(summary["steps"])),
        ("periods learnt", number(summary["learnt_periods"])),
        ("interactions learnt", number(summary["learnt_interactions"])),
        ("users with a row", number(summary["users_live"])),
        ("items with a row", number(summary["items_live"])),
        ("backends", summary["backends"]),
        ("training time", duration(summary["train_seconds"])),
        ("figures", f"{summary['run']}/metrics.jsonl")])
