"""The TPU kernels compile for real chips, fit their memory, and copy no table.

libtpu compiles for a described topology without a TPU. Each topology is compiled in a process
of its own (this file, run as a script), which prints one JSON record for each program.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

CHIPS = {"v5e": ("v5e:2x2", "v5litepod-4"), "v5p": ("v5p:2x2x1", "v5p-8"),
         "v6e": ("v6e:2x2", "v6e-4")}
POD = ("v5p:4x4x4", "v5p-128")
DIMS = (32, 64, 128, 256)
QUERIES = 8192
ROWS = 2**20 + 3
POD_ROWS = 2**30
VMEM_LIMIT = 16 * 2**20
QUERY_BYTES = 8 * QUERIES * 128 * 4  # eight arrays [N, 1], which take 128 lanes; half a table
HARMLESS = {"parameter", "bitcast", "tuple", "get-tuple-element", "custom-call"}
COLLECTIVE = re.compile(
    r"= (.*?) (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None,
                       reason="libtpu is not installed (pip install rec-jax[tpu-aot])"),
]


@functools.cache
def compiled(topology: str, accelerator: str) -> tuple[dict[str, Any], ...]:
    """What the programs of one topology came to; see `describe`."""
    environment = os.environ | {
        "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "JAX_PLATFORMS": "cpu",
        "TPU_ACCELERATOR_TYPE": accelerator, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, __file__, topology], env=environment, text=True,
                          capture_output=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return tuple(json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))


@pytest.mark.parametrize("chip", CHIPS)
def test_kernels_fit_the_chip_and_copy_no_table(chip: str) -> None:
    records = compiled(*CHIPS[chip])
    assert {(r["dim"], r["dtype"]) for r in records if r["name"] == "item_update"} == {
        (dim, dtype) for dim in DIMS for dtype in ("float32", "bfloat16")}
    assert {r["name"] for r in records} == {
        "forward", "item_grad", "item_update", "label_scores", "rank_count", "top_k"}
    for record in records:
        assert record["kernels"] >= 1, record
        assert record["vmem"] <= VMEM_LIMIT, record
        assert record["table_sized"] == [], record
        assert record["temp"] < QUERY_BYTES, record
        if record["name"] == "item_update":
            assert record["alias"] >= record["table"], record


def test_a_pod_holds_a_billion_rows_and_sends_nothing_that_grows_with_them() -> None:
    records = {record["name"]: record for record in compiled(*POD)}
    assert set(records) == {"loss_sums", "item_update"}
    for record in records.values():
        assert record["table"] == POD_ROWS // 64 * 64 * 4  # 4 GiB on each of 64 chips
        assert record["table_sized"] == [], record
        assert record["temp"] < record["table"] / 100, record
        assert all(size <= 4 * QUERIES * 64 for size in record["collectives"]), record
    assert records["loss_sums"]["collectives"]
    assert records["item_update"]["collectives"] == []
    assert records["item_update"]["alias"] >= records["item_update"]["table"]


def describe(lowered: Any, name: str, rows: int, dim: int, dtype: str) -> dict[str, Any]:
    """Facts of the compiled program; sizes in bytes, collectives in entries.

    vmem: the most that one kernel takes; table_sized: operations, other than the kernels, whose
    result is as large as the table and lies in HBM.
    """
    from rec_jax.plan.compile import compile_to_text

    program, text = compile_to_text(lowered)
    memory = program.memory_analysis()
    shape = re.compile(rf"= \(?\w+\[(?:{rows},{dim}|{dim},{rows})\]\{{(\S*?)\}}.*? ([\w-]+)\(")
    lines = text.splitlines()
    large = [match.group(2) for line in lines if (match := shape.search(line))
             and "S(1)" not in match.group(1)]
    calls = [line for line in lines if "tpu_custom_call" in line]
    used = [int(size) for line in calls for size in re.findall(
        r'"used_scoped_memory_configs":\[\{[^}]*"size":"(\d+)"', line)]
    sent = [sum(_entries(dims) for dims in re.findall(r"\[([\d,]*)\]", match.group(1)))
            for line in lines if (match := COLLECTIVE.search(line))]
    return {
        "name": name, "dim": dim, "dtype": dtype, "kernels": len(calls), "vmem": max(used),
        "table_sized": [op for op in large if op not in HARMLESS], "collectives": sent,
        "table": rows * dim * (4 if dtype == "float32" else 2),
        "temp": memory.temp_size_in_bytes, "alias": memory.alias_size_in_bytes,
        "argument": memory.argument_size_in_bytes,
    }


def _entries(dims: str) -> int:
    sizes = [int(size) for size in dims.split(",") if size]
    return functools.reduce(lambda a, b: a * b, sizes, 1)


def _adagrad(rows: Any, grads: Any, total: Any, rate: Any) -> tuple[Any, Any]:
    import jax
    import jax.numpy as jnp

    total = total + jnp.mean(grads * grads, axis=-1)
    return rows - rate * grads * jax.lax.rsqrt(total + 1e-8)[:, None], total


def chip_programs(device: Any) -> Iterator[dict[str, Any]]:
    """Every fold on one chip; K1 and K2 for each width and type."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from rec_jax.kernels.mosaic_tpu.backend import BACKEND
    from rec_jax.kernels.primitives import Excluded, Scores, SparseRows

    place = SingleDeviceSharding(device)

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    def rule(scale: Any, bias: Any, cap: float | None = 30.0) -> Scores:
        return Scores(scale, bias, ROWS - 2, 0, cap)

    numbers, ids, scale = array(QUERIES), array(QUERIES, dtype=jnp.int32), array()
    bias = array(ROWS)

    def record(name: str, dim: int, dtype: Any, function: Callable[..., Any], *arrays: Any,
               donate: tuple[int, ...] = ()) -> dict[str, Any]:
        program = jax.jit(function, donate_argnums=donate).lower(*arrays)
        return describe(program, name, ROWS, dim, jnp.dtype(dtype).name)

    for dim in DIMS:
        for dtype in (jnp.float32, jnp.bfloat16):
            queries, items = array(QUERIES, dim, dtype=dtype), array(ROWS, dim, dtype=dtype)
            sparse = SparseRows(array(1000, dtype=jnp.int32), array(1000, dim))
            yield record(
                "forward", dim, dtype, lambda q, w, y, s, b: BACKEND.forward(
                    q, w, y, rule(s, b), with_expected=True), queries, items, ids, scale, bias)
            yield record(
                "item_update", dim, dtype,
                lambda q, w, t, y, lse, g, e, s, b, extra, seed: BACKEND.item_update(
                    q, w, t, y, lse, g, e, rule(s, b), update=_adagrad, hyper=s, sparse=extra,
                    seed=seed), queries, items, array(ROWS), ids, numbers, numbers, numbers,
                scale, bias, sparse, array(dtype=jnp.uint32), donate=(1, 2))
    for dim, dtype in ((64, jnp.float32), (128, jnp.bfloat16)):
        queries, items = array(QUERIES, dim, dtype=dtype), array(ROWS, dim, dtype=dtype)
        pairs = Excluded(array(2000, dtype=jnp.int32), array(2000, dtype=jnp.int32))
        yield record(
            "rank_count", dim, dtype, lambda q, w, best, e, s: BACKEND.rank_count(
                q, w, best, e, rule(s, None)), queries, items, numbers, pairs, scale)
        yield record(
            "top_k", dim, dtype, lambda q, w, s: BACKEND.top_k(
                q, w, 20, None, rule(s, None, None)), queries, items, scale)
    # Where the rows come first, the label rows are gathered by XLA and not by a kernel.
    yield record(
        "label_scores", 64, jnp.float32, lambda q, w, y, s: BACKEND.label_scores(
            q, w, y, rule(s, None)), array(QUERIES, 64), array(ROWS, 64), ids, scale)
    yield record(
        "item_grad", 64, jnp.float32, lambda q, w, y, lse, g, e, s: BACKEND.item_grad(
            q, w, y, lse, g, e, rule(s, None)), array(QUERIES, 64), array(ROWS, 64), ids,
        numbers, numbers, numbers, scale)


def pod_programs(devices: Any) -> Iterator[dict[str, Any]]:
    """Both passes inside `shard_map`, the rows sharded over 64 chips."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    from rec_jax.kernels.mosaic_tpu.backend import BACKEND
    from rec_jax.kernels.primitives import SparseRows
    from rec_jax.kernels.shards import score_rule
    from rec_jax.kernels.softmax import merge
    from rec_jax.kernels.update import Updated, softmax_item_update

    mesh = Mesh(np.array(devices).reshape(1, -1), ("data", "items"))
    anywhere = dataclasses.replace(BACKEND, refuses=lambda problem: None)
    shard = POD_ROWS // len(devices)

    def array(*shape: int, spec: P | None = None, dtype: Any = jnp.float32) -> Any:
        sharding = NamedSharding(mesh, P() if spec is None else spec)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def loss_sums(items: Any, queries: Any, targets: Any) -> Any:
        rule = score_rule(items, jnp.float32(1.0), None, POD_ROWS - 9, None, "items")
        return merge(BACKEND.forward(queries, items, targets, rule, with_expected=True), "items")

    def update(items: Any, state: Any, *others: Any) -> Updated:
        *numbers, rate, ids, grads = others
        return softmax_item_update(
            items, state, *numbers, update=_adagrad, hyper=rate, sparse=SparseRows(ids, grads),
            num_items=POD_ROWS - 9, axis_name="items", backend=anywhere)

    rows = P("items")
    items, queries = array(POD_ROWS, 64, spec=rows), array(QUERIES, 64)
    targets, numbers = array(QUERIES, dtype=jnp.int32), array(QUERIES)
    program = jax.jit(jax.shard_map(
        loss_sums, mesh=mesh, in_specs=(rows, P(), P()), out_specs=P())).lower(
            items, queries, targets)
    yield describe(program, "loss_sums", shard, 64, "float32")
    arrays = (items, array(POD_ROWS, spec=rows), queries, targets, *[numbers] * 4, array(),
              array(1000, dtype=jnp.int32), array(1000, 64))
    program = jax.jit(jax.shard_map(
        update, mesh=mesh, in_specs=(rows, rows) + (P(),) * 9,
        out_specs=Updated(rows, rows, None)), donate_argnums=(0, 1)).lower(*arrays)
    yield describe(program, "item_update", shard, 64, "float32")


def main(topology: str) -> None:
    """Compile for `topology` and print a record a line."""
    from jax.experimental.topologies import get_topology_desc

    devices = get_topology_desc(platform="tpu", topology_name=topology).devices
    programs = pod_programs(devices) if topology == POD[0] else chip_programs(devices[0])
    for record in programs:
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
