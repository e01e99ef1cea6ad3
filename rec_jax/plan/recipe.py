"""A whole run config from a dataset's statistics, each setting with its reason.

A pure function: the same statistics and machine give the same config. Nobody tunes it for the
dataset at hand, so its constants are few, coarse, and each has its source in docs/recipe.md. Early
stopping decides how long a run lasts, and a moving average of the weights does what a falling rate
does elsewhere: no schedule ends too soon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tomli_w

from rec_jax import config as configs
from rec_jax.devices import MATMUL_EFFICIENCY, USABLE_MEMORY
from rec_jax.errors import InputError
from rec_jax.plan.statistics import Statistics
from rec_jax.run import RunConfig
from rec_jax.tables.choose import DENSE_VALUES
from rec_jax.tables.table import padded_size

LEAST_VALIDATED = 10  # with fewer users, a stop would be chance
LEAST_ITEMS = 2


@dataclass(frozen=True)
class Machine:
    """What decides which loss can be paid for. memory: bytes; rate: f32 operations a second."""

    memory: float
    rate: float


@dataclass(frozen=True)
class Rules:
    """The constants of the recipe; `benchmarks/recipe.py votes` shows what each set says of them.

    sparse: a catalogue with fewer interactions an item is sparse.
    dropout: of a sparse one; dropout_fall: what each doubling of interactions an item beyond
      `sparse` takes from it; dropout_least: where it ends.
    smoothing: of the labels of a sparse catalogue.
    step: positions of a step, as a multiple of the root of the interactions.
    """

    sparse: float = 16.0
    dropout: float = 0.5
    dropout_fall: float = 0.05
    dropout_least: float = 0.2
    smoothing: float = 0.1
    step: float = 2.8


RULES = Rules()
LENGTHS = (50, 200)
"""The shortest window (shorter histories share a row) and the longest."""
STEP_POSITIONS = (1024, 16384)
STEPS_BETWEEN = (256, 8192)
"""Steps between two validations, at least and at most."""
MOST_EPOCHS, MOST_VALIDATIONS = 200, 50
MOST_VALIDATED = 20_000
WIDE_FROM = 10_000_000
REPEATS = 0.005
EPOCH_SECONDS = 3600.0
"""What the exact softmax of one epoch may take."""


@dataclass(frozen=True)
class Setting:
    """One key of the config, its value, and why it has that: one line."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Recipe:
    """The settings, in the order of the config's sections."""

    settings: tuple[Setting, ...]

    def mapping(self) -> dict[str, Any]:
        """The settings as nested plain values."""
        result: dict[str, Any] = {}
        for one in self.settings:
            *sections, key = one.key.split(".")
            place = result
            for section in sections:
                place = place.setdefault(section, {})
            place[key] = one.value
        return result

    def config(self, overrides: Sequence[str] = ()) -> RunConfig:
        """The run's config, with lines such as `train.rows=8` laid over it."""
        return configs.build(RunConfig, configs.override(self.mapping(), overrides), "recipe")


def recipe_of(found: Statistics, machine: Machine, path: str, rules: Rules = RULES) -> Recipe:
    """The recipe for a dataset in folder `path`.

    Raises:
      InputError: the dataset is too small to learn from, or to stop by.
    """
    check(found, path)
    per_item = f"{found.per_item:.3g} interactions an item"
    length = _length(found)
    positions = _positions(found, rules)
    rows = max(1, round(positions / length))
    steps = found.targets / (rows * length)  # a small part of one, of a small dataset
    dim = 64 if found.interactions < WIDE_FROM else 128
    exact, why = _loss(found, machine, dim)
    average = padded_size(found.items) * dim <= DENSE_VALUES
    return Recipe((
        Setting("seed", 0, "any; what differs between seeds is chance"),
        Setting("data.path", path, "the dataset that this was made for"),
        Setting("data.length", length, f"19 of 20 histories have at most {found.long_history:.0f} "
                                       f"items; windows are {LENGTHS[0]} to {LENGTHS[1]}"),
        Setting("data.window", "chunks", "the older part of a long history trains as well"),
        Setting("data.pack", True, "short histories share a row, so little is padding"),
        Setting("table.dim", dim, f"64 below {WIDE_FROM:,} interactions, 128 from there on"),
        *_encoder(found, rules, per_item),
        *_objective(found, rules, exact, why, per_item),
        Setting("optimizer.rate", 1e-3, "the mean of a cosine from 2e-3, the rate of every tuned "
                                        "config"),
        Setting("optimizer.schedule", "constant", "no schedule ends before the model has learned"),
        Setting("optimizer.warmup", 100, "Adam's second moments need about as many steps"),
        Setting("optimizer.weight_decay", 0.01, "of the encoder's matrices; all tuned configs"),
        Setting("train.rows", rows, f"{rows * length:,} positions a step, "
                                    f"{rules.step:g} times the root of {found.interactions:,}"),
        *_stopping(steps, average),
        *_validation(found),
    ))


def check(found: Statistics, path: str) -> None:
    """Raises InputError where a run could not learn, or could not know when to stop."""
    if found.items < LEAST_ITEMS or not found.targets:
        raise InputError(f"{path} has {found.items} items to train on, and {found.targets} "
                         "training interactions with one before them; expected at least "
                         f"{LEAST_ITEMS}, and 1")
    if found.validated < LEAST_VALIDATED:
        raise InputError(f"{path} validates {found.validated} users, too few to stop a training "
                         f"by; expected at least {LEAST_VALIDATED} (or a CONFIG of your own)")


def to_toml(recipe: Recipe) -> str:
    """The config as TOML, with each reason as a comment above its key."""
    lines, section = ["# Made by `rec-jax config suggest` from the dataset's statistics; see "
                      "docs/recipe.md.", ""], ""
    for one in recipe.settings:
        *names, key = one.key.split(".")
        name = ".".join(names)
        if name != section:
            lines += ["", f"[{name}]"]
            section = name
        lines += [f"# {one.reason}", tomli_w.dumps({key: one.value}).rstrip()]
    return "\n".join(lines) + "\n"


def _length(found: Statistics) -> int:
    """The 95 % quantile of the histories, rounded up to 50 within `LENGTHS`."""
    least, most = LENGTHS
    return min(most, max(least, 50 * math.ceil(found.long_history / 50)))


def _positions(found: Statistics, rules: Rules) -> int:
    """The power of two that is nearest to `step` times the root of the interactions."""
    least, most = STEP_POSITIONS
    nearest = 2 ** round(math.log2(rules.step * math.sqrt(found.interactions)))
    return min(most, max(least, nearest))


def _loss(found: Statistics, machine: Machine, dim: int) -> tuple[bool, str]:
    """Whether the exact softmax fits the machine, and why."""
    seconds = 8.0 * found.targets * found.items * dim / (machine.rate * MATMUL_EFFICIENCY)
    rows = padded_size(found.items)
    # Dense: rows, gradient, two moments, average. Streamed: rows, a moment, two numbers a row.
    needed = rows * (20.0 * dim if rows * dim <= DENSE_VALUES else 8.0 * dim + 8)
    memory = machine.memory * USABLE_MEMORY / 2
    if needed > memory:
        return False, (f"an exact softmax needs all rows, {needed / 2**30:.3g} GiB with their "
                       f"state, on a device; half of it is {memory / 2**30:.3g} GiB")
    if seconds > EPOCH_SECONDS:
        return False, (f"an exact softmax over {found.items:,} items would take some "
                       f"{seconds / 3600:.2g} hours an epoch")
    form = "" if rows * dim <= DENSE_VALUES else "; its gradient is streamed"
    return True, (f"an epoch of the exact softmax over {found.items:,} items takes some "
                  f"{max(1.0, seconds):.0f} s, {needed / 2**20:.0f} MiB of rows and state{form}")


def _dropout(per_item: float, rules: Rules) -> float:
    """Rounded to tenths: `dropout` of a sparse catalogue, less with each doubling beyond it."""
    doublings = max(0.0, math.log2(per_item / rules.sparse))
    return max(rules.dropout_least, round(rules.dropout - rules.dropout_fall * doublings, 1))


def _encoder(found: Statistics, rules: Rules, per_item: str) -> tuple[Setting, ...]:
    return (
        Setting("encoder.kind", "transformer", "causal attention (SASRec)"),
        Setting("encoder.layers", 2, "as in all tuned configs"),
        Setting("encoder.heads", 2, "as in all tuned configs"),
        Setting("encoder.dropout", _dropout(found.per_item, rules),
                f"{per_item}; {rules.dropout} up to {rules.sparse:g}, "
                f"{rules.dropout_fall:g} less with each doubling, not below "
                f"{rules.dropout_least}"),
        Setting("encoder.positions", "rotary", "distances count, whatever the length of a history"),
        Setting("encoder.activation", "swiglu", "a gated feed-forward layer of as many parameters"),
        Setting("encoder.norm", "rms", "of language models, as the two above"))


def _objective(found: Statistics, rules: Rules, exact: bool, why: str,
               per_item: str) -> tuple[Setting, ...]:
    if not exact:
        return (Setting("objective.kind", "sampled_softmax", why),
                Setting("objective.negatives", "log_uniform" if found.items > 8192 else "uniform",
                        "ids are in the order of popularity, and frequent items are negatives "
                        "more often; the loss is corrected for it"),
                Setting("objective.count", min(8192, found.items), "negatives shared by a step"))
    smoothing = rules.smoothing if found.per_item < rules.sparse else 0.0
    return (Setting("objective.kind", "next_item", why),
            Setting("objective.label_smoothing", smoothing,
                    f"{per_item}; {rules.smoothing} below {rules.sparse:g}, where a label is "
                    "little evidence"))


def _stopping(steps: float, average: bool) -> tuple[Setting, ...]:
    """When to validate, how to average, and when to stop, from the steps of an epoch."""
    least, most = STEPS_BETWEEN
    every = float(math.ceil(least / steps)) if steps <= most else round(most / steps, 3)
    between = max(1, round(every * steps))
    ema = (Setting("train.ema", round(1 - 1 / max(least, between), 4),
                   "an average over about the steps between two validations, in the place of a "
                   "falling rate"),) if average else ()
    epochs = max(float(MOST_EPOCHS), MOST_VALIDATIONS * every)
    return (Setting("train.epochs", epochs, "a bound that few runs meet: patience ends them"),
            *ema,
            Setting("train.evaluate_every", every,
                    f"{between:,} steps, of {_few(steps)} an epoch; {least:,} to {most:,} are "
                    "asked for"),
            Setting("train.patience", 5, "validations without improvement"))


def _few(steps: float) -> str:
    return f"{steps:,.0f}" if steps >= 10 else f"{steps:.2g}"


def _validation(found: Statistics) -> tuple[Setting, ...]:
    noise = 1 / math.sqrt(min(found.validated, MOST_VALIDATED))
    users = ((Setting("evaluate.users", MOST_VALIDATED, f"of {found.validated:,}: a validation "
                                                        "need not take longer than an epoch"),)
             if found.validated > MOST_VALIDATED else ())
    keep = found.repeats > REPEATS
    return (
        Setting("evaluate.filter_seen", not keep,
                f"{found.repeats:.2%} of the validation's targets repeat an item of the history"
                + (", which a filter would make misses" if keep else "")),
        Setting("evaluate.metric", "ndcg@10", "what decides; over the validated users one standard "
                                              f"error is about {0.2 * noise:.1g}"),
        *users)
