"""Prove a plan without the machine: compile the real step for a TPU slice ahead of time.

libtpu compiles for a described topology on any host. XLA then says what the program needs in
memory, and its text says what the devices send each other.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from rec_jax.data.content import planned_content
from rec_jax.data.features import planned_features
from rec_jax.devices import Devices
from rec_jax.dtypes import DTYPES
from rec_jax.errors import InputError, first_line
from rec_jax.inference.served import reading_of
from rec_jax.kernels import Backend
from rec_jax.kernels.dispatch import load
from rec_jax.mesh import BOTH, batch_sharding
from rec_jax.model.encoder import build_encoder
from rec_jax.model.lora import adapted_in
from rec_jax.model.optimizer import dense_optimizer, schedule
from rec_jax.model.tuning import find_tuning
from rec_jax.plan.shapes import check_known
from rec_jax.run import RunConfig, modes_of, read_beside, tables_of, update_of
from rec_jax.tables import ITEMS, Table, row_optimizer, rows_over
from rec_jax.tables.bias import bias_state
from rec_jax.tables.row_map import row_map_of
from rec_jax.tables.table import padded_size
from rec_jax.train.state import TrainState, state_shardings, trained, weights
from rec_jax.train.step import make_train_step
from rec_jax.train.task_shapes import batch_shapes

_COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")
_SHAPE = re.compile(r"\b(pred|[su]\d+|bf16|f\d+)\[([\d,]*)\]")
_TOTAL_STEPS = 1_000_000


@dataclass(frozen=True)
class Compiled:
    """What XLA says of one step on one device.

    arguments: bytes of state and batch; aliased: how many of them the results reuse; temporary:
    bytes of scratch; needed: the peak, arguments and results and scratch without the aliased;
    operations: XLA's count (it does not look into kernels); collectives: bytes of the results of
    each kind; largest_collective: bytes of the largest single one.
    """

    arguments: int
    aliased: int
    temporary: int
    needed: int
    operations: float
    collectives: dict[str, int]
    largest_collective: int


def compile_step(config: RunConfig, num_items: int, devices: Devices,
                 mesh_shape: tuple[int, int]) -> Compiled:
    """Compile the training step of `config` for `num_items` rows on a TPU slice.

    Raises:
      InputError: the devices are no TPU slice with a topology, or libtpu is not installed.
    """
    mesh = Mesh(_topology(devices).reshape(mesh_shape), BOTH,
                axis_types=(AxisType.Auto, AxisType.Auto))
    compiled, text = compile_to_text(lower_step(config, num_items, mesh))
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    sizes = collective_bytes(text)
    totals: dict[str, int] = {}
    for kind, size in sizes:
        totals[kind] = totals.get(kind, 0) + size
    needed = (memory.argument_size_in_bytes + memory.output_size_in_bytes
              - memory.alias_size_in_bytes + memory.temp_size_in_bytes)
    return Compiled(memory.argument_size_in_bytes, memory.alias_size_in_bytes,
                    memory.temp_size_in_bytes, needed, float(cost.get("flops", 0.0)), totals,
                    max((size for _, size in sizes), default=0))


def compile_to_text(lowered: Any) -> tuple[Any, str]:
    """The program and its text, which libtpu writes: jaxlib may be too old to read it back."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile(
            compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        (path,) = Path(folder).glob("*.after_codegen.txt")
        return compiled, path.read_text()


def collective_bytes(hlo: str) -> list[tuple[str, int]]:
    """(kind, bytes of the result) of every collective in a program's text."""
    found = []
    for line in hlo.splitlines():
        match = _COLLECTIVE.search(line)
        if match:
            size = sum(_bytes(kind) * math.prod(int(n) for n in shape.split(",") if n)
                       for kind, shape in _SHAPE.findall(match[1]))
            found.append((match[2], size))
    return found


def sent_bytes(hlo: str, devices: int) -> float:
    """Bytes that a device sends in all collectives of a program's text, each done as a ring; those
    in a loop count once."""
    total = 0.0
    for line in hlo.splitlines():
        for kind, size in collective_bytes(line):
            group = _group_size(line, devices)
            total += size * {"all-reduce": 2 * (group - 1) / group, "reduce-scatter": group - 1.0,
                             "collective-permute": 1.0}.get(kind, (group - 1) / group)
    return total


def _group_size(line: str, devices: int) -> int:
    """How many devices take part in each group of a collective, in the three ways to write it."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return len(listed[1].split(","))
    tiled = re.search(r"replica_groups=\[\d+,(\d+)\]<=", line)
    if tiled:
        return int(tiled[1])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\].*? \{([^}]*)\}", line)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", named[2]))
    return devices


def _bytes(kind: str) -> int:
    return 1 if kind == "pred" else int(re.sub(r"\D", "", kind)) // 8


def _topology(devices: Devices) -> np.ndarray:
    """The devices of a described slice."""
    if not devices.topology:
        raise InputError(f"devices {devices} have no TPU topology to compile for; expected such "
                         "as v5p:4x4x4")
    name, count = devices.chip.name, devices.count
    accelerator = {"v4": f"v4-{2 * count}", "v5p": f"v5p-{2 * count}",
                   "v5e": f"v5litepod-{count}"}.get(name, f"{name}-{count}")
    # libtpu looks for a machine to ask unless it is told what it is on.
    for variable, value in {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
                            "TPU_ACCELERATOR_TYPE": accelerator,
                            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}.items():
        os.environ.setdefault(variable, value)
    try:
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{name}:{devices.topology}")
    except Exception as error:
        first = first_line(error)
        raise InputError(f"cannot compile for {devices}: {first} (is the extra rec-jax[tpu-aot] "
                         "installed?)") from error
    return np.array(topology.devices)


def lower_step(config: RunConfig, num_items: int, mesh: Mesh) -> Any:
    """The step with abstract arguments: no array of the table's size exists here."""
    check_known(config)
    settings, table_config = config.train, config.table
    objective = config.objective
    if getattr(objective, "backend", None) == "auto":
        objective = replace(objective, backend=_kernels())
    encoder_config: Any = config.encoder
    if getattr(encoder_config, "backend", None) == "auto":
        encoder_config = replace(encoder_config, backend="xla")  # the devices are not this CPU
    encoder, params = build_encoder(
        encoder_config, dim=table_config.dim, length=config.data.length, tied=config.table.tied,
        causal=objective.causal, precision=settings.precision, seed=config.seed,
        features=planned_features(read_beside(config)), content=planned_content(config.content),
        heads=objective.needs.heads, lora=config.lora)
    mode = update_of(config, num_items).mode
    configs, modes = tables_of(config), modes_of(config, mode)
    tuning = find_tuning(config.tune, params, configs, adapted_in(params))
    optimizer = dense_optimizer(config.optimizer, _TOTAL_STEPS, tuning)
    shape = (padded_size(num_items), table_config.dim)

    numbers = jax.ShapeDtypeStruct(shape[:1], jnp.float32)
    bias: dict[str, Any] = {
        "bias": numbers, "trains_bias": config.bias.trained,
        "bias_state": jax.eval_shape(
            lambda: bias_state(row_optimizer(table_config.optimizer), shape[0]))
        if config.bias.trained and mode != "dense" and not tuning.freezes_table(ITEMS) else ()}

    def table_of(name: str) -> Table:
        fixed = encoder.source.columns if name == ITEMS else 0
        rows: Any = jax.ShapeDtypeStruct((shape[0], shape[1] + fixed),
                                         DTYPES[configs[name].dtype])
        state = () if modes[name] == "dense" or tuning.freezes_table(name) else jax.eval_shape(
            lambda: row_optimizer(configs[name].optimizer).init(shape))
        return Table(rows, state, num_items, rows_over(mode), row_map_of(mode, num_items), fixed,
                     **(bias if name == ITEMS and config.bias.in_loss else {}))

    tables = {name: table_of(name) for name in configs}
    average = None if settings.ema is None else jax.eval_shape(weights, params, tables)
    moments = jax.eval_shape(lambda *parts: optimizer.init(
        trained(*parts, modes=modes, tuning=tuning)), params, tables)
    counter: Any = jax.ShapeDtypeStruct((), jnp.int32)
    key: Any = jax.ShapeDtypeStruct((2,), jnp.uint32)
    state = TrainState(counter, params, tables, moments, average, key, average)
    state = jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding), state, state_shardings(state, mesh))
    batch = batch_shapes(replace(config, objective=objective))
    like = batch["items"]
    if reading_of(config).times:
        batch["times"] = like
    batch |= {feature.path: jax.ShapeDtypeStruct(
        (*like.shape, feature.values), jnp.float32 if feature.kind == "query" else jnp.int32)
              for feature in encoder.features if feature.kind != "time_gap"}
    cut = batch_sharding(mesh, axis=1)
    batch = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=cut)
             for name, leaf in batch.items()}
    step = make_train_step(
        encoder, objective, optimizer, precision=settings.precision, ema=settings.ema,
        tables=configs, modes=modes, mesh=mesh, rate=schedule(config.optimizer, _TOTAL_STEPS),
        tuning=tuning)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # not this host's devices
        return step.lower(state, batch)  # type: ignore[attr-defined]


def _kernels() -> Backend:
    """The TPU kernels, which look at the problem but not at this host's platform."""
    backend = load("mosaic_tpu")
    return replace(backend, refuses=lambda problem: backend.refuses(
        replace(problem, platform="tpu")))
