"""What each verb did, in words for people: which facts, in which order, under which names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rec_jax.cli.show import console, duration, number, print_facts, print_json, print_table

Facts = Iterator[tuple[str, object]]
_DATASET = {
    "users": "users", "items": "items", "interactions": "interactions", "rows": "rows read",
    "blank": "blank lines", "bad": "unreadable rows, skipped",
    "below_min_rating": "rows below the lowest rating",
    "duplicates": "repeated pairs, dropped", "outside_core": "rows outside the k-core",
    "valid_users": "users to validate on", "test_users": "users to test on",
}
_METRICS: Mapping[str, tuple[str, str]] = {
    "rmse": ("", "root of the mean squared error of ratings"),
    "mae": ("", "mean error of ratings"),
    "auc": ("", "pairs of a high and a low rating in order"),
    "hr": ("next item is in the first {}", "next item is found"),
    "ndcg": ("the same, higher places count more", "1 / log2(1 + place)"),
    "mrr": ("1 / its place, 0 behind place {}", "1 / its place"),
    "coverage": ("share of items shown to somebody", "share of items shown"),
    "popularity": ("training count of the first {}", "training count of items shown"),
}
"""Of each family what it says, with a cut-off and without, in the order of the table."""


def dataset(report: Mapping[str, Any]) -> None:
    """What `prepare` made."""
    def facts() -> Facts:
        for name, label in _DATASET.items():
            if report.get(name):
                yield label, number(report[name])
        for reason, count in (report.get("bad_reasons") or {}).items():
            yield "  because", f"{reason} ({number(count)})"
        if report.get("first_time"):
            yield "times", (f"{report['first_time']} to {report['last_time']}, "
                            f"read as {report['time_unit']}")
        if report.get("repeat_share"):
            yield "of which a user had before", f"{report['repeat_share']:.1%} of interactions"
            for name, share in (report.get("repeat_targets") or {}).items():
                yield f"  {name} targets", f"{share:.1%}"
        if report.get("titled_items") is not None:
            yield "items with a title", number(report["titled_items"])
        known = {*_DATASET, "out", "bad_reasons", "bad_lines", "split_hash", "seconds",
                 "first_time", "last_time", "time_unit", "repeat_share", "repeat_targets",
                 "titled_items", "notes"}
        yield from _others(report, known)
        yield "content hash", report["split_hash"]
        yield "time", duration(report["seconds"])

    print_facts(f"Dataset {report['out']}", facts())


def training(summary: Mapping[str, Any]) -> None:
    """What `train` reached."""
    def facts() -> Facts:
        # A run in an environment has neither epochs nor a validation.
        steps, per_epoch = summary["steps"], summary.get("steps_per_epoch")
        epochs = f" ({steps / per_epoch:.3g} epochs)" if per_epoch else ""
        yield "steps", f"{number(steps)}{epochs}"
        for kind, line in (summary.get("before") or {}).items():
            if summary["metric"] in line:
                asked = {"new": "of what is new", "valid": "on validation"}[kind]
                yield f"before training {asked}", (f"{summary['metric']} "
                                                   f"{number(line[summary['metric']])}")
        if summary["best"] is not None:
            best = "best" if per_epoch is None else "best on validation"
            yield best, (f"{summary['metric']} {number(summary['best'])} "
                         f"after step {number(summary['best_step'])}")
        if summary.get("stopped"):
            yield "ended", summary["stopped"]
        trained, frozen = ((summary.get("parameters") or {}).get(name, 0)
                           for name in ("trained", "frozen"))
        if frozen:
            yield "parameters that train", f"{number(trained)} of {number(trained + frozen)}"
        yield "training time", duration(summary["train_seconds"])
        yield from _others(summary, {"run", "steps", "steps_per_epoch", "best", "best_step",
                                     "metric", "stopped", "train_seconds", "table_update",
                                     "protocol", "start_seconds", "before", "parameters"})
        yield "curves", f"{summary['run']}/report.html"

    print_facts(f"Run {summary['run']}", facts())


def evaluation(result: Mapping[str, Any]) -> None:
    """Metrics of `evaluate`, popularity beside them, and how they were measured."""
    metrics, baseline = result["metrics"], result.get("popularity_baseline")
    others = result.get("baselines") or {}
    columns = ["metric", "what it says", "model", *others,
               *(["popularity", "ratio"] if baseline else [])]
    rows = [[name, _meaning(name), number(metrics[name]),
             *(_figure(other["metrics"].get(name)) for other in others.values())]
            for name in sorted(metrics, key=_place)]
    if baseline:
        for row in rows:
            value, other = metrics[row[0]], baseline.get(row[0])
            row += (["", ""] if other is None else
                    [number(other), f"{value / other:.1f}x" if other else ""])
    print_table(columns, rows, numbers=("model", *others, "popularity", "ratio"))
    how_measured(result["protocol"], f"checkpoint of step {number(result['step'])}.")
    if "cold" in result:
        withheld_items(result["cold"])


def withheld_items(result: Mapping[str, Any]) -> None:
    """Metrics of withheld items, among themselves and among all."""
    among_cold, protocol = result["among_cold"], result["protocol"]
    k = min((int(name.partition("@")[2]) for name in among_cold), key=lambda k: abs(k - 10))
    columns = [("cold", f"recall@{k}"), ("cold", f"ndcg@{k}"), ("warm", f"hr@{k}"),
               ("warm", f"ndcg@{k}"), ("both", f"ndcg@{k}")]
    names = [f"{kind} {name}" for kind, name in columns]
    ways = {"among cold": {"cold": among_cold}, **{
        f"among all, {way.replace('_', ' ')}": found
        for way, found in result["among_all"].items()}}
    console().print()
    print_table(["withheld items", *names], [
        [way, *(_figure(found.get(kind, {}).get(name)) for kind, name in columns)]
        for way, found in ways.items()], numbers=names)
    console().print(f"{number(protocol['users_among_cold'])} users met withheld items, of which "
                    f"{number(protocol['filled'])} have rows from content; calibrated with a bias "
                    f"of {result['bias']:.4g}, chosen on {number(protocol['users_validating'])} "
                    "users and tested on the others.")


def how_measured(protocol: Mapping[str, Any], last: str) -> None:
    """The protocol of metrics in two sentences; last: ends the second one."""
    seen = "left out" if protocol["seen_items_filtered"] else "kept"
    cold = ", items that training lacks left out" if protocol.get("cold_items_filtered") else ""
    for name, text in (("users_missed_seen", "users want a seen item, which is a miss"),
                       ("users_left_out_seen", "users left out who want a seen item"),
                       ("users_left_out_cold", "users left out who want a cold item")):
        if protocol.get(name):
            cold += f", {number(protocol[name])} {text}"
    added = (protocol.get("item_bias") or {}).get("strength")
    if added is not None:
        cold += f", {added:g} x log popularity added"
    shown, data = console(), protocol["split_hash"][:12]
    asked = f"{number(protocol['users'])} {protocol['split']} users"
    if protocol["split"] == "stream":  # its data is files, and each interaction is asked
        asked = f"{number(protocol['targets'])} interactions of {number(protocol['users'])} users"
        data = protocol["split_hash"]
    shown.print(f"{asked}, all {number(protocol['candidates'])} items ranked, seen items "
                f"{seen}{cold}, ties {protocol['ties']}.")
    shown.print(f"Data {data}, {last}")


def _figure(value: float | None) -> str:
    return "" if value is None else number(value)


def recommendations(found: Sequence[Any], as_json: bool) -> None:
    """What `recommend` answers: `Recommendation`s, best first."""
    if as_json:
        print_json({"recommendations": [dataclasses.asdict(entry) for entry in found]})
        return
    print_table(["rank", "item", "title", "score"],
                [(entry.rank, entry.item, entry.title or "", f"{entry.score:.3f}")
                 for entry in found], numbers=("rank", "score"))


def doctor(found: Mapping[str, Any]) -> None:
    """What `doctor` found out about this machine."""
    machine = found["machine"]

    def facts() -> Facts:
        yield "cpu", f"{machine['cpu']}, {machine['isa']}, {number(machine['cores'])} cores"
        yield "memory", f"{machine['memory_bytes'] / 2**30:.1f} GiB"
        yield "devices", f"{_plain(found['devices'])} ({found['platform']})"
        if machine.get("held_to"):
            yield "held to", _plain(machine["held_to"])
        yield "versions", _plain(found["versions"])
        yield "compiler", found["compiler"]
        yield "cache", found["cache"]
        yield "compiled programs", found["programs"] or "not kept"

    print_facts("This machine", facts())
    print_table(["fold", "backend", "time", "auto takes it"],
                [(fold, name, _tried(backend), "yes" if name == row["auto"] else "")
                 for fold, row in found["folds"].items()
                 for name, backend in row["backends"].items()])
    if found["settings"]:
        console().print(f"The environment decides: {_plain(found['settings'])}.")


def _tried(backend: Mapping[str, Any]) -> str:
    seconds = backend["seconds"]
    return backend["refused"] or ("not measured" if seconds is None else f"{1e3 * seconds:.2f} ms")


def other(title: str, values: Mapping[str, Any],
          labels: Mapping[str, str] | None = None) -> None:
    """Any other verb's values, under `labels` where there is one."""
    names = labels or {}
    print_facts(title, ((names.get(name, name), value) for name, value in _others(values, set())))


def _others(values: Mapping[str, Any], known: set[str]) -> Facts:
    for name, value in values.items():
        if name in known or value is None or value == "" or value == () or value == [] or (
                value == {}):
            continue
        shown: Callable[[Any], str] = number if isinstance(value, int | float) and not isinstance(
            value, bool) else _plain
        yield name.replace("_", " "), shown(value)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(one)}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _meaning(name: str) -> str:
    family, _, cut = name.partition("@")
    with_cut, without = _METRICS.get(family, ("", ""))
    return with_cut.format(cut) if cut else without


def _place(name: str) -> tuple[int, bool, int, str]:
    """Families in the order of `_METRICS`, rising cut-offs, the whole list last."""
    family, _, cut = name.partition("@")
    known = list(_METRICS)
    where = known.index(family) if family in known else len(known)
    return where, not cut.isdigit(), int(cut) if cut.isdigit() else 0, name
