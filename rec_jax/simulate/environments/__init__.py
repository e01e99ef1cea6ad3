"""Simulated users: pure functions of a state, a slate and a key.

One file an environment. Each holds a frozen `Config` whose `open` gives an `Environment`;
`ENVIRONMENTS` is the one line that names it.
"""

from rec_jax.simulate.environments.base import Environment, EnvironmentConfig, Outcome

ENVIRONMENTS = {
    "choc_kale": "rec_jax.simulate.environments.choc_kale",
    "interest": "rec_jax.simulate.environments.interest",
    "session": "rec_jax.simulate.environments.session",
}

__all__ = ["ENVIRONMENTS", "Environment", "EnvironmentConfig", "Outcome"]
