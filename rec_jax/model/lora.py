"""LoRA: a matrix of the encoder is held still, and a product of two thin ones is added to it.

    W + (alpha / r) A B,    W: [n, m] frozen,  A: [n, r] random,  B: [r, m] zero at first

Hu et al., "LoRA: low-rank adaptation of large language models" (2021), where a layer computes
`W x` and the factors stand the other way round. Before the first step B is zero, so the model is
the one that it starts from, bit for bit. A and B are parameters `lora/PATH/a` and `lora/PATH/b`
beside the encoder's, so that optax, the average, checkpoints, export and the mesh know nothing of
them; the encoder's module sees the sum alone, so every encoder can be adapted, and so can every
backend of its layers.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rec_jax import streams
from rec_jax.errors import InputError
from rec_jax.model.tuning import matching
from rec_jax.ranges import above, at_least, check

FOLDER = "lora/"


@dataclass(frozen=True)
class LoraConfig:
    """Which matrices of the encoder are adapted, and how.

    match: their paths, as in `rec_jax.model.tuning`; of several entries that match a matrix the
      last one counts.
    rank: r, columns of A and rows of B.
    alpha: the product A B counts alpha / rank times.
    """

    match: str
    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self) -> None:
        check(self, "lora.", rank=at_least(1, 2**16), alpha=above(0, 1e6))


class Adapted(NamedTuple):
    """A matrix that is adapted. path: its own; scale: alpha / rank."""

    path: str
    rank: int
    scale: float

    @property
    def left(self) -> str:
        """The path of A."""
        return f"{FOLDER}{self.path}/a"

    @property
    def right(self) -> str:
        """The path of B."""
        return f"{FOLDER}{self.path}/b"


def find_adapted(configs: Iterable[LoraConfig], shapes: Mapping[str, Sequence[int]]
                 ) -> tuple[Adapted, ...]:
    """The matrices that are adapted, of an encoder's parameters of these shapes by path.

    Raises:
      InputError: an entry matches no matrix, or its rank is more than a matrix can have.
    """
    matrices = [path for path, shape in shapes.items() if len(shape) == 2]
    found = {path: config for config in configs
             for path in matching("lora", config.match, matrices, "matrix of the encoder")}
    for path, config in found.items():
        if config.rank > min(shapes[path]):
            raise InputError(f"lora.rank is {config.rank}, and {path} is {list(shapes[path])}; "
                             f"expected at most {min(shapes[path])}")
    return tuple(Adapted(path, config.rank, config.alpha / config.rank)
                 for path, config in found.items())


def init_lora(adapted: Iterable[Adapted], shapes: Mapping[str, Sequence[int]], seed: int
              ) -> dict[str, jax.Array]:
    """A and B f32 by path. A's values follow from the matrix's path: normal, deviation n^-1/2, so
    that a vector of norm 1 stays of about that norm in each of the r directions."""
    key = streams.of_run(seed, streams.LORA)
    made = {}
    for each in adapted:
        rows, columns = shapes[each.path]
        own = jax.random.fold_in(key, zlib.crc32(each.path.encode()))
        made[each.left] = rows**-0.5 * jax.random.normal(own, (rows, each.rank))
        made[each.right] = jnp.zeros((each.rank, columns))
    return made


def adapted_in(paths: Iterable[str]) -> list[str]:
    """Of a model's parameters the matrices that are adapted."""
    return [path.removeprefix(FOLDER).removesuffix("/a") for path in paths
            if path.startswith(FOLDER) and path.endswith("/a")]


def merged(adapted: Iterable[Adapted], params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The parameters with W + (alpha / r) A B in the place of each adapted W, and without A, B."""
    found = dict(params)
    for each in adapted:
        left, right = found.pop(each.left), found.pop(each.right)
        product = jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
        found[each.path] = found[each.path] + each.scale * product
    return found
