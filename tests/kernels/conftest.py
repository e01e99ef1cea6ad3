"""The f64 oracle of the kernels and the backends that must agree with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.kernels import Backend, reference
from rec_jax.kernels.native import backend as native
from rec_jax.kernels.native import build as native_build
from rec_jax.kernels.xla import backend as xla
from rec_jax.kernels.xla.tiles import Sizes

TINY = Sizes(scores=1 << 12, queries=32, rows=128)
"""Tiles so small that small problems have several blocks of queries and tiles of rows."""


@dataclass(frozen=True)
class Case:
    """Arguments of one loss with its cotangents; numpy, in the type that the kernel sees."""

    queries: np.ndarray
    items: np.ndarray
    targets: np.ndarray
    g: np.ndarray
    z: np.ndarray
    bias: np.ndarray | None = None
    scale: float = 1.0
    softcap: float | None = None
    num_items: int | None = None

    def with_(self, **changes: Any) -> Case:
        return replace(self, **changes)

    def rule(self) -> dict[str, Any]:
        """The keyword arguments that all public functions share."""
        return {"bias": None if self.bias is None else jnp.asarray(self.bias, jnp.float32),
                "logit_scale": self.scale, "softcap": self.softcap, "num_items": self.num_items}


def make_case(count: int, rows: int, dim: int, *, seed: int = 0, bias: bool = False,
              spread: float = 1.0, dtype: Any = np.float32, **rule: Any) -> Case:
    """Scores with a standard deviation of `spread`; a label in the last row, one repeated."""
    draw = np.random.default_rng(seed)
    limit = rule.get("num_items") or rows
    targets = draw.integers(0, limit, count)
    targets[-1] = limit - 1
    targets[: count // 3] = targets[0]
    g = draw.normal(size=count)
    g[: count // 4] = 0.0
    return Case(
        np.asarray(jnp.asarray(draw.normal(size=(count, dim)) * spread / dim**0.5, dtype)),
        np.asarray(jnp.asarray(draw.normal(size=(rows, dim)), dtype)),
        targets.astype(np.int32), g.astype(np.float32),
        draw.normal(size=count).astype(np.float32),
        draw.normal(size=rows).astype(np.float32) if bias else None, **rule)


@dataclass(frozen=True)
class Dense:
    """f64 results: loss, lse `[N]`; p `[N, V]`; gradients of sum(g loss + z lse)."""

    scores: np.ndarray
    loss: np.ndarray
    lse: np.ndarray
    p: np.ndarray
    d_queries: np.ndarray
    d_items: np.ndarray
    d_bias: np.ndarray
    d_scale: float


def dense(case: Case) -> Dense:
    """Everything by definition, in f64."""
    h, w = case.queries.astype(np.float64), case.items.astype(np.float64)
    products = h @ w.T
    raw = case.scale * products
    if case.bias is not None:
        raw = raw + case.bias.astype(np.float64)
    slope = np.ones_like(raw)
    scores = raw
    if case.softcap is not None:
        bent = np.tanh(raw / case.softcap)
        scores, slope = case.softcap * bent, 1 - bent**2
    scores = scores.copy()
    scores[:, len(w) if case.num_items is None else case.num_items:] = -np.inf
    index = np.arange(len(h))
    top = scores.max(axis=1, keepdims=True)
    p = np.exp(scores - top)
    total = p.sum(axis=1, keepdims=True)
    lse, p = (top + np.log(total))[:, 0], p / total
    label = np.zeros_like(p)
    label[index, case.targets] = 1.0
    # The loss of a label with p near 1 needs the sum of the others, not 1 - p.
    others = np.where(label > 0, -np.inf, scores)
    peak = np.maximum(others.max(axis=1), -1e300)
    with np.errstate(divide="ignore"):
        rest = np.log(np.exp(others - peak[:, None]).sum(axis=1)) + peak
    loss = np.logaddexp(0.0, rest - scores[index, case.targets])
    g, z = case.g[:, None].astype(np.float64), case.z[:, None].astype(np.float64)
    miss = np.where(label > 0, np.expm1(-loss)[:, None], p)
    c = (g * miss + z * p) * slope
    c = np.where(np.isfinite(scores), c, 0.0)
    return Dense(scores, loss, lse, p, case.scale * c @ w, case.scale * c.T @ h, c.sum(axis=0),
                 float((c * products).sum()))


@pytest.fixture(name="make_case", scope="session")
def make_case_fixture() -> Callable[..., Case]:
    """`make_case(N, V, d, *, seed, bias, spread, dtype, scale, softcap, num_items)`."""
    return make_case


@pytest.fixture(name="dense", scope="session")
def dense_fixture() -> Callable[[Case], Dense]:
    """The f64 oracle."""
    return dense


BACKENDS: dict[str, Backend] = {
    "reference": reference.BACKEND,
    "xla": xla.BACKEND,
    "xla-tiny-tiles": xla.make_backend(TINY),
    "native": native.make_backend(),
    "native-vector": native.make_backend(amx=False, rows=128),
}


def runnable(name: str) -> Backend:
    """The backend of this name, or a skip where the machine cannot have it."""
    if name.startswith("native") and (reason := native_build.problem()):
        pytest.skip(f"no native backend: {reason}")
    return BACKENDS[name]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every backend that runs here, the tiled ones also with many small tiles."""
    return runnable(request.param)


@pytest.fixture(params=[name for name, one in BACKENDS.items() if one.rank_count])
def ranking(request: pytest.FixtureRequest) -> Backend:
    """The backends with ranks."""
    return runnable(request.param)


@pytest.fixture(params=[name for name, one in BACKENDS.items() if one.top_k])
def choosing(request: pytest.FixtureRequest) -> Backend:
    """The backends with best items."""
    return runnable(request.param)


@pytest.fixture(params=["xla-tiny-tiles", "native", "native-vector"])
def streaming(request: pytest.FixtureRequest) -> Backend:
    """The backends of the softmax that never hold all scores."""
    return runnable(request.param)


@pytest.fixture(scope="session")
def tiny_tiles() -> Backend:
    """The XLA backend with many small tiles."""
    return BACKENDS["xla-tiny-tiles"]
