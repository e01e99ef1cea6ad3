"""Whether a dataset is as it was written: sizes, checksums, and values within their bounds.

A reader that opens a dataset reads all of it once, and remembers that in the user's cache folder
by inode, size and times of every file; as long as these stay, later openings read nothing. Where
there is no place to remember it, every opening reads all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax import files
from rec_jax.data.arrays import chunks
from rec_jax.data.dataset_files import AGAIN, META, file_names
from rec_jax.data.item_features import FOLDER
from rec_jax.errors import InputError, first_line
from rec_jax.files import file_hash

CHECKS = 1
"""Raised by one when opening checks more than it did."""
_SETTLED = 2 * 10**9  # nanoseconds: clocks of file systems are coarse
PARQUET_ERRORS = (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException)
Arrays = Mapping[str, npt.NDArray[Any]]
"""By name of the file without its end, such as `items` and `item_features/genre`."""


def check(folder: Path, meta: Mapping[str, Any], arrays: Arrays) -> None:
    """Refuse a dataset that is not as it was written; remembered, see above.

    Raises:
      InputError: naming the first file that is damaged, and what is wrong with it.
    """
    state, settled = _state(folder, meta)
    if _remembered(folder) == state:
        return
    for name in file_names(meta):
        problem = damage(folder, meta, name)
        if problem:
            raise InputError(f"{folder / name} is damaged: {problem}; {AGAIN}")
    for problem in out_of_bounds(meta, arrays, folder):
        raise InputError(f"{folder}/{problem}; {AGAIN}")
    if settled:
        _remember(folder, state)


def damage(folder: Path, meta: Mapping[str, Any], name: str) -> str | None:
    """What is wrong with the bytes of one file, or of an old dataset with its values."""
    path = folder / name
    try:
        size = path.stat().st_size
        if meta["files"] is None:
            expected = _hash_of_values(meta, name)
            same = expected is None or _values_hash(path, name) == expected
            return None if same else "its values are not those that were written"
        about = meta["files"].get(name)
        if about is None:
            return f"{META} has no checksum of it"
        if size != about["bytes"]:
            return f"it has {size} bytes, expected {about['bytes']}"
        if file_hash(path) != about["sha256"]:
            return "its bytes are not those that were written (sha256)"
    except FileNotFoundError:
        return "it is missing"
    except (ValueError, *PARQUET_ERRORS) as error:
        return first_line(error)
    return None


def is_covered(meta: Mapping[str, Any], name: str) -> bool:
    """Whether there is a checksum of the file, or a hash of its values."""
    return meta["files"] is not None or _hash_of_values(meta, name) is not None


def out_of_bounds(meta: Mapping[str, Any], arrays: Arrays, folder: Path) -> Iterator[str]:
    """What is wrong with the values themselves, one line a file."""
    offsets = arrays["offsets"]
    for start, stop in chunks(len(offsets) - 1):
        begin, end = offsets[start:stop], offsets[start + 1:stop + 1]
        if (end < begin).any():
            yield "offsets.npy falls; expected rising positions"
            return
        train_end, valid_end = arrays["train_end"][start:stop], arrays["valid_end"][start:stop]
        if (train_end < begin).any() or (valid_end < train_end).any() or (end < valid_end).any():
            yield ("train_end.npy and valid_end.npy leave the users' interactions; expected "
                   "offsets <= train_end <= valid_end <= next offsets")
            return
        if "old_end" in arrays:
            old_train_end, old_end = (arrays[name][start:stop]
                                      for name in ("old_train_end", "old_end"))
            if ((old_train_end < begin).any() or (old_end < old_train_end).any()
                    or (end < old_end).any()):
                yield ("old_train_end.npy and old_end.npy leave the users' interactions; expected "
                       "offsets <= old_train_end <= old_end <= next offsets")
                return
    if "withheld" in arrays and not _cuts(arrays["withheld_offsets"], len(arrays["withheld"])):
        yield "withheld_offsets.npy does not rise from 0 to the end of withheld.npy"
        return
    if "queries" in arrays:
        offsets_of = arrays["query_offsets"]
        if not _cuts(offsets_of, len(arrays["queries"])):
            yield "query_offsets.npy does not rise from 0 to the end of queries.npy"
            return
        if not _within(arrays["query_positions"], offsets_of, offsets):
            yield ("query_positions.npy falls, or leaves the users' interactions; expected rising "
                   "positions between the offsets of each user")
    most = {"items": (0, meta["num_items"] - 1), "withheld": (0, meta["num_items"] - 1),
            "ratings": (0, len(meta["ratings"] or ())), "events": (0, len(meta["events"] or ())),
            "queries": (0, (meta["queries"] or {"texts": 0})["texts"] - 1),
            "query_events": (0, len(meta["events"] or ()))}
    most |= {f"{FOLDER}/{name}": (0, about["categories"])
             for name, about in meta["item_features"].items()}
    for name, (low, high) in most.items():
        for start, stop in chunks(len(arrays[name]) if name in arrays else 0):
            part = arrays[name][start:stop]
            if part.size and (part.min() < low or part.max() > high):
                yield f"{name}.npy has values from {part.min()} to {part.max()}, expected {low} " \
                      f"to {high}"
                break
    if "query_times" in arrays and not _in_order(arrays["query_times"], arrays["query_offsets"]):
        yield "query_times.npy falls within a user; expected times in order"
    if "times" in arrays and not _in_order(arrays["times"], offsets):
        yield "times.npy falls within a user; expected times in order"
    for name in ("item_vocab.parquet", "user_vocab.parquet",
                 *(["query_texts.parquet"] if meta["queries"] else [])):
        try:
            ids = pl.scan_parquet(folder / name, glob=False).select(pl.col("id").null_count())
            if nulls := ids.collect().item():
                yield f"{name} has {nulls} ids that are null"
        except PARQUET_ERRORS as error:
            yield f"{name} cannot be read ({first_line(error)})"


def _cuts(offsets: npt.NDArray[Any], count: int) -> bool:
    return bool(offsets[0] == 0 and offsets[-1] == count and (np.diff(offsets) >= 0).all())


def _within(positions: npt.NDArray[Any], owned: npt.NDArray[Any], offsets: npt.NDArray[Any]
            ) -> bool:
    """Whether the positions of each user's queries, `owned[u]` to `owned[u + 1]`, rise, and lie
    between the user's offsets."""
    for start, stop in chunks(len(positions)):
        part = np.asarray(positions[max(start - 1, 0):stop])
        owner = np.searchsorted(owned, np.arange(max(start - 1, 0), stop), side="right") - 1
        if ((np.diff(part) < 0).any() or (part < offsets[owner]).any()
                or (part > offsets[owner + 1]).any()):
            return False
    return True


def ids_hash(ids: pl.Series) -> str:
    """Hex sha256 of ids, a line each."""
    digest = hashlib.sha256()
    for start, stop in chunks(len(ids)):
        digest.update("\n".join([*ids[start:stop], ""]).encode())
    return digest.hexdigest()


def _in_order(times: npt.NDArray[Any], offsets: npt.NDArray[Any]) -> bool:
    for start, stop in chunks(len(times)):
        falls = np.flatnonzero(np.diff(times[max(start - 1, 0):stop]) < 0) + max(start, 1)
        # A fall is right where a user begins.
        if (offsets[np.searchsorted(offsets, falls)] != falls).any():
            return False
    return True


def _hash_of_values(meta: Mapping[str, Any], name: str) -> str | None:
    """What an old dataset says of a file's values."""
    stem, _, end = name.rpartition(".")
    if end == "npy":
        found = meta["hashes"].get(stem)
    elif stem.startswith(f"{FOLDER}/"):
        found = meta["item_features"][stem.removeprefix(f"{FOLDER}/")].get("hash")
    else:
        found = meta["hashes"].get(stem.replace("_vocab", "_ids"))
    return found if isinstance(found, str) else None


def _values_hash(path: Path, name: str) -> str:
    if name.endswith(".npy"):
        array = np.load(path, mmap_mode="r")
        digest = hashlib.sha256()
        for start, stop in chunks(len(array)):
            digest.update(np.ascontiguousarray(array[start:stop]).data)
        return digest.hexdigest()
    column = "value" if name.startswith(f"{FOLDER}/") else "id"
    return ids_hash(pl.read_parquet(path, columns=[column], glob=False)[column])


def _state(folder: Path, meta: Mapping[str, Any]) -> tuple[str, bool]:
    """What the system says of all files, as one word; and whether nothing was just changed."""
    seen: list[Any] = [CHECKS]
    newest = 0
    for name in (META, *file_names(meta)):
        try:
            about = (folder / name).stat()
        except FileNotFoundError:
            raise InputError(f"{folder / name} is missing or truncated (there is no such file); "
                             f"{AGAIN}") from None
        seen.append([name, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns])
        newest = max(newest, about.st_mtime_ns, about.st_ctime_ns)
    state = hashlib.sha256(json.dumps(seen).encode()).hexdigest()
    return state, time.time_ns() - newest > _SETTLED


def _note(folder: Path) -> Path | None:
    """Where it is remembered that a dataset was whole."""
    cache = files.cache_folder()
    name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:32]
    return None if cache is None else cache / "datasets" / name


def _remembered(folder: Path) -> str | None:
    note = _note(folder)
    with contextlib.suppress(OSError, ValueError):
        return None if note is None else note.read_text()
    return None


def _remember(folder: Path, state: str) -> None:
    note = _note(folder)
    with contextlib.suppress(OSError):
        if note is not None:
            files.write_atomic(note, state)
