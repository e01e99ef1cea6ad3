"""Rows leave a checkpoint in another order than that of its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rec_jax.checkpoint import ordered_blocks, scatter_rows

ROWS = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)


@dataclass
class InMemorySource:
    """A `ArraySource` that counts what is read."""

    values: np.ndarray
    block: int
    reads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def read(self, first: int, last: int) -> np.ndarray:
        self.reads.append((first, last))
        return self.values[first:last]

    def read_into(self, rows: np.ndarray, first: int) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(("block", "band", "size"), [
    (100, 10**9, 7), (8, 10**9, 64), (8, 12 * 20, 6), (7, 12 * 33, 33), (1, 12, 1)])
def test_rows_come_in_the_order_that_is_asked_for(block: int, band: int, size: int) -> None:
    order = np.random.default_rng(1).permutation(90)
    source = InMemorySource(ROWS, block)
    parts = list(ordered_blocks(source, 90, lambda ids: order[ids], size=size, band_bytes=band))
    assert all(len(part) <= size for part in parts)
    np.testing.assert_array_equal(np.concatenate(parts), ROWS[order])


def test_a_band_reads_each_block_of_the_file_once() -> None:
    source = InMemorySource(ROWS, 8)
    order = np.random.default_rng(1).permutation(100)
    assert len(list(ordered_blocks(source, 100, lambda ids: order[ids], size=50))) == 2
    assert sorted(source.reads) == [(first, min(first + 8, 100)) for first in range(0, 100, 8)]


def test_rows_are_laid_where_they_belong_and_others_stay() -> None:
    places = np.random.default_rng(2).permutation(120)[:90]
    places[[3, 40]] = -1
    found = np.asarray(scatter_rows(jnp.full((120, 3), 7.0), InMemorySource(ROWS, 8), places))
    expected = np.full((120, 3), 7, np.float32)
    expected[places[places >= 0]] = ROWS[:90][places >= 0]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("axes", ["items", ("items", "data"), None])
def test_rows_are_laid_on_a_mesh_and_stay_cut(axes: Any) -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "items"))
    cut = NamedSharding(mesh, PartitionSpec(axes))
    places = np.random.default_rng(3).permutation(120)[:90]
    places[[3, 40]] = -1
    whole = jax.device_put(jnp.full((120, 3), 7.0), cut)
    found = scatter_rows(whole, InMemorySource(ROWS, 8), places)
    expected = np.full((120, 3), 7, np.float32)
    expected[places[places >= 0]] = ROWS[:90][places >= 0]
    np.testing.assert_array_equal(found, expected)
    assert found.sharding.is_equivalent_to(cut, 2)


def test_rows_are_laid_in_the_type_of_where_they_go() -> None:
    zeros = jnp.zeros((100, 3), jnp.bfloat16)
    found = scatter_rows(zeros, InMemorySource(ROWS, 100), np.arange(100))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, ROWS.astype(jnp.bfloat16))
