"""The files of a dataset folder, opened in the types and sizes that `meta.json` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from rec_jax.data.dataset_check import PARQUET_ERRORS
from rec_jax.data.dataset_files import AGAIN
from rec_jax.data.item_features import FOLDER
from rec_jax.errors import InputError, first_line


class Queries(NamedTuple):
    """The searches of a dataset; see `rec_jax.data.queries`.

    texts: int32 [Q]; positions: int64 [Q]; offsets: int64 [U+1]; times: int64 [Q] seconds, and
    events: uint8 [Q], None where interactions have none.
    """

    texts: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    times: npt.NDArray[np.int64] | None = None
    events: npt.NDArray[np.uint8] | None = None


def queries_in(arrays: Mapping[str, Any]) -> Queries | None:
    """Those of `open_arrays`."""
    if "queries" not in arrays:
        return None
    return Queries(arrays["queries"], arrays["query_positions"], arrays["query_offsets"],
                   arrays.get("query_times"), arrays.get("query_events"))


def open_arrays(folder: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays by the names of their files, memory-mapped, in the types and sizes that
    `meta.json` says; the sizes of the vocabularies are checked too.

    Raises:
      InputError: a file is missing, truncated, or does not belong to the others.
    """
    users, items, count = (int(meta[f"num_{name}"]) for name in ("users", "items", "interactions"))
    arrays = {"offsets": _open_array(folder, "offsets", np.int64, users + 1)}
    offsets = arrays["offsets"]
    if offsets[0] != 0 or offsets[-1] != count:
        raise InputError(f"{folder}/offsets.npy ends at {offsets[-1]}, but meta.json counts "
                         f"{count} interactions; {AGAIN}")
    text = {name: "text" for name in ("title", "text") if name in meta["item_columns"]}
    _check_vocabulary(folder / "item_vocab.parquet", items,
                 {"id": "text", "train_count": "integer", **text})
    _check_vocabulary(folder / "user_vocab.parquet", users, {"id": "text"})
    arrays["items"] = _open_array(folder, "items", np.int32, count)
    for name in ("train_end", "valid_end"):
        arrays[name] = _open_array(folder, name, np.int64, users)
    if meta["has_times"]:
        arrays["times"] = _open_array(folder, "times", np.int64, count)
    if meta["ratings"]:
        arrays["ratings"] = _open_array(folder, "ratings", np.uint8, count)
    if meta["events"]:
        arrays["events"] = _open_array(folder, "events", np.uint8, count)
    if meta["queries"]:
        asked = int(meta["queries"]["count"])
        _check_vocabulary(folder / "query_texts.parquet", int(meta["queries"]["texts"]),
                          {"id": "text"})
        arrays["queries"] = _open_array(folder, "queries", np.int32, asked)
        arrays["query_positions"] = _open_array(folder, "query_positions", np.int64, asked)
        arrays["query_offsets"] = _open_array(folder, "query_offsets", np.int64, users + 1)
        if meta["has_times"]:
            arrays["query_times"] = _open_array(folder, "query_times", np.int64, asked)
        if meta["events"]:
            arrays["query_events"] = _open_array(folder, "query_events", np.uint8, asked)
    if meta["withheld"]:
        count = int(meta["withheld"]["interactions"])
        arrays["withheld"] = _open_array(folder, "withheld", np.int32, count)
        arrays["withheld_offsets"] = _open_array(folder, "withheld_offsets", np.int64, users + 1)
    if meta["appended"]:
        for name in ("old_train_end", "old_end"):
            arrays[name] = _open_array(folder, name, np.int64, users)
    for feature, about in meta["item_features"].items():
        name = f"{FOLDER}/{feature}"
        arrays[name] = _open_array(folder, name, np.int32, items, int(about["values"]))
    return arrays


def _open_array(folder: Path, name: str, dtype: type[np.generic], *shape: int) -> Any:
    path = folder / f"{name}.npy"
    try:
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        array = np.load(path, mmap_mode="r")
    except Exception as error:  # numpy parses a header with whatever its parser raises
        cause = first_line(error)
        raise InputError(f"{path} is missing or truncated ({cause}); {AGAIN}") from None
    if not isinstance(array, np.memmap):  # an archive of arrays, under the name of one
        array.close()
        raise InputError(f"{path} holds no array, expected {np.dtype(dtype)} {list(shape)}; "
                         f"{AGAIN}")
    if array.dtype != dtype or array.shape != shape:
        raise InputError(f"{path} holds {array.dtype} {list(array.shape)}, expected "
                         f"{np.dtype(dtype)} {list(shape)}; {AGAIN}")
    return array


def read_vocabulary(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    try:
        return pl.read_parquet(path, columns=list(columns), glob=False)
    except PARQUET_ERRORS as error:
        cause = first_line(error)
        raise InputError(f"{path} cannot be read ({cause}); {AGAIN}") from None


def _check_vocabulary(path: Path, length: int, columns: Mapping[str, str]) -> None:
    """Rows and columns by the file's footer; columns: name -> "text" or "integer"."""
    try:
        with pq.ParquetFile(path) as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        cause = first_line(error)
        raise InputError(f"{path} is missing or truncated ({cause}); {AGAIN}") from None
    if rows != length:
        raise InputError(f"{path} has {rows} rows, expected {length}; {AGAIN}")
    for name, kind in columns.items():
        found = schema.field(name).type if name in schema.names else None
        is_kind = found is not None and (
            pa.types.is_integer(found) if kind == "integer" else
            pa.types.is_string(found) or pa.types.is_large_string(found)
            or pa.types.is_string_view(found))
        if not is_kind:
            raise InputError(f"{path} has no column {name!r} of {kind}s; {AGAIN}"
                             .replace("texts", "text"))
