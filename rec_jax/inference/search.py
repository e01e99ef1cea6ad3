"""What a trained model adds to a search by text: its vectors of the items, and whom it knows.

Scores of a text and those of a user are of different kinds, so each is brought to mean 0 and
deviation 1 over the items that both can score, and then

    score(i) = (1 - blend) text(i) + blend user(i)

An item that the model has not trained is to it as good as the mean of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from rec_jax.errors import InputError
from rec_jax.inference.asking import jitted_queries
from rec_jax.inference.blocks import row_blocks
from rec_jax.inference.retrieve import question_of
from rec_jax.inference.served import Served
from rec_jax.model.content_mlp import mlp

Floats = npt.NDArray[np.float32]


class ItemSpace(NamedTuple):
    """name: of the item vectors that lead into a run's own; vectors: its own of all items, f32
    `[V, d]`; lead: vectors f32 `[n, c]` like the first -> f32 `[n, d]`, by the map of the content.
    """

    name: str
    vectors: Floats
    lead: Callable[[Floats], Floats]


def item_space(served: Served, name: str | None) -> ItemSpace:
    """The space of a run's items.

    name: of an entry of `[[content]]`; None: its only one.

    Raises:
      InputError: the run has no such entry, or it is codes, which a text does not have.
    """
    names = [part.name for part in served.config.content]
    if (name is None and len(names) != 1) or (name is not None and name not in names):
        raise InputError(f"run {served.run.folder} has the content {', '.join(names) or 'none'}; "
                         f"expected {name or 'the name of one'} among its [[content]], whose "
                         "matrix leads from texts to its items")
    part = served.config.content[names.index(name or names[0])]
    if part.codes:
        raise InputError(f"the content {part.name!r} of run {served.run.folder} is codes, which no "
                         "text has; expected content that is vectors")
    weights = [np.asarray(served.params[path], np.float32) for path in part.paths]

    def lead(vectors: Floats) -> Floats:
        return vectors @ weights[0] if not part.hidden else np.asarray(
            mlp([jnp.asarray(leaf) for leaf in weights], jnp.asarray(vectors)), np.float32)

    return ItemSpace(part.name, vectors_of(served), lead)


def vectors_of(served: Served) -> Floats:
    """A run's vectors of all items, f32 `[V, d]`."""
    rows = row_blocks(served, served.rows, served.encoder.source.compose)
    return np.concatenate(list(rows)).astype(np.float32)


def user_scores(served: Served, user: str | None, history: Sequence[str] | None = None,
                times: Sequence[int] | None = None) -> Floats:
    """Scores f32 `[V]` of all items for a user or after a history, as `recommend` ranks by.

    Raises:
      InputError: as `recommend`, or the rows do not lie on the devices.
    """
    served.check_there("a search by a user's taste")
    tiles, _ = question_of(served, user, history, times)
    count = served.dataset.num_items
    encode = jitted_queries(served.encoder, count, served.mesh, served.over)
    query = encode(served.params, served.rows, tiles)[0, 0]
    expanded = served.encoder.source.expand(served.params, query)
    found = np.asarray(_products(served.rows, expanded, served.bias))[:count]
    return found.astype(np.float32)


@jax.jit
def _products(rows: Any, query: Any, bias: Any) -> jax.Array:
    scores = jnp.matmul(rows.astype(jnp.float32), query, precision="highest")
    return scores if bias is None else scores + bias


def trained_items(served: Served) -> npt.NDArray[np.bool_]:
    """Items that the model knows something of, bool `[V]`."""
    met = served.dataset.popularity() > 0
    return met if served.filled is None else met | served.filled


def blend_scores(text: Floats, user: Floats, trained: npt.NDArray[np.bool_],
                 blend: float) -> Floats:
    """Both kinds of scores as one, f32 `[V]`; -inf where the text has no score.

    text, user: f32 `[V]`; trained: bool `[V]`, where `user` means something; blend: share of the
    user, 0 to 1.

    Raises:
      InputError: blend is out of range.
    """
    if not 0 <= blend <= 1:
        raise InputError(f"blend is {blend:g}; expected 0 (the text alone) to 1 (the user alone)")
    there = np.isfinite(text)
    both = there & trained
    if not both.any():
        return text
    known = np.where(both, _standard(user, both), 0.0)
    found = (1 - blend) * _standard(np.where(there, text, 0), both) + blend * known
    return np.where(there, found, -np.inf).astype(np.float32)


def _standard(scores: Floats, of: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Scores by the mean and the deviation of those in `of`, bool `[V]`."""
    chosen = scores[of].astype(np.float64)
    return np.asarray((scores - chosen.mean()) / (chosen.std() or 1.0), np.float64)
