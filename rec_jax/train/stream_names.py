"""The texts of the ids that have rows: what a run of a stream answers with.

A table knows an id by 64 bits of the hash of its text (`rec_jax.tier.text_ids`). The texts of those
that have a row lie beside it, in a file that checks itself: each text has the hash of its id.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from rec_jax.data.vocabulary import Vocabulary
from rec_jax.errors import InputError, first_line
from rec_jax.files import atomic_writer
from rec_jax.tier.text_ids import text_ids


class Hashed(NamedTuple):
    """Texts as ids and checks int64 `[n]`; names: each different one with its `id`."""

    ids: np.ndarray
    checks: np.ndarray
    names: pl.DataFrame


def hashed(texts: pl.Series) -> Hashed:
    """`texts` `[n]`, each different one of which is hashed once."""
    seen = Vocabulary("text")
    codes = seen.encode(texts)
    names = seen.ids()
    found = text_ids(names.to_list())
    return Hashed(found.ids[codes], found.checks[codes],
                  pl.DataFrame({"id": found.ids, "name": names}))


def no_names() -> pl.DataFrame:
    """Names before the first period: columns id, int64, and name, text."""
    return pl.DataFrame(schema={"id": pl.Int64, "name": pl.String})


def names_of(ids: np.ndarray, *known: pl.DataFrame) -> pl.DataFrame:
    """The names of `ids` int64 `[n]`, distinct, in their order, of all that are `known`."""
    every = pl.concat(known).unique("id", keep="first")
    found = pl.DataFrame({"id": ids}).join(every, on="id", how="left", maintain_order="left")
    if found["name"].null_count():
        raise InputError(f"{found['name'].null_count()} ids that have rows have no text; expected "
                         "the files of names that the run wrote")
    return found


def write_names(path: Path, names: pl.DataFrame) -> None:
    """Write a file of names, whole or not at all."""
    with atomic_writer(path) as file:
        names.write_parquet(file)


def read_names(path: Path) -> pl.DataFrame:
    """What `write_names` wrote.

    Raises:
      InputError: there is no such file, or a text in it is not that of its id.
    """
    try:
        names = pl.read_parquet(path, glob=False).cast({"id": pl.Int64, "name": pl.String})
        if names.null_count().sum_horizontal().item() or (
                text_ids(names["name"].to_list()).ids != names["id"].to_numpy()).any():
            raise ValueError("a text is not that of its id")
    except FileNotFoundError:
        raise InputError(f"{path} is missing; expected the texts of the ids of a stream") from None
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path} is damaged: {first_line(error)}") from None
    return names
