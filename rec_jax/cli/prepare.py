"""`rec-jax fetch`, `synth` and `prepare`: where interactions come from, and a dataset of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rec_jax.cli import summary as cli_summary
from rec_jax.cli.show import print_json, print_table, say
from rec_jax.cli.types import Json, Set

if TYPE_CHECKING:
    from rec_jax.tasks import Tasks


def fetch(
    name: Annotated[str | None, typer.Argument(
        metavar="NAME", help="Data set; without a name, all are listed.")] = None,
    out: Annotated[str | None, typer.Option(
        help="Folder for its files; data/NAME by default.")] = None,
    as_json: Json = False,
) -> None:
    """Fetch a public data set. Its hash is checked, and its terms are shown."""
    from rec_jax.data import fetch as fetching
    from rec_jax.data.public_datasets import PUBLIC_DATASETS
    from rec_jax.progress import progress_bar

    if name is None:
        listed = {key: {"about": source.about, "terms": source.terms,
                        "origins": [origin.where for origin in source.origins],
                        "pinned": [origin.pinned for origin in source.origins]}
                  for key, source in PUBLIC_DATASETS.items()}
        _show_sources(listed, as_json)
        return
    with progress_bar("fetch", show=not as_json, unit="bytes") as progress:
        found = fetching.fetch(name, out or f"data/{name}", tell=say if as_json else progress.say,
                               reporter=progress)
    done = {"name": found.name, "folder": found.folder, "origin": found.origin,
            "prepare": f"rec-jax prepare --config {found.config_path}"}
    if as_json:
        print_json(done)
    else:
        cli_summary.other(f"Data set {found.name}", {**done, "name": ""},
                          {"origin": "from", "prepare": "next"})


def synth(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Parquet file to write.")],
    users: Annotated[int, typer.Option(help="How many users.")] = 5_000,
    items: Annotated[int, typer.Option(help="Size of the catalogue.")] = 2_000,
    settings: Set = None,
    seed: Annotated[int, typer.Option(help="Same seed, same rows.")] = 0,
    as_json: Json = False,
) -> None:
    """Generate realistic sessions. `rec-jax config keys synth` lists the settings."""
    from rec_jax import config
    from rec_jax.data.synth import SynthConfig
    from rec_jax.data.synth import synth as generate
    from rec_jax.progress import progress_bar

    given = config.override({"users": users, "items": items, "seed": seed}, settings or ())
    with progress_bar("synth", show=not as_json, unit="users") as progress:
        made = dataclasses.asdict(generate(config.build(SynthConfig, given), out, progress))
    if as_json:
        print_json(made)
    else:
        cli_summary.other(f"Interactions in {out}", made)


def prepare(
    source: Annotated[list[str] | None, typer.Argument(
        metavar="SOURCE", help="CSV, TSV, Parquet or text, also compressed; a file, a folder "
                                    "of files or a glob.")] = None,
    out: Annotated[str | None, typer.Option(help="New dataset folder.")] = None,
    config_path: Annotated[str | None, typer.Option(
        "--config", help="TOML file; `rec-jax config keys prepare` lists its keys.")] = None,
    format: Annotated[str | None, typer.Option(
        help="csv, tsv, parquet, pairs (user item) or lists (user item item ...).")] = None,
    user: Annotated[str | None, typer.Option(help="Column of the user.")] = None,
    item: Annotated[str | None, typer.Option(help="Column of the item.")] = None,
    time: Annotated[str | None, typer.Option(help="Column of the time.")] = None,
    rating: Annotated[str | None, typer.Option(
        help="Column of the rating.")] = None,
    event: Annotated[str | None, typer.Option(
        help="Column of the event's type, such as view, cart or purchase.")] = None,
    query: Annotated[str | None, typer.Option(
        help="Column of the text of a search; a row with one, and no item, is a query.")] = None,
    time_unit: Annotated[str | None, typer.Option(
        help="Unit of numeric times: s, ms, us, ns or YYYYMMDD; found where it is clear.")] = None,
    separator: Annotated[str | None, typer.Option(
        help="Between the fields of a text file.")] = None,
    quote: Annotated[bool | None, typer.Option(
        "--quote/--no-quote", help="Whether fields may be quoted; in CSV they may.")] = None,
    escape: Annotated[str | None, typer.Option(
        help="What stands before a quote inside quotes, such as a backslash.")] = None,
    min_rating: Annotated[float | None, typer.Option(
        help="Drop interactions below it.")] = None,
    core: Annotated[int | None, typer.Option(
        help="k-core: fewest interactions of a user and of an item.")] = None,
    duplicates: Annotated[str | None, typer.Option(
        help="Repeated pairs: all, first or last.")] = None,
    split: Annotated[str | None, typer.Option(
        help="leave_one_out, time or random.")] = None,
    item_feature: Annotated[list[str] | None, typer.Option(
        metavar="COLUMN", help="Categorical column of the items to keep, of the item file or else "
                               "of the interactions; may be repeated.")] = None,
    withhold: Annotated[float | None, typer.Option(
        metavar="SHARE", help="Share of the items that training never sees, to measure what is "
                              "recommended of new ones (rec-jax evaluate --cold).")] = None,
    append: Annotated[str | None, typer.Option(
        metavar="DATASET", help="Add the interactions to those of a dataset, into a new one: ids "
                                "keep their numbers, new ones come behind; columns, filters and "
                                "split are the dataset's by default.")] = None,
    overwrite: Annotated[bool, typer.Option(
        "--overwrite", help="Replace the output folder.")] = False,
    workers: Annotated[int, typer.Option(
        min=1, help="Processes that read the files and sort side by side; the dataset is the "
                    "same.")] = 1,
    ray: Annotated[str | None, typer.Option(
        metavar="ADDRESS", help="Have the workers of a Ray cluster do so: its address, auto or "
                                "local. They must see the files and the output folder.")] = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Turn interactions into a memory-mapped dataset folder."""
    from rec_jax import config
    from rec_jax.data.appended import settings_of
    from rec_jax.data.prepare import prepare as run
    from rec_jax.data.prepare_config import PrepareConfig
    from rec_jax.progress import progress_bar

    flags = _without_none({
        "source": list(source) if source else None, "out": out, "format": format,
        "columns": _without_none({"user": user, "item": item, "time": time, "rating": rating,
                                  "event": event, "query": query, "time_unit": time_unit}),
        "separator": separator and separator.replace(r"\t", "\t"),  # as shells pass it
        "quote": quote, "escape": escape,
        "filters": _without_none({"min_rating": min_rating, "user_core": core, "item_core": core,
                                  "duplicates": duplicates}),
        "split": _without_none({"kind": split}),
        "withheld": _without_none({"share": withhold}), "overwrite": overwrite or None,
        "append": append,
        "item_features": [{"column": name} for name in item_feature] if item_feature else None})
    job = config.read(PrepareConfig, config_path, flags, settings or (),
                      base=None if append is None else settings_of(append))
    with (_tasks(workers, ray) as tasks,
          progress_bar("prepare", show=not as_json, unit="rows") as progress):
        report = run(job, progress, tasks)
    if as_json:
        print_json(_without_none(report.to_dict()))
    else:
        cli_summary.dataset(report.to_dict())
    for line in report.notes:
        say(f"note: {line}")
    for line in report.bad_lines:
        say(f"skipped {line}")


def _tasks(workers: int, ray: str | None) -> AbstractContextManager[Tasks | None]:
    from rec_jax import tasks
    from rec_jax.errors import InputError

    if ray is not None and workers > 1:
        raise InputError(f"--workers {workers} and --ray {ray} exclude each other: Ray has its own "
                         "workers; expected one of them")
    if ray is not None:
        return tasks.ray_cluster(ray)
    return tasks.processes(workers) if workers > 1 else nullcontext()


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None and value != {}}


def _show_sources(listed: Mapping[str, Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(listed)
        return
    print_table(["name", "what", "terms", "checked by"],
                [(name, source["about"], source["terms"], ", ".join(dict.fromkeys(
                    "no pinned hash" if pinned is None else pinned.partition(" ")[0]
                    for pinned in source["pinned"])))
                 for name, source in listed.items()])
