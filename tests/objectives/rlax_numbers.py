"""What rlax (Apache-2.0) computes for fixed inputs: `python rlax_numbers.py` writes them down.

It needs rlax alone, which may want another JAX than this project: the test compares with what is
written down, and that with rlax itself where it is installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_suffix(".json")
ITEMS, PLACES, DISCOUNT, STEPS, CAP, HUBER = 5, 9, 0.8, 3, 1.5, 0.4


def inputs() -> dict[str, np.ndarray]:
    """One history: scores of the current and of the late weights, actions, rewards, and the
    scores of the policy that wrote the log."""
    draw = np.random.default_rng(11)
    return {"scores": draw.normal(size=(PLACES, ITEMS)), "late": draw.normal(size=(PLACES, ITEMS)),
            "actions": draw.integers(0, ITEMS, PLACES), "rewards": draw.normal(size=PLACES),
            "behaviour": draw.normal(size=(PLACES, ITEMS))}


def by_rlax() -> dict[str, Any]:
    """Its numbers by name, in f64."""
    import jax

    with jax.enable_x64(True):
        return _numbers()


def _numbers() -> dict[str, Any]:
    import jax
    import rlax

    given = inputs()
    scores, late, actions, rewards = (given[name] for name in (
        "scores", "late", "actions", "rewards"))
    after = np.full(PLACES, DISCOUNT)
    after[-1] = 0.0  # past the end of a history nothing comes
    # Of the state that a place leads to; what stands at the end does not count.
    next_of = np.roll(scores, -1, axis=0), np.roll(late, -1, axis=0)
    returns = rlax.discounted_returns(rewards, after, np.zeros(PLACES))
    ones = np.ones(PLACES)
    ratios = rlax.categorical_importance_sampling_ratios(scores, given["behaviour"], actions)
    double = jax.vmap(rlax.double_q_learning)(
        scores, actions, rewards, after, next_of[1], next_of[0])
    best = next_of[1].max(axis=1)
    several = rlax.n_step_bootstrapped_returns(rewards, after, best, STEPS)
    errors = scores[np.arange(PLACES), actions] - np.asarray(several)
    return {
        "returns": np.asarray(returns).tolist(),
        "policy_gradient": float(rlax.policy_gradient_loss(scores, actions, returns, ones)),
        "off_policy": float(rlax.policy_gradient_loss(
            scores, actions, returns, np.minimum(ratios, CAP))),
        "entropy": float(rlax.entropy_loss(scores, ones)),
        "ratios": np.asarray(ratios).tolist(),
        "q_learning": np.asarray(jax.vmap(rlax.q_learning)(
            scores, actions, rewards, after, next_of[1])).tolist(),
        "double_q_learning": np.asarray(double).tolist(),
        "several_steps": np.asarray(several).tolist(),
        "huber": np.asarray(rlax.huber_loss(errors, HUBER)).tolist(),
        "square": np.asarray(rlax.l2_loss(errors)).tolist(),
    }


def main() -> None:
    """Write them down, with the version."""
    from importlib.metadata import version

    FILE.write_text(json.dumps({"rlax": version("rlax"), "jax": version("jax"), **by_rlax()},
                               indent=1) + "\n")


if __name__ == "__main__":
    main()
