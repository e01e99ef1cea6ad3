"""Frozen dataclasses <-> TOML, strictly.

A config is data: nested frozen dataclasses, built from one TOML file and from overrides that
are themselves single lines of TOML (`optimizer.rate = 1e-3`). An unknown key is an error that
names the nearest known one. A component that can be one of several (an encoder, an objective)
is a field made by `choice`: its `kind` names the module whose `Config` it takes; a dotted
`kind` loads a third party's module the same way, if the caller says `trust_code`: a module runs
when it is loaded, and a config may come from anywhere.
"""

from __future__ import annotations

import dataclasses
import importlib
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from rec_jax.errors import InputError, did_you_mean, first_line
from rec_jax.files import write_atomic

T = TypeVar("T")
NONE = "none"
"""How a config file says `None` where a field has another default: `patience = "none"`."""


def choice(modules: Mapping[str, str], default: str) -> Any:
    """A dataclass field for a component: `kind` -> the module that holds its `Config`."""

    def make_default() -> Any:
        return component_config(modules, default)()

    return dataclasses.field(default_factory=make_default, metadata={"modules": modules})


def component_config(modules: Mapping[str, str], kind: str, *, trust_code: bool = False) -> type:
    """The `Config` class of component `kind`; a dotted kind is a module of a third party.

    trust_code: load such a module, which runs it; this package's own are loaded in any case.

    Raises:
      InputError: there is no such kind, or it is not to be trusted.
    """
    name = modules.get(kind, kind if "." in kind else None)
    if name is None:
        raise InputError(f"unknown kind {kind!r}{_nearest(kind, modules)}")
    if name not in modules.values() and not trust_code:
        raise InputError(f"kind {kind!r} is a module that is not part of rec_jax, and loading it "
                         "runs its code; where you trust that, say --trust-code "
                         "(trust_code=True in Python)")
    try:
        found = importlib.import_module(name).Config
    except Exception as error:  # it runs code that is not ours
        raise InputError(f"kind {kind!r} cannot be loaded: {type(error).__name__}: "
                         f"{first_line(error)}") from error
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise InputError(f"kind {kind!r} cannot be used: its Config is no dataclass")
    return found


def load(cls: type[T], path: Path | str, overrides: Iterable[str] = (), *,
         trust_code: bool = False) -> T:
    """Read TOML file `path`, apply `a.b=c` overrides, and build `cls` from it."""
    return read(cls, path, {}, overrides, trust_code=trust_code)


def read(cls: type[T], path: Path | str | None, values: Mapping[str, Any],
         overrides: Iterable[str] = (), *, base: Mapping[str, Any] | None = None,
         trust_code: bool = False) -> T:
    """`cls` from a TOML file (if any), with nested `values` and then `a.b=c` lines over it, and
    `base` below it."""
    mapping = _merge(base or {}, {} if path is None else read_mapping(path))
    return build(cls, override(_merge(mapping, values), overrides), str(path or "settings"),
                 trust_code=trust_code)


def read_mapping(path: Path | str) -> dict[str, Any]:
    """The plain values of a TOML file; nothing is built of them, and nothing is loaded."""
    return _toml(Path(path))


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"config {path} does not exist; expected a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise InputError(f"config {path} is not readable TOML: {error}") from None
    except RecursionError:
        raise InputError(f"config {path} is not readable TOML: too many brackets in brackets"
                         ) from None


def override(mapping: Mapping[str, Any], lines: Iterable[str]) -> dict[str, Any]:
    """`mapping` with each line (`a.b=c`, one line of TOML) laid over it.

    A value that is no TOML is taken as a bare string, so that `data.path=runs/x` needs no
    quotes in a shell.
    """
    merged = dict(mapping)
    for line in lines:
        key, separator, value = line.partition("=")
        if not separator:
            raise InputError(f"override {line!r} has no '='; expected key.subkey=value")
        try:
            parsed = tomllib.loads(line)
        except RecursionError:
            raise InputError(f"override {line[:40]!r} has too many brackets in brackets") from None
        except tomllib.TOMLDecodeError:
            parsed = _nested(key.strip().split("."), value.strip())
        merged = _merge(merged, parsed)
    return merged


def build(cls: type[T], mapping: Mapping[str, Any], where: str = "config", *,
          trust_code: bool = False) -> T:
    """An instance of dataclass `cls` from `mapping`; unknown keys and wrong types are refused.

    trust_code: a dotted `kind` may load a third party's module, see `component_config`.

    Raises:
      InputError: naming `where`, the key, and what was expected.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key not in fields:
            raise InputError(f"{where}: unknown key {key!r}{_nearest(key, fields)}")
        modules = fields[key].metadata.get("modules")
        label = f"{where}: {key}"
        if modules is not None:
            values[key] = _component(modules, value, label, fields[key], trust_code)
        else:
            values[key] = _convert(hints[key], value, label)
    for name, field in fields.items():
        required = (field.default is dataclasses.MISSING
                    and field.default_factory is dataclasses.MISSING)
        if required and name not in values:
            raise InputError(f"{where}: key {name!r} is missing")
    try:
        return cls(**values)
    except InputError as error:
        source, *keys = where.split(": ")
        named = str(error).startswith(".".join([*keys, ""])) and bool(keys)
        raise InputError(f"{source if named else where}: {error}") from None


def to_mapping(config: Any) -> dict[str, Any]:
    """Nested plain values of a config dataclass.

    TOML has no null: `None` is left out where it is the default, and "none" where it is not.
    """
    result = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None:
            if field.default is None:
                continue
            value = NONE
        result[field.name] = _plain(value)
    return result


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_mapping(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def save(config: Any, path: Path | str) -> None:
    """Write the complete config as TOML, whole or not at all."""
    write_atomic(path, tomli_w.dumps(to_mapping(config)))


def difference(old: Any, new: Any) -> str | None:
    """The first key in which two configs differ, as `a.b: old -> new`; None if they agree.

    old: a config, or its plain mapping as `to_mapping` made it, perhaps of an earlier version:
      what it does not say is what `new` has by default.
    """
    if isinstance(old, Mapping):
        return _difference(_filled(old, new), to_mapping(new), ())
    return _difference(to_mapping(old), to_mapping(new), ())


def _filled(mapping: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """A mapping with the defaults of what it leaves out of the class of `config`."""
    result = dict(mapping)
    for field in dataclasses.fields(config):
        value, said = getattr(config, field.name), result.get(field.name)
        if field.name not in result:
            default = field.default
            if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            if default is not dataclasses.MISSING and default is not None:
                result[field.name] = _plain(default)
        elif dataclasses.is_dataclass(value) and isinstance(said, Mapping):
            result[field.name] = _filled(said, value)
        elif isinstance(value, tuple) and isinstance(said, list) and len(said) == len(value):
            result[field.name] = [
                _filled(one, other) if isinstance(one, Mapping) and dataclasses.is_dataclass(other)
                else one for one, other in zip(said, value, strict=True)]
    return result


def _difference(old: Any, new: Any, path: tuple[str, ...]) -> str | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            found = _difference(old.get(key), new.get(key), (*path, key))
            if found:
                return found
        return None
    return None if old == new else f"{'.'.join(path)}: {old!r} -> {new!r}"


def _component(modules: Mapping[str, str], value: Any, label: str,
               field: dataclasses.Field[Any], trust_code: bool) -> Any:
    if not isinstance(value, Mapping):
        raise InputError(f"{label}: expected a table with a 'kind', got {value!r}")
    default = field.default_factory().kind  # type: ignore[misc,operator]
    try:
        cls = component_config(modules, str(value.get("kind", default)), trust_code=trust_code)
    except InputError as error:
        raise InputError(f"{label}: {error}") from None
    return build(cls, value, label)


def _convert(hint: Any, value: Any, label: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in arguments if option is not type(None)]
        for option in options:
            try:
                return _convert(option, value, label)
            except InputError:
                if option is options[-1] and not (value == NONE and type(None) in arguments):
                    raise
        return None
    if origin is typing.Literal:
        if value not in arguments:
            raise InputError(f"{label}: {value!r} is not one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{label}: expected a list, got {value!r}")
        return tuple(_convert(arguments[0], item, label) for item in value)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise InputError(f"{label}: expected a table, got {value!r}")
        return build(typing.cast(type, hint), value, label)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, Path):
        return str(value)
    if hint is Any or (isinstance(value, hint) and not (hint is int and value is True)
                       and not (hint is int and value is False)):
        return value
    raise InputError(f"{label}: expected {hint.__name__}, got {value!r}")


def _nearest(key: str, known: Iterable[str]) -> str:
    known = list(known)
    return did_you_mean(key, known) or f"; known: {', '.join(sorted(known))}"


def _nested(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        nested = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = _merge(below, value) if nested else value  # type: ignore[arg-type]
    return merged
