"""Items are exported from the checkpoint itself, block by block, wherever its shards came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tensorstore as ts

from rec_jax import api, config
from rec_jax.checkpoint import Checkpoints, updated_rows
from rec_jax.errors import InputError
from rec_jax.inference.export import WRITERS, export, load_embeddings
from rec_jax.inference.served import load_served, open_rows
from rec_jax.model.encoder import build_encoder
from rec_jax.run import Run, RunConfig
from rec_jax.tables import init_table


@pytest.fixture(scope="module")
def run(tiny_mapping: Callable[..., dict[str, Any]],
        tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose checkpoint 5 was saved from 4 shards; 6 is a delta of it."""
    from rec_jax.data.dataset import Dataset
    from rec_jax.mesh import MeshConfig, make_mesh

    settings = config.build(RunConfig, tiny_mapping("table.dim=128"))
    made = Run(tmp_path_factory.mktemp("export-run") / "run")
    made.create(settings)
    dataset = Dataset.open(settings.data.path)
    _, encoder = build_encoder(settings.encoder, dim=128, length=12, causal=True,
                               precision="f32", seed=0)
    table = init_table(settings.table, dataset.num_items, 0, make_mesh(MeshConfig(1, 4)))
    extra = {"dataset": dataset.split_hash, "tables": ["items"]}
    moved = updated_rows(table.rows * 2, np.asarray([1, 40], np.int64))
    full, delta = ({"model": {"encoder": encoder, "tables": {"items": rows}}}
                   for rows in (table.rows, moved))
    with Checkpoints(made.checkpoints) as checkpoints:
        checkpoints.save(5, full, extra, 0.5)
        checkpoints.save(6, delta, extra, 0.4, base=5)
    return made.folder


@pytest.mark.parametrize("form", sorted(WRITERS))
def test_an_export_from_disk_equals_one_from_memory(run: Path, tmp_path: Path, form: str) -> None:
    for step in (5, 6):
        from_disk = export(open_rows(Run(run), step=step), tmp_path / f"disk{step}", format=form)
        in_memory = export(load_served(Run(run), step=step), tmp_path / f"mem{step}", format=form)
        one, other = load_embeddings(from_disk), load_embeddings(in_memory)
        assert one.vectors.tobytes() == other.vectors.tobytes() and one.vectors.any()
        assert one.ids.equals(other.ids) and one.about == other.about


def test_the_verb_reads_items_without_loading_a_model(
        run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rec_jax.checkpoint.load.load_array", None)  # nothing goes on a device
    found = load_embeddings(api.export(run, out=tmp_path / "out", format="zarr"))
    assert found.about["step"] == 5  # the best one
    assert len(found.vectors) == found.about["count"] == 50


def test_the_zarr_export_is_a_plain_zarr_array(run: Path, tmp_path: Path) -> None:
    folder = api.export(run, out=tmp_path / "out", format="zarr")
    array = ts.open({"driver": "zarr3", "kvstore": {
        "driver": "file", "path": str(folder / "embeddings.zarr")}}).result()
    expected = np.asarray(load_served(Run(run), step=5).rows)[:50]
    np.testing.assert_array_equal(array[10:20].read().result(), expected[10:20])


def test_users_need_the_model(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an export of users needs the model"):
        export(open_rows(Run(run)), tmp_path / "out", what="users")
    assert jax.devices() and not (tmp_path / "out").exists()
