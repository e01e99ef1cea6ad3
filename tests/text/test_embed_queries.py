"""Vectors of the texts that were searched for, and of those that somebody searches now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import text_models as models

import rec_jax
from rec_jax import config, lookup
from rec_jax.data.dataset import Dataset
from rec_jax.data.features import QUERY, find_features
from rec_jax.data.item_vectors import open_item_vectors
from rec_jax.data.prepare import Columns, PrepareConfig, prepare
from rec_jax.data.queries import Query, texts_in
from rec_jax.errors import InputError
from rec_jax.inference.served import Served
from rec_jax.model.encoder import build_encoder
from rec_jax.run import Run, RunConfig
from rec_jax.tables.table import padded_size
from rec_jax.text.encoder import load_text_encoder

Mapping = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tokenizers")
    folder, random = tmp_path_factory.mktemp("texts"), np.random.default_rng(5)
    lines = ["user_id,item_id,text"]
    for user in range(12):
        for _ in range(4):
            lines += [f"u{user},i{random.integers(15)},",
                      f"u{user},,{' '.join(random.choice(models.WORDS[4:], 3))}"]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    prepare(PrepareConfig(str(folder / "log.csv"), str(folder / "d"),
                          columns=Columns(query="text")))
    models.write_model(folder / "model")
    return folder


def test_a_text_of_the_log_and_one_of_now_meet(folder: Path, tiny_mapping: Mapping,
                                               tmp_path: Path) -> None:
    made = rec_jax.embed(folder / "d", what="queries", model=folder / "model", pca=4)
    dataset = Dataset.open(folder / "d")
    texts = texts_in(dataset).item_ids().to_list()
    assert made["count"] == len(texts) == len(set(texts)) and made["dim"] == 4
    assert made["folder"] == str(folder / "d" / "query_vectors")
    assert rec_jax.embed(folder / "d", what="queries", model=folder / "model", pca=4)["reused"]
    whole = rec_jax.embed(folder / "d", what="queries", model=folder / "model", name="whole")
    stored = open_item_vectors(texts_in(dataset), "whole").vectors
    np.testing.assert_allclose(stored, load_text_encoder(folder / "model").embed(texts), atol=1e-5)
    assert whole["dim"] == models.WIDTH
    mapping = tiny_mapping(f"data.path='{folder / 'd'}'")
    mapping["encoder"], mapping["features"] = {"kind": "bag"}, [{"kind": "query", "name": "text"}]
    run = config.build(RunConfig, mapping)
    encoder, params = build_encoder(
        run.encoder, dim=16, length=12, causal=True, precision="f32", seed=0,
        features=find_features(run.features, dataset))
    random = np.random.default_rng(1)
    params[QUERY] = jnp.float32(random.standard_normal(params[QUERY].shape))
    served = Served(Run(tmp_path / "run"), run, dataset, encoder, params, jnp.float32(
        random.standard_normal((padded_size(dataset.num_items), 16))), 0)
    model = str(folder / "model")
    (known,) = lookup.queries(served, texts[2:3], model=model)
    one, other = (rec_jax.recommend(served, history=["i1", query], k=3)
                  for query in (Query(texts[2]), known))
    assert [row.item for row in one] == [row.item for row in other]
    np.testing.assert_allclose([row.score for row in one], [row.score for row in other], atol=1e-3)
    new = " ".join(models.WORDS[4:9])
    history = lookup.with_vectors(served, ["i1", Query(texts[2]), Query(new)], model)
    assert history[:2] == ["i1", Query(texts[2])]
    assert isinstance(history[2], Query) and history[2].vector is not None
    assert rec_jax.recommend(served, history=history, k=3)
    with pytest.raises(InputError, match="expected a query in it"):
        lookup.with_vectors(served, ["i1"], model)
    models.write_model(tmp_path / "other", seed=7)
    with pytest.raises(InputError, match="is not the model that made the query vectors 'text'"):
        lookup.queries(served, [new], model=tmp_path / "other")


def test_what_has_no_queries_is_refused(folder: Path, tiny_dataset: Path) -> None:
    with pytest.raises(InputError, match=r"has no queries; expected .*columns\.query"):
        rec_jax.embed(tiny_dataset, what="queries", model=folder / "model")
    with pytest.raises(InputError, match="texts of queries are those of the dataset"):
        rec_jax.embed(folder / "d", what="queries", model=folder / "model", table="x.csv",
                      columns=("a",))
