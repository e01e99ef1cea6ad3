"""Vectors that somebody else made, from a file, by item index.

    .npy            [n, c]; a file of ids says which item each row is
    .parquet        a column of ids, and a column of lists or one column a number
    .safetensors    one tensor [n, c]; ids from a tensor `ids` [n] of whole numbers, or a file

Ids are read as those of item files are, and matched as text with the vocabulary's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rec_jax.data.dataset import places_of
from rec_jax.data.ids import id_text
from rec_jax.data.item_files import read_table
from rec_jax.data.item_vectors import Owner
from rec_jax.data.readers import Layout, column_types, guess_format
from rec_jax.errors import InputError, first_line

ID_COLUMNS = ("item_id", "id")
"""What a column of ids is called, where nobody says it."""
_ROWS = 65536

Rows = Iterator[tuple[np.ndarray, np.ndarray]]
"""Vectors `[b, c]` of consecutive rows, and bool `[b]`: which rows have one."""


@dataclass(frozen=True)
class VectorFile:
    """path: of the vectors; ids: of a file of ids, one a line or a column of a table or `.npy`;
    id: its column, or that of a Parquet file of vectors; columns: of a Parquet file's numbers."""

    path: str
    ids: str | None = None
    id: str | None = None
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Matched:
    """vectors: f32 `[V, c]`, 0 where `has` bool `[V]` is false; rows: of the file, of which
    `unknown` name no item of the dataset and `repeated` one that an earlier row names."""

    vectors: np.ndarray
    has: np.ndarray
    rows: int
    unknown: int
    repeated: int


def read_vectors(source: VectorFile, dataset: Owner) -> Matched:
    """The vectors of the items of `dataset`. Of an id that occurs twice, the first row counts.

    Raises:
      InputError: a file is missing, damaged or of another form, or no id is an item's.
    """
    path = Path(source.path)
    if path.suffix not in READERS:
        raise InputError(f"{path} is no file of vectors; expected one of {', '.join(READERS)}")
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a file of vectors")
    try:
        ids, dim, rows = READERS[path.suffix](path, source)
        return _matched(path, ids, dim, rows, dataset)
    except (pa.ArrowException, pl.exceptions.PolarsError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        cause = first_line(error)
        raise InputError(f"{path} cannot be read as vectors: {cause}") from None


def _matched(path: Path, ids: pl.Series, dim: int, rows: Rows, dataset: Owner) -> Matched:
    if dim < 1:
        raise InputError(f"{path} has vectors of no numbers; expected at least one")
    known = dataset.item_ids()
    places = places_of(known, ids)
    first = ids.is_first_distinct() & places.is_not_null()
    repeated = int((places.is_not_null() & ~first).sum())
    if not first.any():
        example = f": such as {ids[0]!r} there, {known[0]!r} here" if len(ids) else ""
        raise InputError(f"0 of {len(known)} items have a vector in {path.name}{example}")
    target = places.cast(pl.Int64).set(~first, None).fill_null(-1).to_numpy()
    vectors, has = np.zeros((len(known), dim), np.float32), np.zeros(len(known), bool)
    begin = 0
    for block, valid in rows:
        wanted = target[begin:begin + len(block)]
        taken = (wanted >= 0) & valid
        with np.errstate(over="ignore"):  # what is too large is told by the item's id
            vectors[wanted[taken]] = block[taken]
        has[wanted[taken]] = True
        begin += len(block)
    return Matched(vectors, has, len(ids), int(places.null_count()), repeated)


def _read_npy(path: Path, source: VectorFile) -> tuple[pl.Series, int, Rows]:
    if source.ids is None:
        raise InputError(f"{path} has no ids; expected a file of ids in the order of its rows")
    found = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(found, np.ndarray):
        raise InputError(f"{path} holds no array; expected [items, width]")
    return _ids_file(source, len(found) if found.ndim else 0), *_array(path, found)


def _read_safetensors(path: Path, source: VectorFile) -> tuple[pl.Series, int, Rows]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from None
    known = tensors.pop("ids", None)
    if len(tensors) != 1:
        raise InputError(f"{path} has the tensors {', '.join(map(repr, sorted(tensors)))}; "
                         "expected one of vectors, and perhaps `ids`")
    (found,) = tensors.values()
    if source.ids is not None:
        return _ids_file(source, len(found) if found.ndim else 0), *_array(path, found)
    if known is None or known.ndim != 1 or known.dtype.kind not in "iu":
        raise InputError(f"{path} has no tensor `ids` of whole numbers; expected one, or a file "
                         "of ids")
    _check_count(str(path), len(known), len(found) if found.ndim else 0)
    return id_text(pl.Series("id", known), path.name), *_array(path, found)


def _array(path: Path, found: np.ndarray) -> tuple[int, Rows]:
    # ml_dtypes' bf16 is of no kind that numpy knows.
    if found.ndim != 2 or not (found.dtype.kind in "fiu" or found.dtype.name == "bfloat16"):
        raise InputError(f"{path} holds {found.dtype} {list(found.shape)}; expected numbers "
                         "[items, width]")
    return found.shape[1], ((np.asarray(found[at:at + _ROWS]),
                             np.ones(len(found[at:at + _ROWS]), bool))
                            for at in range(0, len(found), _ROWS))


def _ids_file(source: VectorFile, rows: int) -> pl.Series:
    """The ids of a file, of which there must be as many as `rows`."""
    assert source.ids is not None
    path = Path(source.ids)
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a file of ids")
    if path.suffix == ".npy":
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.ndarray) or found.ndim != 1 or found.dtype.kind not in "iuU":
            raise InputError(f"{path} holds no ids; expected [items] of whole numbers or text")
        ids = id_text(pl.Series("id", found), path.name)
    elif path.suffix in (".txt", ".ids", ""):
        try:
            # Other characters that Python ends a line at may stand in an id.
            lines = path.read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")
            ids = pl.Series("id", [line.removesuffix("\r") for line in lines], pl.String)
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not utf-8 ({error}); expected an id a line") from None
    else:
        layout = Layout({})
        names = column_types(path, guess_format(path), layout)
        ids = read_table(path, {"id": _id_column(source, list(names))})["id"]
    _check_count(str(path), len(ids), rows)
    return ids


def _check_count(where: str, ids: int, rows: int) -> None:
    if ids != rows:
        raise InputError(f"{where} has {ids} ids for {rows} vectors; expected one each")


def _id_column(source: VectorFile, names: Sequence[str]) -> str:
    if source.id is not None:
        return source.id
    return next((name for name in ID_COLUMNS if name in names), ID_COLUMNS[0])


def _read_parquet(path: Path, source: VectorFile) -> tuple[pl.Series, int, Rows]:
    if source.ids is not None:
        raise InputError(f"{path} has its ids in a column; expected no file of ids beside it")
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
    name = _id_column(source, schema.names)
    columns = _number_columns(path, schema, name, source.columns)
    for each in (name, *columns):
        if each not in schema.names:
            raise InputError(f"{path} has no column {each!r}; it has "
                             f"{', '.join(map(repr, schema.names))}")
    ids = id_text(pl.read_parquet(path, columns=[name], glob=False)[name].alias("id"), path.name)
    lists = len(columns) == 1 and _is_list(schema.field(columns[0]).type)
    if not lists:
        return ids, len(columns), _wide(path, columns)
    return ids, _width(path, columns[0]), _lists(path, columns[0])


def _number_columns(path: Path, schema: Any, id: str, asked: Sequence[str]) -> list[str]:
    if asked:
        return list(asked)
    lists = [field.name for field in schema if _is_list(field.type)]
    if len(lists) == 1:
        return lists
    numbers = [field.name for field in schema if field.name != id
               and pa.types.is_floating(field.type)]
    if lists or not numbers:
        raise InputError(f"{path} has {len(lists)} columns of lists and {len(numbers)} of floats; "
                         "expected one of lists, or columns that are named")
    return numbers


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind)
                or pa.types.is_fixed_size_list(kind))


def _batches(path: Path, columns: Sequence[str]) -> Iterator[Any]:
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(_ROWS, columns=list(columns))


def _width(path: Path, column: str) -> int:
    for batch in _batches(path, [column]):
        lengths = pc.list_value_length(batch[column]).drop_null()
        if len(lengths):
            return int(lengths[0].as_py())
    raise InputError(f"{path}: column {column!r} has no list; expected vectors")


def _lists(path: Path, column: str) -> Rows:
    width, first = _width(path, column), 0
    for batch in _batches(path, [column]):
        lists = batch[column]
        valid = lists.is_valid().to_numpy(zero_copy_only=False)
        held = lists.drop_null()
        wrong = np.flatnonzero(pc.list_value_length(held).to_numpy(zero_copy_only=False) != width)
        if len(wrong):
            row = first + int(np.flatnonzero(valid)[wrong[0]])
            raise InputError(f"{path}: the list of row {row} in {column!r} has another length than "
                             f"{width}; expected the same in all")
        block = np.zeros((len(lists), width))
        block[valid] = _numbers(path, column, pc.list_flatten(held)).reshape(-1, width)
        yield block, valid
        first += len(lists)


def _wide(path: Path, columns: Sequence[str]) -> Rows:
    for batch in _batches(path, columns):
        block = np.stack([_numbers(path, name, batch[name]) for name in columns], axis=1)
        yield block, ~np.isnan(block).all(axis=1)


def _numbers(path: Path, column: str, values: Any) -> np.ndarray:
    """As f64; null becomes NaN."""
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        raise InputError(f"{path}: column {column!r} has {values.type}; expected numbers")
    return np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


READERS: Mapping[str, Callable[[Path, VectorFile], tuple[pl.Series, int, Rows]]] = {
    ".npy": _read_npy, ".parquet": _read_parquet, ".safetensors": _read_safetensors}
"""By suffix: ids as text `[n]`, the width, and the rows."""
