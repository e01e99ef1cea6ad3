"""`rec-jax embed`: one JSON object or a page for people, and one line where it cannot be."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from command import Command, one_object, refused

from rec_jax.data.dataset import Dataset


@pytest.fixture
def dataset(tiny_csv: Path, tmp_path: Path) -> Path:
    from rec_jax.data.prepare import prepare
    from rec_jax.data.prepare_config import Columns, ItemFile, PrepareConfig

    prepare(PrepareConfig(source=str(tiny_csv), out=str(tmp_path / "made"),
                          columns=Columns(time="time"), item_file=ItemFile(
                              str(tiny_csv.with_name("items.csv")), title="title")))
    return tmp_path / "made"


def write_vectors(dataset: Path) -> Path:
    ids = Dataset.open(dataset).item_ids()
    np.save(dataset.parent / "v.npy", np.random.default_rng(0).standard_normal((len(ids), 4)))
    (dataset.parent / "ids.txt").write_text("\n".join(ids) + "\n")
    return dataset.parent / "v.npy"


def test_ready_vectors(rec_jax: Command, dataset: Path) -> None:
    vectors = write_vectors(dataset)
    given = ("--vectors", vectors, "--ids", dataset.parent / "ids.txt")
    found = one_object(rec_jax("embed", dataset, *given, "--pca", 2, "--json"))
    assert found["dim"] == 2 and found["with_vectors"] == found["count"]
    assert found["folder"] == str(dataset / "item_vectors") and found["name"] == "text"
    shown = rec_jax("embed", dataset, *given, "--name", "all")
    assert shown.code == 0 and "Traceback" not in shown.err
    assert "all.npy" in shown.out.replace("\n", "")  # a long folder is broken into lines
    assert rec_jax("data", "verify", dataset).code == 0


def test_a_model_reads_titles(rec_jax: Command, dataset: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("tokenizers") is None:
        pytest.skip("the package `tokenizers` is not installed")
    vocab = {"[UNK]": 0, "Title": 1, "the": 2, "film": 3, **{f"{n},": 4 + n for n in range(50)}}
    model = tmp_path / "model"
    model.mkdir()
    random = np.random.default_rng(0)
    shapes = {"wte.weight": (60, 8), "wpe.weight": (16, 8), "h.0.ln_1.weight": (8,),
              "h.0.ln_1.bias": (8,), "h.0.attn.c_attn.weight": (8, 24),
              "h.0.attn.c_attn.bias": (24,), "h.0.attn.c_proj.weight": (8, 8),
              "h.0.attn.c_proj.bias": (8,), "h.0.ln_2.weight": (8,), "h.0.ln_2.bias": (8,),
              "h.0.mlp.c_fc.weight": (8, 32), "h.0.mlp.c_fc.bias": (32,),
              "h.0.mlp.c_proj.weight": (32, 8), "h.0.mlp.c_proj.bias": (8,),
              "ln_f.weight": (8,), "ln_f.bias": (8,)}
    from safetensors.numpy import save_file
    save_file({name: (0.3 * random.standard_normal(shape)).astype(np.float32)
               for name, shape in shapes.items()}, model / "model.safetensors")
    (model / "config.json").write_text(json.dumps({
        "model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16,
        "vocab_size": 60}))
    (model / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None,
        "decoder": None, "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}}))
    found = one_object(rec_jax("embed", dataset, "--model", model, "--normalise", "--json"))
    assert found["source"]["pooling"] == "last" and found["with_vectors"] == found["count"]
    vectors = np.load(dataset / "item_vectors" / "text.npy")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert len(np.unique(vectors.round(5), axis=0)) > len(vectors) // 2
    again = rec_jax("embed", dataset, "--model", model, "--normalise")
    assert again.code == 0 and "there already" in again.out and "last, normalised" in again.out
    line = refused(rec_jax("embed", dataset, "--model", model))
    assert "differ in normalise; expected another name, or --overwrite" in line
    assert "--max-length is 99" in refused(rec_jax(
        "embed", dataset, "--model", model, "--max-length", 99))
    assert "--pooling is 'max'" in refused(rec_jax(
        "embed", dataset, "--model", model, "--pooling", "max"))


def test_wrong_options_are_one_line(rec_jax: Command, dataset: Path) -> None:
    vectors = write_vectors(dataset)
    assert "come from --model or from --vectors" in refused(rec_jax("embed", dataset))
    assert "expected a file of ids (--ids)" in refused(rec_jax(
        "embed", dataset, "--vectors", vectors))
    ids = ("--ids", dataset.parent / "ids.txt")
    assert "--pca is 5; expected 1 to 4" in refused(rec_jax(
        "embed", dataset, "--vectors", vectors, *ids, "--pca", 5))
    assert "--dtype is 'f8'" in refused(rec_jax("embed", dataset, "--model", "m", "--dtype", "f8"))
    assert "config.json does not exist" in refused(rec_jax("embed", dataset, "--model", "none"))
    assert "is not a dataset folder" in refused(rec_jax("embed", "none", "--model", "none"))
    (dataset.parent / "ids.txt").write_text("x\n" * len(np.load(vectors)))
    assert "items have a vector in v.npy: such as 'x' there" in refused(rec_jax(
        "embed", dataset, "--vectors", vectors, *ids))
