"""Sessions learned from a log: a trained model of this engine is the user.

A user comes by the first items of a history of the model's dataset, and then meets slates:

    log p_i   of the model, after all that the user took: what is taken next, of all items
    chosen    a multinomial logit of log p_i for the items of the slate, and `nothing` for none
    leaves    as the log's histories end: after t items with the share of those of at least t that
              have no more; or, where the log has an item that stands for leaving, with its
              probability, before anything is taken

So a slate that has what the user would take anyway is taken from, and others are not. The reward
of an item is 1, or the mean of its values in the log's training part. A simulated user is as good
as the model, and knows no more of what slates do to people than the log, in which nobody wrote
down what was shown: returns compare policies, and are no forecast.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax.data.dataset import Dataset, places_of
from rec_jax.data.values import open_values
from rec_jax.errors import InputError
from rec_jax.inference.served import Served, load_served
from rec_jax.kernels import softmax_loss, target_scores
from rec_jax.mesh import MeshConfig
from rec_jax.model.encoder import encode
from rec_jax.model.encoders import Inputs
from rec_jax.ranges import at_least, check
from rec_jax.run import Run
from rec_jax.simulate.environments.base import Array, Outcome
from rec_jax.simulate.environments.choices import multinomial


@dataclass(frozen=True)
class Config:
    """Settings of the environment.

    run: folder of the trained model that is the user.
    step: of its checkpoint; none: the best one.
    slate: items that are shown at once.
    horizon: most slates that a user sees.
    begin: items of a history that a user has when coming.
    nothing: the liking of taking none, beside log p of the items; -2: as likely as items of .135.
    impatience: probability of leaving after a slate of which nothing was taken.
    leave: id of the item that stands for leaving; none: users leave as the log's histories end.
    reward: the mean of the items' `values/NAME.npy` (or of their rating) is earned; none: 1 each.
    """

    kind: str = "session"
    run: str = ""
    step: int | None = None
    slate: int = 3
    horizon: int = 50
    begin: int = 1
    nothing: float = -2.0
    impatience: float = 0.1
    leave: str | None = None
    reward: str | None = None

    def __post_init__(self) -> None:
        check(self, "environment.", step=at_least(0), slate=at_least(1), horizon=at_least(1),
              begin=at_least(1), nothing=at_least(-100, 100), impatience=at_least(0, 1))

    def open(self) -> Session:
        """The environment of that run's model.

        Raises:
          InputError: no run, or a model that reads what a session does not have.
        """
        if not self.run:
            raise InputError("environment.run is empty; expected the folder of a trained run")
        served = load_served(Run(Path(self.run)), step=self.step, mesh=MeshConfig())
        served.check_there("a simulated user")
        reading, dataset = served.reading, served.dataset
        if reading.times or reading.users or reading.features or reading.hidden_next:
            raise InputError(f"run {self.run} reads times, users or features, or fills in hidden "
                             "items; expected a model that reads the items of a history alone")
        if self.slate > dataset.num_items:
            raise InputError(f"environment.slate is {self.slate}, of {dataset.num_items} items; "
                             "expected at most so many")
        starts = np.asarray(dataset.offsets)[:-1]
        known = starts[np.asarray(dataset.train_end) - starts >= self.begin]
        if not len(known):
            raise InputError(f"no history of {dataset.folder} has environment.begin = {self.begin} "
                             "items in its training part; expected fewer")
        first = np.asarray(dataset.items)[known[:, None] + np.arange(self.begin)]
        # Constants go wherever the agent's own arrays lie, so they may be bound to no device.
        params, rows, bias = jax.tree.map(
            lambda x: jnp.asarray(np.asarray(x)), (served.params, served.rows, served.bias))
        served = dataclasses.replace(served, params=params, rows=rows, bias=bias)
        return Session(self, served, jnp.asarray(first), jnp.asarray(self._endings(dataset)),
                       jnp.asarray(self._rewards(dataset)), self._leaving(dataset))

    def _endings(self, dataset: Dataset) -> npt.NDArray[np.float32]:
        """By number of items taken, the share of histories that end there; f32, 1 at the end."""
        lengths = np.diff(np.asarray(dataset.offsets))
        ends = np.bincount(lengths)
        reached = np.cumsum(ends[::-1])[::-1]
        return np.asarray(ends / reached, np.float32)

    def _rewards(self, dataset: Dataset) -> npt.NDArray[np.float32]:
        """By item, f32 `[V]`; 0 for an item that the training part lacks."""
        if self.reward is None:
            return np.ones(dataset.num_items, np.float32)
        place = np.arange(len(dataset.items))
        owner = np.searchsorted(np.asarray(dataset.offsets)[1:], place, side="right")
        trained = place < np.asarray(dataset.train_end)[owner]
        items = np.asarray(dataset.items)[trained]
        values = open_values([self.reward], dataset)[self.reward](place[trained])
        total, count = (np.bincount(items, weights, dataset.num_items)
                        for weights in (values, None))
        return np.asarray(total / np.maximum(count, 1), np.float32)

    def _leaving(self, dataset: Dataset) -> int | None:
        """The item that stands for leaving."""
        if self.leave is None:
            return None
        place = places_of(dataset.item_ids(), pl.Series([self.leave]))[0]
        if place is None:
            raise InputError(f"environment.leave is {self.leave!r}, which is no item of "
                             f"{dataset.folder}; expected an item id")
        return int(place)


class User(NamedTuple):
    """seen: int32, the item taken last; history: int32 `[L]`, the last items from the left; taken:
    int32, items in all; left: int32, slates until the horizon."""

    seen: Array
    history: Array
    taken: Array
    left: Array


class Chance(NamedTuple):
    """Numbers even in [0, 1), f32 `[]`."""

    choice: Array
    leave: Array


@dataclass(frozen=True, eq=False)
class Session:
    """The environment. first: int32 `[U, begin]`, how users come; endings: f32, by items taken;
    rewards: f32 `[V]`; leaving: the item that stands for it. The weights are constants of what is
    compiled."""

    config: Config
    served: Served
    first: Array
    endings: Array
    rewards: Array
    leaving: int | None

    @property
    def num_items(self) -> int:
        """V."""
        return self.served.dataset.num_items

    @property
    def slate(self) -> int:
        """Items that are shown at once."""
        return self.config.slate

    @property
    def horizon(self) -> int:
        """Most slates that a user sees."""
        return self.config.horizon

    def reset(self, key: Array) -> User:
        """A user who comes as one of the log came."""
        items = self.first[jax.random.randint(key, (), 0, self.first.shape[0])]
        length, begin = self.served.reading.length, self.config.begin
        history = jnp.zeros(length, jnp.int32).at[:begin].set(items[-length:])
        return User(items[-1], history, jnp.int32(begin), jnp.int32(self.horizon))

    def draw(self, key: Array) -> Chance:
        """The chance of one step."""
        return Chance(*jax.random.uniform(key, (2,)))

    def apply(self, state: User, slate: Array, chance: Chance) -> tuple[User, Outcome]:
        """The user takes an item of the slate, or none, or has left before."""
        log_p, log_end = self.log_probabilities(state, slate)
        gone = chance.leave < jnp.exp(log_end)
        place = multinomial(log_p, self.config.nothing, chance.choice)
        took = (place >= 0) & ~gone
        item = slate[jnp.maximum(place, 0)]
        count = state.taken + took
        after = self.endings[jnp.minimum(count, self.endings.shape[0] - 1)]
        if self.leaving is None:
            gone = chance.leave < jnp.where(took, after, self.config.impatience)
        else:
            gone |= ~took & (chance.leave >= 1 - self.config.impatience)
        length = state.history.shape[0]
        full = state.taken >= length
        history = jnp.where(full, jnp.roll(state.history, -1), state.history)
        history = history.at[jnp.minimum(state.taken, length - 1)].set(item)
        left = state.left - 1
        user = User(jnp.where(took, item, state.seen), jnp.where(took, history, state.history),
                    count, left)
        return user, Outcome(jnp.where(took, item, -1), jnp.where(took, self.rewards[item], 0.0),
                             gone | (left <= 0))

    def log_probabilities(self, state: User, slate: Array) -> tuple[Array, Array]:
        """log p f32 `[K]` of the slate's items among those that are no leaving, and log p of
        leaving f32 `[]`, -inf where no item stands for it."""
        place = jnp.minimum(state.taken, state.history.shape[0]) - 1
        wanted = slate if self.leaving is None else jnp.append(slate, self.leaving)
        # Many users are one batch of the model: its kernels know nothing of `vmap`.
        ask = jax.custom_batching.custom_vmap(
            lambda *one: self._of_users(*(x[None] for x in one))[0])

        @ask.def_vmap
        def _(count: int, batched: list[bool], *each: Array) -> tuple[Array, bool]:
            return self._of_users(*(x if cut else jnp.broadcast_to(x, (count, *x.shape))
                                    for x, cut in zip(each, batched, strict=True))), True

        log_p = ask(state.history, place, wanted)
        if self.leaving is None:
            return log_p, jnp.float32(-jnp.inf)
        end = log_p[-1]
        stays = jnp.log1p(-jnp.minimum(jnp.exp(end), 1 - 1e-6))
        return jnp.where(slate == self.leaving, -jnp.inf, log_p[:-1] - stays), end

    def _of_users(self, histories: Array, place: Array, wanted: Array) -> Array:
        """log p f32 `[B, K]` of items `[B, K]` after histories `[B, L]` up to `place [B]`."""
        served, places = self.served, jnp.arange(histories.shape[1])
        inputs = Inputs((places <= place[:, None]).astype(jnp.int32),
                        jnp.broadcast_to(places, histories.shape))
        queries = encode(served.encoder, served.params, served.rows, histories, inputs,
                         at=place[:, None])[:, 0].astype(jnp.float32)
        objective: Any = served.config.objective
        scale, softcap = getattr(objective, "scale", 1.0), getattr(objective, "softcap", None)
        rule: dict[str, Any] = {
            "bias": None if served.bias is None else scale * served.bias, "logit_scale": scale,
            "softcap": softcap, "num_items": self.num_items}
        _, lse = softmax_loss(queries, served.rows, jnp.full(place.shape, -1), **rule)
        scores = target_scores(jnp.repeat(queries, wanted.shape[1], axis=0), served.rows,
                               wanted.reshape(-1), **rule)
        return scores.reshape(wanted.shape) - lse[:, None]

    def tell(self, state: User) -> dict[str, Array]:
        """How many items the user has, and what the last one is worth."""
        return {"items": state.taken, "reward": self.rewards[state.seen]}
