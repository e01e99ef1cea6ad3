"""The kernels that read and write rows compile for real chips and copy no table.

A process of its own (this file, run as a script) compiles for a chip and prints a record a line.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

ROWS = 2**19 + 128
COUNT = 5000
DIMS = (13, 32, 64, 200, 1000)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None,
                       reason="libtpu is not installed (pip install rec-jax[tpu-aot])"),
]


@pytest.mark.parametrize(("topology", "accelerator"), [
    ("v5e:2x2", "v5litepod-4"), ("v5p:2x2x1", "v5p-8"), ("v6e:2x2", "v6e-4")])
def test_rows_are_read_and_written_without_a_copy_of_the_table(
        topology: str, accelerator: str) -> None:
    environment = os.environ | {
        "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "JAX_PLATFORMS": "cpu",
        "TPU_ACCELERATOR_TYPE": accelerator, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, __file__, topology], env=environment, text=True,
                          capture_output=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(records) == 4 * len(DIMS) + 3
    for record in records:
        # The rows that are read may lie in memory once more, in the kernel's layout.
        assert record["temp"] < 2**18 + 4 * (COUNT + 128) * record["dim"], record
        if record["op"] == "write":
            assert record["alias"] >= record["table"], record


def main(topology: str) -> None:
    """Read and write rows `[V, d]` and `[V]` of every type, one record each."""
    import jax
    import jax.numpy as jnp
    from jax.experimental.topologies import get_topology_desc
    from jax.sharding import SingleDeviceSharding

    from rec_jax.kernels.rows import gather_rows, scatter_rows

    place = SingleDeviceSharding(
        get_topology_desc(platform="tpu", topology_name=topology).devices[0])

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    def record(op: str, function: Any, table: Any, *arrays: Any) -> None:
        donated = (0,) if op == "write" else ()
        memory = jax.jit(function, donate_argnums=donated).lower(
            table, *arrays).compile().memory_analysis()
        print(json.dumps({
            "op": op, "dim": table.shape[1] if table.ndim == 2 else 1, "type": table.dtype.name,
            "table": table.size * table.dtype.itemsize, "temp": memory.temp_size_in_bytes,
            "alias": memory.alias_size_in_bytes}), flush=True)

    ids = array(COUNT, dtype=jnp.int32)
    for dim in DIMS:
        for dtype in (jnp.float32, jnp.bfloat16):
            table = array(ROWS, dim, dtype=dtype)
            record("read", lambda t, i: gather_rows(t, i, backend="mosaic_tpu"), table, ids)
            record("write", lambda t, i, v: scatter_rows(t, i, v, backend="mosaic_tpu"), table,
                   ids, array(COUNT, dim))
    # What optimizers keep for a row is `[V]`; XLA itself writes that in place.
    numbers, marks = array(ROWS), array(ROWS, dtype=jnp.bool_)
    record("read", lambda t, i: gather_rows(t, i, backend="xla"), numbers, ids)
    for table in (numbers, marks):
        record("write", lambda t, i, v: scatter_rows(t, i, v, backend="xla"), table, ids,
               array(COUNT, dtype=table.dtype))


if __name__ == "__main__":
    main(sys.argv[1])
