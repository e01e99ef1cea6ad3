"""The files of an export: how each format writes and reads ids, vectors and biases."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import tensorstore as ts

from rec_jax.data.arrays import NpyWriter

ZARR_CHUNK_BYTES = 4 * 2**20

Blocks = Iterator[np.ndarray]
"""f32 `[b, d]`, consecutive rows."""
Read = tuple[pl.Series, np.ndarray, np.ndarray | None]
"""Ids `[M]`, vectors f32 `[M, d]`, and bias f32 `[M]` where it is asked for."""


def _write_npy(folder: Path, ids: pl.Series, blocks: Blocks, dim: int,
               bias: np.ndarray | None) -> None:
    # Not through a map of the file: a full disk would end the process by a signal.
    with NpyWriter(folder / "embeddings.npy", np.float32, len(ids), dim) as file:
        for block in blocks:
            file.write(block)
        file.close()
    if bias is not None:
        np.save(folder / "item_bias.npy", bias)
    _write_ids(folder, ids)


def _read_npy(folder: Path, biased: bool) -> Read:
    def load(name: str) -> np.ndarray:
        return np.load(folder / name, mmap_mode="r", allow_pickle=False)

    return _read_ids(folder), load("embeddings.npy"), load("item_bias.npy") if biased else None


def _write_safetensors(folder: Path, ids: pl.Series, blocks: Blocks, dim: int,
                       bias: np.ndarray | None) -> None:
    # The library writes whole tensors; the format is a length, a JSON header and the bytes.
    size = len(ids) * dim * 4
    tensors = {"embeddings": {"dtype": "F32", "shape": [len(ids), dim], "data_offsets": [0, size]}}
    if bias is not None:
        tensors["item_bias"] = {"dtype": "F32", "shape": [len(ids)],
                                "data_offsets": [size, size + len(ids) * 4]}
    header = json.dumps(tensors).encode()
    header += b" " * (-len(header) % 8)
    with (folder / "embeddings.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, "<f4").tobytes())
        if bias is not None:
            file.write(np.ascontiguousarray(bias, "<f4").tobytes())
    _write_ids(folder, ids)


def _read_safetensors(folder: Path, biased: bool) -> Read:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / "embeddings.safetensors"
    try:
        tensors = load_file(path)
        return (_read_ids(folder), tensors["embeddings"],
                tensors["item_bias"] if biased else None)
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _write_parquet(folder: Path, ids: pl.Series, blocks: Blocks, dim: int,
                   bias: np.ndarray | None) -> None:
    more = [] if bias is None else [("item_bias", pa.float32())]
    schema = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float32(), dim)), *more])
    first = 0
    # A file of ours: a writer that fails to close leaves its own open.
    with ((folder / "embeddings.parquet").open("wb") as file,
          pq.ParquetWriter(file, schema) as writer):
        for block in blocks:
            names = ids[first:first + len(block)].cast(pl.String).to_list()
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), dim)
            columns = [pa.array(names, pa.string()), vectors]
            if bias is not None:
                columns.append(pa.array(bias[first:first + len(block)], pa.float32()))
            writer.write_table(pa.table(columns, schema=schema))
            first += len(block)


def _read_parquet(folder: Path, biased: bool) -> Read:
    table = pq.read_table(folder / "embeddings.parquet")
    vectors = table["embedding"].combine_chunks()
    dim = vectors.type.list_size
    flat = vectors.flatten().to_numpy(zero_copy_only=False)
    bias = table["item_bias"].to_numpy() if biased else None
    return pl.Series("id", table["id"].to_pylist(), pl.String), flat.reshape(-1, dim), bias


def _write_zarr(folder: Path, ids: pl.Series, blocks: Blocks, dim: int,
                bias: np.ndarray | None) -> None:
    store = _zarr(folder / "embeddings.zarr", (len(ids), dim), create=True)
    first = 0
    for block in blocks:
        store[first:first + len(block)].write(block).result()
        first += len(block)
    if bias is not None:
        _zarr(folder / "item_bias.zarr", bias.shape, create=True).write(bias).result()
    _write_ids(folder, ids)


def _read_zarr(folder: Path, biased: bool) -> Read:
    return (_read_ids(folder), _whole_zarr(folder / "embeddings.zarr"),
            _whole_zarr(folder / "item_bias.zarr") if biased else None)


def _whole_zarr(path: Path) -> np.ndarray:
    store = _zarr(path, None, open=True)
    # A chunk that is missing would be read as zeros.
    rows, *width = store.shape
    chunk = store.chunk_layout.read_chunk.shape[0]
    size = chunk * math.prod(width) * 4 + 4
    for number in range(-(-rows // chunk)):
        found = path.joinpath("c", str(number), *["0"] * len(width)).stat().st_size
        if found != size:
            raise ValueError(f"chunk {number} has {found} bytes, expected {size}")
    return np.asarray(store.read().result())


def _zarr(path: Path, shape: tuple[int, ...] | None, **how: Any) -> Any:
    """A zarr v3 array of an export, in chunks of whole rows with a CRC-32C each."""
    spec: dict[str, Any] = {
        "driver": "zarr3", "store_data_equal_to_fill_value": True,
        "kvstore": {"driver": "file", "path": str(path.absolute())}}
    if shape is not None:
        chunk = max(1, min(shape[0], ZARR_CHUNK_BYTES // (4 * math.prod(shape[1:]))))
        spec["metadata"] = {
            "shape": list(shape), "data_type": "float32",
            "chunk_grid": {"name": "regular",
                           "configuration": {"chunk_shape": [chunk, *shape[1:]]}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}},
                       {"name": "crc32c"}]}
    return ts.open(spec, **how).result()


def _write_ids(folder: Path, ids: pl.Series) -> None:
    pl.DataFrame({"id": ids.cast(pl.String)}).write_parquet(folder / "ids.parquet")


def _read_ids(folder: Path) -> pl.Series:
    return pl.read_parquet(folder / "ids.parquet", glob=False)["id"]


Writer = Callable[[Path, pl.Series, Blocks, int, np.ndarray | None], None]
Reader = Callable[[Path, bool], Read]

WRITERS: dict[str, Writer] = {
    "npy": _write_npy, "safetensors": _write_safetensors, "parquet": _write_parquet,
    "zarr": _write_zarr,
}
READERS: dict[str, Reader] = {
    "npy": _read_npy, "safetensors": _read_safetensors, "parquet": _read_parquet,
    "zarr": _read_zarr,
}
