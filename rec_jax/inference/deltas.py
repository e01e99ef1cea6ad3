"""Item embeddings that changed, sent to a copy that serves them.

A delta is a folder between two versions of an export of items: the rows of what changed or is new,
by the ids of the source.

    ids.parquet     ids of the items, in the order of the export; new ones last
    rows.npy        f32 [n, d]; or uint16 [n, d], the bits of bfloat16
    item_bias.npy   f32 [n]; only where the model has one
    gone.parquet    ids of items that are taken away; only where there are some
    delta.json      the hash of the version that it applies to and of the one that comes of it, what
                    was trained, sizes; the sha256 of the other files, and its own checksum

It is whole or absent, and is applied so: `apply` makes the new version beside the old one, holds it
against its hash, and exchanges the two folders. Who has opened one goes on reading it, and
`load_embeddings` gives the old version or the new one. In f32 what is applied equals the trainer's
export bit by bit. In bf16 the copy has rounded rows, so that the next delta must be written against
such a copy and not against a run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np
import polars as pl

from rec_jax import files
from rec_jax.data.arrays import NpyWriter, chunks
from rec_jax.data.dataset import places_of
from rec_jax.data.dataset_check import ids_hash
from rec_jax.data.dataset_files import checksum
from rec_jax.errors import InputError, first_line
from rec_jax.files import file_hash
from rec_jax.inference.blocks import BLOCK
from rec_jax.inference.export import ABOUT, Embeddings, item_bias_of, item_blocks, load_embeddings
from rec_jax.inference.export_formats import WRITERS, Blocks
from rec_jax.inference.served import StoredRows, open_rows
from rec_jax.inference.tombstones import Picked, match_versions, without
from rec_jax.jsons import dumps
from rec_jax.run import Run

Dtype = Literal["f32", "bf16"]
FORMAT_VERSION, FORMAT_WITH_GONE = 1, 2
"""A delta that takes items away is of another version, which earlier programs do not apply."""
NAME = "delta.json"
_FILES = ("ids.parquet", "rows.npy", "item_bias.npy", "gone.parquet")


@dataclass(frozen=True)
class Version:
    """One version of the embeddings of items: what a run exports, or what an export holds.

    ids: `[V]` text; bias: f32 `[V]` or None; source: of the rows, `[V, d]`.
    """

    ids: pl.Series
    dim: int
    bias: np.ndarray | None
    source: StoredRows | Embeddings

    def blocks(self) -> Blocks:
        """The rows in blocks f32 `[n, d]`."""
        if isinstance(self.source, Embeddings):
            vectors = self.source.vectors
            return (np.asarray(vectors[first:last], np.float32)
                    for first, last in chunks(len(vectors), BLOCK))
        return item_blocks(self.source, "items")

    def picked(self, places: np.ndarray) -> Version:
        """Some items of an export in another order, by their places int64 `[n]`."""
        assert isinstance(self.source, Embeddings)
        ids = self.ids.gather(places)
        bias = None if self.bias is None else self.bias[places]
        vectors: Any = Picked(self.source.vectors, places)
        return Version(ids, self.dim, bias, dataclasses.replace(
            self.source, ids=ids, vectors=vectors, item_bias=bias))

    def about(self) -> dict[str, Any]:
        """Which run, step and dataset it is of."""
        if isinstance(self.source, Embeddings):
            return {name: self.source.about[name] for name in ("run", "step", "dataset")}
        return {"run": self.source.run.folder.name, "step": self.source.step,
                "dataset": self.source.dataset.split_hash}


def write_deltas(run: Path | str, base: Path | str, out: Path | str, *, dtype: Dtype = "f32",
                 step: int | None = None, data: str | None = None, trust_code: bool = False
                 ) -> dict[str, Any]:
    """Write the delta from `base`, an export of items or a run, to what `run` exports, into `out`.

    run: or an export of items. From one export to another items may be gone: those that `base` has
      and `run` has not are tombstones, and what stays keeps its order.
    step, data: of `run`, see `rec_jax.load`. Returns what `delta.json` says.

    Raises:
      InputError: `base` is neither, or its items are not the first ones of the run's in their
        order; or `out` exists.
    """
    if dtype not in get_args(Dtype):
        raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(get_args(Dtype))}")
    if (Path(run) / ABOUT).is_file():
        new = _of_export(load_embeddings(run), Path(run))
    else:
        new = _of_run(open_rows(Run(Path(run), trust_code), step=step, dataset_path=data))
    old = whole = _base(Path(base), trust_code)
    gone = old.ids.clear()
    if isinstance(old.source, Embeddings) and isinstance(new.source, Embeddings):
        matched = match_versions(old.ids, new.ids)
        old, new, gone = old.picked(matched.stays), new.picked(matched.order), matched.gone
    _check_order(old, new, Path(base), Path(run))
    with files.atomic_folder(out) as folder:
        changed, hashes = _compare(old, new, dtype)
        if len(gone):
            hashes["base"] = _hash(whole, whole.blocks())
            gone.alias("id").to_frame().write_parquet(folder / "gone.parquet")
        count = int(changed.sum())
        dtypes: dict[str, Any] = {"f32": np.float32, "bf16": np.uint16}
        with NpyWriter(folder / "rows.npy", dtypes[dtype], count, new.dim) as file:
            for first, block in _counted(new.blocks()):
                sent = block[changed[first:first + len(block)]]
                file.write(sent if dtype == "f32" else sent.astype(ml_dtypes.bfloat16)
                           .view(np.uint16))
            file.close()
        pl.DataFrame({"id": new.ids.filter(pl.Series(changed))}).write_parquet(
            folder / "ids.parquet")
        if new.bias is not None:
            np.save(folder / "item_bias.npy", new.bias[changed])
        about: dict[str, Any] = {
            "format_version": FORMAT_WITH_GONE if len(gone) else FORMAT_VERSION, "dtype": dtype,
            "count": count, "added": len(new.ids) - len(old.ids), "gone": len(gone),
            "items": len(new.ids), "dim": new.dim, "item_bias": new.bias is not None, **hashes,
            **new.about(), "files": {name: file_hash(folder / name) for name in _FILES
                      if (folder / name).exists()}}
        about["checksum"] = checksum(json.loads(dumps(about)))
        (folder / NAME).write_text(dumps(about, indent=1) + "\n")
    return about


def apply_deltas(delta: Path | str, to: Path | str) -> dict[str, Any]:
    """Make the export `to` the version that `delta` leads to; whole, or it stays as it is.

    Returns what `delta.json` says, with `applied`: false where `to` is that version already.

    Raises:
      InputError: a delta of another version, one that is damaged, no export of items, or another
        process changes it.
    """
    delta, to = Path(delta), Path(to)
    about = _read_about(delta)
    with contextlib.suppress(_Applied):
        _apply(delta, about, to)
        return {**about, "applied": True}
    return {**about, "applied": False}


class _Applied(Exception):
    """Ends the making of a version that is there already."""


def _apply(delta: Path, about: dict[str, Any], to: Path) -> None:
    with files.atomic_folder(to, replace=True, check=_check_export) as folder:
        if not to.exists():
            raise InputError(f"{to} is not an export: export.json is missing")
        copy = load_embeddings(to)
        old = _of_export(copy, to)
        found = _hash(old, old.blocks())
        if found == about["result"]:
            raise _Applied
        if found != about["base"]:
            raise InputError(f"delta {delta} applies to version {about['base'][:12]} of the "
                             f"embeddings, and {to} is {found[:12]}; expected the deltas between, "
                             "or a new export")
        new, blocks = _changed(old, about, delta)
        digest, form = _Digest(new), copy.about["format"]
        WRITERS[form](folder, new.ids, digest.through(blocks), new.dim, new.bias)
        if digest.hex() != about["result"]:
            raise InputError(f"delta {delta} does not give the version that it says; write it "
                             "again")
        said = {**copy.about, "count": len(new.ids), "version": about["result"],
                **{name: about[name] for name in ("run", "step", "dataset")}}
        (folder / ABOUT).write_text(dumps(said, indent=1) + "\n")


def _of_run(rows: StoredRows) -> Version:
    return Version(rows.dataset.item_ids(), rows.config.table.dim, item_bias_of(rows), rows)


def _of_export(found: Embeddings, folder: Path) -> Version:
    if found.about.get("what") != "items":
        raise InputError(f"{folder} is an export of {found.about.get('what')}; expected items")
    return Version(found.ids, int(found.about["dim"]), found.item_bias, found)


def _base(base: Path, trust_code: bool) -> Version:
    if (base / ABOUT).is_file():
        return _of_export(load_embeddings(base), base)
    if (base / "config.toml").is_file():
        return _of_run(open_rows(Run(base, trust_code)))
    raise InputError(f"{base} is neither an export nor a run; expected what the copy that serves "
                     "was made of")


def _check_order(old: Version, new: Version, base: Path, run: Path) -> None:
    if not new.ids.head(len(old.ids)).equals(old.ids):
        raise InputError(f"the items of {base} are not the first ones of run {run}, in their "
                         "order; expected a run that goes on from it (rec-jax train --continue), "
                         "or a new export")
    if old.dim != new.dim or (old.bias is None) != (new.bias is None):
        raise InputError(f"{base} has rows of {old.dim} numbers and "
                         f"{'no' if old.bias is None else 'a'} bias, run {run} {new.dim} and "
                         f"{'no' if new.bias is None else 'a'} bias; expected the same, or a new "
                         "export")


def _compare(old: Version, new: Version, dtype: Dtype) -> tuple[np.ndarray, dict[str, str]]:
    """Which rows of `new` are sent, bool `[V]`, and the hashes of `base` and of `result`.

    A row is sent where its bits, and those that it is sent with, differ from the old row's.
    """
    count = len(old.ids)
    changed = np.ones(len(new.ids), bool)
    changed[:count] = False
    if new.bias is not None and old.bias is not None:
        changed[:count] = new.bias[:count].view(np.uint32) != np.asarray(old.bias).view(np.uint32)
    before, after = _Digest(old), _Digest(new)
    left = _Rows(before.through(old.blocks()))
    for first, block in _counted(new.blocks()):
        sent = block if dtype == "f32" else block.astype(ml_dtypes.bfloat16).astype(np.float32)
        known = left.take(min(len(block), max(0, count - first)))
        n = len(known)
        bits = np.ascontiguousarray(known).view(np.uint32)
        changed[first:first + n] |= (
            (np.ascontiguousarray(block[:n], np.float32).view(np.uint32) != bits).any(axis=1)
            & (np.ascontiguousarray(sent[:n], np.float32).view(np.uint32) != bits).any(axis=1))
        result = np.array(sent, np.float32)
        stays = ~changed[first:first + n]
        result[:n][stays] = known[stays]
        after.add(result)
    return changed, {"base": before.hex(), "result": after.hex()}


def _changed(old: Version, about: dict[str, Any], delta: Path) -> tuple[Version, Blocks]:
    """The version that comes of a delta, and its rows."""
    try:
        ids = pl.read_parquet(delta / "ids.parquet", glob=False)["id"]
        rows = np.load(delta / "rows.npy", mmap_mode="r", allow_pickle=False)
        bias = np.load(delta / "item_bias.npy", allow_pickle=False) if about["item_bias"] else None
        if about.get("gone"):
            old = old.picked(without(
                old.ids, pl.read_parquet(delta / "gone.parquet", glob=False)["id"]))
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise InputError(f"delta {delta} is damaged: {first_line(error)}") from None
    known = places_of(old.ids, ids)
    added = ids.filter(known.is_null())
    places = known.drop_nulls().cast(pl.Int64).to_numpy()
    total = len(old.ids) + len(added)
    places = np.concatenate([places, np.arange(len(old.ids), total)])
    values = old.bias
    if bias is not None and old.bias is not None:
        values = np.concatenate([old.bias, np.zeros(len(added), np.float32)])
        values[places] = bias
    new = Version(pl.concat([old.ids.alias("id"), added.alias("id")]), old.dim, values, old.source)

    def blocks() -> Blocks:
        left = _Rows(old.blocks())
        for first, last in chunks(total, BLOCK):
            block = np.zeros((last - first, old.dim), np.float32)
            kept = left.take(max(0, min(last, len(old.ids)) - first))
            block[:len(kept)] = kept
            begin, end = np.searchsorted(places, (first, last))
            part = np.asarray(rows[begin:end])
            block[places[begin:end] - first] = (
                part if about["dtype"] == "f32" else part.view(ml_dtypes.bfloat16))
            yield block

    return new, blocks()


class _Digest:
    """The hash of a version, made while its rows pass."""

    def __init__(self, version: Version) -> None:
        self._bias = version.bias
        self._hash = hashlib.sha256(
            f"{ids_hash(version.ids)} {len(version.ids)} x {version.dim}\n".encode())

    def add(self, block: np.ndarray) -> None:
        self._hash.update(np.ascontiguousarray(block, "<f4").data)

    def through(self, blocks: Blocks) -> Blocks:
        for block in blocks:
            self.add(block)
            yield block

    def hex(self) -> str:
        """Called once all rows have passed."""
        found = self._hash.copy()
        if self._bias is not None:
            found.update(np.ascontiguousarray(self._bias, "<f4").data)
        return found.hexdigest()


def _hash(version: Version, blocks: Blocks) -> str:
    digest = _Digest(version)
    for block in blocks:
        digest.add(block)
    return digest.hex()


class _Rows:
    """Rows that come in blocks, taken in other numbers."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks, self._left = blocks, np.zeros((0, 0), np.float32)

    def take(self, count: int) -> np.ndarray:
        """The next rows, f32 `[count, d]`."""
        while len(self._left) < count:
            more = np.asarray(next(self._blocks), np.float32)
            self._left = np.concatenate([self._left, more]) if len(self._left) else more
        found, self._left = self._left[:count], self._left[count:]
        return found


def _counted(blocks: Blocks) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) of each block."""
    first = 0
    for block in blocks:
        yield first, block
        first += len(block)


def _read_about(delta: Path) -> dict[str, Any]:
    """The content of `delta.json`; all files are held against it."""
    if not (delta / NAME).is_file():
        raise InputError(f"{delta} is not a delta: it has no {NAME}")
    try:
        about: dict[str, Any] = json.loads((delta / NAME).read_text())
        if about["checksum"] != checksum(about):
            raise ValueError(f"{NAME} is not as it was written")
        if about["format_version"] not in (FORMAT_VERSION, FORMAT_WITH_GONE):
            raise ValueError(f"its format version is {about['format_version']}, expected "
                             f"{FORMAT_VERSION} or {FORMAT_WITH_GONE}")
        for name, found in about["files"].items():
            if name not in _FILES or file_hash(delta / name) != found:
                raise ValueError(f"{name} is not as it was written")
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise InputError(f"delta {delta} is damaged: {first_line(error)}") from None
    return about


def _check_export(folder: Path) -> None:
    """Raises InputError for a folder that holds anything but an export of this program."""
    known = {ABOUT, "ids.parquet", "item_bias.npy", "item_bias.zarr",
             *(f"embeddings.{end}" for end in ("npy", "safetensors", "parquet", "zarr"))}
    if not (folder / ABOUT).is_file():
        raise InputError(f"{folder} is not an export: export.json is missing")
    others = sorted(path.name for path in folder.iterdir() if path.name not in known)
    if others:
        raise InputError(f"{folder} will not be replaced: {others[0]} is not of the export; move "
                         "it away")
