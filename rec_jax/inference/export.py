"""Embeddings of items or users as files, with the ids that the source used.

An export is a folder: the vectors in the asked format, `ids.parquet` beside formats that cannot
hold strings, and `export.json`, which says what it is. Vectors pass through in blocks of rows,
so memory does not grow with the catalogue.
"""

from __future__ import annotations

import json
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import tensorstore as ts

from rec_jax import files
from rec_jax.checkpoint import ordered_blocks, read_blocks
from rec_jax.data.arrays import NpyWriter
from rec_jax.errors import InputError, first_line
from rec_jax.inference.asking import map_rounds, tile_queries
from rec_jax.inference.histories import Tiles, iterate_tiles
from rec_jax.inference.served import Served, StoredRows
from rec_jax.jsons import dumps
from rec_jax.mesh import is_first, replicated
from rec_jax.processes import barrier, run_on_all
from rec_jax.progress import Reporter, Silent
from rec_jax.tables import INPUTS, Table
from rec_jax.tables.tiles import rows_of

What = Literal["items", "users", "inputs"]
BLOCK = 65536  # rows
ZARR_CHUNK_BYTES = 4 * 2**20

Blocks = Iterator[np.ndarray]
"""f32 `[b, d]`, consecutive rows."""


@dataclass(frozen=True)
class Embeddings:
    """What `load_embeddings` reads back.

    ids: `[M]`, as the source named them; vectors: f32 `[M, d]`, memory-mapped where the format
    allows; about: the content of `export.json`.
    """

    ids: pl.Series
    vectors: np.ndarray
    about: dict[str, Any]


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
        blocks = _item_blocks(served, what)
    elif isinstance(served, Served):
        blocks = _user_blocks(served)
    else:
        raise InputError("an export of users needs the model; expected what = 'items'")
    reporter = reporter or Silent()
    if is_first():
        reporter.begin(len(ids))
        with files.atomic_folder(out) as folder:
            dim = served.config.table.dim
            WRITERS[format](folder, ids, _counted(blocks, reporter), dim)
            about = {"what": what, "format": format, "count": len(ids), "dim": dim,
                     "dtype": "f32", "run": served.run.folder.name, "step": served.step,
                     "dataset": served.dataset.split_hash}
            (folder / "export.json").write_text(dumps(about, indent=1) + "\n")
    elif isinstance(served, Served):  # its blocks are made by all processes of the mesh
        deque(blocks, maxlen=0)
    barrier("export")
    return out


def _check_out(out: Path, what: str, format: str) -> None:
    """Refuse an export that nobody knows, or whose folder is there already.

    Raises:
      InputError: what is wrong, in one line.
    """
    if format not in WRITERS:
        raise InputError(f"export format {format!r} is unknown; expected one of "
                         f"{', '.join(WRITERS)}")
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
    if not (folder / "export.json").is_file():
        raise InputError(f"{folder} is not an export: export.json is missing")
    try:
        about = json.loads((folder / "export.json").read_text())
        ids, vectors = READERS[about["format"]](folder)
        if vectors.shape != (about["count"], about["dim"]) or len(ids) != about["count"]:
            raise ValueError(f"found {vectors.shape}, expected {about['count']} x {about['dim']}")
    except (ValueError, KeyError, TypeError, EOFError, OSError, pa.ArrowException,
            pl.exceptions.PolarsError) as error:
        first = first_line(error)
        raise InputError(f"export {folder} is damaged: {first}") from None
    return Embeddings(ids, vectors, about)


def _item_blocks(served: Served | StoredRows, what: What) -> Blocks:
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
    mesh, over = served.mesh, served.over

    compose = served.encoder.source.compose if what == "items" else lambda _, found: found

    @jax.jit
    def fetch(params: Any, rows: jax.Array, ids: jax.Array) -> jax.Array:
        found = compose(params, rows_of(mesh, Table(rows, (), total, over), ids))
        return jax.lax.with_sharding_constraint(found, replicated(mesh))

    size = -(-min(BLOCK, total) // mesh.size) * mesh.size
    for first in range(0, total, size):
        ids = np.minimum(np.arange(first, first + size, dtype=np.int32), total - 1)
        yield np.asarray(fetch(served.params, rows, ids))[:total - first]


def _user_blocks(served: Served) -> Blocks:
    dataset, encoder, mesh, over = served.dataset, served.encoder, served.mesh, served.over
    users = np.arange(dataset.num_users)
    ends = np.asarray(dataset.offsets)[1:]

    @jax.jit
    def encode(params: Any, rows: jax.Array, tiles: Tiles) -> jax.Array:
        table = Table(rows, (), dataset.num_items, over)
        return map_rounds(
            mesh, lambda each: tile_queries(mesh, encoder, params, table, each, expanded=False),
            tiles)

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


def _write_npy(folder: Path, ids: pl.Series, blocks: Blocks, dim: int) -> None:
    # Not through a map of the file: a full disk would end the process by a signal.
    with NpyWriter(folder / "embeddings.npy", np.float32, len(ids), dim) as file:
        for block in blocks:
            file.write(block)
        file.close()
    _write_ids(folder, ids)


def _read_npy(folder: Path) -> tuple[pl.Series, np.ndarray]:
    return _read_ids(folder), np.load(folder / "embeddings.npy", mmap_mode="r",
                                      allow_pickle=False)


def _write_safetensors(folder: Path, ids: pl.Series, blocks: Blocks, dim: int) -> None:
    # The library writes whole tensors; the format is a length, a JSON header and the bytes.
    size = len(ids) * dim * 4
    header = json.dumps({"embeddings": {"dtype": "F32", "shape": [len(ids), dim],
                                        "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    with (folder / "embeddings.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, "<f4").tobytes())
    _write_ids(folder, ids)


def _read_safetensors(folder: Path) -> tuple[pl.Series, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / "embeddings.safetensors"
    try:
        return _read_ids(folder), load_file(path)["embeddings"]
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _write_parquet(folder: Path, ids: pl.Series, blocks: Blocks, dim: int) -> None:
    schema = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float32(), dim))])
    first = 0
    # A file of ours: a writer that fails to close leaves its own open.
    with ((folder / "embeddings.parquet").open("wb") as file,
          pq.ParquetWriter(file, schema) as writer):
        for block in blocks:
            names = ids[first:first + len(block)].cast(pl.String).to_list()
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), dim)
            writer.write_table(pa.table([pa.array(names, pa.string()), vectors], schema=schema))
            first += len(block)


def _read_parquet(folder: Path) -> tuple[pl.Series, np.ndarray]:
    table = pq.read_table(folder / "embeddings.parquet")
    vectors = table["embedding"].combine_chunks()
    dim = vectors.type.list_size
    flat = vectors.flatten().to_numpy(zero_copy_only=False)
    return pl.Series("id", table["id"].to_pylist(), pl.String), flat.reshape(-1, dim)


def _write_zarr(folder: Path, ids: pl.Series, blocks: Blocks, dim: int) -> None:
    store = _zarr(folder, len(ids), dim, create=True)
    first = 0
    for block in blocks:
        store[first:first + len(block)].write(block).result()
        first += len(block)
    _write_ids(folder, ids)


def _read_zarr(folder: Path) -> tuple[pl.Series, np.ndarray]:
    store = _zarr(folder, None, None, open=True)
    # A chunk that is missing would be read as zeros.
    rows, dim = store.shape
    chunk = store.chunk_layout.read_chunk.shape[0]
    for number in range(-(-rows // chunk)):
        path = folder / "embeddings.zarr" / "c" / str(number) / "0"
        if path.stat().st_size != chunk * dim * 4 + 4:
            raise ValueError(f"chunk {number} has {path.stat().st_size} bytes, expected "
                             f"{chunk * dim * 4 + 4}")
    return _read_ids(folder), store.read().result()


def _zarr(folder: Path, count: int | None, dim: int | None, **how: Any) -> Any:
    """The zarr v3 array of an export, in chunks of whole rows with a CRC-32C each."""
    spec: dict[str, Any] = {
        "driver": "zarr3", "store_data_equal_to_fill_value": True,
        "kvstore": {"driver": "file", "path": str(folder.absolute() / "embeddings.zarr")}}
    if count is not None and dim is not None:
        chunk = max(1, min(count, ZARR_CHUNK_BYTES // (4 * dim)))
        spec["metadata"] = {
            "shape": [count, dim], "data_type": "float32",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk, dim]}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}},
                       {"name": "crc32c"}]}
    return ts.open(spec, **how).result()


def _write_ids(folder: Path, ids: pl.Series) -> None:
    pl.DataFrame({"id": ids.cast(pl.String)}).write_parquet(folder / "ids.parquet")


def _read_ids(folder: Path) -> pl.Series:
    return pl.read_parquet(folder / "ids.parquet", glob=False)["id"]


Writer = Callable[[Path, pl.Series, Blocks, int], None]
Reader = Callable[[Path], tuple[pl.Series, np.ndarray]]

WRITERS: dict[str, Writer] = {
    "npy": _write_npy, "safetensors": _write_safetensors, "parquet": _write_parquet,
    "zarr": _write_zarr,
}
READERS: dict[str, Reader] = {
    "npy": _read_npy, "safetensors": _read_safetensors, "parquet": _read_parquet,
    "zarr": _read_zarr,
}
