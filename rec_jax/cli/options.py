"""Errors of the command line speak of its options, not of the config keys that these set.

The layers below know keys alone (`columns.time`). A verb's errors pass through here once: a key
whose value came from an option is called by the option (`--time`); so is one that nothing has set
where there is no config file. A key of a file, or of `--set`, keeps its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import typer
from typer.core import TyperCommand

from rec_jax.cli.show import NobodyReads
from rec_jax.errors import InputError

_KEYS: Mapping[str, Mapping[str, str]] = {
    "prepare": {
        "source": "source", "out": "out", "format": "format", "overwrite": "overwrite",
        "append": "append",
        "columns.user": "user", "columns.item": "item", "columns.time": "time",
        "columns.rating": "rating", "columns.event": "event", "columns.query": "query",
        "filters.min_rating": "min_rating",
        "filters.user_core": "core", "filters.item_core": "core",
        "filters.duplicates": "duplicates", "split.kind": "split",
        "columns.time_unit": "time_unit", "separator": "separator", "quote": "quote",
        "escape": "escape", "item_features": "item_feature", "withheld.share": "withhold"},
    "synth": {"synth.users": "users", "synth.items": "items", "synth.seed": "seed",
              "users": "users", "items": "items", "seed": "seed"},
    "evaluate": {"evaluate.seen_targets": "seen_targets", "evaluate.batch": "batch",
                 "evaluate.event": "event", "evaluate.filter_seen": "filter_seen", "mesh": "mesh",
                 "model": "baseline", "popularity bias": "popularity_bias",
                 "cold.bias": "cold_bias"},
    "baseline": {"evaluate.filter_seen": "filter_seen", "evaluate.seen_targets": "seen_targets",
                 "model": "model", "k": "k"},
    "embed": {name: name for name in ("pca", "whiten", "pooling", "dtype", "max_length", "id",
                                      "overwrite")},
    "pretrain-text": {"optimizer.rate": "rate", "optimizer.warmup": "warmup", **{
        name: name for name in ("rows", "epochs", "steps", "lora", "held_out", "max_length",
                                "save_every", "seed")}},
    "export": {"what": "what", "format": "format", "mesh": "mesh", "cold.bias": "cold_bias"},
    "recommend": {"k": "k", "mesh": "mesh", "popularity bias": "popularity_bias",
                  "cold.bias": "cold_bias"},
    "learn-search": {"search.lexical": "lexical", **{name: name for name in (
        "loss", "epochs", "rows", "rate", "decay", "temperature", "held_out", "seed", "space",
        "name", "step", "data")}},
    "search": {"k": "k", "search.lexical": "lexical", **{name: name for name in (
        "blend", "space", "name", "step", "data")}},
    "simulate": {name: name for name in ("users", "confidence", "seed", "turns")},
    "ope": {name: name for name in (
        "confidence", "resamples", "seed", "cap", "bound_cap", "reward_low", "reward_high",
        "switch", "shrinkage", "temperature")},
    "plan": {"table.dim": "dim", "devices": "devices", "items": "items"},
    "bench softmax": {name: name for name in ("queries", "items", "dim", "rounds")},
    "bench train": {name: name for name in ("steps", "rounds")},
    "bench peers": {name: name for name in ("steps", "rounds", "quality", "goal", "threads")},
}
"""Of each verb: config key (or parameter of the Python call) -> parameter of the verb."""

_PROCESSES = {
    "coordinator, processes and process": "--coordinator, --processes and --process"}
_PHRASES: Mapping[str, Mapping[str, str]] = {
    "train": {"leave `run` out": "leave --run out",
              "train needs a config, or the run to resume":
                  "train needs CONFIG, --data DATASET or --resume RUN",
              "expected the dataset that was appended to, and no config or start_from":
                  "expected --data DATASET, and no CONFIG or --start-from",
              "data is the dataset of": "--data is the dataset of",
              "without a config, or of": "without CONFIG, or of",
              "expected continue_from, or data.path in the config":
                  "expected --continue RUN, or data.path in the config",
              "encoder_only is of a run that starts from another; expected start_from":
                  "--encoder-only is of a run that starts from another; expected --start-from",
              "keep_state is of a run that starts from another; expected start_from":
                  "--keep-state is of a run that starts from another; expected --start-from",
              "expected keep_state or encoder_only": "expected --keep-state or --encoder-only",
              "expected resume and stream": "expected --resume RUN and --stream PATH",
              "stream names files": "--stream names files",
              "start_from is not of a stream": "--start-from is not of a stream",
              "continue_from is not of a stream": "--continue is not of a stream",
              "data is not of a stream": "--data is not of a stream",
              "encoder_only is not of a stream": "--encoder-only is not of a stream",
              "keep_state is not of a stream": "--keep-state is not of a stream",
              **_PROCESSES},
    "embed": {"from a model, or from a file of vectors": "from --model or from --vectors",
              "or set pooling": "or --pooling", "(or set pooling, which": "(or --pooling, which",
              "a file of ids": "a file of ids (--ids)",
              "that holds text; expected": "that holds text (--column); expected"},
    "pretrain-text": {"expected one of them": "expected DATASET or --table",
                      "that holds text; expected": "that holds text (--column); expected"},
    "evaluate": _PROCESSES,
    "export": _PROCESSES,
    "ope": {"temperature, step and data are": "--temperature, --step and --data are",
            "expected a run": "expected --run",
            "reward_low and reward_high": "--reward-low and --reward-high",
            "columns.history": "--history", "columns.user": "--user", "columns.time": "--time"},
    "recommend": {**_PROCESSES,
                  "a user and a history": "a user and a history (--user or --history)",
                  "the history is empty": "--history is empty",
                  "no filter_seen": "no --keep-seen", "no bias": "no --popularity-bias"},
}
_COLUMNS = {"user": "user_id", "item": "item_id", "time": None, "rating": None}


class App(typer.Typer):
    """A Typer whose verbs name their options in errors, and whose help is plain text: what makes
    it colourful takes longer to import than all the rest."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(rich_markup_mode=None, **settings)

    def command(self, name: str | None = None, **settings: Any,  # type: ignore[override]
                ) -> Callable[..., Any]:
        return super().command(name, **{"cls": _Verb, **settings})


class _Verb(TyperCommand):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            error.args = (_in_options(str(error), ctx),)
            raise
        except BrokenPipeError as error:  # typer would end here without a word
            raise NobodyReads from error


def with_optional_value(option: str, known: Collection[str], default: str) -> type[TyperCommand]:
    """A verb whose `option` may stand alone, which means `default`, as a flag would.

    What follows it is its value where it is one or more of `known`, separated by commas, and
    otherwise the verb's next argument; after `=` anything is its value. `--no-...` says "none".
    """
    class Optional(_Verb):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            end = args.index("--") if "--" in args else len(args)
            spelled = list(args[end:])
            while end:
                end -= 1
                word, after = args[end], spelled[:1]
                if word == option.replace("--", "--no-", 1):
                    word = f"{option}=none"
                elif word == option and after and set(after[0].split(",")) <= set(known):
                    word = f"{option}={spelled.pop(0)}"
                elif word == option:
                    word = f"{option}={default}"
                spelled.insert(0, word)
            return super().parse_args(ctx, spelled)

    return Optional


def _in_options(message: str, ctx: Any) -> str:
    verb = ctx.command_path.partition(" ")[2]
    options = {param.name: param.opts[0] if param.opts[0].startswith("-") else
               param.metavar or param.name.upper() for param in ctx.command.params}
    if any(ctx.params.get(name) for name in ("config_path", "config")) or verb == "evaluate":
        named = {name for name in options if _typed(ctx, name)}
    else:
        named = set(options)
    lines = ctx.params.get("settings") or ()
    over = {line.partition("=")[0].strip() for line in lines}
    keys = {key: options[name].strip("[]. ") for key, name in _KEYS.get(verb, {}).items()
            if name in named and key not in over}
    message = translate(message, keys, _PHRASES.get(verb, {}))
    return _with_columns(message, ctx, options, named) if verb == "prepare" else message


def translate(message: str, keys: Mapping[str, str],
              phrases: Mapping[str, str] | None = None) -> str:
    """`message` with each config key of `keys` called by its option.

    A key counts where it is spelled as a key: `a.b`, `a: b`, and one without a dot before what
    follows a name (` = 1`, ` is 1`, `: `) and not behind an article, so that the same word in a
    sentence stays. What is to be false is the option that says no.
    """
    message = message.removeprefix("settings: ").removeprefix("config: ")
    for phrase, other in (phrases or {}).items():
        message = message.replace(phrase, other)
    for key, option in sorted(keys.items(), key=lambda pair: -len(pair[0])):
        name = re.escape(key).replace(r"\.", r"(?:\.|: )")
        message = re.sub(rf"\bkey '{name}' is missing", f"{option} is missing", message)
        after = "" if "." in key else r"(?=: | is | = | '| to be )"
        before = r"(?<![\w./'\"`-])(?<!\ba )(?<!\ban )(?<!\bthe )"
        message = re.sub(rf"{before}{name}(?![\w.]){after}", option, message)
        message = message.replace(f"{option} = true", option)
        message = message.replace(f"{option} = false", option.replace("--", "--no-", 1))
        message = message.replace(f"{option} = ", f"{option} ")
    return message


def _with_columns(message: str, ctx: Any, options: Mapping[str, str],
                  named: set[str]) -> str:
    """A column that a file lacks, with the option that names it."""
    columns = [(name, ctx.params.get(name) or default) for name, default in _COLUMNS.items()]
    columns += [("item_feature", column) for column in ctx.params.get("item_feature") or ()]
    for name, column in columns:
        if column is not None and name in named:
            lacks = f"no column {column!r}"
            message = message.replace(lacks, f"{lacks} ({options[name]})")
    return message


def _typed(ctx: Any, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")
