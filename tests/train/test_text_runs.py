"""Whole runs with a text encoder inside the step: trained, resumed, served, merged, written."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_models_of_rows import arrays, lists_agree, resumed_like, trained

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "text"))
import text_models as models

from rec_jax import api, config
from rec_jax.checkpoint import Checkpoints
from rec_jax.errors import InputError
from rec_jax.inference.export import load_embeddings
from rec_jax.run import RunConfig
from rec_jax.tables.row_map import read_row_map
from rec_jax.text import item_tokens
from rec_jax.train.merging import merge_adapters, write_text_encoder

STEPS = ("train.steps=8", "train.checkpoint_every=4", "train.evaluate_every=1000.0",
         'objective.kind="sampled_softmax"', "objective.count=32", "optimizer.rate=2e-2")
Mapping = Callable[..., dict[str, Any]]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A BERT of one layer; where the package of tokenizers is missing, words are cut here."""
    monkeypatch.setattr(models, "LAYERS", 1)
    if importlib.util.find_spec("tokenizers") is None:
        monkeypatch.setattr(item_tokens, "_tokenised", _tokenised)
    models.write_model(tmp_path / "bert", seed=4)
    return tmp_path / "bert"


def _tokenised(texts: Any, *_: Any) -> tuple[np.ndarray, np.ndarray]:
    found = [models.tokens_of("bert", text) if text else [] for block in texts.blocks()
             for text in block]
    lengths = np.array([len(ids) for ids in found], np.int32)
    return np.array([[*ids, *[0] * (lengths.max() - len(ids))] for ids in found],
                    np.int32), lengths


def mapping_of(tiny_mapping: Mapping, model: Path, train: str, *more: str) -> dict[str, Any]:
    """A run on items whose texts are words of their numbers; every seventh has none."""
    mapping = tiny_mapping(*STEPS, *more)
    table = model.parent / "names.csv"
    table.write_text("item_id,name\n" + "".join(
        f"{item:04d},{text_of(item)}\n" for item in range(50)))
    mapping["content"] = [{"name": "words", "encoder": str(model), "train": train,
                           "table": str(table), "columns": ["name"]}]
    if train == "lora":
        mapping["lora"] = [{"match": "text/blocks/*/kernel", "rank": 2}]
    return mapping


def text_of(item: int) -> str:
    words = (f"w{(item * step) % 34}" for step in range(item % 4 + 1))
    return "" if item % 7 == 3 else " ".join(words)


def plain_vectors(run: Path, model: Path, step: int = 8) -> np.ndarray:
    """Of all items, in f64, by the parameters of a checkpoint; the ids are those of the dataset."""
    found = arrays(run, step)
    own = {path[len("text['"):-2]: leaf.astype(np.float64) for path, leaf in found.items()
           if path.startswith("text[")}
    for path in [path for path in own if path.startswith("lora/") and path.endswith("/a")]:
        name = path[len("lora/"):-len("/a")]
        own[name] = own[name] + 8.0 * own[path] @ own[f"lora/{name}/b"]  # alpha 16, rank 2
    from rec_jax.text import bert
    from rec_jax.text.architecture import read_architecture

    tensors = {}
    for path, source in bert.sources(read_architecture(model)).items():
        parts = np.split(own[f"text/{path}"], len(source.names), axis=-1)
        tensors |= {name: part.T if source.transposed else part
                    for name, part in zip(source.names, parts, strict=True)}
    ids = api.load(run).served.dataset.item_ids()
    return np.stack([
        models.states_of("bert", tensors, models.tokens_of("bert", text)).mean(axis=0)
        if (text := text_of(int(item))) else np.zeros(models.WIDTH) for item in ids])


def stored(run: Path, step: int = 8) -> np.ndarray:
    """Rows by item `[V, d + c]`."""
    rows = arrays(run, step)["model['tables']['items']"]
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        order = json.loads(json.dumps(checkpoints.extra(step)))["row_map"]
    return rows[read_row_map(order, 50).rows(np.arange(50))]


@pytest.mark.slow
def test_a_run_trains_its_text_encoder_and_is_served_by_what_it_stores(
        model: Path, tiny_mapping: Mapping, tmp_path: Path) -> None:
    mapping = mapping_of(tiny_mapping, model, "lora", 'table.update="sparse"')
    run = tmp_path / "run"
    summary = trained(mapping, run)
    assert summary["parameters"]["frozen"] > 1000
    found = arrays(run)
    before = load_file(model / "model.safetensors")
    np.testing.assert_array_equal(found["text['text/words']"],
                                  before["embeddings.word_embeddings.weight"])
    assert np.abs(found["text['lora/text/blocks/0/qkv/kernel/b']"]).max() > 1e-3
    rows = stored(run)
    wanted = plain_vectors(run, model)
    np.testing.assert_allclose(rows[:, 16:], wanted, atol=2e-5)
    assert wanted[wanted.any(axis=1)].std(axis=0).min() > 1e-4
    # What is served is e + A x, from a disk and from a mesh, without a look at texts.
    vectors = rows[:, :16] + rows[:, 16:] @ found["model['encoder']['content/words']"]
    out = load_embeddings(api.export(run, out=tmp_path / "items"))
    np.testing.assert_allclose(out.vectors, vectors, atol=1e-5)
    lists_agree(run)
    # The encoder goes on as a folder, and as an ordinary run.
    write_text_encoder(run, out=tmp_path / "tuned")
    after = load_file(tmp_path / "tuned" / "model.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    width = models.WIDTH
    product = found["text['lora/text/blocks/0/qkv/kernel/a']"] @ found[
        "text['lora/text/blocks/0/qkv/kernel/b']"]
    np.testing.assert_allclose(after[name] - before[name], 8 * product[:, :width].T, atol=1e-5)
    np.testing.assert_array_equal(after["pooler.dense.bias"], before["pooler.dense.bias"])
    with pytest.raises(InputError, match="tuned exists already"):
        write_text_encoder(run, out=tmp_path / "tuned")


@pytest.mark.slow
@pytest.mark.parametrize(("train", "mode"), [("lora", "sparse"), ("all", "dense")])
def test_a_resumed_run_has_the_same_bits(train: str, mode: str, model: Path, tmp_path: Path,
                                         tiny_mapping: Mapping) -> None:
    mapping = mapping_of(tiny_mapping, model, train, f'table.update="{mode}"',
                         "train.accumulate=2")
    resumed_like(mapping, tmp_path)
    for step in (4, 8):
        np.testing.assert_allclose(stored(tmp_path / "whole", step)[:, 16:],
                                   plain_vectors(tmp_path / "whole", model, step), atol=2e-5)
    assert (arrays(tmp_path / "whole", 4)["text['text/norm/scale']"] == arrays(
        tmp_path / "whole")["text['text/norm/scale']"]).all() == (train == "lora")


@pytest.mark.slow
def test_a_merged_run_has_the_same_queries_and_trains_all(model: Path, tiny_mapping: Mapping,
                                                          tmp_path: Path) -> None:
    mapping = mapping_of(tiny_mapping, model, "lora", 'table.update="sparse"')
    mapping["lora"].append({"match": "blocks/*/kernel", "rank": 2})
    trained(mapping, tmp_path / "run")
    from rec_jax.run import Run

    made = merge_adapters(Run(tmp_path / "run"), tmp_path / "merged")
    assert {path.startswith("text/") for path in made["merged"]} == {True, False}
    one, other = (load_embeddings(api.export(tmp_path / name, out=tmp_path / f"{name}-users",
                                             what="users")).vectors for name in ("run", "merged"))
    np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(plain_vectors(tmp_path / "merged", model),
                               plain_vectors(tmp_path / "run", model), atol=1e-5)
    assert Run(tmp_path / "merged").config().content[0].train == "all"


@pytest.mark.slow
def test_texts_are_learned_from(model: Path, tiny_mapping: Mapping, tmp_path: Path) -> None:
    """With content alone, and everything frozen but the text encoder, the loss falls."""
    mapping = mapping_of(tiny_mapping, model, "all", 'table.update="sparse"', "train.steps=60",
                         "encoder.dropout=0.0")
    mapping["content"][0]["drop"] = 1.0
    mapping["tune"] = [{"match": "*"}, {"match": "text/*", "rate": 1.0}]
    trained(mapping, tmp_path / "run")
    losses = [line["loss"] for line in map(json.loads, (
        tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
    assert losses[-1] < losses[0] - 0.05


def test_what_does_not_fit_is_one_line(model: Path, tiny_mapping: Mapping) -> None:
    for more, said in (
            (('objective.kind="next_item"', "objective.count=none"), "scores every item"),
            (("checkpoint.full_every=3",), "full_every = 1"),
            (("train.ema=0.9",), "no train.ema")):
        mapping = mapping_of(tiny_mapping, model, "lora", *more)
        if "next_item" in more[0]:
            del mapping["objective"]["count"]
        with pytest.raises(InputError, match=said):
            config.build(RunConfig, mapping)
    mapping = mapping_of(tiny_mapping, model, "lora")
    mapping["content"].append({**mapping["content"][0], "name": "other"})
    with pytest.raises(InputError, match="expected one that has"):
        config.build(RunConfig, mapping)
    with pytest.raises(InputError, match=r"expected content\.encoder too"):
        config.build(RunConfig, {**mapping, "content": [{"name": "a", "max_length": 3}]})
