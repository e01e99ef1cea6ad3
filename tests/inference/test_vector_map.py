"""The picture of vectors shows the plane of most variance, and colours what the table names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from command import Command, one_object, refused

from rec_jax import api
from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.inference.vector_map import COLOURS, groups_of, principal_plane, write_map


def test_the_plane_is_that_of_the_largest_singular_values() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 6)) * [5, 1, 3, 0.1, 0.1, 0.1] + 7
    places, shares = principal_plane(vectors.astype(np.float32))
    centred = vectors - vectors.mean(axis=0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(places), np.abs(centred @ directions[:2].T), atol=1e-4)
    np.testing.assert_allclose(shares, values[:2] ** 2 / np.sum(values**2), rtol=1e-5)
    assert np.array_equal(places, principal_plane(vectors.astype(np.float32))[0])


@pytest.mark.parametrize("vectors", [np.ones((4, 3)), np.arange(4.0)[:, None]],
                         ids=["all the same", "one column"])
def test_vectors_of_fewer_dimensions_are_drawn_too(vectors: np.ndarray) -> None:
    places, shares = principal_plane(vectors)
    assert places.shape == (4, 2) and np.isfinite(places).all() and np.isfinite(shares).all()
    assert np.ptp(places[:, 1]) < 1e-12


def test_frequent_values_have_colours_and_others_are_grey() -> None:
    labels = pl.Series("colour", [f"v{n:02}" for n in range(COLOURS + 2) for _ in range(20 - n)]
                       + [None])
    groups = groups_of(labels, len(labels))
    assert [name for _, name, _ in groups] == ["other", *(f"v{n:02}" for n in range(COLOURS))]
    assert sum(mask.sum() for mask, _, _ in groups) == len(labels)
    assert groups[0][0][-1] and len({paint for _, _, paint in groups}) == COLOURS + 1
    assert len(groups_of(labels.head(30), 30)) == 2  # nothing is left over: no grey


def test_an_export_is_drawn(tiny_run: Path, tiny_dataset: Path, tmp_path: Path, rec_jax: Command,
                            ) -> None:
    folder = api.export(tiny_run, out=tmp_path / "vectors")
    ids = Dataset.open(tiny_dataset).item_ids()
    table = tmp_path / "items.csv"
    pl.DataFrame({"item_id": [*ids[1:], "stranger"],
                  "kind": ["Drama, War" if n % 2 else "War|Drama" for n in range(len(ids))],
                  "empty": [None] * len(ids)}).write_csv(table)
    made = one_object(rec_jax("map", folder, "--colour", "kind", "--table", table, "--json"))
    assert made["vectors"] == len(ids) and made["coloured"] == len(ids) - 1
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert "1 coloured" not in rec_jax("map", folder, "--most", 5).err
    assert "both or neither" in refused(rec_jax("map", folder, "--colour", "kind"))
    with pytest.raises(InputError, match="no value of 'empty'"):
        write_map(folder, tmp_path / "no.png", colour="empty", table=table)
    with pytest.raises(InputError, match=r"ends in \.png"):
        write_map(folder, tmp_path / "map.jpg")
    with pytest.raises(InputError, match="expected 3 or more"):
        write_map(folder, tmp_path / "no.png", most=2)
    with pytest.raises(InputError, match="name of item vectors"):
        write_map(tiny_dataset, tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()
