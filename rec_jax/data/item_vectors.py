"""Vectors of a dataset's items, by item index, in files beside it.

    item_vectors/NAME.npy              f32 [V, c]; 0 for an item that has none
    item_vectors/NAME.mask.npy         bool [V], true where an item has a vector
    item_vectors/NAME.projection.safetensors   where they were projected: a vector x of the source
                                       became (x - mean) matrix; mean f64 [a], matrix f64 [a, c]
    item_vectors/NAME.json             what they are made of; sizes and sha256 of the files; the
                                       hash of the item ids that they belong to

Vectors of the texts that were searched for lie in `query_vectors/`, by the number of a text, in the
same files. Vectors are no part of the dataset proper, whose hashes do not know them. `NAME.json` is
removed first and written last, so that they are complete or absent.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from rec_jax import files, jsons
from rec_jax.data.arrays import npy_header
from rec_jax.data.dataset_check import ids_hash
from rec_jax.errors import InputError
from rec_jax.files import file_hash

FORMAT_VERSION = 1
_NAME = re.compile(r"\w[\w-]*")


class Owner(Protocol):
    """What has vectors: a dataset's items, or what stands in their place (`data.queries`).

    folder: of the dataset; vectors_folder: of the vectors; num_items: V; item_ids: by index.
    """

    @property
    def folder(self) -> Path: ...

    @property
    def vectors_folder(self) -> Path: ...

    @property
    def num_items(self) -> int: ...

    def item_ids(self) -> pl.Series: ...


@dataclass(frozen=True)
class ItemVectors:
    """vectors: f32 `[V, c]`, memory-mapped; has: bool `[V]`, false where an item has none and its
    row is 0; about: the content of `NAME.json`."""

    vectors: np.ndarray
    has: np.ndarray
    about: Mapping[str, Any]


def check_name(name: str) -> str:
    """`name`; raises InputError for what is none."""
    if not _NAME.fullmatch(name):
        raise InputError(f"item vectors cannot be called {name!r}; expected letters, digits, '_' "
                         "and '-'")
    return name


def file_of(folder: Path, name: str, end: str = "npy") -> Path:
    """The file of vectors `name` in a `folder` of vectors."""
    return folder / f"{check_name(name)}.{end}"


def vector_names(folder: Path) -> list[str]:
    """Names of the vectors in a `folder` of vectors."""
    found = (path.stem for path in folder.glob("*.json"))
    return sorted(name for name in found if _NAME.fullmatch(name))


def read_about(folder: Path, name: str) -> dict[str, Any] | None:
    """The content of `NAME.json`, or None where there are no such vectors.

    Raises:
      InputError: it is damaged, or of another version.
    """
    path = file_of(folder, name, "json")
    if not path.is_file():
        return None
    try:
        about = json.loads(path.read_text())
        if about["format_version"] != FORMAT_VERSION:
            raise InputError(f"{path} has format version {about['format_version']}, expected "
                             f"{FORMAT_VERSION}; embed them again")
        for key in ("count", "dim"):
            if type(about[key]) is not int or about[key] < 1:
                raise ValueError(f"{key} is {about[key]!r}")
        for each in about["files"].values():
            if type(each["bytes"]) is not int or not isinstance(each["sha256"], str):
                raise ValueError(f"the checksum of a file is {str(each)[:40]!r}")
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); embed them again") from None
    return dict(about)


def open_item_vectors(dataset: Owner, name: str) -> ItemVectors:
    """The vectors `name` of the items of `dataset`.

    Raises:
      InputError: there are none, they are of other items, or files are missing or truncated.
    """
    folder, kind = dataset.vectors_folder, dataset.vectors_folder.name.replace("_", " ")
    about = read_about(folder, name)
    if about is None:
        known = ", ".join(vector_names(folder)) or "none"
        how = "rec-jax embed" + ("" if kind == "item vectors" else " --what queries")
        raise InputError(f"{dataset.folder} has no {kind} {name!r} (it has: {known}); `{how}` "
                         "makes them")
    if about["count"] != dataset.num_items or about.get("item_ids") != ids_hash(
            dataset.item_ids()):
        raise InputError(f"the {kind} {name!r} in {dataset.folder} are of other items than the "
                         "dataset's; embed them again")
    problems = [f"{path}: {problem}" for path, problem in problems_of(
        folder, about, name, hashes=False) if problem]
    if problems:
        raise InputError(f"{dataset.folder}/{problems[0]}; embed them again")
    vectors = np.load(file_of(folder, name), mmap_mode="r", allow_pickle=False)
    has = np.load(file_of(folder, name, "mask.npy"), allow_pickle=False)
    if vectors.shape != (about["count"], about["dim"]) or vectors.dtype != np.float32 or (
            has.shape != (about["count"],) or has.dtype != bool):
        raise InputError(f"{file_of(folder, name)} holds {vectors.dtype} "
                         f"{list(vectors.shape)}; expected float32 "
                         f"{[about['count'], about['dim']]}, and a mask; embed them again")
    return ItemVectors(vectors, has, about)


def problems_of(folder: Path, about: Mapping[str, Any], name: str, *, hashes: bool
                ) -> Iterator[tuple[str, str | None]]:
    """Of each file its name in the dataset, and what is wrong with it, or None."""
    expected = {f"{name}.npy", f"{name}.mask.npy"}
    for lacking in sorted(expected - about["files"].keys()):
        yield f"{folder.name}/{lacking}", "its JSON has no checksum of it"
    for file, said in about["files"].items():
        if file not in expected and file != f"{name}.projection.safetensors":
            yield (f"{folder.name}/{name}.json",
                   f"it names {file[:40]!r}, which is no file of its own")
            continue
        path = folder / file
        problem = None
        if not path.is_file():
            problem = "it is missing"
        elif path.stat().st_size != said["bytes"]:
            problem = f"it has {path.stat().st_size} bytes, expected {said['bytes']}"
        elif hashes and file_hash(path) != said["sha256"]:
            problem = "its bytes are not those that were written (sha256)"
        yield f"{folder.name}/{file}", problem


def write_item_vectors(dataset: Owner, name: str, blocks: Iterable[np.ndarray], has: np.ndarray,
                       dim: int, about: Mapping[str, Any],
                       projection: bytes | None = None) -> dict[str, Any]:
    """Write vectors f32 `[V, dim]` that come in `blocks`, which replace those of that name.

    has: bool `[V]`; rows without become 0. projection: content of that file. Gives the content of
    `NAME.json`. The caller holds the lock of the folder.

    Raises:
      InputError: a vector has values that are not finite; nothing then stands under the name.
    """
    folder, count = dataset.vectors_folder, dataset.num_items
    seal = file_of(folder, name, "json")
    seal.unlink(missing_ok=True)
    written: dict[str, Any] = {}

    def put(end: str, pieces: Iterable[bytes]) -> None:
        path, digest, size = file_of(folder, name, end), hashlib.sha256(), 0
        with files.atomic_writer(path) as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                size += len(piece)
        written[path.name] = {"bytes": size, "sha256": digest.hexdigest()}

    put("npy", _npy(np.float32, (count, dim), finite(dataset, blocks, has)))
    put("mask.npy", _npy(np.bool_, (count,), [has]))
    if projection is None:
        file_of(folder, name, "projection.safetensors").unlink(missing_ok=True)
    else:
        put("projection.safetensors", [projection])
    made = {"format_version": FORMAT_VERSION, "name": name, "count": count, "dim": dim,
            "with_vectors": int(has.sum()), "item_ids": ids_hash(dataset.item_ids()), **about,
            "files": written}
    files.write_atomic(seal, jsons.dumps(made, indent=1) + "\n")
    return made


def finite(dataset: Owner, blocks: Iterable[np.ndarray], has: np.ndarray
           ) -> Iterator[np.ndarray]:
    """The blocks `[b, d]` of all items, with 0 for those that have no vector.

    Raises:
      InputError: a vector has values that are not finite.
    """
    first = 0
    for block in blocks:
        part = has[first:first + len(block)]
        block = np.where(part[:, None], block, np.float32(0))
        bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(bad):
            item = first + int(bad[0])
            raise InputError(f"the vector of item {dataset.item_ids()[item]!r} has values that are "
                             "not finite; expected numbers of f32")
        yield block
        first += len(block)
    if first != len(has):
        raise RuntimeError(f"{first} vectors of {len(has)} were made")


def _npy(dtype: type[np.generic], shape: tuple[int, ...], blocks: Iterable[np.ndarray]
         ) -> Iterator[bytes]:
    yield npy_header(np.dtype(dtype), shape)
    for block in blocks:
        yield np.ascontiguousarray(block, dtype).tobytes()
