"""A foreign function whose rows are independent, and which XLA may therefore cut over devices.

XLA knows nothing of a foreign function, and gathers its arguments on every device. Told that
axis 0 of all arguments and results is one and the same, it leaves them where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .primitives import Array


def by_rows(function: Callable[..., Sequence[Array]], arguments: Sequence[Array],
            ranks: Sequence[int], whole: Sequence[Array] = ()) -> list[Array]:
    """`function(*arguments, *whole)`, whose results have these `ranks`.

    Arguments and results begin with axis B. Under `jit` on several devices, each calls `function`
    with its own rows of them; along the other axes they are whole, and so are `whole`.
    """
    partitioned = custom_partitioning(function)

    def partition(mesh: Mesh, given: Sequence[Any], results: Sequence[Any]) -> Any:
        rows = NamedSharding(mesh, PartitionSpec(*given[0].sharding.spec[:1]))
        here = [rows] * count + [NamedSharding(mesh, PartitionSpec())] * len(whole)
        # As the function gives and takes them: a list, and a tuple.
        return mesh, function, [rows for _ in results], tuple(here)

    def name(array: str, rank: int, first: int = 1) -> str:
        return " ".join(["b"] * first + [f"{array}_{axis}" for axis in range(first, rank)])

    count = len(arguments)
    operands = ", ".join([*(name(f"x{index}", x.ndim) for index, x in enumerate(arguments)),
                          *(name(f"w{index}", x.ndim, 0) for index, x in enumerate(whole))])
    outputs = ", ".join(name(f"y{index}", rank) for index, rank in enumerate(ranks))
    partitioned.def_partition(partition=partition, sharding_rule=f"{operands} -> {outputs}")
    return list(partitioned(*arguments, *whole))
