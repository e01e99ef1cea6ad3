"""Every random number of a run by its name: which key it comes from.

    seed -> parameters, mask, features, content, heads, lora      before the first step
         -> agent, replay, play (of simulated users)              while it plays, before, evaluated
         -> steps -> step k -> negatives, rounding, content,      in step k
                               neighbours, walks
                            -> micro-batch i -> dropout, task     in micro-batch i of it

A key is either folded on or drawn from, never both: what is drawn from a key may be the bits of a
key that is folded from it. The rows of tables start from a hash of their own (`rec_jax.tables`),
and the order of the data from numpy.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

PARAMETERS, MASK, FEATURES, STEPS, CONTENT, HEADS = 1, 2, 3, 4, 5, 6  # of a run
AGENT, REPLAY, PLAY = 7, 8, 9  # of a run that plays
LORA = 10  # of a run
# Of a step, past the number of any micro-batch. From that of ROWS a key is folded for each item.
NEGATIVES, ROUNDING, ROWS = 2**31, 2**31 + 1, 2**31 + 2
NEIGHBOURS, WALKS = 2**31 + 3, 2**31 + 4
DROPOUT, TASK = 0, 1  # of a micro-batch


def of_run(seed: int, name: int) -> Array:
    """The key of a run's stream `name`."""
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), name)


def of_steps(seed: int) -> Array:
    """The key that a state carries, from which all of its steps draw."""
    return of_run(seed, STEPS)


def of_step(run: Array, step: Array, name: int | Array) -> Array:
    """The key of stream `name`, or of a micro-batch by its number, in a step.

    run: the key of `of_steps`; step: int32, updates done.
    """
    return jax.random.fold_in(jax.random.fold_in(run, step), name)


def of_micro_batches(run: Array, step: Array, count: int, name: int) -> Array:
    """Keys `[count]` of stream `name` in the micro-batches of a step."""
    return jax.vmap(lambda index: jax.random.fold_in(of_step(run, step, index), name))(
        jnp.arange(count))
