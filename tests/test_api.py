"""The Python example of the README is run as it stands."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rec_jax
from rec_jax.data.prepare import prepare
from rec_jax.data.prepare_config import Columns, ItemFile, PrepareConfig

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def example() -> str:
    found = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert found, "README.md has no ```python block"
    return found[1]


def test_the_example_of_the_readme_runs(
        example: str, tiny_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    # MovieLens' users have numbers for names, and its films have titles.
    Path("a.csv").write_text(tiny_csv.read_text().replace("\nu", "\n"))
    prepare(PrepareConfig(
        source="a.csv", out="data/ml-100k/dataset", columns=Columns(time="time"),
        item_file=ItemFile(str(tiny_csv.with_name("items.csv")), title="title")))
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    result, embeddings = names["result"], names["embeddings"]
    assert isinstance(result, dict) and isinstance(embeddings, rec_jax.Embeddings)
    assert result["metrics"]["ndcg@10"] > 0 and result["popularity_baseline"]
    assert embeddings.vectors.shape == (50, 64) and np.isfinite(embeddings.vectors).all()
    printed = capsys.readouterr().out
    assert "the film" in printed and "split_hash" in printed


def test_the_example_is_ten_lines(example: str) -> None:
    assert len(example.splitlines()) <= 10


def test_every_public_name_is_there_and_documented() -> None:
    for name in rec_jax.__all__:
        assert getattr(rec_jax, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'trane'"):
        rec_jax.trane  # noqa: B018


def test_a_loaded_model_refuses_what_only_a_run_can_be_told(tiny_run: Path, tmp_path: Path) -> None:
    model = rec_jax.load(tiny_run)
    for name, value in (("step", 4), ("data", "elsewhere"), ("mesh", "1x8")):
        how: dict[str, Any] = {name: value}
        for asked in (lambda how=how: rec_jax.evaluate(model, **how),
                      lambda how=how: rec_jax.export(model, out=tmp_path / "items", **how),
                      lambda how=how: rec_jax.recommend(model, user="1", **how)):
            with pytest.raises(rec_jax.InputError, match=f"{name} is of a run .* is loaded"):
                asked()
    assert not (tmp_path / "items").exists()
