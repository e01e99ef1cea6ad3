"""A picture of vectors in two dimensions, coloured by a column of a table.

The two dimensions are those in which the vectors differ most (principal components), which shows
what the largest differences are about, and nothing that is not there; how much of the whole they
hold stands on the axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax.data.dataset import Dataset
from rec_jax.data.item_files import read_table
from rec_jax.data.item_vectors import open_item_vectors
from rec_jax.errors import InputError
from rec_jax.files import atomic_writer
from rec_jax.inference.export import ABOUT, load_embeddings

COLOURS = 9
"""Values with a colour of their own, the most frequent ones; others are grey."""
MOST = 20_000
Floats = npt.NDArray[np.floating[Any]]


def principal_plane(vectors: Floats) -> tuple[Floats, Floats]:
    """Places f64 `[N, 2]` along the two directions of most variance, and the shares `[2]` of it.

    vectors: `[N, d]` with N >= 3. Directions have no sign: each is turned so that its largest
    entry is positive.
    """
    centred = np.asarray(vectors, np.float64)
    centred = centred - centred.mean(axis=0)
    values, directions = np.linalg.eigh(centred.T @ centred)
    top = directions[:, ::-1][:, :2]
    if top.shape[1] < 2:
        top = np.pad(top, ((0, 0), (0, 1)))
    largest = top[np.abs(top).argmax(axis=0), np.arange(2)]
    shares = np.append(values[::-1], 0)[:2] / max(values.sum(), np.finfo(float).tiny)
    return centred @ (top * np.where(largest < 0, -1, 1)), shares


def write_map(source: Path | str, out: Path | str, *, colour: str | None = None,
              table: Path | str | None = None, id: str = "item_id", vectors: str | None = None,
              most: int = MOST) -> dict[str, Any]:
    """Write a PNG of the vectors of an export, or of `item_vectors/NAME.npy` of a dataset.

    vectors: that NAME, where `source` is a dataset. colour: a column of `table`, a CSV, TSV or
    Parquet file whose column `id` has the ids; of several values in a cell, separated by a comma
    or a bar, the first counts. most: vectors that are drawn; of items the first ones, which are
    the most popular.

    Raises:
      InputError: there are no such vectors, fewer than three have a row, or the table is of no use.
    """
    if Path(out).suffix != ".png":
        raise InputError(f"the picture is {out}; expected a name that ends in .png")
    if (colour is None) != (table is None):
        raise InputError("a colour is a column of a table; expected both or neither")
    if most < 3:
        raise InputError(f"{most} vectors make no picture; expected 3 or more")
    ids, found = _vectors_of(Path(source), vectors, most)
    labels = None if colour is None or table is None else _labels(ids, table, id, colour)
    there = np.isfinite(found).all(axis=1) & found.any(axis=1)
    if there.sum() < 3:
        raise InputError(f"{source} has {int(there.sum())} vectors that can be drawn; expected 3 "
                         "or more")
    places, shares = principal_plane(found[there])
    shown = None if labels is None else labels.filter(pl.Series(there))
    with atomic_writer(Path(out)) as file:
        _picture(places, shares, shown, colour).savefig(file, format="png", dpi=120)
    return {"picture": str(out), "vectors": int(there.sum()), "of": len(ids),
            "variance_shares": shares.tolist(),
            "coloured": None if shown is None else len(shown) - shown.null_count()}


def _vectors_of(source: Path, name: str | None, most: int) -> tuple[pl.Series, Floats]:
    if (source / ABOUT).is_file():
        if name is not None:
            raise InputError(f"{source} is an export; a name of item vectors ({name!r}) is of a "
                             "dataset")
        made = load_embeddings(source)
        return made.ids.head(most), np.asarray(made.vectors[:most], np.float32)
    dataset = Dataset.open(source)
    if name is None:
        raise InputError(f"{source} is a dataset; expected the name of item vectors of it too")
    return (dataset.item_ids().head(most),
            np.asarray(open_item_vectors(dataset, name).vectors[:most], np.float32))


def _labels(ids: pl.Series, table: Path | str, id: str, colour: str) -> pl.Series:
    """The first value of each id's cell, null where it has none."""
    rows = read_table(table, {"id": id, "colour": colour}).unique(
        "id", keep="first", maintain_order=True)
    first = pl.col("colour").str.split_exact("|", 1).struct[0].str.split_exact(",", 1).struct[0]
    joined = ids.cast(pl.String).alias("id").to_frame().join(
        rows.select("id", first.str.strip_chars().alias("colour")), on="id", how="left",
        maintain_order="left")["colour"]
    if joined.null_count() == len(joined):
        raise InputError(f"{table} has no value of {colour!r} for any of the ids; expected ids as "
                         f"those of the interactions in its column {id!r}")
    return joined


def _picture(places: Floats, shares: Floats, labels: pl.Series | None, colour: str | None) -> Any:
    """The figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 6), layout="constrained")
    axes = figure.subplots()
    size = float(np.clip(20_000 / len(places), 1, 16))
    for mask, name, paint in groups_of(labels, len(places)):
        axes.scatter(places[mask, 0], places[mask, 1], s=size, linewidths=0, alpha=0.7, color=paint,
                     label=name)
    axes.set(xlabel=f"first principal component ({shares[0]:.1%} of the variance)",
             ylabel=f"second ({shares[1]:.1%})")
    if labels is not None:
        axes.legend(title=colour, frameon=False, markerscale=3, fontsize="small")
    return figure


def groups_of(labels: pl.Series | None, count: int
              ) -> Sequence[tuple[npt.NDArray[np.bool_], str | None, str]]:
    """(which points, name, colour), the grey rest first so that it lies below."""
    if labels is None:
        return [(np.ones(count, bool), None, "C0")]
    counts = labels.drop_nulls().value_counts(sort=True).sort(
        ["count", labels.name], descending=[True, False])
    named = counts[labels.name].head(COLOURS).to_list()
    mask = labels.is_in(named).fill_null(False).to_numpy()
    rest = [(~mask, "other", "0.8")] if not mask.all() else []
    # "C7" is grey, as the rest is.
    paints = [f"C{number}" for number in range(10) if number != 7]
    return rest + [((labels == name).fill_null(False).to_numpy(), name, paint)
                   for name, paint in zip(named, paints, strict=False)]
