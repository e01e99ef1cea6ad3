"""What every environment gives: how a user starts, and what one does with a slate of items.

The functions are pure and of one user, so that `jax.vmap` makes many and `jax.lax.scan` plays them
to their end without leaving the device. A state is a NamedTuple with at least `seen`, the item that
the user took last: it is what a recommender sees of the user. Chance is drawn apart from what it
does (`draw`, `apply`), so that a rewrite in another language can be given the same chance.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array


class Outcome(NamedTuple):
    """What came of a slate. item: int32 `[]`, the item that the user took, -1: none; reward: f32
    `[]`; done: bool `[]`, the user leaves."""

    item: Array
    reward: Array
    done: Array


class Environment(Protocol):
    """A user among a catalogue.

    num_items: V; slate: items that are shown at once, K; horizon: most slates that a user sees.
    """

    @property
    def num_items(self) -> int: ...

    @property
    def slate(self) -> int: ...

    @property
    def horizon(self) -> int: ...

    def reset(self, key: Array) -> Any:
        """A new user's state, with the item `seen` that the user came by."""
        ...

    def draw(self, key: Array) -> Any:
        """The chance of one step."""
        ...

    def apply(self, state: Any, slate: Array, chance: Any) -> tuple[Any, Outcome]:
        """The next state, and what came of the slate int32 `[K]`, by that chance."""
        ...

    def tell(self, state: Any) -> dict[str, Array]:
        """Numbers of a user, and of the item `seen`, for people to read."""
        ...


class EnvironmentConfig(Protocol):
    """The frozen dataclass beside an environment."""

    @property
    def kind(self) -> str: ...

    def open(self) -> Environment:
        """The environment, with its catalogue drawn."""
        ...


def step(environment: Environment, state: Any, slate: Array, key: Array) -> tuple[Any, Outcome]:
    """The next state, and what came of the slate int32 `[K]`."""
    return environment.apply(state, slate, environment.draw(key))
