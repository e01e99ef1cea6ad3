"""Columns that look like times in a source whose times were not asked for."""

from __future__ import annotations

import contextlib
import re

import polars as pl

from rec_jax.data.ingest import file_format, file_layout
from rec_jax.data.prepare_config import PrepareConfig
from rec_jax.data.readers import column_types, read
from rec_jax.data.source_files import source_files
from rec_jax.errors import InputError

_WORDS = {"time", "timestamp", "date", "datetime", "ts", "at", "when", "epoch", "unixtime", "dt",
          "t"}
_ENDINGS = ("time", "timestamp", "datetime")
_SAMPLE = 100
_ISO_DAY = r"^\s*\d{4}-?\d\d-?\d\d([T ]\d\d:?\d\d|\s*$)"


def unused_times(config: PrepareConfig) -> list[str]:
    """One line that names the columns that look like times, if none was asked for; else nothing.

    Columns of dates do, text that is ISO 8601 does, and so do names such as `created_at`.
    """
    if config.columns.time is not None:
        return []
    source = source_files(config.sources[0])[0]
    form = file_format(config, source)
    types = column_types(source.path, form, file_layout(config, source, {}))
    mapped = {config.columns.user, config.columns.item, config.columns.rating,
              config.columns.event, config.columns.query}
    types = {name: kind for name, kind in types.items() if name not in mapped}
    text = [name for name, kind in types.items() if kind == pl.String]
    roles = {f"c{place}": name for place, name in enumerate(text)}
    layout = file_layout(config, source, roles)
    frame = None
    with contextlib.suppress(InputError):  # of a column that nobody asked for
        frame = next(read(source.path, form, layout), None) if text else None
    dates = [] if frame is None else [
        name for role, name in roles.items() if _are_dates(frame[role].head(_SAMPLE))]
    found = [name for name, kind in types.items()
             if isinstance(kind, pl.Date | pl.Datetime) or name in dates or _is_named_so(name)]
    found += [name for name in source.constants if name not in mapped and _is_named_so(name)]
    if not found:
        return []
    names = " and ".join(map(repr, found))
    verb = "look like times" if len(found) > 1 else "looks like a time"
    return [f"no time column was given: the order of the file is taken as the order in time, "
            f"although {names} in {source.name} {verb} (columns.time, or --time)"]


def _are_dates(values: pl.Series) -> bool:
    values = values.drop_nulls()
    return bool(len(values) and values.str.contains(_ISO_DAY).mean() > 0.9)  # type: ignore[operator]


def _is_named_so(name: str) -> bool:
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return (any(word.lower() in _WORDS for word in words)
            or name.lower().endswith(_ENDINGS))
