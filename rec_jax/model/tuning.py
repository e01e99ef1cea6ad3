"""Which parameters of a run train, and how fast: rules over their paths.

    [[tune]]                     [[tune]]
    match = "*"                  match = "content/*"
    rate = 0.0                   rate = 0.5

A parameter is named by its path: `blocks/0/qkv/kernel`, `content/text`, `heads/value`, `mask`,
`lora/blocks/0/qkv/kernel/a`, and a table by `tables/items`, its bias with it. In a pattern `*` is
any text, slashes too, and `?` one character. Of several rules that match a path the last one
counts, so that a general rule stands first and its exceptions behind it. A parameter that no rule
matches trains as ever.

A frozen parameter (rate 0) is a constant of the step: it has no gradient, no state of the
optimizer, no weight decay and no share in the norm of the gradient, and its bits stay.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import optax

from rec_jax.errors import InputError
from rec_jax.ranges import at_least, check

TABLES = "tables/"
"""Before the name of a table."""


@dataclass(frozen=True)
class TuneConfig:
    """One rule.

    match: paths of parameters, see `rec_jax.model.tuning`.
    rate: factor on the learning rate of those parameters; 0 freezes them.
    """

    match: str
    rate: float = 0.0

    def __post_init__(self) -> None:
        check(self, "tune.", rate=at_least(0, 1e6))


class Tuning(NamedTuple):
    """The factor on the learning rate of each parameter, by path, where it is not 1."""

    rates: Mapping[str, float] = {}

    def rate(self, path: str) -> float:
        """The factor of one parameter."""
        return self.rates.get(path, 1.0)

    def frozen(self, path: str) -> bool:
        """Whether a parameter keeps its bits."""
        return self.rate(path) == 0

    def table_rate(self, name: str) -> float:
        """The factor of the table of that name."""
        return self.rate(TABLES + name)

    def freezes_table(self, name: str) -> bool:
        """Whether a table keeps its bits."""
        return self.frozen(TABLES + name)


EVERYTHING = Tuning()
"""All parameters train at the learning rate."""


def find_tuning(rules: Iterable[TuneConfig], encoder: Collection[str], tables: Iterable[str],
                constants: Iterable[str] = ()) -> Tuning:
    """What the rules say of the parameters beside the tables, by path, and of those, by name.

    constants: paths that are frozen whatever the rules say.

    Raises:
      InputError: a rule matches nothing.
    """
    paths = [*encoder, *(TABLES + name for name in tables)]
    rates = {path: rule.rate for rule in rules for path in matching("tune", rule.match, paths)}
    rates |= dict.fromkeys(constants, 0.0)
    return Tuning({path: rate for path, rate in rates.items() if rate != 1})


def matching(what: str, pattern: str, paths: Collection[str], kind: str = "parameter") -> list[str]:
    """The paths that a pattern of section `what` matches; there is at least one.

    Raises:
      InputError: there is none; paths that are near to it are listed.
    """
    found = [path for path in paths if fnmatch.fnmatchcase(path, pattern)]
    if not found:
        near = difflib.get_close_matches(pattern, paths, n=4, cutoff=0.3) or sorted(paths)[:4]
        raise InputError(f"{what}.match {pattern!r} matches no {kind} of this run; expected a path "
                         f"or a pattern, such as {', '.join(near)}")
    return found


def scale_by_path(tuning: Tuning) -> optax.GradientTransformation:
    """Multiplies the updates of each parameter by its factor.

    Updates are a tree of `encoder`, by path, and `tables`, by name.
    """
    def scaled(updates: Any, params: Any = None) -> Any:
        del params
        return {part: {name: _times(tree, tuning.rate(name if part == "encoder" else TABLES + name))
                       for name, tree in trees.items()} for part, trees in updates.items()}

    return optax.stateless(scaled)


def _times(tree: Any, factor: float) -> Any:
    return jax.tree.map(lambda leaf: leaf * factor, tree)
