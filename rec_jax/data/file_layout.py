"""Which columns of a file are read, and for what; the same for every format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rec_jax.errors import InputError, did_you_mean

BLANK = "blank"
"""The fault of a row where nothing stands."""


@dataclass(frozen=True)
class Layout:
    """How to read one file. roles: role -> column name; the rest as in `PrepareConfig`.

    constants: columns that the file lacks, with the one value that they have in all its rows.
    """

    roles: Mapping[str, str]
    separator: str | None = None
    quote: bool | None = None
    encoding: str = "utf-8"
    names: Sequence[str] = ()
    escape: str | None = None
    constants: Mapping[str, str | None] = field(default_factory=dict)


def locate_columns(layout: Layout, names: Sequence[str], path: Path,
            ) -> tuple[dict[str, int], dict[str, str | None]]:
    """Position of each role's column in the file, and the values of those that it has not."""
    short = [name.partition(":")[0] for name in names]
    picked: dict[str, int] = {}
    constants: dict[str, str | None] = {}
    for role, name in layout.roles.items():
        places = ([place for place, found in enumerate(names) if found == name]
                  or [place for place, found in enumerate(short) if found == name])
        if len(places) > 1:
            raise InputError(f"{path} has {len(places)} columns {name!r}; expected one")
        if places:
            picked[role] = places[0]
        elif name in layout.constants:
            constants[role] = layout.constants[name]
        else:
            find_column(name, [*short, *layout.constants], path)
    return picked, constants


def find_column(name: str, names: Sequence[str], path: Path) -> str:
    """`name`, where the file has it.

    Raises:
      InputError: naming the columns that exist and the nearest one.
    """
    if name in names:
        return name
    hint = did_you_mean(name, names, cutoff=0.3)
    raise InputError(f"{path} has no column {name!r}; it has {', '.join(map(repr, names))}{hint}")
