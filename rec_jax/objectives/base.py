"""What every objective gives to the training step, and what it may ask of the catalogue.

An objective says which ids of a step it needs before a row is read (`plan`), and then what the
step costs (`loss`), by asking the catalogue. So a table may lie anywhere and train in any way:
the ids are known ahead, and the catalogue answers from what was fetched for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from rec_jax import streams
from rec_jax.errors import InputError
from rec_jax.kernels import Backend
from rec_jax.kernels.dispatch import BACKENDS

Array = jax.Array
EVERY = 2**31 - 1
"""As many queries as a step has."""

Batch = Mapping[str, Any]
"""Arrays `[A, B, L]` of A micro-batches by name: items, targets (-1: none), segments (0: padding)
and positions int32; what an objective needs besides is there by its name (`Needs.values`)."""


class Ids(NamedTuple):
    """Ids of items whose rows a loss reads. ids: int32; present: bool, as `ids`, False where a
    slot names no item (its id is any valid one, and its row is 0)."""

    ids: Array
    present: Array


class Labels(NamedTuple):
    """Weighted labels of a micro-batch's positions; a position may have any number of them.

    position: int32 `[M]`, index into the task's N positions; item: int32 `[M]`; weight: f32
    `[M]`, 0 where a slot is empty.
    """

    position: Array
    item: Array
    weight: Array


class Task(NamedTuple):
    """Which positions of a step predict what, and which rows that takes; N is static.

    The step makes it for A micro-batches, with a leading axis A on all but `shared` and
    `constants`; a loss gets that of one micro-batch.

    where: int32 `[N]`, flat position in `[B * L]` whose query is used; None means all of
      them in order (N = B * L), which saves a gather.
    targets: int32 `[N]`, item to predict (any valid item where there is none).
    weights: f32 `[N]`, factor on the loss of each position; negative ones push away.
    hidden: bool `[B, L]` or None: input positions whose item is hidden from the encoder.
    present: bool `[N]`, which positions have a loss; None: those whose weight is not 0.
    divisor: f32 `[]`, what the sum of weighted losses is divided by, added over the micro-batches
      of a step; None: the sum of the sizes of the weights, so that the loss is their mean.
    labels: several weighted labels a position, in the place of `targets`; None: one each.
    values: arrays `[N, ...]` that the loss wants at the positions, such as rewards.
    reads: ids of each micro-batch by name, whose rows the loss asks for.
    shared: ids `[K]` by name that are the same for all micro-batches and positions of the step.
    constants: whatever else the loss needs; the same for all micro-batches.
    """

    where: Array | None
    targets: Array
    weights: Array
    hidden: Array | None = None
    present: Array | None = None
    divisor: Array | None = None
    labels: Labels | None = None
    values: Mapping[str, Array] = {}
    reads: Mapping[str, Ids] = {}
    shared: Mapping[str, Ids] = {}
    constants: Any = None

    def settled(self) -> Task:
        """The task with `present` and `divisor`, and weight 0 where there is no loss."""
        present = self.weights != 0 if self.present is None else self.present
        weights = jnp.where(present, self.weights, 0.0)
        divisor = (jnp.sum(jnp.abs(weights), axis=-1) if self.divisor is None
                   else jnp.asarray(self.divisor, jnp.float32))
        return self._replace(weights=weights, present=present, divisor=divisor)


class Needs(NamedTuple):
    """What an objective needs of a step; static.

    normaliser: its loss asks for the catalogue's log-normaliser, so every row has a gradient.
    mean_row: it asks for the mean row.
    labels: it reads the rows of `Task.targets`, as "labels".
    search: how many queries of a step search the catalogue; 0: none; or `EVERY`.
    log_q: batches carry f32 `log_q`, log of each target's share of all labels of the data.
    heads: names of further queries of each position, linear maps of the encoder's that are learned
      (`rec_jax.model.heads`): a loss finds theirs in `Task.values`, as queries/NAME `[N, d]`.
    ranks: the one of `heads` whose queries rank and recommend; None: the encoder's own do.
    values: names of per-interaction arrays of the dataset; batches carry those of the targets, f32
      `values/NAME`.
    histories: batches carry int32 `histories` `[A, B, S]`, the place of the last input of each of
      the at most S histories of a row, -1 for none.
    walks: T, turns of the longest random walk over the graph of interactions; batches carry int32
      `walks/items` and `walks/users`, see `rec_jax.train.walks`; 0: there are none.
    rates: a score stands for a rating: the config has `low`, `high`, `scores` and `predicted`, as
      `rec_jax.objectives.rating` has them.
    """

    normaliser: bool = False
    mean_row: bool = False
    labels: bool = False
    search: int = 0
    log_q: bool = False
    values: tuple[str, ...] = ()
    histories: bool = False
    heads: tuple[str, ...] = ()
    ranks: str | None = None
    rates: bool = False
    walks: int = 0


class Keys(NamedTuple):
    """Random keys of a step's plan. each: `[A]`, one a micro-batch; step: one for all."""

    each: Array
    step: Array


def keys_of_step(run: Array, step: Array, micro_batches: int) -> Keys:
    """Keys of a step's plan. run: of all steps of a run; step: int32, updates done before it."""
    return Keys(streams.of_micro_batches(run, step, micro_batches, streams.TASK),
                streams.of_step(run, step, streams.NEGATIVES))


class Search(NamedTuple):
    """What an objective that searches the catalogue may look at before the loss.

    num_items: V.
    queries: () -> `[A, N, d]`, the encoder's, without dropout, as constants: one more forward
      pass.
    top_k: (queries `[n, d]`, k, exclude int32 `[n, s]` or None) -> scores f32 and ids int32
      `[n, k]` of the best items of the catalogue, -1 where there are none: one more pass over
      the table.
    scores: (queries `[n, d]`, ids int32 `[n]`) -> f32 `[n]`, those of one item each.
    head: (name, queries `[..., d]`) -> those of a head of `needs.heads`.
    average: the same by the moving average of all weights, where a run has one (`train.ema`).
    """

    num_items: int
    queries: Callable[[], Array]
    top_k: Callable[[Array, int, Array | None], tuple[Array, Array]]
    scores: Callable[[Array, Array], Array]
    head: Callable[[str, Array], Array]
    average: Search | None = None


class Catalogue(Protocol):
    """The items as a loss asks them. Everything is differentiable but `top_k`.

    A table answers what its mode allows: a sparse one gives no log-normaliser, and a streamed one
    no mean row, and its log-normaliser once a step.
    """

    @property
    def num_items(self) -> int: ...

    def softmax(self, queries: Array, targets: Array, *, scale: float = 1.0,
                softcap: float | None = None, backend: str = "auto"
                ) -> tuple[Array, Array]:
        """f32 `[N]` each: loss of `targets` under the softmax over all items, and log-normaliser.

        queries: `[N, d]`; targets: int32 `[N]`, -1 where only the log-normaliser is wanted.
        """
        ...

    def entropy(self, queries: Array, targets: Array, *, scale: float = 1.0,
                softcap: float | None = None, backend: str = "auto"
                ) -> tuple[Array, Array, Array]:
        """`softmax`, and the entropy f32 `[N]` of the same softmax, from the same passes."""
        ...

    def rows(self, name: str) -> Array:
        """Rows `[..., d]` of the ids that the task names so: "labels", or of `reads`, `shared`."""
        ...

    def bias(self, name: str) -> Array | None:
        """What is added to the scores of those ids, f32 `[...]`; None where nothing is."""
        ...

    def mean_row(self) -> Array:
        """Mean of the rows of all items, f32 `[d]`."""
        ...

    def top_k(self, queries: Array, k: int, exclude: Array | None = None
              ) -> tuple[Array, Array]:
        """Scores f32 `[n, k]` and ids int32 `[n, k]` of the best items, as constants; -1: none.

        queries: `[n, d]`; exclude: int32 `[n, s]`, ids that do not count.
        """
        ...

    def softmax_among(self, queries: Array, rows: Array, slots: Array, *, bias: Array,
                      scale: float = 1.0, backend: str = "auto"
                      ) -> tuple[Array, Array]:
        """As `softmax`, among the rows `[K, d]` of a name in `shared`, each with a bias `[K]`;
        slots: int32 `[N]`, place of each target among them, -1 where it is none of them."""
        ...


class Objective(Protocol):
    """The frozen dataclass beside an objective."""

    @property
    def kind(self) -> str: ...

    @property
    def causal(self) -> bool:
        """Whether a position may see only what came before it."""
        ...

    @property
    def needs(self) -> Needs: ...

    def plan(self, batch: Batch, keys: Keys, num_items: int) -> Task:
        """Which positions predict what, and which rows that takes, for A micro-batches.

        targets of the batch: the next items; where the objective is not causal, the inputs
        themselves, and the newest item is an input too.
        """
        ...

    def loss(self, queries: Array, task: Task, catalogue: Catalogue) -> Array:
        """f32 `[N]`, the loss of each position of one micro-batch, without its weight.

        Arrays are global: a position may look at any other's.
        """
        ...

    def drawn(self, positions: int) -> int:
        """Rows that a step of so many positions reads besides inputs and labels."""
        ...

    def pairs(self, positions: int, num_items: int) -> int:
        """Scores that a step of so many positions computes."""
        ...


class WholeCatalogue:
    """What a step costs whose positions each meet every item: a base of such objectives."""

    def drawn(self, positions: int) -> int:
        """No row but those of the whole catalogue."""
        del positions
        return 0

    def pairs(self, positions: int, num_items: int) -> int:
        """Every position is scored against every item."""
        return positions * num_items


class Searching(Objective, Protocol):
    """An objective with `needs.search`: some of its ids follow from the step's queries."""

    def mine(self, task: Task, key: Array, search: Search) -> Task:
        """The task with the ids that were found."""
        ...


def check_backend(backend: Any) -> None:
    """Refuse a name that no backend of the kernels has.

    Raises:
      InputError: with the names there are.
    """
    if not isinstance(backend, Backend) and backend not in ("auto", *BACKENDS):
        raise InputError(f"objective.backend is {backend!r}; expected one of "
                         f"{', '.join(('auto', *BACKENDS))}")


def history_of_places(segments: Array, most: int) -> Array:
    """Which of B * S histories each place of a micro-batch is of, int32 `[B * L]`.

    segments: int32 `[B, L]`; most: S. Histories of a row stand side by side and are numbered from
    1; padding, which is 0, counts to the first.
    """
    slot = jnp.maximum(segments - 1, 0) + most * jnp.arange(len(segments))[:, None]
    return slot.reshape(-1)


def next_items(targets: Array) -> Task:
    """Every position of `[A, B, L]` that has a next item (-1: none) predicts it."""
    flat = targets.reshape(targets.shape[0], -1)
    return Task(None, jnp.maximum(flat, 0), (flat >= 0).astype(jnp.float32))
