"""The files of a dataset folder: which there are, what meta.json says of them, whose they are.

`meta.json` holds size and sha256 of every other file (`files`) and a `checksum` of its own
content. Folders of before these were kept have neither, but hashes of the values (`hashes`).
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rec_jax import jsons
from rec_jax.data.item_features import FOLDER
from rec_jax.errors import InputError
from rec_jax.files import file_hash

FORMAT_VERSION = 1
META = "meta.json"
AGAIN = "prepare the dataset again"
_PLAIN_NAME = re.compile(r"\w[\w-]*")
_META_TYPES = {"num_users": int, "num_items": int, "num_interactions": int, "has_times": bool,
               "split_hash": str, "item_columns": list, "ratings": list | None,
               "item_features": dict, "hashes": dict, "files": dict | None, "withheld": dict | None,
               "checksum": str | None, "appended": dict | None, "events": list | None,
               "queries": dict | None}
# Folders of before these were kept lack them.
_LATER: dict[str, Any] = {"ratings": None, "item_features": {}, "hashes": {}, "files": None,
                          "checksum": None, "withheld": None, "appended": None, "events": None,
                          "queries": None}


def read_meta(folder: Path) -> dict[str, Any]:
    """The content of `meta.json`, checked; nothing in it is trusted to be a path.

    Raises:
      InputError: no dataset folder, another format version, or a file that is damaged.
    """
    path = folder / META
    if not path.is_file():
        raise InputError(f"{folder} is not a dataset folder: it has no {META}; "
                         "expected the output of `rec-jax prepare`")
    try:
        found = json.loads(path.read_text(), parse_constant=_no_number)
        version = found["format_version"]
        if type(version) is not int:
            raise ValueError(f"format_version is {str(version)[:40]!r}")
        if version != FORMAT_VERSION:
            raise InputError(f"{folder} has format version {version}, expected {FORMAT_VERSION}; "
                             f"{AGAIN}")
        meta = {**_LATER, **found}
        if meta["checksum"] not in (None, checksum(found)):
            raise ValueError("it is not as it was written")
        _check_types(meta)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); {AGAIN}") from None
    return meta


def file_names(meta: Mapping[str, Any]) -> list[str]:
    """All files of a dataset but `meta.json`, relative to its folder."""
    names = ["items.npy", "offsets.npy", "train_end.npy", "valid_end.npy", "item_vocab.parquet",
             "user_vocab.parquet"]
    names += ["times.npy"] if meta["has_times"] else []
    names += ["ratings.npy"] if meta["ratings"] else []
    names += ["events.npy"] if meta["events"] else []
    if meta["queries"]:
        names += ["queries.npy", "query_positions.npy", "query_offsets.npy", "query_texts.parquet"]
        names += ["query_times.npy"] if meta["has_times"] else []
        names += ["query_events.npy"] if meta["events"] else []
    names += ["withheld.npy", "withheld_offsets.npy"] if meta["withheld"] else []
    names += ["old_train_end.npy", "old_end.npy"] if meta["appended"] else []
    return names + [f"{FOLDER}/{name}.{end}" for name in meta["item_features"]
                    for end in ("npy", "parquet")]


def write_meta(meta: Mapping[str, Any], folder: Path) -> None:
    """Write `meta.json` with size and sha256 of each file in `folder`, and its own checksum."""
    found = json.loads(jsons.dumps({**_LATER, **meta}))
    found["files"] = {name: {"bytes": (folder / name).stat().st_size,
                             "sha256": file_hash(folder / name)} for name in file_names(found)}
    found["checksum"] = checksum(found)
    (folder / META).write_text(jsons.dumps(found, indent=1) + "\n")


def checksum(meta: Mapping[str, Any]) -> str:
    """Sha256 of the content of a `meta.json`, without its own entry for it."""
    rest = {name: value for name, value in meta.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def check_ours(folder: Path) -> None:
    """Refuse a folder that holds anything but one dataset of this program; an empty one may go.

    Raises:
      InputError: naming what is there that `prepare` has not made.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    try:
        names = file_names(read_meta(folder))
    except InputError as error:
        raise InputError(f"{folder} is no dataset folder and will not be overwritten "
                         f"({error})") from None
    known = {META, *names, *(str(Path(name).parent) for name in names)}
    for path in sorted(folder.rglob("*")):
        name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
        is_kind = stat.S_ISDIR(mode) if name == FOLDER else stat.S_ISREG(mode)
        if name not in known or not is_kind:
            raise InputError(f"{folder} will not be overwritten: {path} is not of the dataset; "
                             "move it away, or give another output folder")


def _check_types(meta: Mapping[str, Any]) -> None:
    for name, kind in _META_TYPES.items():
        value = meta[name]
        # A bool is an int, and no number here.
        if not isinstance(value, kind) or (kind is int and not _is_count(value)):
            raise ValueError(f"{name} is {str(value)[:40]!r}")
    if not all(isinstance(column, str) for column in meta["item_columns"]):
        raise ValueError("item_columns are no names")
    if not all(isinstance(name, str) for name in meta["events"] or ()):
        raise ValueError("events are no names")
    for value in meta["ratings"] or ():
        if type(value) not in (int, float) or abs(value) > float(np.finfo(np.float32).max):
            raise ValueError(f"a rating is {str(value)[:40]!r}")
    for name, about in meta["item_features"].items():
        if not _PLAIN_NAME.fullmatch(name):
            raise ValueError(f"{name[:40]!r} is no name of an item feature")
        for key in ("categories", "values"):
            if not _is_count(about[key]) or about[key] < 1:
                raise ValueError(f"item feature {name[:40]!r} is {str(about)[:40]!r}")
    if meta["withheld"] is not None and not all(
            _is_count(meta["withheld"][key]) for key in ("items", "interactions")):
        raise ValueError(f"withheld is {str(meta['withheld'])[:40]!r}")
    if meta["queries"] is not None and not (
            all(_is_count(meta["queries"][key]) for key in ("count", "texts"))
            and all(isinstance(name, str) for name in meta["queries"]["types"])):
        raise ValueError(f"queries is {str(meta['queries'])[:40]!r}")
    if meta["appended"] is not None and (
            not isinstance(meta["appended"]["to"], str) or not all(
                _is_count(meta["appended"][key])
                for key in ("users", "items", "interactions", "late"))):
        raise ValueError(f"appended is {str(meta['appended'])[:40]!r}")
    for name, about in (meta["files"] or {}).items():
        if not _is_count(about["bytes"]) or not isinstance(about["sha256"], str):
            raise ValueError(f"the checksum of {name[:40]!r} is {str(about)[:40]!r}")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")
