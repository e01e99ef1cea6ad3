"""Vectors beside a dataset: of its text, resumed to the same bits, whole or absent, by item id."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import text_models as models

import rec_jax
from rec_jax import locks
from rec_jax.data import item_vectors
from rec_jax.data.dataset import Dataset
from rec_jax.data.item_vectors import open_item_vectors, vector_names
from rec_jax.data.prepare import prepare
from rec_jax.data.prepare_config import ItemFile, PrepareConfig
from rec_jax.data.vector_files import VectorFile
from rec_jax.data.verify import verify
from rec_jax.errors import InputError
from rec_jax.progress import Silent
from rec_jax.text.embed_items import EmbedConfig, embed_items

needs_tokenizers = pytest.mark.skipif(importlib.util.find_spec("tokenizers") is None,
                                      reason="the package `tokenizers` is not installed")
ITEMS = 30


def title(item: int) -> str:
    return f"w{item} w{item % 7} w2" if item % 5 else ""


def write_source(folder: Path) -> PrepareConfig:
    """Items 01 to 30, of which every fifth has no title, and item 11 a text."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(2)
    lines = ["user_id,item_id", *(f"u{user},{item + 1:02d}" for user in range(9)
                                  for item in random.permutation(ITEMS))]
    (folder / "log.csv").write_text("\n".join(lines))
    rows = [f'{item:02d},{title(item)},{"w9 w8" if item == 11 else ""}'
            for item in range(1, ITEMS + 1)]
    (folder / "items.csv").write_text("\n".join(["item_id,title,more", *rows]))
    return PrepareConfig(source=str(folder / "log.csv"), out=str(folder / "made"),
                         item_file=ItemFile(str(folder / "items.csv"), title="title",
                                            text=("more",)))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    prepare(write_source(tmp_path / "source"))
    return Dataset.open(tmp_path / "source" / "made")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    models.write_model(folder, seed=4)
    return folder


def files_of(dataset: Dataset) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (dataset.folder / "item_vectors").iterdir()
            if path.name != locks.LOCK}


class Killed(BaseException):
    pass


class KilledAfter(Silent):
    """Ends a job after some blocks, as a signal would."""

    def __init__(self, blocks: int) -> None:
        self.left = blocks

    def advance(self, count: int = 1, note: str = "") -> None:
        self.left -= 1
        if not self.left:
            raise Killed


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@needs_tokenizers
def test_items_get_the_vector_of_their_title_and_text(dataset: Dataset, model: Path) -> None:
    tensors = models.write_model(model, seed=4)
    made = rec_jax.embed(dataset.folder, model=model)
    found = open_item_vectors(Dataset.open(dataset.folder), "text")
    assert found.vectors.shape == (ITEMS, models.WIDTH) and np.isfinite(found.vectors).all()
    for place, item in enumerate(map(int, dataset.item_ids())):
        text = title(item) + (" w9 w8" if item == 11 else "")
        assert found.has[place] == bool(text)
        if text:
            states = models.states_of("bert", tensors, models.tokens_of("bert", text))
            np.testing.assert_allclose(found.vectors[place], states.mean(axis=0), atol=1e-5)
        else:
            assert (found.vectors[place] == 0).all()
    assert made["with_vectors"] == made["items_with_text"] == 24 and not made["reused"]
    about = json.loads((dataset.folder / "item_vectors" / "text.json").read_text())
    assert about == found.about
    assert about["source"] == {
        "kind": "text", "columns": ["title", "text"], "table": None, "model": "tiny",
        "family": "bert", "pooling": "mean", "normalise": False, "dtype": "f32", "max_length": 24,
        "prefix": "", "pca": None, "whiten": False, **{
            key: about["source"][key] for key in ("text_hash", "model_hash")}}


@needs_tokenizers
@pytest.mark.parametrize("blocks", [1, 3])
def test_a_killed_job_goes_on_to_the_same_bits(blocks: int, dataset: Dataset, model: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    config = EmbedConfig(model=str(model), block=8)
    embed_items(dataset, config)
    whole = files_of(dataset)
    shutil.rmtree(dataset.folder / "item_vectors")
    with pytest.raises(Killed):
        embed_items(dataset, config, KilledAfter(blocks))
    assert vector_names(dataset.vectors_folder) == []
    Dataset.open(dataset.folder)
    assert len(list((dataset.folder / "item_vectors").glob(".text.unfinished/*.npz"))) == blocks
    embedded: list[int] = []
    from rec_jax.text.encoder import TextEncoder
    once = TextEncoder.embed_block
    monkeypatch.setattr(TextEncoder, "embed_block", lambda self, texts: (
        embedded.append(len(texts)), once(self, texts))[1])
    embed_items(dataset, config)
    assert len(embedded) == 4 - blocks  # 30 items in blocks of 8
    assert files_of(dataset) == whole


@needs_tokenizers
def test_what_was_left_of_another_job_is_not_taken(dataset: Dataset, model: Path,
                                                   tmp_path: Path) -> None:
    models.write_model(tmp_path / "other", seed=9)
    embed_items(dataset, EmbedConfig(model=str(tmp_path / "other"), block=8))
    wanted = files_of(dataset)
    shutil.rmtree(dataset.folder / "item_vectors")
    with pytest.raises(Killed):
        embed_items(dataset, EmbedConfig(model=str(model), block=8), KilledAfter(2))
    told = Told()
    embed_items(dataset, EmbedConfig(model=str(tmp_path / "other"), block=8), told)
    assert len(told.lines) == 1 and "was of another job, and is removed" in told.lines[0]
    found = {name: content for name, content in files_of(dataset).items()
             if name.endswith(".npy")}
    assert found == {name: wanted[name] for name in found}


@needs_tokenizers
def test_a_damaged_block_is_made_again(dataset: Dataset, model: Path) -> None:
    config = EmbedConfig(model=str(model), block=8)
    embed_items(dataset, config)
    whole = files_of(dataset)
    shutil.rmtree(dataset.folder / "item_vectors")
    with pytest.raises(Killed):
        embed_items(dataset, config, KilledAfter(2))
    block = dataset.folder / "item_vectors" / ".text.unfinished" / "0000001.npz"
    block.write_bytes(block.read_bytes()[:-40])
    embed_items(dataset, config)
    assert files_of(dataset) == whole


@needs_tokenizers
def test_the_same_job_is_left_and_another_one_is_refused(dataset: Dataset, model: Path) -> None:
    rec_jax.embed(dataset.folder, model=model)
    before = {path: path.stat().st_mtime_ns
              for path in (dataset.folder / "item_vectors").glob("text.*")}
    assert rec_jax.embed(dataset.folder, model=model)["reused"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(InputError, match="exist and differ in normalise, pooling; expected anoth"):
        rec_jax.embed(dataset.folder, model=model, pooling="cls", normalise=True)
    made = rec_jax.embed(dataset.folder, model=model, pooling="cls", overwrite=True)
    assert made["source"]["pooling"] == "cls" and not made["reused"]
    path = dataset.folder / "item_vectors" / "text.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert not rec_jax.embed(dataset.folder, model=model, pooling="cls")["reused"]
    assert rec_jax.embed(dataset.folder, model=model, pooling="cls")["reused"]


@needs_tokenizers
def test_a_table_is_joined_by_id(dataset: Dataset, model: Path, tmp_path: Path) -> None:
    # Of another order, with an item that the dataset lacks, one twice and one empty.
    table = pl.DataFrame({"key": ["44", "07", "30", "07", "01"],
                          "a": ["w1", "w2", "w3", "w4", None],
                          "b": ["w5", "w6", None, "w7", " "]})
    for name in ("table.csv", "table.parquet"):
        (table.write_csv if name.endswith("csv") else table.write_parquet)(tmp_path / name)
        rec_jax.embed(dataset.folder, model=model, name=name[6:], table=tmp_path / name, id="key",
                      columns=("a", "b"))
    one, other = (open_item_vectors(dataset, name) for name in ("csv", "parquet"))
    assert one.vectors.tobytes() == other.vectors.tobytes()
    has = {item for item, has in zip(dataset.item_ids(), one.has, strict=True) if has}
    assert has == {"07", "30"}
    tensors = models.write_model(model, seed=4)
    wanted = models.states_of("bert", tensors, models.tokens_of("bert", "w2 w6")).mean(axis=0)
    np.testing.assert_allclose(one.vectors[dataset.item_index(["07"])[0]], wanted, atol=1e-5)


@needs_tokenizers
def test_text_that_is_not_there_is_one_line(dataset: Dataset, model: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("item_id,a\nx,w1\n")
    for given, said in (
            ({"table": tmp_path / "t.csv", "columns": "a"}, "0 of 30 items have a text in t.csv: "
                                                            "such as 'x' there"),
            ({"table": tmp_path / "t.csv", "columns": "b"}, "no column 'b'; it has 'item_id', 'a'"),
            ({"table": tmp_path / "t.csv"}, "no column of .*t.csv is named that holds text"),
            ({"table": tmp_path / "none.csv", "columns": "a"}, "does not exist"),
            ({"columns": "genre"}, "has no column 'genre' of text; it has 'title', 'text'"),
            ({"name": "a/b"}, "cannot be called 'a/b'"),
            ({"pca": 99}, "pca is 99; expected 1 to 12")):
        with pytest.raises(InputError, match=said):
            rec_jax.embed(dataset.folder, model=model, **given)
    for given in ({}, {"model": model, "vectors": "v.npy"}):
        with pytest.raises(InputError, match="expected exactly one of the two"):
            rec_jax.embed(dataset.folder, **given)
    with pytest.raises(InputError, match="settings of a model are of no use beside a file of vec"):
        rec_jax.embed(dataset.folder, vectors="v.npy", pooling="cls")
    with pytest.raises(InputError, match="a file of ids is of no use without a file of vectors"):
        rec_jax.embed(dataset.folder, model=model, ids="ids.txt")
    assert vector_names(dataset.vectors_folder) == []
    source = write_source(tmp_path / "bare")
    prepare(PrepareConfig(source=source.source, out=str(tmp_path / "bare" / "made")))
    with pytest.raises(InputError, match="has no text of its items"):
        rec_jax.embed(tmp_path / "bare" / "made", model=model)
    # Nothing was made there.
    assert not (tmp_path / "bare" / "made" / "item_vectors").exists()


def ready(folder: Path, dataset: Dataset, vectors: np.ndarray) -> VectorFile:
    np.save(folder / "v.npy", vectors)
    (folder / "ids.txt").write_text("\n".join(dataset.item_ids()[:len(vectors)]) + "\n")
    return VectorFile(str(folder / "v.npy"), str(folder / "ids.txt"))


def test_ready_vectors_are_taken_as_they_are(dataset: Dataset, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((20, 5)).astype(np.float32)
    given = ready(tmp_path, dataset, vectors)
    made = rec_jax.embed(dataset.folder, name="ready", vectors=given.path, ids=given.ids)
    found = open_item_vectors(dataset, "ready")
    np.testing.assert_array_equal(found.vectors[:20], vectors)
    assert found.has.tolist() == [True] * 20 + [False] * 10 and not found.vectors[20:].any()
    assert (made["with_vectors"], made["rows"], made["unknown_ids"]) == (20, 20, 0)
    assert rec_jax.embed(dataset.folder, name="ready", vectors=given.path, ids=given.ids)["reused"]


def test_principal_components_of_the_items_that_have_a_vector(dataset: Dataset,
                                                              tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((20, 5)).astype(np.float32)
    given = ready(tmp_path, dataset, vectors)
    made = rec_jax.embed(dataset.folder, name="few", vectors=given.path, ids=given.ids, pca=3,
                         whiten=True)
    found = open_item_vectors(dataset, "few")
    assert found.vectors.shape == (30, 3) and not found.vectors[20:].any()
    np.testing.assert_allclose(np.cov(found.vectors[:20].T), np.eye(3), atol=1e-5)
    assert 0 < made["explained"] < 1
    assert "few.projection.safetensors" in made["files"]
    rec_jax.embed(dataset.folder, name="few", vectors=given.path, ids=given.ids, overwrite=True)
    assert not (dataset.folder / "item_vectors" / "few.projection.safetensors").exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("pca", [None, 2])
def test_what_is_not_finite_is_refused_by_its_item(bad: float, pca: int | None, dataset: Dataset,
                                                   tmp_path: Path) -> None:
    vectors = np.ones((20, 5))
    vectors[7, 2] = bad
    given = ready(tmp_path, dataset, vectors)
    with pytest.raises(InputError, match=f"the vector of item '{dataset.item_ids()[7]}' has valu"):
        rec_jax.embed(dataset.folder, vectors=given.path, ids=given.ids, pca=pca)
    assert files_of(dataset) == {}


def test_vectors_are_complete_or_absent(dataset: Dataset, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    given = ready(tmp_path, dataset, np.ones((20, 5)))
    rec_jax.embed(dataset.folder, vectors=given.path, ids=given.ids)
    given = ready(tmp_path, dataset, 2 * np.ones((20, 5)))

    def full(*_: object) -> Iterator[bytes]:
        raise OSError(28, "No space left on device")
        yield b""

    monkeypatch.setattr(item_vectors, "_npy", full)
    with pytest.raises(OSError, match="No space"):
        rec_jax.embed(dataset.folder, vectors=given.path, ids=given.ids, overwrite=True)
    # Old vectors have lost their seal, and are none any more.
    with pytest.raises(InputError, match=r"no item vectors 'text' \(it has: none\)"):
        open_item_vectors(dataset, "text")


def test_vectors_of_other_items_or_damaged_ones_are_refused(dataset: Dataset, tmp_path: Path
                                                            ) -> None:
    given = ready(tmp_path, dataset, np.ones((20, 5)))
    rec_jax.embed(dataset.folder, vectors=given.path, ids=given.ids)
    folder = dataset.folder / "item_vectors"
    other = write_source(tmp_path / "other")
    path = Path(str(other.source))
    path.write_text(path.read_text().replace(",01", ",77"))
    prepare(other)
    shutil.copytree(folder, tmp_path / "other" / "made" / "item_vectors")
    with pytest.raises(InputError, match="are of other items than the dataset's"):
        open_item_vectors(Dataset.open(tmp_path / "other" / "made"), "text")
    whole = (folder / "text.npy").read_bytes()
    for content, said in ((whole[:-4], "has 724 bytes, expected 728"), (None, "it is missing")):
        (folder / "text.npy").unlink()
        if content:
            (folder / "text.npy").write_bytes(content)
        with pytest.raises(InputError, match=said):
            open_item_vectors(dataset, "text")
    (folder / "text.npy").write_bytes(whole)
    about = json.loads((folder / "text.json").read_text())
    for changed, said in (
            ({**about, "format_version": 2}, "has format version 2, expected 1"),
            ({**about, "dim": "5"}, "is damaged"), ({**about, "files": {}}, "no checksum"),
            ({**about, "files": {**about["files"], "../x": about["files"]["text.npy"]}},
             "no file of its own"), ([], "is damaged")):
        (folder / "text.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match=said):
            open_item_vectors(dataset, "text")


def test_the_dataset_opens_and_verifies_with_vectors_beside_it(dataset: Dataset, tmp_path: Path
                                                               ) -> None:
    given = ready(tmp_path, dataset, np.ones((20, 5)))
    rec_jax.embed(dataset.folder, vectors=given.path, ids=given.ids)
    assert Dataset.open(dataset.folder).split_hash == dataset.split_hash
    found = verify(dataset.folder)
    assert not any(entry["problem"] for entry in found["files"]) and not found["problems"]
    assert {entry["name"] for entry in found["files"]} >= {"item_vectors/text.npy",
                                                           "item_vectors/text.mask.npy"}
    path = dataset.folder / "item_vectors" / "text.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert [entry["problem"] for entry in verify(dataset.folder)["files"] if entry["problem"]] == [
        "item_vectors/text.npy: its bytes are not those that were written (sha256)"]
    # They took hours, perhaps: a new dataset does not replace them unasked.
    with pytest.raises(InputError, match=r"item_vectors.* is not of the dataset; move it away"):
        prepare(PrepareConfig(source=str(tmp_path / "source" / "log.csv"),
                              out=str(dataset.folder), overwrite=True))


def test_one_writer_at_a_time(dataset: Dataset, tmp_path: Path) -> None:
    given = ready(tmp_path, dataset, np.ones((20, 5)))
    code = ("import sys, time\nfrom rec_jax import locks\n"
            f"with locks.locked({str(dataset.folder / 'item_vectors')!r}):\n"
            "    print('held', flush=True)\n    sys.stdin.read()\n")
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=r"another process works in .*item_vectors"):
            rec_jax.embed(dataset.folder, vectors=given.path, ids=given.ids)
        other.communicate("")
    assert rec_jax.embed(dataset.folder, vectors=given.path, ids=given.ids)["with_vectors"] == 20


@needs_tokenizers
@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_to_the_same_bits(dataset: Dataset, model: Path) -> None:
    config = EmbedConfig(model=str(model), block=3)
    embed_items(dataset, config)
    whole = files_of(dataset)
    shutil.rmtree(dataset.folder / "item_vectors")
    code = ("import os, signal, sys\nfrom rec_jax.data.dataset import Dataset\n"
            "from rec_jax.progress import Silent\n"
            "from rec_jax.text.embed_items import EmbedConfig, embed_items\n"
            "class Die(Silent):\n"
            "    left = int(sys.argv[3])\n"
            "    def advance(self, count=1, note=''):\n"
            "        self.left -= 1\n"
            "        if not self.left: os.kill(os.getpid(), signal.SIGKILL)\n"
            "embed_items(Dataset.open(sys.argv[1]), EmbedConfig(model=sys.argv[2], block=3), "
            "Die())\n")
    for after in (2, 5):
        done = subprocess.run([sys.executable, "-c", code, dataset.folder, model, str(after)],
                              check=False, env={**os.environ})
        assert done.returncode == -signal.SIGKILL
    embed_items(dataset, config)
    assert files_of(dataset) == whole


def test_a_json_says_nothing_that_json_does_not_have(dataset: Dataset, tmp_path: Path) -> None:
    given = ready(tmp_path, dataset, np.ones((20, 5)))
    made: dict[str, Any] = rec_jax.embed(dataset.folder, vectors=given.path, ids=given.ids)
    assert json.loads(json.dumps(made)) == made
