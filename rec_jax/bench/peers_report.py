"""A comparison with other programs for people: one Markdown table, one plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rec_jax.files import atomic_writer

_OURS = "rec_jax"


def markdown(result: dict[str, Any]) -> str:
    """The table of a result of `bench_peers.run`, failed contenders with the reason."""
    done = [one for one in result["contenders"] if "failed" not in one]
    others = [one["targets_per_second"] for one in done if not one["name"].startswith(_OURS)]
    best = max(others, default=None)
    curves = any("curve" in one for one in done)
    goal = result.get("quality_goal")
    head = ["program", "version", "targets/s", "slowest to fastest round",
            *(["times the best other"] if best else []), "sequences/s", "s an epoch",
            "users ranked/s", "peak MiB", *(["best NDCG@10", "after s"] if curves else []),
            *([f"s to NDCG@10 = {goal:g}"] if goal else [])]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for one in sorted(done, key=lambda one: -one["targets_per_second"]):
        speed = one["targets_per_second"]
        lines.append([
            one["name"], str(one["version"]), f"{speed:,.0f}",
            f"{min(one['runs']):,.0f} to {max(one['runs']):,.0f}",
            *([f"{speed / best:.2f}"] if best else []),
            f"{one['sequences_per_second']:,.1f}", f"{one['seconds_per_epoch']:,.0f}",
            f"{one['users_ranked_per_second']:,.0f}", f"{one['peak_bytes'] / 2**20:,.0f}",
            *(_best_of(one) if curves else []), *([_to_goal(one)] if goal else [])])
    lines += [[one["name"], "", f"failed: {one['failed']}".replace("|", "/"),
               *[""] * (len(head) - 3)] for one in result["contenders"] if "failed" in one]
    data, shapes = result["data"], result["shapes"]
    notes = [f"- {one['name']}: {one['loss']}; {one['notes']}" for one in done]
    return "\n".join([
        f"{data['name']}: {data['num_users']:,} users, {data['num_items']:,} items, "
        f"{data['training_interactions']:,} training interactions. L = {shapes['length']}, "
        f"d = {shapes['dim']}, {shapes['layers']} blocks, {shapes['heads']} heads, "
        f"{shapes['batch']} rows a step, {shapes['threads']} threads, "
        f"{result['rounds']} rounds of {result['steps_a_round']} steps.", "",
        *("| " + " | ".join(cells) + " |" for cells in lines), "", *notes, ""])


def _best_of(one: dict[str, Any]) -> list[str]:
    if not one.get("curve"):
        return ["", ""]
    point = max(one["curve"], key=lambda point: point["ndcg"])
    return [f"{point['ndcg']:.4f}", f"{point['seconds']:,.0f}"]


def _to_goal(one: dict[str, Any]) -> str:
    return "not reached" if one["seconds_to_goal"] is None else f"{one['seconds_to_goal']:,.0f}"


def plot(result: dict[str, Any], path: Path) -> Path:
    """Targets a second as bars and, where it was measured, NDCG@10 against training time."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    done = sorted((one for one in result["contenders"] if "failed" not in one),
                  key=lambda one: one["targets_per_second"])
    curves = [one for one in done if one.get("curve")]
    colors = {one["name"]: f"C{index}" for index, one in enumerate(result["contenders"])}
    figure = Figure(figsize=(10 if curves else 6, 0.5 * len(done) + 1.5), layout="constrained")
    axes = figure.subplots(1, 2 if curves else 1, squeeze=False)[0]
    bars = axes[0].barh([one["name"] for one in done],
                        [one["targets_per_second"] for one in done],
                        color=[colors[one["name"]] for one in done])
    axes[0].bar_label(bars, fmt="{:,.0f}", padding=3)
    axes[0].set_xlabel("targets a second")
    axes[0].xaxis.set_major_locator(MaxNLocator(4))
    axes[0].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes[0].margins(x=0.2)
    for one in curves:
        axes[1].plot([point["seconds"] for point in one["curve"]],
                     [point["ndcg"] for point in one["curve"]], marker="o", markersize=3,
                     label=one["name"], color=colors[one["name"]])
    if curves:
        axes[1].set_xlabel("seconds of training")
        axes[1].set_ylabel("NDCG@10, held-out items")
        axes[1].legend(frameon=False)
    with atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return path
