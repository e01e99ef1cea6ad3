"""`rec-jax evaluate`, `export` and `recommend`: what a trained run answers."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from rec_jax.cli import summary
from rec_jax.cli.join import join_processes
from rec_jax.cli.options import with_optional_value
from rec_jax.cli.show import print_json, say
from rec_jax.cli.types import (
    Cold,
    ColdBias,
    ColdVectors,
    Coordinator,
    Data,
    Json,
    Multihost,
    OnMesh,
    Popularity,
    Process,
    Processes,
    RunDir,
    SplitName,
    Step,
    Trust,
    check_split,
    read_fill,
)
from rec_jax.errors import InputError
from rec_jax.solvers import SOLVERS

EvaluateVerb = with_optional_value("--baseline", SOLVERS, "popularity")


def evaluate(
    run: RunDir,
    split: SplitName = "test",
    step: Step = None,
    filter_seen: Annotated[bool | None, typer.Option(
        help="Leave out items of the history; the run's setting by default.")] = None,
    seen_targets: Annotated[str | None, typer.Option(
        help="What a target is that the history holds, if those are left out: a miss, or its user "
             "is left out (leave_out); the run's setting by default.")] = None,
    batch: Annotated[int | None, typer.Option(
        help="Users ranked at once; changes speed only.")] = None,
    event: Annotated[str | None, typer.Option(
        metavar="TYPE", help="Only events of this type are targets; the run's setting by "
                             "default.")] = None,
    cold_users: Annotated[bool | None, typer.Option(
        "--cold-users/--no-cold-users",
        help="Users with nothing before the split, asked by their attributes ([begin]), instead of "
             "all others.")] = None,
    baseline: Annotated[str | None, typer.Option(
        "--baseline", metavar="[NAME,...]",
        help=f"Show popularity beside it, or one or more of {', '.join(SOLVERS)} as `rec-jax "
             "baseline` has them by default.")] = None,
    popularity_bias: Popularity = None,
    cold: Cold = None,
    cold_vectors: ColdVectors = None,
    cold_bias: ColdBias = None,
    data: Annotated[str | None, typer.Option(
        help="Dataset folder, if it moved since training; of a run of a stream: a file, folder or "
             "glob of interactions that it has not learnt.")] = None,
    mesh: OnMesh = None,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    multihost: Multihost = False,
    trust_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Rank the whole catalogue for every user of a split."""
    from rec_jax import api

    check_split(split)
    fill = read_fill(cold, cold_vectors, cold_bias)
    first = join_processes(coordinator, processes, process, multihost)
    model: api.Loadable = run
    bias = None
    if popularity_bias is not None:
        model = loaded = api.load(run, step=step, data=data, mesh=mesh,
                                  trust_code=trust_code, tell=say)
        bias = api.popularity_bias(loaded, popularity_bias)
    result = api.evaluate(model, split=split, step=step,  # type: ignore[arg-type]
                          filter_seen=filter_seen, seen_targets=seen_targets, batch=batch,
                          baseline=_baselines(baseline), bias=bias, event=event, cold=fill,
                          cold_users=cold_users, data=data, mesh=mesh, trust_code=trust_code,
                          progress=not as_json, tell=say)
    if not first:
        return
    if as_json:
        print_json(result)
    else:
        summary.evaluation(result)


def export(
    run: RunDir,
    out: Annotated[str, typer.Option(help="New folder for the files.")],
    what: Annotated[str, typer.Option(help="items, users, or inputs (untied tables).")] = "items",
    format: Annotated[str, typer.Option(help="npy, safetensors, parquet or zarr.")] = "npy",
    cold: Cold = None,
    cold_vectors: ColdVectors = None,
    cold_bias: ColdBias = None,
    step: Step = None,
    data: Data = None,
    mesh: OnMesh = None,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    multihost: Multihost = False,
    trust_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Write embeddings with the ids of the source."""
    from rec_jax import api

    if what not in ("items", "users", "inputs"):
        raise InputError(f"--what is {what!r}; expected items, users or inputs")
    first = join_processes(coordinator, processes, process, multihost)
    folder = api.export(run, out=out, what=what, format=format,  # type: ignore[arg-type]
                        cold=read_fill(cold, cold_vectors, cold_bias), step=step, data=data,
                        mesh=mesh, trust_code=trust_code, progress=not as_json, tell=say)
    if not first:
        return
    about = json.loads((folder / "export.json").read_text())
    if as_json:
        print_json({"folder": str(folder), **about})
    else:
        summary.other(f"Embeddings in {folder}", about, {"what": "rows of", "dim": "width"})


def recommend(
    run: RunDir,
    user: Annotated[str | None, typer.Option(help="A user of the dataset.")] = None,
    history: Annotated[list[str] | None, typer.Option(
        metavar="ID", help="Item ids, oldest first: repeat the option, or separate them by commas "
                           "where no id has one. An option that begins with ? is a query: its "
                           "text.")] = None,
    history_file: Annotated[str | None, typer.Option(
        metavar="FILE", help="The same, one a line.")] = None,
    model: Annotated[str | None, typer.Option(
        metavar="FOLDER", help="With a query that nobody of the dataset searched: the text encoder "
                               "that made the query vectors.")] = None,
    times: Annotated[list[str] | None, typer.Option(
        metavar="TIME", help="Times of the history's items, seconds since 1970 or ISO 8601: "
                             "repeat the option, or separate them by commas.")] = None,
    times_file: Annotated[str | None, typer.Option(
        metavar="FILE", help="The same, one a line.")] = None,
    events: Annotated[list[str] | None, typer.Option(
        metavar="TYPE", help="Types of the history's events: repeat the option, or separate them "
                             "by commas.")] = None,
    events_file: Annotated[str | None, typer.Option(
        metavar="FILE", help="The same, one a line.")] = None,
    attributes: Annotated[list[str] | None, typer.Option(
        metavar="NAME=VALUE", help="Of somebody new, without a history or beside one, for a run "
                                   "with [begin]; or with --users: what is popular among users who "
                                   "have it. May be repeated.")] = None,
    users: Annotated[str | None, typer.Option(
        metavar="FILE", help="With --attributes: CSV, TSV or Parquet with their columns.")] = None,
    user_id: Annotated[str, typer.Option(
        metavar="COLUMN", help="With --attributes: column of user ids.")] = "user_id",
    friend: Annotated[list[str] | None, typer.Option(
        metavar="ID", help="Instead of a user or a history, for somebody new: what this user "
                           "took. May be repeated.")] = None,
    friends: Annotated[str | None, typer.Option(
        metavar="FILE", help="With --friend: friendships, two user ids a line, so that the "
                             "friends' friends count too.")] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="How many items.")] = 10,
    keep_seen: Annotated[bool | None, typer.Option(
        "--keep-seen/--filter-seen", help="Whether items of the history may come again; as the "
                                          "run is evaluated by default.")] = None,
    popularity_bias: Popularity = None,
    cold: Cold = None,
    cold_vectors: ColdVectors = None,
    cold_bias: ColdBias = None,
    step: Step = None,
    data: Data = None,
    mesh: OnMesh = None,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    multihost: Multihost = False,
    trust_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Recommend items to a user, or after a history."""
    from rec_jax import api, lookup
    from rec_jax.data.queries import Query
    from rec_jax.inference import bias, retrieve, typed
    from rec_jax.train.stream_verbs import is_stream

    fill = read_fill(cold, cold_vectors, cold_bias)
    given = _pairs(attributes) if attributes else None
    if users or friend or friends or is_stream(run):
        if model is not None:
            raise InputError("--model is the text encoder of queries in a history, which a run on "
                             "a dataset reads; expected none")
        summary.recommendations(api.recommend(
            run, user=user, history=history or history_file, times=times or times_file,  # type: ignore[arg-type]
            attributes=given, users=users, user_id=user_id,
            friends=friend, friendships=friends, k=k, filter_seen=keep_seen, bias=popularity_bias,  # type: ignore[arg-type]
            events=events or events_file,  # type: ignore[arg-type]
            cold=fill, step=step, data=data, mesh=mesh, trust_code=trust_code, tell=say), as_json)
        return
    if (history and history_file) or (times and times_file) or (events and events_file):
        raise InputError("ids, times and types come from options or from a file, not from both")
    types = (typed.read_lines(events_file) if events_file else
             [name for text in events for name in text.split(",")] if events else None)
    when = typed.read_times(typed.read_lines(times_file) if times_file else times or [])
    first = join_processes(coordinator, processes, process, multihost)
    served = api.load(run, cold=fill, step=step, data=data, mesh=mesh, trust_code=trust_code,
                      tell=say).served
    items: list[str | Query] | None = None
    if history or history_file:
        items = typed.read_history(
            served.dataset, typed.read_lines(history_file) if history_file else history or (),
            whole=bool(history_file))
    if model is not None:
        items = lookup.with_vectors(served, items or [], model)
    found = retrieve.recommend(
        served, user=user, history=items, times=when if times or times_file else None, k=k,
        filter_seen=None if keep_seen is None else not keep_seen, tell=say if first else None,
        events=types, attributes=given,
        bias=None if popularity_bias is None else bias.popularity_bias(served, popularity_bias))
    if not first:
        return
    summary.recommendations(found, as_json)


def _pairs(lines: list[str]) -> dict[str, str]:
    """NAME=VALUE by name."""
    found = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if not (name and equals and value):
            raise InputError(f"--attributes {line!r} is no NAME=VALUE, such as gender=F")
        if name in found:
            raise InputError(f"--attributes says {name!r} twice; expected one value of each")
        found[name] = value
    return found


def _baselines(baseline: str | None) -> bool | str:
    """What `evaluate` shows beside the model; the option alone means popularity."""
    if baseline in (None, "none", "popularity"):
        return baseline == "popularity"
    return str(baseline)
