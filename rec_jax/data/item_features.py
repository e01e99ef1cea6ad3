"""Categorical attributes of items -> small codes by item index.

Each attribute becomes `item_features/NAME.npy`, int32 `[V, K]`: the codes of up to K values of
each item, first ones first, then 0. Code 0 is no value; the categories have codes from 1 on, by
falling number of items that have them (ties: by their text), and `item_features/NAME.parquet`
(code, value, items) names them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rec_jax.data.arrays import NpyWriter
from rec_jax.data.ingest import file_format, file_layout
from rec_jax.data.item_files import as_text, good_rows, read_items
from rec_jax.data.prepare_config import ItemFeature, PrepareConfig
from rec_jax.data.readers import read
from rec_jax.data.source_files import source_files
from rec_jax.errors import InputError

FOLDER = "item_features"
MOST_VALUES = 8
MOST_CATEGORIES = 1 << 16


def write_item_features(config: PrepareConfig, ids: pl.Series,
                        folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the attributes of the items with these `ids` `[V]` and write them into `folder`.

    Returns:
      what `meta.json` says of each (categories, values an item, hash of the categories), and
      the sha256 of the codes, by name.

    Raises:
      InputError: a column is missing, no item has a value, or there are too many categories.
    """
    about: dict[str, Any] = {}
    hashes: dict[str, str] = {}
    if not config.item_features:
        return about, hashes
    (folder / FOLDER).mkdir()
    fields = _read(config, ids)
    for number, feature in enumerate(config.item_features):
        name = feature.label
        lists = _values(fields, number, feature)
        long, vocab = _coded(lists)
        if not len(vocab):
            raise InputError(f"item feature {name!r}: no item of the data set has a value in "
                             f"{', '.join(feature.columns)}")
        if len(vocab) > MOST_CATEGORIES:
            raise InputError(f"item feature {name!r} has {len(vocab)} categories; expected at "
                             f"most {MOST_CATEGORIES}")
        slots = int(long["slot"].max()) + 1  # type: ignore[arg-type,operator]
        codes = np.zeros((len(ids), slots), np.int32)
        codes[long["item"].to_numpy(), long["slot"].to_numpy()] = long["code"].to_numpy()
        with NpyWriter(folder / FOLDER / f"{name}.npy", np.int32, len(ids), slots) as file:
            file.write(codes)
            hashes[f"{FOLDER}/{name}"] = file.close()
        vocab.write_parquet(folder / FOLDER / f"{name}.parquet")
        text = "\n".join([*vocab["value"], ""])
        about[name] = {"categories": len(vocab), "values": slots,
                       "hash": hashlib.sha256(text.encode()).hexdigest()}
    return about, hashes


def _read(config: PrepareConfig, ids: pl.Series) -> pl.DataFrame:
    """The columns of all attributes as text, named f0.0, f0.1, ..; a row for each of `ids`."""
    roles = {f"f{number}.{place}": column for number, feature in enumerate(config.item_features)
             for place, column in enumerate(feature.columns)}
    known = pl.DataFrame({"id": ids}, schema={"id": pl.String})
    found = known.clear().with_columns(pl.lit(None, pl.String).alias(role) for role in roles)
    for frame in _frames(config, roles):
        part = frame.select(pl.col("id", *roles)).filter(
            pl.any_horizontal(pl.col(*roles).is_not_null()))
        part = part.join(known, on="id", how="semi")  # never more than the catalogue
        # Of each column the first value counts, though another row may have another's.
        found = pl.concat([found, part]).group_by("id", maintain_order=True).agg(
            pl.col(role).drop_nulls().first() for role in roles)
    return known.join(found, on="id", how="left", maintain_order="left")


def _frames(config: PrepareConfig, roles: dict[str, str]) -> Iterator[pl.DataFrame]:
    if config.item_file is not None:
        yield from read_items(config.item_file, {"id": config.item_file.id, **roles})[0]
        return
    for source in (file for name in config.sources for file in source_files(name)):
        form = file_format(config, source)
        if form in ("pairs", "lists"):
            raise InputError(f"format {form!r} has no columns of items; item_features need an "
                             "item_file")
        layout = file_layout(config, source, {"id": config.columns.item, **roles})
        for frame in read(source.path, form, layout):
            yield as_text(good_rows(frame), [*roles], source.name)


def _values(fields: pl.DataFrame, number: int, feature: ItemFeature) -> pl.Series:
    """The values of each item: list of text `[V]`, in order, none empty."""
    columns = [fields[f"f{number}.{place}"] for place in range(len(feature.columns))]
    if feature.flags:
        marks = [pl.when(column.str.to_lowercase().is_in(["1", "1.0", "true"]))
                 .then(pl.lit(flag)) for flag, column in zip(feature.flags, columns, strict=True)]
        lists = fields.select(pl.concat_list(marks).alias("values"))["values"]
    elif feature.separator is not None:
        lists = columns[0].str.split(feature.separator).alias("values")
    else:
        lists = fields.select(pl.concat_list(f"f{number}.0").alias("values"))["values"]
    return lists


def _coded(lists: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    """item, slot and code of every value; and code, value and number of items of each category."""
    long = pl.DataFrame({"item": np.arange(len(lists)), "value": lists}).explode(
        "value", empty_as_null=True)
    long = long.with_columns(pl.col("value").str.strip_chars()).filter(
        pl.col("value").is_not_null() & (pl.col("value") != "")).unique(maintain_order=True)
    # The position of a value among the item's; rows of an item stand side by side.
    first = pl.col("item").rle_id()
    long = long.with_columns((pl.int_range(pl.len()).over(first)).alias("slot")).filter(
        pl.col("slot") < MOST_VALUES)
    vocab = long.group_by("value").agg(pl.len().alias("items")).sort(
        ["items", "value"], descending=[True, False])
    vocab = vocab.select(pl.int_range(1, len(vocab) + 1, dtype=pl.Int32, eager=True).alias("code"),
                         "value", "items")
    return long.join(vocab.select("value", "code"), on="value"), vocab
