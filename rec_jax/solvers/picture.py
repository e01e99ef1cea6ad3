"""A comparison of solvers for people: one Markdown table, one plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rec_jax.files import atomic_writer


def columns(result: Mapping[str, Any]) -> list[str]:
    """The metrics that the table shows: HR and NDCG at each cut-off, and MRR."""
    names = list(next(iter(result["models"].values()))["metrics"])
    return [name for name in names if name.startswith(("hr@", "ndcg@")) or name == "mrr"]


def markdown(result: Mapping[str, Any]) -> str:
    """The table of a result of `compare`."""
    shown = columns(result)
    rows = [["model", *shown], ["---", *["---:"] * len(shown)]]
    rows += [[name, *(f"{one['metrics'][metric]:.4f}" for metric in shown)]
             for name, one in result["models"].items()]
    protocol = result["protocol"]
    seen = "left out" if protocol["seen_items_filtered"] else "kept"
    return "\n".join([
        *("| " + " | ".join(cells) + " |" for cells in rows), "",
        f"{protocol['users']:,} {protocol['split']} users, all {protocol['candidates']:,} items "
        f"ranked, seen items {seen}, ties {protocol['ties']}; fitted on the "
        f"{result['fitted_on']}, asked with {result['histories']}.", ""])


def plot(result: Mapping[str, Any], path: Path) -> Path:
    """HR and NDCG at the middle cut-off as bars, a group a model."""
    from matplotlib.figure import Figure

    models = result["models"]
    cuts = [name for name in columns(result) if name.startswith("hr@")]
    cut = cuts[len(cuts) // 2].partition("@")[2]
    figure = Figure(figsize=(6, 0.6 * len(models) + 1.4), layout="constrained")
    axes = figure.subplots()
    places = range(len(models))
    for offset, family, color in ((-0.2, "hr", "C0"), (0.2, "ndcg", "C1")):
        bars = axes.barh([place + offset for place in places],
                         [one["metrics"][f"{family}@{cut}"] for one in models.values()],
                         height=0.38, color=color, label=f"{family.upper()}@{cut}")
        axes.bar_label(bars, fmt="{:.4f}", padding=3)
    axes.set_yticks(list(places), list(models))
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel(f"{result['protocol']['split']} users, mean")
    axes.legend(frameon=False)
    with atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return path
