"""`rec-jax config`: the configs that come with the package, and every key that one can have."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from rec_jax import shipped
from rec_jax.cli.options import App
from rec_jax.cli.show import as_is, print_json
from rec_jax.cli.types import DatasetDir, Json
from rec_jax.errors import InputError

app = App(no_args_is_help=True, help="Show the shipped configs and the keys of a config, or make "
                                        "one for a dataset.")

JOBS = {"run": ("rec_jax.run", "RunConfig"),
         "prepare": ("rec_jax.data.prepare_config", "PrepareConfig"),
         "synth": ("rec_jax.data.synth", "SynthConfig"),
         "baseline": ("rec_jax.solvers.compare", "BaselineConfig"),
         "agent": ("rec_jax.simulate.agent_config", "AgentConfig"),
         "stream": ("rec_jax.train.stream_config", "StreamRunConfig")}


@app.command("list")
def list_all(as_json: Json = False) -> None:
    """List the shipped configs; each name works where a config's path does."""
    found = {name: shipped.about(name) for name in shipped.names()}
    if as_json:
        print_json({"configs": [{"name": name, "about": about, "path": str(shipped.locate(name))}
                                for name, about in found.items()]})
    else:
        width = max(map(len, found), default=0)
        for name, about in found.items():
            print(as_is(f"{name:{width}}  {about}"))


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a shipped config.")],
    as_json: Json = False,
) -> None:
    """Print a shipped config, to be read or to begin an own one with."""
    path = shipped.locate(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config {path} cannot be read: {error}") from None
    if as_json:
        print_json({"name": path.stem, "path": str(path), "text": text})
    else:
        print(text, end="")


@app.command()
def suggest(
    data: DatasetDir,
    out: Annotated[str | None, typer.Option(
        metavar="FILE", help="Write the config there; stdout by default.")] = None,
    as_json: Json = False,
) -> None:
    """Print a whole config for a dataset, with the reason of each setting."""
    from rec_jax.files import check_path, write_atomic
    from rec_jax.plan.suggest import suggest_config

    if out is not None and check_path(out).exists():
        raise InputError(f"--out {out} exists; expected the name of a new file")
    text = suggest_config(data)
    if out is not None:
        write_atomic(out, text)
    if as_json:
        print_json({"data": data, "text": text, "out": out})
    elif out is None:
        print(text, end="")
    else:
        print(as_is(out))


@app.command()
def keys(
    job: Annotated[str, typer.Argument(
        metavar="JOB",
        help="run, prepare, synth, baseline, agent or stream: whose config.")] = "run",
    as_json: Json = False,
) -> None:
    """Print every key of a config with its type, its default and what it means."""
    if job not in JOBS:
        raise InputError(f"there is no config of {job!r}; expected one of {', '.join(JOBS)}")
    module, name = JOBS[job]
    found = list(keys_of(getattr(importlib.import_module(module), name)))
    if as_json:
        print_json({"job": job, "keys": [dataclasses.asdict(key) for key in found]})
        return
    for key in found:
        only = f"  (kind {key.kind})" if key.kind else ""
        print(as_is(f"{key.key}: {key.type} = {key.default}{only}"))
        if key.about:
            print(as_is(f"    {key.about}"))


@dataclass(frozen=True)
class Key:
    """One key. kind: the component that has it, where there are several to choose from."""

    key: str
    type: str
    default: str
    about: str
    kind: str = ""


def keys_of(cls: type, prefix: str = "", kind: str = "", given: Any = None) -> Iterator[Key]:
    """The keys of config dataclass `cls` and of those within it, in order.

    given: one of `cls` whose values are the defaults here, where another config holds it.
    """
    hints, about = typing.get_type_hints(cls), _abouts(cls)
    for field in dataclasses.fields(cls):
        name, text = f"{prefix}{field.name}", about.get(field.name, "")
        modules = field.metadata.get("modules")
        nested = None if modules else _nested(hints[field.name])
        if modules:
            default = field.default_factory().kind  # type: ignore[misc,operator]
            yield Key(f"{name}.kind", " or ".join(map(_toml, modules)), _toml(default),
                      text or "which component", kind)
            for one, module in modules.items():
                for key in keys_of(importlib.import_module(module).Config, f"{name}.", one):
                    if key.key != f"{name}.kind":
                        yield key
        elif nested:
            one, several = nested
            held = _value(field) if given is None else getattr(given, field.name)
            yield from keys_of(one, f"{name}[]." if several else f"{name}.", kind,
                               held if isinstance(held, one) else None)
        else:
            default = _default(field) if given is None else _toml(getattr(given, field.name))
            yield Key(name, _type(hints[field.name]), default, text, kind)


def _nested(hint: Any) -> tuple[type, bool] | None:
    """The dataclass that a field holds, and whether it holds several."""
    if dataclasses.is_dataclass(hint):
        return typing.cast(type, hint), False
    for one in typing.get_args(hint):
        if dataclasses.is_dataclass(one):
            return typing.cast(type, one), typing.get_origin(hint) is tuple
    return None


def _type(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_type, arguments))
    if origin is typing.Literal:
        return " or ".join(map(_toml, arguments))
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _default(field: dataclasses.Field[Any]) -> str:
    value = _value(field)
    return "(must be given)" if value is dataclasses.MISSING else _toml(value)


def _value(field: dataclasses.Field[Any]) -> Any:
    """The default of a field, or MISSING."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _toml(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _abouts(cls: type) -> dict[str, str]:
    """What the docstring says of each field: `name: text` or `one, other: text`, and its lines; of
    a field that the class inherits, the docstring that says it last."""
    found: dict[str, str] = {}
    for base in reversed([one for one in cls.__mro__ if dataclasses.is_dataclass(one)]):
        found |= _said(base)
    return found


def _said(cls: type) -> dict[str, str]:
    """What the docstring of `cls` itself says of fields."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(vars(cls).get("__doc__") or "").splitlines():
        head = re.fullmatch(r"(\w+(?:, \w+)*): (.*)", line)
        if head:
            names = head[1].split(", ")
            found |= dict.fromkeys(names, head[2])
        elif line.startswith(" ") and names:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            names = []
    return found
