"""The manifest of a checkpoint (`seal.json`): written last, before the folder gets its name.

Orbax writes into a temporary folder and renames it, which alone does not survive a power cut. So
every file and folder is flushed before the rename, and the parent after it. The manifest lists
every file with its size and hash, so that a file which is later lost, cut or changed is found.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from orbax.checkpoint.path import atomicity

from rec_jax.checkpoint.errors import Damaged, describe_cause
from rec_jax.checkpoint.index import read_json
from rec_jax.checkpoint.layout import ARRAYS, FORMAT, MANIFEST
from rec_jax.files import file_hash, flush

_ORBAX = ("_CHECKPOINT_METADATA", "commit_success.txt")  # written after the manifest, never read


class DurableFolder(atomicity.AtomicRenameTemporaryPath):
    """Orbax's temporary folder; it gets a manifest and is flushed before it is renamed."""

    async def finalize(self) -> None:
        temporary, final = Path(self.get()), Path(self.get_final())
        write_manifest(temporary)
        await super().finalize()
        flush(final)
        flush(final.parent)


def write_manifest(folder: Path) -> None:
    """List every file with its size, and a hash where it has no checksum of its own; flush all."""
    files = {}
    for name, path in _files(folder):
        entry: dict[str, int | str] = {"size": path.stat().st_size}
        if not _is_block(name):
            entry["sha256"] = file_hash(path)
            flush(path)  # blocks were flushed when they were written
        files[name] = entry
    write_file(folder / MANIFEST, json.dumps({"format": FORMAT, "files": files}, indent=1))
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        flush(path)


def check_manifest(folder: Path, *, hashes: bool = False) -> int:
    """Compare a checkpoint's files with its manifest, and return their bytes.

    hashes: also read the files that have one; blocks of arrays are checked whenever they are
      read.

    Raises:
      Damaged: naming the first file that is missing, cut, changed, a link, or not listed.
    """
    try:
        return _check(folder, hashes)
    except OSError as error:  # such as a file that goes away meanwhile
        raise Damaged(f"checkpoint {folder.name} cannot be read: {describe_cause(error)}") from None


def _check(folder: Path, hashes: bool) -> int:
    content = read_json(folder / MANIFEST)
    files = content.get("files")
    if content.get("format") != FORMAT or not isinstance(files, dict):
        raise Damaged(f"checkpoint file {folder.name}/{MANIFEST} is damaged: no list of files")
    present = dict(_files(folder))
    for name in present.keys() - files.keys():
        raise Damaged(f"checkpoint {folder.name} has a file that was not saved: {name}")
    total = 0
    for name, entry in files.items():
        if name not in present:
            raise Damaged(f"checkpoint file {folder.name}/{name} is missing")
        path = present[name]
        size, expected = path.stat().st_size, entry.get("size") if isinstance(entry, dict) else None
        if size != expected:
            raise Damaged(f"checkpoint file {folder.name}/{name} has {size} bytes, "
                          f"expected {expected}")
        if hashes and not _is_block(name) and file_hash(path) != entry.get("sha256"):
            raise Damaged(f"checkpoint file {folder.name}/{name} has changed: its hash is not "
                          f"that of the seal")
        total += size
    return total


def write_file(path: Path, content: str | bytes) -> None:
    """Write and flush a file whose folder becomes visible later."""
    data = content.encode() if isinstance(content, str) else content
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Relative name and path of every file but orbax's own and the manifest."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode) or name in (*_ORBAX, MANIFEST):
            continue
        if not stat.S_ISREG(mode):
            raise Damaged(f"checkpoint file {folder.name}/{name} is no regular file")
        yield name, path


def _is_block(name: str) -> bool:
    """`model/arrays/3/c/0/0`, which carries a CRC-32C."""
    parts = name.split("/")
    return len(parts) > 4 and parts[1] == ARRAYS and parts[3] == "c"
