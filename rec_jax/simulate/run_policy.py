"""A run's model as a policy: the softmax of its scores over the whole catalogue.

pi(item | history) = exp(score / T) / sum over all items, with the scores of the objective (its
`scale` and `softcap`) and the model's bias; T, the temperature, is 1 for the softmax that was
trained. The kernel `softmax_loss` gives -log pi of the logged item while the rows stream by, so no
array of rows x items exists. Items of the history may come again, whatever `evaluate.filter_seen`
says; cold items have probability 0 under `evaluate.filter_cold`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax.data.dataset import Dataset, places_of
from rec_jax.data.ids import parse_ids
from rec_jax.errors import InputError
from rec_jax.inference.asking import map_rounds, tile_queries
from rec_jax.inference.histories import Tiles, iterate_tiles
from rec_jax.inference.protocol import cold_items
from rec_jax.inference.served import Served
from rec_jax.kernels import softmax_loss
from rec_jax.progress import Reporter, Silent
from rec_jax.simulate.feedback import Floats, Int64s
from rec_jax.tables import Table


@dataclass(frozen=True)
class Histories:
    """What each row of a log has before it: `dataset.items[starts[i]:ends[i]]`.

    dataset: the run's own, or one of the log's histories. users: int64 `[n]`, whose they are in
    `dataset`, -1 where nobody's. ends: int64 `[n]`. unknown: items of histories that the catalogue
    lacks, and which were left out.
    """

    dataset: Dataset
    users: Int64s
    ends: Int64s
    unknown: int = 0

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """Whether there is anything to read, bool `[n]`."""
        starts = np.asarray(self.dataset.offsets)[self.users]
        return np.asarray((self.users >= 0) & (self.ends > starts))


def user_histories(dataset: Dataset, users: pl.Series, before: Int64s | None) -> Histories:
    """The users' own histories in the dataset, whole, or what came before a time.

    users: text `[n]`; before: int64 seconds `[n]`: only interactions of earlier seconds count, so
    that a logged action that the dataset holds too is not read as its own past.

    Raises:
      InputError: `before` is given, and the dataset has no times.
    """
    index = codes(dataset.user_ids(), users)
    offsets = np.asarray(dataset.offsets)
    ends = offsets[index + 1]
    if before is not None:
        if dataset.times is None:
            raise InputError(f"{dataset.folder} has no times, so no history ends at one; expected "
                             "a log without a column of times, or columns.time in prepare")
        ends = np.array([start + np.searchsorted(dataset.times[start:end], when, side="left")
                         for start, end, when in zip(offsets[index].tolist(), ends.tolist(),
                                                     before.tolist(), strict=True)], np.int64)
    return Histories(dataset, index, ends)


def given_histories(dataset: Dataset, histories: pl.Series) -> Histories:
    """Histories that the log holds: lists of item ids, or text with blanks between, oldest first.

    Items that the catalogue lacks are left out and counted.

    Raises:
      InputError: another type.
    """
    kind = histories.dtype
    if kind == pl.String:
        lists = histories.str.split(" ").list.eval(
            pl.element().filter(pl.element().str.len_bytes() > 0))
    elif isinstance(kind, pl.List):
        lists = histories
    elif isinstance(kind, pl.Array):
        lists = histories.arr.to_list()
    elif kind.is_integer():  # a column of histories of one item
        lists = histories.reshape((len(histories), 1)).arr.to_list()
    else:
        raise InputError(f"history is a column of {kind}; expected lists of item ids, or text "
                         "with blanks between them")
    lengths = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
    flat = parse_ids(lists.filter(pl.Series(lengths > 0)).explode(), "history", "the log")
    items = codes(dataset.item_ids(), flat)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    known = items >= 0
    offsets = np.zeros(len(lengths) + 1, np.int64)
    offsets[1:] = np.cumsum(np.bincount(owner[known], minlength=len(lengths)))
    kept = items[known].astype(np.int32)
    ratings, events = (None if known is None else np.zeros(len(kept), np.uint8)
                       for known in (dataset.ratings, dataset.events))
    own = dataclasses.replace(dataset, items=kept, offsets=offsets, train_end=offsets[1:],
                              valid_end=offsets[1:], times=None, ratings=ratings, events=events,
                              queries=None)
    return Histories(own, np.arange(len(lengths)), offsets[1:], int(np.sum(~known)))


def codes(known: pl.Series, wanted: pl.Series) -> Int64s:
    """Indices of ids (text) in `known`, int64 `[n]`; -1 for those that it lacks, and for null."""
    return places_of(known, wanted.cast(pl.String)).cast(pl.Int64).fill_null(-1).to_numpy()


@dataclass(frozen=True)
class Probabilities:
    """Of the run's policy.

    logged: f64 `[n]`, of the logged item; 0 for an item that the catalogue lacks, and NaN where
      there is no history to read.
    supported: f64 `[n]`, of all items that the log shows anywhere; NaN as above.
    """

    logged: Floats
    supported: Floats


def probabilities(served: Served, histories: Histories, items: Int64s, *,
                  temperature: float = 1.0, reporter: Reporter | None = None) -> Probabilities:
    """Probabilities of the logged `items`, int64 `[n]` (-1: not in the catalogue).

    Raises:
      InputError: the temperature is not above 0, or the model reads times that histories of the
        log do not have.
    """
    if not 0 < temperature < np.inf:
        raise InputError(f"temperature is {temperature:g}; expected more than 0")
    dataset, settings = served.dataset, served.config.evaluate
    if served.timeline is not None:
        raise InputError("the model reads queries, which the histories of a log of actions do not "
                         "have; expected a run without [[features]] kind = 'query'")
    if served.reading.times and histories.dataset.times is None:
        raise InputError("the model reads times, which histories of a log do not have; expected a "
                         "column of users")
    cold = cold_items(dataset, settings)
    shown = np.zeros(dataset.num_items, bool)
    shown[items[items >= 0]] = True
    served.check_there("the policy of a run")
    score = _scorer(served, temperature, cold, shown if cold is None else shown & ~cold)
    readable = np.flatnonzero(histories.readable)
    logged, supported = np.full((2, len(items)), np.nan)
    reporter = reporter or Silent()
    reporter.begin(len(readable))
    targets = np.maximum(items[readable], 0).astype(np.int32)
    for tiles, chosen in iterate_tiles(histories.dataset, histories.users[readable],
                                       histories.ends[readable], targets,
                                       reading=served.reading, batch=settings.batch):
        loss, share = (np.asarray(values, np.float64).reshape(-1)[:len(chosen)]
                       for values in score(served.params, served.rows, tiles))
        logged[readable[chosen]] = np.exp(-loss)
        supported[readable[chosen]] = np.minimum(np.exp(share), 1.0)
        reporter.advance(len(chosen))
    logged[readable[items[readable] < 0]] = 0.0
    return Probabilities(logged, supported)


Scorer = Callable[[Any, jax.Array, Tiles], tuple[jax.Array, jax.Array]]


def _scorer(served: Served, temperature: float, cold: npt.NDArray[np.bool_] | None,
            shown: npt.NDArray[np.bool_]) -> Scorer:
    """`(params, rows, tiles) -> -log pi of the target, log of the mass of shown items`, `[G, T]`
    each."""
    encoder, num_items, mesh = served.encoder, served.dataset.num_items, served.mesh
    if mesh.size > 1:
        raise InputError("a policy is evaluated on one device; expected the model on mesh 1x1")
    objective = served.config.objective
    softcap = getattr(objective, "softcap", None)
    # The model's bias is that of scores without scale.
    scale = getattr(objective, "scale", 1.0) / temperature
    own = None if served.bias is None else scale * served.bias
    scoring: dict[str, Any] = {
        "logit_scale": scale,
        "softcap": None if softcap is None else softcap / temperature, "num_items": num_items}

    @jax.jit
    def score(params: Any, rows: jax.Array, tiles: Tiles, competing: jax.Array | None,
              shown: jax.Array, own: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        out = jnp.pad(jnp.where(shown, 0.0, -jnp.inf), (0, rows.shape[0] - num_items))
        table = Table(rows, (), num_items, served.over)
        bias = None if competing is None else jnp.pad(
            jnp.where(competing, 0.0, -jnp.inf), (0, rows.shape[0] - num_items))
        if own is not None:
            out, bias = out + own, own if bias is None else bias + own

        def one(tiles: Tiles) -> tuple[jax.Array, jax.Array]:  # one tile, on one device
            (queries,) = tile_queries(mesh, encoder, params, table, tiles)
            (targets,) = tiles.targets
            loss, every = softmax_loss(queries, rows, targets, bias=bias, **scoring)
            _, some = softmax_loss(queries, rows, targets, bias=out, **scoring)
            return loss[None], (some - every)[None]

        return map_rounds(mesh, one, tiles)

    competing = None if cold is None else jnp.asarray(~cold)
    there = jnp.asarray(shown)
    return lambda params, rows, tiles: score(params, rows, tiles, competing, there, own)
