"""Attributes of users, as codes, and the places in front of a history that are made of them.

    user_attributes/NAME.npy    int32 [U, K]: 0 where it is not known, else 1 + number of the value
    user_attributes/NAME.json   the columns, the values of each in order, of which table, and hashes

They are made of a table once, at the first training that asks for them, and a run reads what lies
there, whatever becomes of the table; a training whose table has changed is refused. `.json` is
written last, so that codes are complete or absent, and a checkpoint has their hash, so that no
other ones are read.

A run with `[begin]` puts P places in front of every history. Place p has the codes of the user's
attributes at p, beside one that all users share, and each code is a row of a small table
(`rec_jax.model.features`): what an encoder reads before the first item, and all that it reads of
somebody without one (prefix tuning: Li and Liang, ACL 2021). The item that comes first is the
label of the last of these places.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax import files, jsons, locks
from rec_jax.data.dataset import Dataset
from rec_jax.data.dataset_check import ids_hash
from rec_jax.data.item_files import read_table
from rec_jax.errors import InputError, did_you_mean
from rec_jax.files import file_hash
from rec_jax.ranges import at_least, check, check_different

FOLDER = "user_attributes"
BEGIN = "features/begin"
"""Path of the table of begin places, and of the codes in a batch."""
FORMAT_VERSION = 1
_PLANNED_VALUES = 16
Codes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class BeginConfig:
    """`[begin]` of a run: learned places in front of every history.

    table: CSV, TSV or Parquet with a row a user, whose ids are in the column `id`.
    columns: its attributes, texts or numbers of few different values.
    id: its column of user ids.
    places: P, how many stand in front of a history.
    name: of the codes beside the dataset; another table needs another one.
    """

    table: str
    columns: tuple[str, ...]
    id: str = "user_id"
    places: int = 2
    name: str = "users"

    def __post_init__(self) -> None:
        check(self, "begin.", places=at_least(1, 64))
        check_different("begin.columns", self.columns)
        if not self.columns:
            raise InputError("begin.columns is empty; expected one attribute or more")
        if Path(self.name).name != self.name or not self.name.replace("_", "").isalnum():
            raise InputError(f"begin.name is {self.name!r}; expected letters, digits and _")

    @property
    def kind(self) -> str:
        """As those of `FeatureConfig`, among which it stands."""
        return "begin"

    @property
    def path(self) -> str:
        """See `FeatureConfig`."""
        return BEGIN


@dataclass(frozen=True)
class UserAttributes:
    """codes: int32 `[U, K]`; values: by column, in the order of its codes; places: P."""

    codes: Codes
    values: Mapping[str, Sequence[str]]
    places: int

    @cached_property
    def _offsets(self) -> npt.NDArray[np.int64]:
        """Of each column's codes in a place, behind the one that all users share."""
        return np.cumsum([1, *map(len, self.values.values())])

    @cached_property
    def hash(self) -> str:
        """Of what a row of the table of begin places means, and of who has it."""
        said = self.codes.tobytes() + repr((self.values, self.places)).encode()
        return hashlib.sha256(said).hexdigest()[:16]

    @property
    def categories(self) -> int:
        """Rows of the table of begin places, but for row 0."""
        return int(self.places * self._offsets[-1])

    def at(self, codes: Codes, place: npt.NDArray[np.integer]) -> Codes:
        """Codes of begin places, int32 `[n, K + 1]`.

        codes: int32 `[n, K]`, of their users; place: int `[n]`, from 0 on.
        """
        first = 1 + place[:, None] * self._offsets[-1]
        own = np.where(codes > 0, first + self._offsets[:-1] + codes - 1, 0)
        return np.concatenate([first, own], axis=1).astype(np.int32)

    def in_front(self, users: Codes) -> Codes:
        """Of the begin places of users with codes int32 `[n, K]`: int32 `[n, P, K + 1]`."""
        count = len(users)
        found = self.at(np.repeat(users, self.places, axis=0),
                        np.tile(np.arange(self.places), count))
        return found.reshape(count, self.places, -1)

    def coded(self, given: Mapping[str, str] | None) -> Codes:
        """The codes int32 `[1, K]` of somebody with these attributes; others are not known.

        Raises:
          InputError: an attribute or its value is unknown.
        """
        found = np.zeros((1, len(self.values)), np.int32)
        for name, value in (given or {}).items():
            if name not in self.values:
                raise InputError(f"attribute {name!r} is unknown{did_you_mean(name, self.values)}; "
                                 f"expected one or more of {', '.join(self.values)}")
            known = list(self.values[name])
            if value not in known:
                raise InputError(f"no user has {name} = {value!r}; expected one of "
                                 f"{', '.join(known[:20])}{' ..' if len(known) > 20 else ''}")
            found[0, list(self.values).index(name)] = 1 + known.index(value)
        return found


def open_attributes(config: BeginConfig, dataset: Dataset) -> UserAttributes:
    """The attributes of the users of `dataset`, made where they are missing.

    Raises:
      InputError: the table cannot be read, or what lies there is of other columns or users.
    """
    place = dataset.folder / FOLDER
    path = place / f"{config.name}.npy"
    about = _read(path)
    if about is None:
        with locks.locked(place, wait=60.0):
            about = _read(path) or _make(config, dataset, path)
    for wrong, what in ((list(about["values"]) != list(config.columns), "other columns"),
                        (about["user_ids"] != ids_hash(dataset.user_ids()), "other users")):
        if wrong:
            raise _other(path, what, config)
    return UserAttributes(np.load(path, allow_pickle=False), about["values"], config.places)


def attributes_to_train(config: BeginConfig | None, dataset: Dataset) -> UserAttributes | None:
    """As `attributes_of`, for a training, whose table is that of the codes, or gone.

    Raises:
      InputError: also where the table has changed since they were made of it.
    """
    found = attributes_of(config, dataset)
    if config is not None and (table := Path(config.table)).is_file():
        path = dataset.folder / FOLDER / f"{config.name}.npy"
        if (_read(path) or {}).get("table") != file_hash(table):
            raise _other(path, "another table", config)
    return found


def _other(path: Path, what: str, config: BeginConfig) -> InputError:
    return InputError(f"{path} is of {what} than begin.table = {config.table!r}; expected another "
                      "begin.name, or no such file")


def attributes_of(config: BeginConfig | None, dataset: Dataset) -> UserAttributes | None:
    """Those that a run reads; None: it reads none."""
    return None if config is None else open_attributes(config, dataset)


def check_trained(config: BeginConfig | None, dataset: Dataset, said: Any) -> None:
    """Raises InputError where other attributes lie beside a dataset than a run was trained with.

    said: of its data position, by the run's checkpoint.
    """
    known = said.get("begin") if isinstance(said, Mapping) else None
    found = attributes_of(config, dataset)
    if config is not None and found is not None and known not in (None, found.hash):
        raise InputError(f"begin: the attributes {config.name!r} beside {dataset.folder} are not "
                         "those that the run was trained with; expected the table that it had")


def read_columns(dataset: Dataset, table: Path | str, columns: Sequence[str],
                 id: str = "user_id") -> dict[str, pl.Series]:
    """Columns of a CSV, TSV or Parquet `table` as text by user, null where it is not known.

    Raises:
      InputError: the table cannot be read, lacks a column, or names no user of the dataset.
    """
    roles = {"id": id, **{f"a{number}": name for number, name in enumerate(columns)}}
    found = read_table(table, roles).unique("id", keep="first", maintain_order=True)
    known = pl.DataFrame({"id": dataset.user_ids()}, schema={"id": pl.String})
    if not len(found.join(known, on="id", how="semi")):
        raise InputError(f"{table} has no user of {dataset.folder} in its column {id!r}; expected "
                         "ids as those of the interactions")
    joined = known.join(found, on="id", how="left", maintain_order="left")
    return {name: joined[f"a{number}"] for number, name in enumerate(columns)}


def _make(config: BeginConfig, dataset: Dataset, path: Path) -> dict[str, Any]:
    found = read_columns(dataset, config.table, config.columns, config.id)
    values = {name: sorted(column.drop_nulls().unique().to_list())
              for name, column in found.items()}
    codes = np.zeros((dataset.num_users, len(values)), np.int32)
    for number, (name, known) in enumerate(values.items()):
        numbers = {value: 1 + place for place, value in enumerate(known)}
        codes[:, number] = [numbers.get(value, 0) for value in found[name]]
    with files.atomic_writer(path) as file:
        np.save(file, codes)
    about = {"format_version": FORMAT_VERSION, "values": values,
             "user_ids": ids_hash(dataset.user_ids()), "sha256": file_hash(path),
             "table": file_hash(Path(config.table)) if Path(config.table).is_file() else None}
    files.write_atomic(path.with_suffix(".json"), jsons.dumps(about, indent=1) + "\n")
    return about


def _read(path: Path) -> dict[str, Any] | None:
    """What lies there, if it is whole."""
    try:
        said: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        whole = said["format_version"] == FORMAT_VERSION and said["sha256"] == file_hash(path)
        return said if whole and {"values", "user_ids", "table"} <= said.keys() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def planned_categories(config: BeginConfig) -> int:
    """Rows of the table, of a dataset that is not known: 16 values of each attribute."""
    return config.places * (1 + _PLANNED_VALUES * len(config.columns))
