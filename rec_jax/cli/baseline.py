"""`rec-jax baseline`: what is solved rather than trained, by the protocol of `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rec_jax.cli.options import App
from rec_jax.cli.show import number, print_json, print_table, say
from rec_jax.cli.summary import how_measured, recommendations, withheld_items
from rec_jax.cli.types import (
    Cold,
    ColdVectors,
    DatasetDir,
    Json,
    Set,
    SplitName,
    check_split,
    read_fill,
)
from rec_jax.errors import InputError
from rec_jax.files import write_atomic
from rec_jax.solvers import SOLVERS

app = App()


@app.command()
def baseline(
    dataset: DatasetDir,
    model: Annotated[str, typer.Option(
        metavar="NAME,...", help=f"One or more of {', '.join(SOLVERS)}.")] = ",".join(SOLVERS),
    tune: Annotated[bool, typer.Option(
        "--tune", help="Choose settings on the validation split, from small grids.")] = False,
    config_path: Annotated[str | None, typer.Option(
        "--config", help="TOML file; `rec-jax config keys baseline` lists its keys.")] = None,
    settings: Set = None,
    split: SplitName = "test",
    filter_seen: Annotated[bool | None, typer.Option(
        help="Leave out items of the history.")] = None,
    seen_targets: Annotated[str | None, typer.Option(
        help="What a target is that the history holds, if those are left out: a miss, or its user "
             "is left out (leave_out).")] = None,
    cold: Cold = None,
    cold_vectors: ColdVectors = None,
    recommend: Annotated[str | None, typer.Option(
        metavar="USER", help="Recommend items to a user instead, by one model.")] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="With --recommend: how many items.")] = 10,
    out: Annotated[str | None, typer.Option(
        help="JSON file to write; a table (.md) and a plot (.png) go beside it.")] = None,
    as_json: Json = False,
) -> None:
    """Popularity, neighbours, EASE and iALS, ranked as trained models are."""
    from rec_jax import api, config
    from rec_jax.solvers.compare import BaselineConfig

    check_split(split)
    given = {name: value for name, value in (("filter_seen", filter_seen),
                                             ("seen_targets", seen_targets)) if value is not None}
    resolved = config.read(BaselineConfig, config_path, {"evaluate": given}, settings or ())
    if out is not None:
        from rec_jax.bench.record import json_path

        json_path(out)
    if recommend is not None:
        if tune or cold is not None or out is not None:
            raise InputError("--recommend shows the list of one user; expected no --tune, --cold "
                             "or --out beside it")
        _recommend(dataset, model, resolved, recommend, k, as_json)
        return
    result = api.baseline(dataset, models=model, settings=resolved, tune=tune,
                          split=split,  # type: ignore[arg-type]
                          cold=read_fill(cold, cold_vectors, None), progress=not as_json)
    written = {} if out is None else {"out": _write(out, Path(dataset).name, result)}
    if as_json:
        print_json({**written, **result})
        return
    _show(result)
    for path in written.values():
        say(f"written to {path}")


def _recommend(dataset: str, model: str, settings: Any, user: str, k: int,
               as_json: bool) -> None:
    from rec_jax import api

    if "," in model:
        raise InputError("--recommend asks one model; expected --model with one name")
    found = api.fit_baseline(dataset, model, settings=settings).recommend(
        user=user, k=k, tell=say)
    recommendations(found, as_json)


def _write(out: str, name: str, result: dict[str, Any]) -> str:
    from rec_jax.bench import record as bench_record
    from rec_jax.solvers import picture

    path = bench_record.record(out, {"dataset": name, **result})
    write_atomic(path.with_suffix(".md"), picture.markdown(result))
    picture.plot(result, path.with_suffix(".png"))
    return str(path)


def _show(result: dict[str, Any]) -> None:
    from rec_jax.solvers import picture

    shown = _few(picture.columns(result))
    columns = ["model", *shown, "fit s", "rank s"]
    print_table(columns, [
        [name, *(number(one["metrics"][metric]) for metric in shown),
         f"{one['fit_seconds']:.1f}", f"{one['rank_seconds']:.1f}"]
        for name, one in result["models"].items()], numbers=columns[1:])
    how_measured(result["protocol"], f"fitted on the {result['fitted_on']}.")
    for name, one in result["models"].items():
        if "cold" in one:
            withheld_items(one["cold"])
        if "tuned" in one:
            grid = one["tuned"]["tried"][0]
            chosen = ", ".join(f"{key} {value}" for key, value in one["settings"].items()
                               if key in grid)
            say(f"{name}: {chosen}, chosen by {one['tuned']['metric']} on validation")


def _few(names: Sequence[str]) -> list[str]:
    """HR and NDCG at up to two cut-offs, and MRR: what a page has room for."""
    return [name for family in ("hr@", "ndcg@", "mrr")
            for name in [each for each in names if each.startswith(family)][-2:]]
