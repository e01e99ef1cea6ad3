"""Principal components of item vectors: fewer numbers an item, or numbers without correlation.

With the mean m and the covariance C = sum (x - m)(x - m)^T / (n - 1) over the items that have a
vector, and C = Q diag(v) Q^T with falling v, a vector becomes

    y = Q_k^T (x - m),    whitened: y = diag(v_k)^-1/2 Q_k^T (x - m)

for the first k components. All sums are f64, in one order; of the two signs of a component that is
taken which makes its largest value positive. So the result is exact, and the same every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import save

from rec_jax.errors import InputError

_NOTHING = 1e-10
"""A component with less than so much of the first one's variance is rounding."""
Blocks = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
"""Vectors `[b, a]` and bool `[b]`, which of them count; from the beginning at every call."""


@dataclass(frozen=True)
class Projection:
    """mean f64 `[a]`, matrix f64 `[a, k]`; explained: share of the variance that is kept."""

    mean: np.ndarray
    matrix: np.ndarray
    explained: float

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """(x - mean) matrix: `[b, a]` -> f32 `[b, k]`."""
        return ((vectors.astype(np.float64) - self.mean) @ self.matrix).astype(np.float32)

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        return save({"matrix": np.ascontiguousarray(self.matrix), "mean": self.mean})


def fit(blocks: Blocks, dim: int, components: int | None, whiten: bool) -> Projection:
    """The projection to the first `components`, or to all that vary.

    Raises:
      InputError: there are not so many components, or a whitened one does not vary.
    """
    if components is not None and not 1 <= components <= dim:
        raise InputError(f"pca is {components}; expected 1 to {dim}, the width of the vectors")
    count, total = 0, np.zeros(dim)
    for block, has in blocks():
        count += int(has.sum())
        total += block[has].astype(np.float64).sum(axis=0)
    if count < 2:
        raise InputError(f"{count} items have a vector; principal components need two")
    mean = total / count
    covariance = np.zeros((dim, dim))
    for block, has in blocks():
        centred = block[has].astype(np.float64) - mean
        covariance += centred.T @ centred
    values, vectors = np.linalg.eigh(covariance / (count - 1))
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    varying = int((values > _NOTHING * values[0]).sum())
    if varying == 0:
        raise InputError("all items have the same vector; expected some that differ")
    kept = varying if components is None else components
    if whiten and kept > varying:
        raise InputError(f"pca is {kept}, but only {varying} components vary, and others cannot be "
                         f"whitened; expected at most {varying}")
    matrix = vectors[:, :kept]
    largest = np.abs(matrix).argmax(axis=0)
    matrix = matrix * np.where(matrix[largest, np.arange(kept)] < 0, -1.0, 1.0)
    if whiten:
        matrix = matrix / np.sqrt(values[:kept])
    return Projection(mean, matrix, float(values[:kept].sum() / values.sum()))
