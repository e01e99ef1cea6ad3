"""What a source names -> the files to read: one file, a folder of parts, or a glob.

Spark and pandas write one table as a folder of parts, often in folders named `key=value`, whose
key is then no column of the files but of the table.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from rec_jax.errors import InputError

_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class SourceFile:
    """One file of a source. name: as shown in messages and in `meta.json`, without folders that
    the source names; constants: the columns that its folders stand for, as text."""

    path: Path
    name: str
    constants: Mapping[str, str | None] = field(default_factory=dict)


def files_of(sources: Iterable[str]) -> list[SourceFile]:
    """The files of all sources, in their order.

    Raises:
      InputError: as `source_files`, or a file is among them twice, whose rows would count twice.
    """
    found = [file for source in sources for file in source_files(source)]
    names: dict[Path, Path] = {}
    for file in found:
        real = file.path.resolve()
        if real in names:
            raise InputError(f"{file.path} is among the sources twice"
                             + (f", also as {names[real]}" if names[real] != file.path else "")
                             + "; expected each file once")
        names[real] = file.path
    return found


def source_files(source: str) -> list[SourceFile]:
    """The files of `source`, in the order of their names, where numbers count as numbers.

    Of a folder, `_SUCCESS`, `.crc` files and whatever else begins with `_` or `.` are left out.
    Links to files and folders are followed.

    Raises:
      InputError: there is no file, or one is a link to nothing.
      OSError: a folder cannot be read.
    """
    root = Path(source)
    if root.is_dir():
        found = _parts(root)
        if not found:
            raise InputError(f"{source} is a folder without files; expected files of rows")
    elif root.exists() or not glob.has_magic(source):
        if not root.is_file():
            what = "is a device, a pipe or a socket" if root.exists() else "does not exist"
            raise InputError(f"{source} {what}; expected a file, a folder of files, or a glob")
        return [SourceFile(root, root.name, _constants(root))]
    else:
        matched = [Path(match) for match in glob.glob(source, recursive=True)]
        found = [path for path in matched if _is_part(Path(path.name)) and _is_there(path)]
        found += [file.path for path in matched if path.is_dir() and _is_part(Path(path.name))
                  and not source.endswith("**") for file in source_files(str(path))]
        if not found:
            raise InputError(f"no file matches {source}")
        root = Path(re.split(r"[*?\[]", source, maxsplit=1)[0] + "x").parent
    return [SourceFile(path, str(path.relative_to(root)), _constants(path))
            for path in sorted(set(found), key=_natural)]


def _parts(root: Path) -> list[Path]:
    """The files beneath a folder, of each folder once, however many links lead to it.

    `Path.rglob` passes over folders that are links, and over those that it may not read, without
    a word.
    """
    found: list[Path] = []
    folders, links, read = [root], list[Path](), set[Path]()
    while folders or links:
        folder = (folders or links).pop()  # the folders themselves come before links to them
        if (real := folder.resolve()) in read:
            continue
        read.add(real)
        for path in (folder / name for name in os.listdir(folder)):
            if not _is_part(path.relative_to(root)):
                continue
            if path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            elif _is_there(path):
                found.append(path)
    return found


def _is_there(path: Path) -> bool:
    """Whether it is a file.

    Raises:
      InputError: it is a link to nothing: rows that somebody expects would be left out.
    """
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path} is a link to {os.readlink(path)}, which does not exist; expected "
                         "a file of rows")
    return path.is_file()


def _is_part(path: Path) -> bool:
    return not any(part.startswith(("_", ".")) for part in path.parts) and path.suffix != ".crc"


def _constants(path: Path) -> dict[str, str | None]:
    pairs = (part.partition("=") for part in path.parent.parts if "=" in part)
    return {unquote(key): None if value == _NULL else unquote(value) for key, _, value in pairs}


def _natural(path: Path) -> list[tuple[int, str]]:
    """Order of names in which part 2 comes before part 10."""
    pieces = re.split(r"(\d+)", str(path))
    return [(int(piece), "") if piece.isdigit() and piece.isascii() else (-1, piece)
            for piece in pieces]
