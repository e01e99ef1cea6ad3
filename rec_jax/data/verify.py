"""Read a whole dataset and say of every file whether it is as it was written.

Vectors of its items that lie beside it (`data.item_vectors`) are read too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rec_jax.data.dataset_arrays import open_arrays
from rec_jax.data.dataset_check import damage, is_covered, out_of_bounds
from rec_jax.data.dataset_files import file_names, read_meta
from rec_jax.data.item_vectors import problems_of, read_about, vector_names
from rec_jax.errors import InputError


def verify(folder: Path) -> dict[str, Any]:
    """Read all of dataset `folder`, whatever was remembered of it.

    Returns:
      checksums: "files", or of an old dataset "values" or "none"; files: name, bytes, problem
      and whether a checksum covers it; problems: of the values, or of files that do not fit.

    Raises:
      InputError: no dataset folder, or its meta.json is damaged.
    """
    meta = read_meta(folder)
    entries = []
    for name in file_names(meta):
        path, problem = folder / name, damage(folder, meta, name)
        entries.append({"name": name, "bytes": path.stat().st_size if path.is_file() else 0,
                        "covered": is_covered(meta, name),
                        "problem": None if problem is None else f"{name}: {problem}"})
    for vectors in ("item_vectors", "query_vectors"):
        entries += _vector_entries(folder / vectors)
    problems: list[str] = []
    if not any(entry["problem"] for entry in entries):
        try:
            problems += out_of_bounds(meta, open_arrays(folder, meta), folder)
        except InputError as error:
            problems.append(str(error))
    kind = ("files" if meta["files"] is not None else
            "values" if any(entry["covered"] for entry in entries) else "none")
    return {"checksums": kind, "files": entries, "problems": problems}


def _vector_entries(folder: Path) -> list[dict[str, Any]]:
    entries = []
    for vectors in vector_names(folder):
        try:
            found = list(problems_of(folder, read_about(folder, vectors) or {"files": {}}, vectors,
                                     hashes=True))
        except InputError as error:
            found = [(f"{folder.name}/{vectors}.json", str(error))]
        for name, problem in found:
            path = folder.parent / name
            entries.append({"name": name, "bytes": path.stat().st_size if path.is_file() else 0,
                            "covered": True,
                            "problem": None if problem is None else f"{name}: {problem}"})
    return entries
