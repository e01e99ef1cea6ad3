"""Embeddings of items or users as files, with the ids that the source used.

An export is a folder: the vectors in the asked format, `ids.parquet` beside formats that cannot
hold strings, and `export.json`, which says what it is. Items of a model with a bias have that too,
one number each, as `item_bias`: a query's score of an item is then query . vector + bias, by which
an index of inner products is asked with a 1 behind the query and the bias behind the vector.
Vectors pass through in blocks of rows, so memory does not grow with their width.
"""

from __future__ import annotations

import contextlib
import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
import pyarrow as pa

from rec_jax import files
from rec_jax.checkpoint import ordered_blocks, read_blocks
from rec_jax.errors import InputError, first_line
from rec_jax.inference.apart_answers import apart_queries
from rec_jax.inference.asking import jitted_queries
from rec_jax.inference.blocks import BLOCK, host_rows, row_blocks
from rec_jax.inference.export_formats import READERS, WRITERS, Blocks
from rec_jax.inference.histories import iterate_tiles
from rec_jax.inference.served import Served, StoredRows
from rec_jax.jsons import dumps
from rec_jax.mesh import is_first
from rec_jax.processes import barrier, run_on_all
from rec_jax.progress import Reporter, Silent
from rec_jax.tables import INPUTS

ABOUT = "export.json"
What = Literal["items", "users", "inputs"]


@dataclass(frozen=True)
class Embeddings:
    """What `load_embeddings` reads back.

    ids: `[M]`, as the source named them; vectors: f32 `[M, d]`, memory-mapped where the format
    allows; about: the content of `export.json`; item_bias: f32 `[M]`, added to query . vector, or
    None where the model has none.
    """

    ids: pl.Series
    vectors: np.ndarray
    about: dict[str, Any]
    item_bias: np.ndarray | None = None


def export(served: Served | StoredRows, out: Path | str, *, what: What = "items",
           format: str = "npy", reporter: Reporter | None = None) -> Path:
    """Write the embeddings of one checkpoint into the new folder `out`.

    served: rows left on disk are enough for items; users need a model that is loaded.
    what: rows of the table, queries after each user's whole history, or the rows that feed the
      encoder where tables are untied.
    format: npy, safetensors, parquet or zarr.

    Of several processes that all call it the first one writes, and the folder is there when it
    returns; the others help to compute.

    Raises:
      InputError: unknown `what` or format, `served` does not have it, or `out` exists.
    """
    out = Path(out)
    run_on_all(lambda: _check_out(out, what, format) if is_first() else None)
    ids = served.dataset.user_ids() if what == "users" else served.dataset.item_ids()
    if what != "users":
        blocks = item_blocks(served, what)
    elif isinstance(served, Served):
        blocks = _user_blocks(served)
    else:
        raise InputError("an export of users needs the model; expected what = 'items'")
    bias = item_bias_of(served) if what == "items" else None
    reporter = reporter or Silent()
    if is_first():
        reporter.begin(len(ids))
        with files.atomic_folder(out) as folder:
            dim = served.config.table.dim
            WRITERS[format](folder, ids, _counted(blocks, reporter), dim, bias)
            about = {"what": what, "format": format, "count": len(ids), "dim": dim,
                     "dtype": "f32", "run": served.run.folder.name, "step": served.step,
                     "dataset": served.dataset.split_hash,
                     **({} if bias is None else {"item_bias": True})}
            (folder / ABOUT).write_text(dumps(about, indent=1) + "\n")
    elif isinstance(served, Served):  # its blocks are made by all processes of the mesh
        deque(blocks, maxlen=0)
    barrier("export")
    return out


def check_format(format: str) -> None:
    """Raises InputError where nothing writes such files."""
    if format not in WRITERS:
        raise InputError(f"export format {format!r} is unknown; expected one of "
                         f"{', '.join(WRITERS)}")


def _check_out(out: Path, what: str, format: str) -> None:
    """Refuse an export that nobody knows, or whose folder is there already.

    Raises:
      InputError: what is wrong, in one line.
    """
    check_format(format)
    if what not in get_args(What):
        raise InputError(f"export of {what!r} is unknown; expected one of "
                         f"{', '.join(get_args(What))}")
    if out.exists():
        raise InputError(f"export folder {out} exists already; choose another one")


def load_embeddings(folder: Path | str) -> Embeddings:
    """Read an export back.

    Raises:
      InputError: the folder is no export, or it is damaged.
    """
    folder = Path(folder)
    while True:
        found = _load(folder)
        # A delta that is applied exchanges the folder for one of the next version.
        if found.about == _load_about(folder):
            return found


def _load_about(folder: Path) -> Any:
    with contextlib.suppress(OSError, ValueError):
        return json.loads((folder / ABOUT).read_text())
    return None


def _load(folder: Path) -> Embeddings:
    if not (folder / ABOUT).is_file():
        raise InputError(f"{folder} is not an export: export.json is missing")
    try:
        about = json.loads((folder / ABOUT).read_text())
        ids, vectors, bias = READERS[about["format"]](folder, bool(about.get("item_bias")))
        if vectors.shape != (about["count"], about["dim"]) or len(ids) != about["count"]:
            raise ValueError(f"found {vectors.shape}, expected {about['count']} x {about['dim']}")
        if bias is not None and (bias.shape != vectors.shape[:1] or bias.dtype != np.float32):
            raise ValueError(f"item_bias is {bias.dtype} {bias.shape}, expected float32 "
                             f"({about['count']},)")
    except (ValueError, KeyError, TypeError, EOFError, OSError, RecursionError, pa.ArrowException,
            pl.exceptions.PolarsError) as error:
        first = first_line(error)
        raise InputError(f"export {folder} is damaged: {first}") from None
    return Embeddings(ids, vectors, about, bias)


def item_blocks(served: Served | StoredRows, what: What) -> Blocks:
    """Vectors of all items in their order, in blocks f32 `[n, d]`."""
    total = served.dataset.num_items
    if isinstance(served, StoredRows):
        if served.inputs != (what == "inputs"):
            raise InputError(f"an export of {what} needs other rows than those that were opened")
        stored = ((block for _, block in read_blocks(served.source, 0, total))
                  if served.row_map.identity else
                  ordered_blocks(served.source, total, served.row_map.rows, size=BLOCK))
        for block in stored:
            yield served.composed(block.astype(np.float32))
        return
    rows = served.rows if what == "items" else served.params.get(INPUTS)
    if rows is None:
        raise InputError("an export of inputs needs untied tables (table.tied = false); expected "
                         "what = 'items'")
    compose = served.encoder.source.compose if what == "items" else None
    yield from row_blocks(served, rows, compose)


def item_bias_of(served: Served | StoredRows) -> np.ndarray | None:
    """f32 `[V]` by item, on every process; None where the model has none."""
    if isinstance(served, StoredRows):
        return served.bias
    if served.bias is None:
        return None
    return host_rows(served, served.bias[:, None])[:, 0]


def _user_blocks(served: Served) -> Blocks:
    dataset, mesh = served.dataset, served.mesh
    users = np.arange(dataset.num_users)
    ends = np.asarray(dataset.offsets)[1:]
    encode = (apart_queries if served.apart else jitted_queries)(
        served.encoder, dataset.num_items, mesh, served.over)
    for first in range(0, len(users), BLOCK):
        part = slice(first, first + BLOCK)
        block = np.zeros((len(users[part]), served.config.table.dim), np.float32)
        for tiles, chosen in iterate_tiles(dataset, users[part], ends[part], None,
                                           reading=served.reading,
                                           batch=served.config.evaluate.batch,
                                           devices=mesh.size):
            found = encode(served.params, served.rows, tiles)
            block[chosen] = np.asarray(found).reshape(-1, found.shape[-1])[:len(chosen)]
        yield block


def _counted(blocks: Blocks, reporter: Reporter) -> Blocks:
    for block in blocks:
        yield block
        reporter.advance(len(block))
