"""The verbs as functions: what the command line calls and what `import rec_jax` offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import jax

from rec_jax import config as configs
from rec_jax import shipped
from rec_jax.data.dataset import Dataset
from rec_jax.data.queries import Query
from rec_jax.data.vector_files import VectorFile
from rec_jax.devices import parse_devices
from rec_jax.errors import InputError
from rec_jax.inference.bias import Given, ItemBias
from rec_jax.inference.bias import popularity_bias as made_popularity_bias
from rec_jax.inference.cold import ColdFill
from rec_jax.inference.cold_evaluate import evaluate_cold
from rec_jax.inference.evaluate import evaluate_served
from rec_jax.inference.export import What
from rec_jax.inference.export import export as export_served
from rec_jax.inference.protocol import Split
from rec_jax.inference.retrieve import Recommendation, Recommender
from rec_jax.inference.served import (
    Served,
    StoredRows,
    Tell,
    open_rows,
    stores_vectors,
    warn,
)
from rec_jax.inference.verbs import Loadable, PathLike, loaded
from rec_jax.inference.verbs import load as load
from rec_jax.inference.without_history import Newcomer
from rec_jax.mesh import is_first
from rec_jax.plan.compile import compile_step
from rec_jax.plan.estimate import make_plan, nearest_fit
from rec_jax.plan.passing import Ways
from rec_jax.plan.suggest import suggested
from rec_jax.processes import broadcast_text, run_on_all
from rec_jax.progress import reporter_of
from rec_jax.run import Run, RunConfig
from rec_jax.run_sections import EvaluateConfig
from rec_jax.simulate.agent_config import AgentConfig
from rec_jax.simulate.verbs import off_policy as off_policy
from rec_jax.simulate.verbs import simulate as simulate
from rec_jax.simulate.verbs import train_agent
from rec_jax.solvers.compare import BaselineConfig, check_names, compare
from rec_jax.solvers.verbs import baseline as baseline
from rec_jax.solvers.verbs import fit_baseline as fit_baseline
from rec_jax.text.embed_items import EmbedConfig, embed_items
from rec_jax.text.encoder import TextConfig
from rec_jax.train import stream_verbs
from rec_jax.train.continuing import going_on
from rec_jax.train.growing import Start
from rec_jax.train.loop import run_training
from rec_jax.train.merging import merge_adapters as merge_run
from rec_jax.train.opening import AUTO, has_section, open_run
from rec_jax.train.report import write_report


def train(config: RunConfig | AgentConfig | PathLike | None = None, *, run: PathLike | None = None,
          overrides: Sequence[str] = (), resume: PathLike | None = None, force: bool = False,
          start_from: PathLike | None = None, keep_state: bool = False, encoder_only: bool = False,
          continue_from: PathLike | None = None, data: PathLike | None = None,
          stream: Sequence[PathLike] = (), trust_code: bool = False, progress: bool = False,
          since: float | None = None) -> dict[str, Any]:
    """Train a run to its end and write its report; see `RunConfig` for what can be set.

    config: a `RunConfig` or the path of a TOML file, or an `AgentConfig` or a file with
      `[environment]`, whose run plays with simulated users; with `resume` it may be left out, and
      is compared with the run's own where given.
    run: folder of the new run; by default `runs/<name>-<date>`.
    overrides: lines of TOML laid over the file, such as `train.epochs=3`.
    resume: folder of a run to go on with; or "auto": the run in folder `run`, or the newest one
      of this config, or else a new one.
    force: go on although config or dataset changed; what differs is said.
    start_from: folder of a run whose rows and encoder a new run starts with; items are matched
      by id, so the catalogue may have grown. keep_state: its optimizer state too. encoder_only:
      no rows, for another catalogue, whose ids mean other items.
    continue_from: folder of a run that a new one goes on from with its config, now that its dataset
      was appended to in `data`: tested on what is new there, and then trained on it; see
      `rec_jax.train.continuing`. `data` alone: the run has the config of `suggest_config`.
    stream: of a config or run with `[stream]`, files of interactions to learn, period by period, in
      the place of its `data.files`; see `rec_jax.train.stream_run`.
    trust_code: a config may name modules of third parties (a dotted `kind`), which then run.
    since: `time.perf_counter()` when the program began, for the seconds before the first step.

    Returns the summary: run, steps, best metric and its step, seconds, backends of the kernels.

    Raises:
      InputError: the config, the data or the run folder are not as they should be.
    """
    if stream or stream_verbs.learns_stream(config, resume, continue_from):
        return stream_verbs.train_stream(
            config, stream, run=run, overrides=overrides, resume=resume, force=force,
            progress=progress, others={"start_from": start_from, "continue_from": continue_from,
                                       "data": data, "encoder_only": encoder_only,
                                       "keep_state": keep_state})
    for name, asked in (("encoder_only", encoder_only), ("keep_state", keep_state)):
        if asked and start_from is None:
            raise InputError(f"{name} is of a run that starts from another; expected start_from")
    if continue_from is not None:
        if config is not None or data is None or start_from is not None:
            raise InputError("a run that goes on from another one has the config of that one; "
                             "expected the dataset that was appended to, and no config or "
                             "start_from")
        source = Run(Path(continue_from), trust_code)
        config = run_on_all(lambda: going_on(source, str(data), overrides))
        overrides = ()
    elif data is not None:
        alone = config is None and resume in (None, AUTO)
        config = run_on_all(lambda: suggested(str(data), overrides, alone, progress))
        overrides = ()
    if plays(config, resume):
        return train_agent(config, run, overrides, resume, force=force, trust_code=trust_code,
                           start_from=start_from, progress=progress)
    start = (None if start_from is None
             else Start(Run(Path(start_from), trust_code), keep_state=keep_state,
                        encoder_only=encoder_only))
    target, resolved = run_on_all(lambda: open_run(config, run, overrides, resume, force=force,
                                                 trust_code=trust_code))
    target = replace(target, folder=Path(broadcast_text(str(target.folder))))  # its name has a time

    with reporter_of("train", progress) as reporter:
        summary = {"run": str(target.folder), **run_training(
            target, resolved, reporter, force=force, start=start, new=resume is None,
            since=since)}
    if jax.process_index() == 0:
        write_report(target, summary)
    return summary


def merge_adapters(run: PathLike, *, out: PathLike, step: int | None = None,
                   trust_code: bool = False) -> dict[str, Any]:
    """Write run `out`, an ordinary one, with the weights of a run with `[[lora]]`, whose products
    are in its matrices then: of the best checkpoint, or that of `step`. trust_code: see `train`.

    Raises:
      InputError: the run has no adapters, no such checkpoint, or there is a run in `out`.
    """
    return merge_run(Run(Path(run), trust_code), Path(out), step)


def plays(config: RunConfig | AgentConfig | PathLike | None, resume: PathLike | None) -> bool:
    """Whether a run learns in an environment: its config has `[environment]`."""
    if config is not None:
        return has_section("environment", AgentConfig, config)
    return resume not in (None, AUTO) and "environment" in Run(Path(str(resume))).saved_config()


@stream_verbs.also_of_streams(stream_verbs.evaluate)
def evaluate(run: Loadable, *, split: Split = "test", step: int | None = None,
             filter_seen: bool | None = None, seen_targets: str | None = None,
             batch: int | None = None, baseline: bool | str = False, bias: Given | None = None,
             event: str | None = None, cold: ColdFill | str | None = None,
             cold_users: bool | None = None, data: str | None = None, mesh: str | None = None,
             trust_code: bool = False, progress: bool = False, tell: Tell = warn) -> dict[str, Any]:
    """Full-ranking metrics of a run's best checkpoint (or of `step`) with their protocol.

    filter_seen, seen_targets, batch, event, cold_users: replace the config's. baseline: popularity
    beside it, or the models of `baseline` with these names, separated by commas, as they are by
    default. bias: added to the model's scores, one number for each item in the order of the
    dataset (-inf: it is not shown), or a `popularity_bias`; the protocol says so. cold: see `load`;
    of a dataset that withholds items, `cold` of the result says how well these are recommended
    (`rec_jax.inference.cold_evaluate`). step, data, mesh, trust_code, tell: see `load`.

    Raises:
      InputError: also where the protocol leaves nobody to evaluate.
    """
    others = check_names(baseline) if isinstance(baseline, str) else []
    served = loaded(run, cold=cold, step=step, data=data, mesh=mesh, trust_code=trust_code,
                     tell=tell)
    given: dict[str, Any] = {"filter_seen": filter_seen, "seen_targets": seen_targets,
                             "batch": batch, "event": event, "cold_users": cold_users}
    settings = replace(served.config.evaluate, **{
        name: value for name, value in given.items() if value is not None})
    with reporter_of("evaluate", progress and is_first()) as reporter:
        result = evaluate_served(served, split=split, settings=settings,
                                 baseline=baseline is True or "popularity" in others,
                                 bias=bias, reporter=reporter)
        if cold is not None and served.dataset.withheld is not None:
            result["cold"] = evaluate_cold(served, split=split, settings=settings,
                                           reporter=reporter)
        others = [name for name in others if name != "popularity"]
        if others:
            found = compare(served.dataset, others, BaselineConfig(evaluate=settings),
                            split=split, filled=served.filled, say=reporter.say)
            assert {**result["protocol"], **found["protocol"]} == result["protocol"]
            result["baselines"] = found["models"]
    return result


def popularity_bias(model: Recommender | Served, strength: float, prior: float = 1.0) -> ItemBias:
    """What `evaluate` and `recommend` take as `bias`: `strength` times the log of each item's share
    of the labels that the run trains on.

        model = rec_jax.load("runs/x")
        rec_jax.evaluate(model, bias=rec_jax.popularity_bias(model, -0.5))

    Above 0 popular items come earlier, below 0 rare ones. prior: labels that each item is given
    beyond its own, so that no share is 0.

    Raises:
      InputError: strength or prior are out of range.
    """
    return made_popularity_bias(loaded(model), strength, prior)


@stream_verbs.also_of_streams(stream_verbs.export)
def export(run: Loadable, *, out: PathLike, what: What = "items", format: str = "npy",
           cold: ColdFill | str | None = None, step: int | None = None, data: str | None = None,
           mesh: str | None = None, trust_code: bool = False, progress: bool = False,
           tell: Tell = warn) -> Path:
    """Write the embeddings of items, users or inputs, with the source's ids; see
    `load_embeddings`.

    cold, step, data, mesh, trust_code, tell: see `load`. Only users, and cold items, need a model,
    and so a mesh: other rows go from the checkpoint to the file in blocks. Of several processes the
    first one writes.
    """
    # Item rows go from the checkpoint to the file in blocks; only queries need the model.
    served: Served | StoredRows
    if (what == "users" or cold is not None or isinstance(run, Recommender | Served)
            or not stores_vectors(Run(Path(run), trust_code).config())):
        served = loaded(run, cold=cold, step=step, data=data, mesh=mesh, trust_code=trust_code,
                         tell=tell)
    else:
        served = open_rows(Run(Path(run), trust_code), step=step, dataset_path=data,
                           inputs=what == "inputs")
    with reporter_of("export", progress and is_first()) as reporter:
        return export_served(served, out, what=what, format=format, reporter=reporter)


@stream_verbs.also_of_streams(stream_verbs.recommend)
def recommend(run: Loadable, *, user: str | None = None,
              history: Sequence[str | Query] | None = None,
              times: Sequence[int] | None = None, k: int = 10, filter_seen: bool | None = None,
              bias: Given | None = None, cold: ColdFill | str | None = None,
              attributes: Mapping[str, str] | None = None, users: PathLike | None = None,
              user_id: str = "user_id", friends: Sequence[str] | None = None,
              friendships: PathLike | None = None, events: Sequence[str] | None = None,
              step: int | None = None, data: str | None = None, mesh: str | None = None,
              trust_code: bool = False, tell: Tell = warn) -> list[Recommendation]:
    """The k best items for a user of the dataset, or after any history of item ids; fewer where
    no more may be recommended. It loads the model; `load` keeps it for the next question.

    times: seconds of the items of `history`, where the model reads times; events: their types. A
    model that reads queries takes `rec_jax.Query`s between the ids.
    filter_seen: replaces that of the run's `evaluate` section. bias: as for `evaluate`.
    attributes: of somebody new, such as {"gender": "F"}, without a history or beside one, of a run
    with `[begin]`. Or with a table `users` (CSV, TSV, Parquet; ids in the column `user_id`): what
    is popular among those who have them, without a model, see `rec_jax.inference.newcomers`.
    friends: of somebody without a history, users of the dataset: what they took, and by the file
    `friendships` what their friends did, see `rec_jax.inference.friends`. No model is loaded.
    cold, step, data, mesh, trust_code, tell: see `load`.
    """
    others = {"user": user, "history": history, "times": times, "filter_seen": filter_seen,
              "bias": bias, "cold": cold, "events": events, "step": step, "mesh": mesh}
    newcomer = Newcomer(attributes, users, user_id, friends, friendships)
    if newcomer.check(others):
        dataset, settings = _without_model(run, data, trust_code)
        return newcomer.recommend(dataset, k, settings)
    served = loaded(run, cold=cold, step=step, data=data, mesh=mesh, trust_code=trust_code,
                     tell=tell)
    model = run if isinstance(run, Recommender) and cold is None else Recommender(served)
    return model.recommend(user=user, history=history, times=times, k=k, filter_seen=filter_seen,
                           bias=bias, events=events, attributes=attributes)


def _without_model(run: Loadable, data: str | None, trust_code: bool,
                   ) -> tuple[Dataset, EvaluateConfig]:
    if isinstance(run, Recommender | Served):
        served = loaded(run, data=data)
        return served.dataset, served.config.evaluate
    config = Run(Path(run), trust_code).config()
    return Dataset.open(data or config.data.path), config.evaluate


def embed(dataset: PathLike, *, name: str = "text", what: Literal["items", "queries"] = "items",
          model: PathLike | None = None,
          table: PathLike | None = None, id: str | None = None, columns: Sequence[str] = (),
          vectors: PathLike | None = None, ids: PathLike | None = None, pooling: str | None = None,
          normalise: bool | None = None, dtype: str = "f32", max_length: int | None = None,
          prefix: str = "", pca: int | None = None, whiten: bool = False,
          overwrite: bool = False, progress: bool = False) -> dict[str, Any]:
    """Write a vector an item to `DATASET/item_vectors/NAME.npy`: of its text, or ready ones.

    what: queries, the different texts of the dataset's queries, whose vectors lie in
      `DATASET/query_vectors`; ids of ready ones are the texts.
    model: folder of a text encoder (BERT, RoBERTa, GPT-2) as Hugging Face writes it; it reads the
      dataset's titles and text, or the text `columns` of a CSV or Parquet `table`, joined by `id`.
    pooling (mean, cls, last), normalise, max_length: replace what the model's folder says; prefix
      stands before every text; dtype: f32 or bf16, in which it computes.
    vectors: ready ones instead: npy or safetensors with a file of `ids` in the order of the rows,
      or Parquet with a column `id` and one of lists, or the numbers in `columns`.
    pca, whiten: principal components instead of the vectors, and each with variance 1.
    overwrite: replace vectors of that name that are made of something else.

    A killed job goes on where it was at the next call. Returns what `NAME.json` says of the
    vectors, with `folder`, `seconds`, and `reused` where they were there already.

    Raises:
      InputError: a file is not as it should be, or no id is an item's.
    """
    if ids is not None and vectors is None:
        raise InputError("a file of ids is of no use without a file of vectors; expected both")
    config = EmbedConfig(
        name=name, what=what, model=None if model is None else str(model),
        text=TextConfig(pooling, normalise, dtype, max_length, prefix),
        table=None if table is None else str(table), id=id, columns=_names(columns),
        vectors=None if vectors is None else VectorFile(
            str(vectors), None if ids is None else str(ids), id, _names(columns)),
        pca=pca, whiten=whiten, overwrite=overwrite)
    with reporter_of("embed", progress) as reporter:
        return embed_items(Dataset.open(dataset), config, reporter)


def _names(columns: Sequence[str]) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns)


def plan(config: RunConfig | PathLike, *, items: float, devices: str = "cpu",
         overrides: Sequence[str] = (), compiled: bool = False,
         trust_code: bool = False, ways: Mapping[str, float] | None = None) -> dict[str, Any]:
    """What a run over `items` items would need on `devices`; see `rec_jax.plan.Plan`.

    devices: `v5p:4x4x4` (a TPU slice), `h100x8`, or `cpu` for this machine.
    compiled: also compile the step for a TPU slice and add XLA's own figures.
    trust_code: see `train`; ways: measured bytes a second, see `rec_jax.plan.passing.Ways`.

    Raises:
      InputError: unknown devices, or a catalogue that no table can hold.
    """
    for section, there in (("environment", plays(config, None)),
                           ("stream", stream_verbs.learns_stream(config, None))):
        if there:
            raise InputError(f"a config with [{section}] has no plan; expected one of a run on a "
                             "dataset")
    if not isinstance(config, RunConfig):
        config = configs.load(RunConfig, shipped.locate(config), overrides,
                              trust_code=trust_code)
    machine = parse_devices(devices)
    found = make_plan(config, int(items), machine, Ways(**(ways or {})))
    result: dict[str, Any] = {
        "devices": str(machine), "mesh": found.mesh, "mode": found.mode, "reason": found.reason,
        "rows": found.rows,
        "placements": {name: {**one._asdict(), "line": one.line}
                       for name, one in found.placements.items()},
        "memory_bytes": found.memory, "host_memory_bytes": found.host,
        "needed_bytes": found.needed,
        "available_bytes": found.available, "fits": found.fits, "operations": found.operations,
        "exponentials": found.exps, "memory_traffic_bytes": found.traffic,
        "communication_bytes": found.communication, "seconds": found.seconds,
        "step_seconds": found.step_seconds,
        "passing": None if found.passing is None else found.passing._asdict(),
        "fitting_changes": nearest_fit(config, int(items), machine),
    }
    if compiled:
        away = [name for name, one in found.placements.items() if one.where != "device"]
        if away:
            raise InputError(f"the rows of table {away[0]!r} do not lie on the devices, and what "
                             "is compiled ahead has all of them there; expected "
                             "table.placement = 'device', or no --compile")
        result["compiled"] = asdict(compile_step(config, int(items), machine, found.mesh))
    return result
