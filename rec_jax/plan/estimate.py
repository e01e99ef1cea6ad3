"""What a run will need before it runs: bytes by part, operations, traffic, time.

Every figure is a formula of the config, stated beside it; `rec_jax.plan.compile` holds it against
what XLA itself says of the compiled step. N = positions of a step, n = devices = data * items.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax

from rec_jax.data.content import planned_content
from rec_jax.data.features import planned_features
from rec_jax.devices import (
    BANDWIDTH_EFFICIENCY,
    MATMUL_EFFICIENCY,
    USABLE_MEMORY,
    Devices,
)
from rec_jax.errors import InputError
from rec_jax.model.encoder import build_encoder
from rec_jax.model.lora import adapted_in
from rec_jax.model.tuning import find_tuning
from rec_jax.plan.messages import Cut, Sizes, messages
from rec_jax.plan.passing import Passing, Ways, passing
from rec_jax.plan.shapes import check_known, drawn_rows
from rec_jax.run import RunConfig, modes_of, placements_of, read_beside, tables_of, update_of
from rec_jax.tables import ITEMS
from rec_jax.tables.choose import trained_by
from rec_jax.tables.placement import Placement, part_rows
from rec_jax.tables.table import padded_size
from rec_jax.train.task_shapes import task_shapes

# Bytes of row-optimizer state, as multiples of the width and constant, by kind.
_STATE = {"sgd": (0, 0), "adagrad": (0, 4), "adam": (8, 4), "row_adam": (4, 8)}
_QUERY_TILE = 512  # queries that one pass over the table serves in the kernels


@dataclass(frozen=True)
class Plan:
    """Per device and step.

    placements: where the rows of each table lie, and why; host: bytes of the host's memory by part,
    at most, since a row that was never written takes none.
    memory: bytes by part; operations, exps: counts; traffic: bytes to and from memory by the
    softmax and the update; communication: bytes sent to other devices, by what for.
    seconds: predicted parts of a step's time; compute and memory overlap, communication does not.
    passing: of a table whose rows pass by in parts, which overlaps with computing; or None.
    """

    devices: Devices
    mesh: tuple[int, int]
    mode: str
    reason: str
    rows: int
    placements: dict[str, Placement]
    memory: dict[str, float]
    host: dict[str, float]
    operations: dict[str, float]
    exps: float
    traffic: float
    communication: dict[str, float]
    seconds: dict[str, float]
    passing: Passing | None = None

    @property
    def needed(self) -> float:
        """Bytes of device memory."""
        return sum(self.memory.values())

    @property
    def available(self) -> float:
        """Bytes that a device has for us."""
        return self.devices.chip.memory * USABLE_MEMORY

    @property
    def fits(self) -> bool:
        """Whether it fits."""
        return self.needed <= self.available

    @property
    def step_seconds(self) -> float:
        """Predicted time of a step."""
        busy = max(value for name, value in self.seconds.items() if name != "communication")
        return busy + self.seconds["communication"]


def make_plan(config: RunConfig, num_items: int, devices: Devices, ways: Ways | None = None
              ) -> Plan:
    """The plan of `config` for a catalogue of `num_items` on `devices`.

    ways: to rows that lie elsewhere, where they were measured.

    The mesh is the config's where it uses all devices, else all of them along `items`.
    """
    check_known(config)
    count = devices.count
    data, items = config.mesh.data, config.mesh.items
    if data * items != count:
        data, items = 1, count
    table, settings = config.table, config.train
    mode, reason = update_of(config, num_items)
    rows, dim = padded_size(num_items), table.dim
    width = {"f32": 4, "bf16": 2}[table.dtype]
    compute = {"f32": 4, "bf16": 2}[settings.precision]
    positions = settings.rows * config.data.length
    task = task_shapes(config, num_items)
    predicted = math.prod(task.targets.shape)
    micro = positions / settings.accumulate / count
    parameters, trained, moving = _encoder_parameters(config)
    objective = config.objective
    sampled = not objective.needs.normaliser
    drawn, alike = drawn_rows(task)
    pairs = objective.pairs(predicted, rows)
    mined = min(objective.needs.search, predicted)  # each device's shard is scanned for all of them

    per_row, constant = _STATE[table.optimizer.kind]
    shards = count if mode == "streamed" else items  # ranges that the rows are cut into
    groups = count // shards  # of devices, each of which holds all rows and its share of queries
    local_rows = rows / shards
    # Of every table; how many users there are is not known here, and taken to be as many.
    tables = tables_of(config)
    placements = placements_of(
        config, modes_of(config, mode), dict.fromkeys(tables, num_items), shards=shards,
        memory=None if devices.chip.name == "cpu" else devices.chip.memory)
    away = [name for name in tables if placements[name].where != "device"]
    kept_rows = local_rows * (len(tables) - len(away)) + sum(
        placements[name].slots for name in away)
    moved_rows = kept_rows * len(moving) / len(tables)  # frozen ones have no gradient, no state
    averages = 2 if settings.ema is not None else 0  # itself and what rounding took from it
    # Rows in bf16 are f32 as long as a dense step lasts.
    widened = 4 if mode == "dense" and table.dtype == "bf16" else 0
    fetched = (positions + (predicted + drawn if sampled else 0)) / count  # a device's share
    shared = drawn if alike and mode != "dense" else 0  # and what all of them bring together
    memory = {
        "rows": kept_rows * dim * (width + 4 * averages),
        "row optimizer": moved_rows * (8 * dim if mode == "dense" else per_row * dim + constant),
        "row gradient": moved_rows * dim * (4 + widened) if mode == "dense" else 0.0,
        "encoder and its optimizer": 4 * (parameters * (1 + averages) + 3 * trained),
        "activations": micro * _activation_bytes(config, compute),
        "gathered rows": 0.0 if mode == "dense" else (fetched * 3 + shared * 2) * dim * 4,
        "queries and expected rows": predicted / (count if sampled else groups) * dim
        * (compute + 3 * 4),
    }
    layers, length = getattr(config.encoder, "layers", 2), config.data.length
    operations = {
        "encoder": positions / count * (6 * parameters + 12 * layers * length * dim)
        * (4 / 3 if mined else 1),  # the search needs the queries beforehand
        "softmax": 8.0 * pairs / count * dim,
        "search": 2.0 * mined * local_rows * dim,
    }
    state_bytes = per_row * dim + constant
    # Rows and state; which were written or in which record, and in which slot.
    on_host = sum(placements[name].where == "host" for name in away)
    host = {"rows": float(on_host * rows * (dim * width + state_bytes)),
            "which of them, and where": float(rows * sum(
                4 + (1 if placements[name].where == "host" else 8) for name in away
                if not placements[name].passes))
            } if away else {}
    exps = 2.0 * pairs / count
    passes = max(1.0, predicted / groups / _QUERY_TILE)
    traffic = (fetched * (3 * dim * width + 2 * state_bytes)
               + (local_rows * dim * width if mined else 0.0) if sampled else
               local_rows * (passes * dim * width + 2 * (dim * width + state_bytes)))
    if not table.tied and not sampled:  # a second one, of which a step reads its inputs
        moved = local_rows if mode == "dense" else fetched
        traffic += fetched * dim * width + moved * 2 * (dim * width + state_bytes)
    communication = messages(
        config, num_items, mode, Cut(count, data, shards),
        Sizes(positions, predicted, drawn, alike, width, compute, parameters))
    chip = devices.chip
    rate = (chip.bf16 if settings.precision == "bf16" else chip.f32) * MATMUL_EFFICIENCY
    seconds = {
        "matrix products": sum(operations.values()) / rate,
        "exponentials": exps / chip.exps,
        "memory": traffic / (chip.bandwidth * BANDWIDTH_EFFICIENCY),
        "communication": sum(communication.values()) / (chip.link * BANDWIDTH_EFFICIENCY),
    }
    way = None
    if placements[ITEMS].passes:
        way = passing(
            rows, dim * width, state_bytes, part_rows(dim, width, rows, table.part),
            where=placements[ITEMS].where, ways=ways or Ways(), positions=predicted,
            memory=chip.bandwidth * BANDWIDTH_EFFICIENCY if chip.name == "cpu" else None,
            compute_seconds=max(operations["softmax"] / rate, seconds["exponentials"]))
        seconds["rows that pass by"] = way.seconds
        memory["parts that pass by"] = way.held
    reason = f"{reason}; {trained_by(table, mode)}"
    return Plan(devices, (data, items), mode, reason, rows, placements, memory, host, operations,
                exps, traffic, communication, seconds, way)


def nearest_fit(config: RunConfig, num_items: int, devices: Devices) -> list[str]:
    """Single changes that make a plan fit, each as one line; empty if it fits already."""
    if make_plan(config, num_items, devices).fits:
        return []
    table, training = config.table, config.train
    changes: list[tuple[str, Callable[[], Plan]]] = []

    def with_table(text: str, **values: object) -> None:
        changed = dataclasses.replace(table, **values)  # type: ignore[arg-type]
        changes.append((text, lambda: make_plan(dataclasses.replace(config, table=changed),
                                                num_items, devices)))

    if not table.tied:
        with_table("table.tied = true", tied=True)
    if table.placement == "device":
        with_table('table.placement = "host"', placement="host")
    if table.dtype == "f32":
        with_table('table.dtype = "bf16"', dtype="bf16")
    for kind in ("row_adam", "adagrad"):
        if table.optimizer.kind != kind:
            with_table(f'table.optimizer.kind = "{kind}"',
                       optimizer=dataclasses.replace(table.optimizer, kind=kind))
    dim = table.dim // 2
    while dim >= 8:
        with_table(f"table.dim = {dim}", dim=dim)
        dim //= 2
    more = training.accumulate * 2
    while more <= training.rows and training.rows % more == 0:
        changed = dataclasses.replace(training, accumulate=more)
        changes.append((f"train.accumulate = {more}", lambda changed=changed: make_plan(  # type: ignore[misc]
            dataclasses.replace(config, train=changed), num_items, devices)))
        more *= 2
    if devices.chip.name != "cpu":
        count = devices.count * 2
        while count <= 2**14:
            larger = Devices(devices.chip, count)
            changes.append((f"{count} devices of kind {devices.chip.name}",
                            lambda larger=larger: make_plan(config, num_items, larger)))  # type: ignore[misc]
            count *= 2
    found: dict[str, str] = {}
    for text, plan in changes:
        kind = text.split(" = ")[0] if " = " in text else "devices"
        if kind in found:
            continue
        try:
            candidate = plan()
        except InputError:
            continue
        if candidate.fits:
            found[kind] = f"{text}: {candidate.needed / 2**30:.1f} GiB a device"
    return list(found.values())


def _encoder_parameters(config: RunConfig) -> tuple[int, int, list[str]]:
    """Number of encoder parameters, and of those that train, from shapes alone; and the tables that
    train."""
    shapes = jax.eval_shape(lambda: build_encoder(
        config.encoder, dim=config.table.dim, length=config.data.length, tied=config.table.tied,
        causal=config.objective.causal, precision=config.train.precision, seed=0,
        features=planned_features(read_beside(config)), content=planned_content(config.content),
        heads=config.objective.needs.heads, lora=config.lora)[1])
    tables = tables_of(config)
    tuning = find_tuning(config.tune, shapes, tables, adapted_in(shapes))
    sizes = {path: math.prod(leaf.shape) for path, leaf in shapes.items()}
    return (sum(sizes.values()),
            sum(size for path, size in sizes.items() if not tuning.frozen(path)),
            [name for name in tables if not tuning.freezes_table(name)])


def _activation_bytes(config: RunConfig, compute: int) -> float:
    """Bytes that one position keeps for the backward pass.

    A pre-norm block keeps two normalised inputs, q, k, v, the mixed values, both residual sums,
    the two sides of the feed-forward layer's activation, and a row of attention weights a head
    (scores in f32 and weights). HSTU's has no feed-forward layer, but two sides of an activation
    of u, v, q and k. Of a row in pieces one piece of weights lives at a time.
    """
    encoder, dim = config.encoder, config.table.dim
    layers, hidden = getattr(encoder, "layers", 2), getattr(encoder, "hidden", 1)
    heads, length = getattr(encoder, "heads", 1), config.data.length
    piece = getattr(encoder, "query_chunk", length)
    weights = heads * min(piece, length) * (4 + 2 * compute)
    block = dim * (10 + 3 * hidden) * compute
    return layers * block + (layers if piece >= length else 1) * weights + dim * 4 * 4
