"""Build benchmarks/README.md from benchmarks/results/*.json: every number, how it was measured.

    python benchmarks/report.py             # writes the page
    python benchmarks/report.py --check     # exit code 1 if the page is not what the files say

A result is shown by the first section whose keys it has; one that no section knows is shown as it
is, so that no recorded result is missing from the page.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rec_jax.bench import peers_report as bench_peers_report
from rec_jax.solvers import picture

HERE = Path(__file__).resolve().parent
Result = Mapping[str, Any]

_INTRO = """# Benchmarks

Every number on this page was read from a file in [results/](results) by `python
benchmarks/report.py`; under each table stand the command, the machine and the date of its
measurement. Compare within a table: other tables met other days, machines and loads.

To measure here: `rec-jax bench softmax`, `rec-jax bench train CONFIG --vary data.pack=true,false`,
and beside other programs `python benchmarks/peers/setup.py rectools recbole torch` (environments
of their own) with `rec-jax bench peers DATASET`; the scripts of this folder say the rest.
"""
_MOST_ROWS = 24  # of a list that is shown as it is


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; numbers are shown to three or four digits and stand on the right."""
    right = [bool(rows) and all(isinstance(row[index], int | float | None) for row in rows)
             for index in range(len(head))]
    lines = [list(head), ["---:" if one else "---" for one in right],
             *([show(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def show(value: object) -> str:
    """A cell: integers whole, floats to four digits, text without what would end the cell."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value).replace("|", "/").replace("\n", " ")


def quality(results: Mapping[str, Result]) -> str:
    """Trained models on the test split; beside each the popularity baseline."""
    rows = []
    for name, one in results.items():
        config, test = one["config"], one["test"]
        rows.append([
            f"[{name}](results/{name})", config["data"]["path"], config["encoder"]["kind"],
            config["objective"]["kind"], config["table"]["update"], config["table"]["dim"],
            config["seed"], test["hr@10"], test["ndcg@10"],
            one["popularity_baseline"]["ndcg@10"], one["seconds_per_epoch"],
            one["seconds_to_best"], one["protocol"].get("cold_items_filtered", False)])
    protocol = next(iter(results.values()))["protocol"]
    seen = "left out" if protocol["seen_items_filtered"] else "kept"
    return table(["result", "data", "encoder", "objective", "table", "d", "seed", "HR@10",
                  "NDCG@10", "popularity NDCG@10", "s an epoch", "s to the best",
                  "cold items left out"], rows) + (
        f"\n\nThe whole catalogue is ranked, seen items {seen}, ties {protocol['ties']}; "
        f"{protocol['target']}.") + over_seeds(results)


def over_seeds(results: Mapping[str, Result]) -> str:
    """Mean and range of runs that differ in their seed alone; nothing where there are none."""
    groups: dict[str, list[tuple[str, Result]]] = {}
    for name, one in results.items():
        config = {key: value for key, value in one["config"].items() if key != "seed"}
        # Neither what computes an encoder nor how many users validate is another recipe.
        for section, names in (("encoder", ("backend", "attention")), ("evaluate", ("users",))):
            config[section] = {key: value for key, value in config.get(section, {}).items()
                               if key not in names}
        same = json.dumps(config)
        groups.setdefault(same, []).append((name, one["test"]))
    rows = [[Path(runs[0][0]).stem, len(runs), *(f"{np.mean(found):.4f} ({min(found):.4f} to "
                                                f"{max(found):.4f})" for found in (
                [test[metric] for _, test in runs] for metric in ("hr@10", "ndcg@10")))]
            for runs in groups.values() if len(runs) > 1]
    if not rows:
        return ""
    return "\n\n" + table(["runs that differ in the seed", "seeds", "HR@10", "NDCG@10"], rows)


def baselines(results: Mapping[str, Result]) -> str:
    """What is solved rather than trained: a table and a plot a data set."""
    parts = []
    for name, one in results.items():
        parts.append(f"{one['dataset']}:\n\n" + picture.markdown(one).strip())
        plot = Path(name).with_suffix(".png")
        if (HERE / "results" / plot).exists():
            parts.append(f"![{plot.stem}](results/{plot})")
    return "\n\n".join(parts)


def models(results: Mapping[str, Result]) -> str:
    """All models on one dataset, the best first; seconds of a run are in the file."""
    parts = []
    for one in results.values():
        rows = [[name, ", ".join(str(run["seed"]) for run in model["runs"]), model["parameters"],
                 model["mean"]["hr@10"], model["mean"]["ndcg@10"]]
                for name, model in sorted(one["models"].items(),
                                          key=lambda each: -each[1]["mean"]["ndcg@10"])]
        protocol = one["protocol"]
        parts.append(f"{one['dataset']}, {protocol['users']:,} users, {protocol['ranking']}, ties "
                     f"{protocol['ties']}:\n\n"
                     + table(["model", "seeds", "parameters", "HR@10", "NDCG@10"], rows))
    return "\n\n".join(parts)


def peers(results: Mapping[str, Result]) -> str:
    """Other programs: the table that `rec-jax bench peers` prints, and its plot."""
    parts = []
    for name, one in results.items():
        parts.append(bench_peers_report.markdown(one).strip())
        plot = Path(name).with_suffix(".png")
        if (HERE / "results" / plot).exists():
            parts.append(f"![{plot.stem}](results/{plot})")
    return "\n\n".join(parts)


def training(results: Mapping[str, Result]) -> str:
    """Throughput of a config and its variants."""
    return table(
        ["result", "variant", "items", "rows x L", "ms a step", "positions/s", "targets/s",
         "users/s", "share of peak", "compile s"],
        [[Path(name).stem, one["name"], one["items"], f"{one['rows']} x {one['length']}",
          one["step_seconds"] * 1e3, one["positions_per_second"], one["targets_per_second"],
          one["sequences_per_second"], f"{one['share_of_peak']:.0%}", one["compile_seconds"]]
         for name, result in results.items() for one in result["variants"]])


def softmax(results: Mapping[str, Result]) -> str:
    """The streamed kernels against materialised scores."""
    return "\n\n".join(table(
        [title, "N", "V", "d", "seconds", "times the first", "extra MiB"],
        [[one["name"], cell["n"], cell["v"], cell["d"], one["seconds"],
          one["seconds"] / cell["contenders"][0]["seconds"],
          None if one["extra_bytes"] is None else one["extra_bytes"] / 2**20]
         for cell in result[key] for one in cell["contenders"]])
        for result in results.values()
        for key, title in (("loss", "loss and both gradients"), ("rank", "rank of the targets"))
        if result[key])


def packing(results: Mapping[str, Result]) -> str:
    """Useful share of positions, and what it gains."""
    return table(
        ["data", "L", "useful, packed", "useful, padded", "rows, padded over packed",
         "targets/s packed", "targets/s padded", "ratio"],
        [[name, one["length"], one["last"]["useful_packed"], one["last"]["useful_padded"],
          one["last"]["rows_ratio"], *(one["training"][key] for key in (
              "targets_per_second_packed", "targets_per_second_padded", "ratio"))]
         for result in results.values() for name, one in result["sets"].items()])


def table_updates(results: Mapping[str, Result]) -> str:
    """What a step costs as the catalogue grows: alone in its process, and sizes in turn."""
    parts = []
    for result in results.values():
        in_turn = result.get("interleaved_median_seconds", {})
        rows = []
        for one in result["runs"]:
            both = in_turn.get(str(one["items"])) if one["mode"] == result["workload"] else None
            rows.append([one["mode"], one["items"], result["dim"], one["dtype"],
                         one["median_step_seconds"] * 1e3, None if both is None else both * 1e3,
                         one["table_and_state_bytes"] / 2**20,
                         one["peak_over_table_bytes"] / 2**20])
        parts.append(table(["table", "items", "d", "type", "ms a step", "ms, sizes in turn",
                            "table and state MiB", "peak over table MiB"], rows))
    return "\n\n".join(parts)


def preparing(results: Mapping[str, Result]) -> str:
    """Interactions to a dataset folder."""
    return table(["job", "rows", "users", "items", "seconds", "rows/s", "peak MiB"],
                 [[name, one["rows"], one["users"], one["items"], one["seconds"],
                   one["rows_per_second"], one["peak_rss_bytes"] / 2**20]
                  for result in results.values() for name, one in result["jobs"].items()])


def mutation(results: Mapping[str, Result]) -> str:
    """Random small faults in the code, and the share of them that tests find."""
    parts = []
    for result in results.values():
        shown = ("run", "killed", "timeout", "survived", "share", "share_at_least")
        rows = {**result["rooms"], "all": result}
        parts += [
            f"{result['run']} of {result['drawn']} faults, drawn by seed {result['seed']} from "
            f"{result['mutations']:,} in {result['files']} files, one at a time. A fault that runs "
            "five times as long as the tests do is killed by time. The last column is the lower "
            "bound of Wilson's 95 % interval.",
            table(["room", "run", "killed", "by time", "survived", "share that dies", "at least"],
                  [[name, *(one[key] for key in shown)] for name, one in rows.items()]),
            "Survivors, all of which count, even those that change nothing:",
            table(["where", "function", "reached by a test", "change"],
                  [[f"{one['file']}:{one['line']}", one["function"] or "", one["reached"],
                    _changed_lines(one["diff"])] for one in result["survivors"]])]
    return "\n\n".join(parts)


def _changed_lines(diff: str) -> str:
    """The lines of a patch that differ, on one line."""
    parts = {sign: " ".join(line[1:].strip() for line in diff.splitlines() if line[:1] == sign)
             for sign in "-+"}
    return f"`{parts['-']}` to `{parts['+']}`"


def as_it_is(results: Mapping[str, Result]) -> str:
    """Any result: its plain values by their path, lists of records as tables."""
    parts = []
    for name, result in results.items():
        body = {key: value for key, value in result.items() if key not in _STAMP}
        values, lists = _flatten(body, "")
        parts.append(f"### {Path(name).stem.replace('_', ' ')}")
        if values:
            parts.append(table(["what", "value"], values))
        for path, records in lists:
            flat = [dict(_plain(one)) for one in records]
            shown = list(dict.fromkeys(key for one in flat for key in one))
            rows = [[one.get(key) for key in shown] for one in flat[:_MOST_ROWS]]
            more = len(records) - len(rows)
            parts.append(f"{path}:\n\n" + table(shown, rows) + (
                f"\n\nand {more} more in the file" if more else ""))
    return "\n\n".join(parts)


def _plain(record: Result, path: str = "") -> list[tuple[str, object]]:
    """The plain values of one record, nested ones too; lists stay in the file."""
    found: list[tuple[str, object]] = []
    for key, below in record.items():
        if isinstance(below, dict):
            found += _plain(below, f"{path}{key}, ")
        elif not isinstance(below, list):
            found.append((f"{path}{key}".replace("_", " "), below))
    return found


def _flatten(value: Result, path: str) -> tuple[list[list[object]], list[tuple[str, Any]]]:
    values: list[list[object]] = []
    lists: list[tuple[str, Any]] = []
    for key, below in value.items():
        name = f"{path}{key}".replace("_", " ")
        if isinstance(below, dict):
            more, others = _flatten(below, f"{path}{key}, ")
            values += more
            lists += others
        elif isinstance(below, list) and below and all(isinstance(x, dict) for x in below):
            lists.append((name, below))
        elif isinstance(below, list):
            values.append([name, f"{len(below)} values" if len(below) > 8
                           else ", ".join(map(show, below)) or "none"])
        else:
            values.append([name, below])
    return values, lists


class Section(NamedTuple):
    """keys: what a result of this kind has; build: results by file name -> Markdown."""

    title: str
    keys: frozenset[str]
    build: Callable[[Mapping[str, Result]], str]


SECTIONS = (
    Section("Quality", frozenset({"test", "protocol", "config", "seconds_to_best"}), quality),
    Section("Baselines", frozenset({"models", "fitted_on", "histories"}), baselines),
    Section("All models under one protocol", frozenset({"models", "protocol", "dataset"}), models),
    Section("Beside other programs", frozenset({"contenders", "shapes"}), peers),
    Section("Training throughput", frozenset({"variants", "peak_operations_per_second"}),
            training),
    Section("The streamed softmax", frozenset({"loss", "rank", "threads"}), softmax),
    Section("Packing", frozenset({"sets", "rows_a_batch"}), packing),
    Section("A step as the catalogue grows", frozenset({"workload", "runs"}), table_updates),
    Section("Preparing data", frozenset({"jobs", "source_bytes"}), preparing),
    Section("Faults that the tests find", frozenset({"mutations", "survivors"}), mutation),
    Section("Further results", frozenset(), as_it_is),
)
_STAMP = ("date", "command", "machine", "versions")


def page(results: Mapping[str, Result]) -> str:
    """The whole page from results by file name."""
    left = dict(sorted(results.items()))
    parts = [_INTRO.strip()]
    for section in SECTIONS:
        found = {name: one for name, one in left.items() if section.keys <= one.keys()}
        left = {name: one for name, one in left.items() if name not in found}
        if found:
            parts += [f"## {section.title}", section.build(found),
                      "\n".join(_origin(name, one) for name, one in found.items())]
    return "\n\n".join(parts) + "\n"


def _origin(name: str, result: Result) -> str:
    machine, versions = result["machine"], result["versions"]
    devices = [kind for kind in machine["devices"] if kind != "cpu"]
    where = ", ".join([*devices, machine["cpu"], f"{machine['cores']} cores",
                       f"{machine['memory_bytes'] / 2**30:.0f} GiB"])
    return (f"- [{name}](results/{name}): `{result['command']}`; {where}; "
            f"Python {versions['python']}, JAX {versions.get('jax', 'absent')}; "
            f"{result['date'][:10]}")


def read_results(folder: Path) -> dict[str, Result]:
    """Every JSON file of a folder, by name."""
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    options = parser.parse_args()
    text, target = page(read_results(HERE / "results")), HERE / "README.md"
    if options.check:
        same = target.exists() and target.read_text() == text
        print("as the files say" if same else "differs: run python benchmarks/report.py")
        return 0 if same else 1
    target.write_text(text)
    print(f"written: {target.name}, {len(text.splitlines())} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
